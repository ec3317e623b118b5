"""The simulator's decorrelated image set (`vlascope sim record --factorial`) as items: images, masks, factors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ItemError, ItemNotFoundError
from ..files import content_hash
from .images import file_facts, read_image
from .item import Item, ItemSource, OnError, Scalar

_OF_TARGET = ("colour", "material", "mass", "friction", "stiffness")
_LABELS = ("held", "side", "n_objects", "table", "gripper_open", "target_pixels")


def is_factorial(folder: Path) -> bool:
    """Return whether `folder` is a factorial set, begun or complete."""
    return (folder / "factorial.json").is_file()


class FactorialSource(ItemSource):
    """Images of a factorial set. Of each item

        masks["segmentation"]: table, arm, gripper, pad and each object, by the names of the simulator;
        labels: target_colour, target_material, target_mass (kg), target_friction, target_stiffness (N/m) and
            target_x, target_y, target_z (m), named as in recorded episodes; held, side, n_objects, table,
            gripper_open, target_pixels.

    Args:
        root: The folder that `vlascope sim record --factorial` made.
        prompt: Prompt of every item; the set has none of its own, for a prompt that names the target would tell a
            model the factors.
        on_error: "skip" leaves out images that are missing and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such folder, or an image is missing.
        ItemError: no factorial set, or one that is not complete or damaged.
    """

    def __init__(self, root: Path | str, *, prompt: str | None = None, on_error: OnError = "raise") -> None:
        self.root, self.prompt, self.on_error = Path(root), prompt, on_error
        self.name = self.root.resolve().name
        if not is_factorial(self.root):
            raise ItemError(f"'{root}' is no factorial set: it has no factorial.json.")
        if not (self.root / "index.parquet").is_file():
            raise ItemError(
                f"the factorial set '{root}' is not complete: it has no index.parquet. Run the command that made it "
                "once more (`vlascope sim record --factorial`); it goes on where it stopped."
            )
        self._kept: list[int] = []
        for row, facts in enumerate(self._rows):
            path = self.root / facts["image"]
            if path.is_file():
                self._kept.append(row)
            else:
                self._skip(
                    path.stem, ItemNotFoundError(f"there is no image '{path}', which the index lists.")
                )
        if not self._kept:
            raise ItemError(f"'{root}' has none of the images that its index lists.")

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.root / "index.parquet"
        try:
            rows = pq.read_table(path).to_pylist()
            missing = {"image", "mask", "mask_ids", "mask_names", "target_xyz", *_OF_TARGET, *_LABELS} - set(
                rows[0]
            )
        except (pa.ArrowInvalid, OSError, IndexError) as error:
            raise ItemError(f"'{path}' cannot be read ({error}); record the set again.") from error
        if missing:
            raise ItemError(f"'{path}' lacks the columns {', '.join(sorted(missing))}; record the set again.")
        return rows

    @property
    def item_ids(self) -> list[str]:
        """The id of every item."""
        return [Path(self._rows[row]["image"]).stem for row in self._kept]

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, index: int) -> Item:
        facts = self._rows[self._kept[index]]
        image = read_image(self.root / facts["image"])
        mask = _read_mask(self.root / facts["mask"])
        if mask.shape != image.shape[:2]:
            raise ItemError(
                f"'{facts['mask']}' is {mask.shape}, its image {image.shape[:2]} (height, width); record the set again."
            )
        labels: dict[str, Scalar] = {f"target_{name}": facts[name] for name in _OF_TARGET}
        labels |= {f"target_{axis}": x for axis, x in zip("xyz", facts["target_xyz"], strict=True)}
        labels |= {name: facts[name] for name in _LABELS}
        return Item(
            item_id=Path(facts["image"]).stem,
            images=(image,),
            prompt=self.prompt,
            labels=labels,
            masks={"segmentation": mask},
            mask_names={"segmentation": dict(zip(facts["mask_ids"], facts["mask_names"], strict=True))},
            source=str(self.root / facts["image"]),
        )

    def fingerprint(self) -> str:
        files = [self.root / self._rows[row][kind] for row in self._kept for kind in ("image", "mask")]
        facts = [file_facts(path) for path in (self.root / "index.parquet", *files) if path.is_file()]
        return content_hash([facts, self.prompt])


def _read_mask(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (OSError, SyntaxError) as error:
        raise ItemError(f"'{path}' is missing or damaged ({error}); record the set again.") from error
