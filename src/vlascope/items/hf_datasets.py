"""Hugging Face `datasets` as items: in memory, saved to disk, or by their hub name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ItemError, ItemNotFoundError, missing_extra, nearest_text
from ..files import content_hash
from .images import read_image
from .item import Item, ItemSource, Scalar
from .rlds import choose_cameras


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `folder` was written by `Dataset.save_to_disk`."""
    is_one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return is_one or (folder / "dataset_dict.json").is_file()


def is_hf_dataset(value: object) -> bool:
    """Return whether `value` is one of the library's datasets, without importing the library."""
    return type(value).__module__.partition(".")[0] == "datasets"


class HfSource(ItemSource):
    """Rows of a Hugging Face dataset with at least one image column; each image column is a camera.

    Item ids are "row-000012". Labels are the columns of texts, numbers and class names; other columns (lists,
    boxes, audio) are left out and named in `left_out`.

    Args:
        dataset: A `datasets.Dataset`, the folder of `save_to_disk`, or (with a network) a name on the hub.
        split: Split of a dataset that has several.
        config: Configuration of a dataset on the hub.
        camera: Name of one image column or several; all by default.
        prompt: Prompt of every item.
        prompt_column: Take the prompt from this text column instead.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
        ItemNotFoundError: no such folder or dataset.
        ItemError: no image column, or no row.
        InputError: no such split or column, or a streamed dataset (its length is not known).
    """

    def __init__(
        self,
        dataset: Any,
        *,
        split: str | None = None,
        config: str | None = None,
        camera: str | Sequence[str] | None = None,
        prompt: str | None = None,
        prompt_column: str | None = None,
    ) -> None:
        datasets = _datasets()
        self.name = Path(str(dataset)).name if isinstance(dataset, str | Path) else "dataset"
        table = _choose_split(_load(dataset, config=config), split)
        if not isinstance(table, datasets.Dataset):
            raise InputError(
                f"got a {type(table).__name__}; need a datasets.Dataset, whose length is known (not streaming)."
            )
        features = table.features
        image_columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if not image_columns or not len(table):
            raise ItemError(
                f"'{self.name}' has {len(table)} rows and the image columns {image_columns}; need one of each at "
                f"least. Its columns are {', '.join(features)}; cast one with `cast_column(name, datasets.Image())`."
            )
        self.cameras = choose_cameras(camera, dict.fromkeys(image_columns), name=self.name)
        if prompt_column is not None and prompt_column not in features:
            raise InputError(
                f"'{self.name}' has no column '{prompt_column}'; its columns are {', '.join(features)}."
                f"{nearest_text(prompt_column, features)}"
            )
        self.prompt, self.prompt_column = prompt, prompt_column
        for column in image_columns:  # bytes or path as stored: we decode, and name what is damaged
            table = table.cast_column(column, datasets.Image(decode=False))
        self._table = table
        self._classes = {n: k.names for n, k in features.items() if isinstance(k, datasets.ClassLabel)}
        scalars = [n for n, kind in features.items() if isinstance(kind, datasets.Value)]
        self._labels = [name for name in (*scalars, *self._classes) if name != prompt_column]
        self.left_out = [n for n in features if n not in (*image_columns, *self._labels, prompt_column)]
        self._original = str(getattr(table, "_fingerprint", ""))

    @property
    def item_ids(self) -> list[str]:
        """The id of every item."""
        return [f"row-{index:06d}" for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Item:
        row, item_id = self._table[index], f"row-{index:06d}"
        images, sources = [], []
        for camera in self.cameras:
            cell, name = row[camera], f"'{self.name}', row {index}, column {camera}"
            if cell is None or not (cell.get("bytes") or cell.get("path")):
                raise ItemError(f"{name}: there is no image; leave the row out or skip it (on_error='skip').")
            data = io.BytesIO(cell["bytes"]) if cell.get("bytes") else Path(cell["path"])
            images.append(read_image(data, name=name))
            sources.append(None if cell.get("bytes") else str(cell["path"]))
        prompt = self.prompt
        if prompt is None and self.prompt_column is not None:
            prompt = row[self.prompt_column]
        return Item(
            item_id=item_id,
            images=tuple(images),
            cameras=self.cameras,
            prompt=prompt,
            labels={name: self._label(name, row[name]) for name in self._labels},
            source=sources[0],
        )

    def _label(self, name: str, value: Any) -> Scalar:
        if name in self._classes:
            # -1 is the library's mark for "no class known" (test splits).
            return None if value is None or value < 0 else self._classes[name][value]
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    def fingerprint(self) -> str:
        return content_hash([self._original, list(self.cameras), self.prompt, self.prompt_column])


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", extra="data", needed_for="Reading Hugging Face datasets") from error
    return datasets


def _load(dataset: Any, *, config: str | None) -> Any:
    if not isinstance(dataset, str | Path):
        return dataset
    datasets = _datasets()
    if Path(dataset).is_dir():
        try:
            return datasets.load_from_disk(str(dataset))
        except (OSError, ValueError) as error:
            raise ItemError(f"'{dataset}' cannot be read as a saved dataset ({error}).") from error
    try:
        return datasets.load_dataset(str(dataset), config)
    except (OSError, ValueError, RuntimeError) as error:  # the library's own errors are kinds of these
        raise ItemNotFoundError(
            f"the dataset '{dataset}' cannot be fetched ({error}). Check its name and the network, or save it with "
            "`save_to_disk` and give the folder."
        ) from error


def _choose_split(loaded: Any, split: str | None) -> Any:
    if not isinstance(loaded, dict):
        if split is not None:
            raise InputError(f"split='{split}': the dataset has no splits; leave it out.")
        return loaded
    names = list(loaded)
    if split is None and len(names) == 1:
        return loaded[names[0]]
    if split not in names:
        got = "no split was chosen" if split is None else f"there is no split '{split}'"
        raise InputError(f"{got}; there are {', '.join(names)}. Add ?split={names[0]} to the name.")
    return loaded[split]
