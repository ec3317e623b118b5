"""Curation: the episodes or images of a source, those that a review keeps, and writing them out as a dataset."""

from __future__ import annotations

import csv
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import content_hash, new_folder
from .frames import EpisodeSubset, FrameSource
from .item import Item, ItemSource, Subset, vector_names
from .lerobot import LeRobotSource
from .lerobot_write import EpisodeData, write_lerobot
from .reviews import Review, matches, parse_where, require_table
from .video import VideoSource


@dataclass(frozen=True)
class Unit:
    """What is reviewed as a whole: an episode (or video), or an image.

    Attributes:
        id: Name of the episode, or id of the image.
        first: Index of its first item in the source.
        n_items: Number of its items, 1 for an image.
    """

    id: str
    first: int
    n_items: int


def units_of(source: ItemSource) -> list[Unit]:
    """Return the episodes of a source of frames, or the images of any other, without decoding where possible."""
    if isinstance(source, FrameSource):
        lengths = source.episode_lengths
        starts = np.cumsum([0, *lengths]).tolist()
        return [Unit(*facts) for facts in zip(source.episode_names(), starts, lengths, strict=False)]
    ids = getattr(source, "item_ids", None)
    ids = [item.item_id for item in source] if ids is None else ids
    return [Unit(item_id, place, 1) for place, item_id in enumerate(ids)]


def _with_review(item: Item, review: Review | None) -> Item:
    if review is None:
        return item
    return replace(
        item, labels={**item.labels, "review": review.review, "review_reason": review.reason or None}
    )


class _ReviewedEpisodes(EpisodeSubset):
    """Some episodes of a source, with their reviews among the labels."""

    def __init__(self, parent: FrameSource, places: Sequence[int], reviews: Mapping[str, Review]) -> None:
        super().__init__(parent, places)
        self.reviews = dict(reviews)

    def read(self, index: int) -> Item:
        name = self._names[self.locate(index)[0]]
        return _with_review(super().read(index), self.reviews.get(name))

    def fingerprint(self) -> str:
        return content_hash([super().fingerprint(), _facts(self.reviews, self._names)])


class _ReviewedItems(Subset):
    """Some items of a source, with their reviews among the labels."""

    def __init__(
        self, parent: ItemSource, places: Sequence[int], ids: Sequence[str], reviews: Mapping[str, Review]
    ) -> None:
        super().__init__(parent, tuple(places))
        self.item_ids, self.reviews = list(ids), dict(reviews)

    def read(self, index: int) -> Item:
        return _with_review(super().read(index), self.reviews.get(self.item_ids[index]))

    def fingerprint(self) -> str:
        return content_hash([super().fingerprint(), _facts(self.reviews, self.item_ids)])


def _facts(reviews: Mapping[str, Review], ids: Sequence[str]) -> list[list[str]]:
    return [[one, reviews[one].review, reviews[one].reason] for one in ids if one in reviews]


def with_reviews(source: ItemSource, table: Path | str, *, where: str | None = None) -> ItemSource:
    """Return a source with its reviews as labels "review" and "review_reason", only the chosen ones with `where`.

    Args:
        source: Any source; of frames, whole episodes are chosen.
        table: The CSV file of `vlascope label`.
        where: "success", "failure,drop", "not drop", "unlabelled"; None keeps all.

    Raises:
        ItemNotFoundError: no such table.
        ItemError: it is no table of reviews.
        InputError: nothing is left, or none of the table's ids is in the data.
    """
    reviews = require_table(Path(table)).current()
    units = units_of(source)
    ids = {unit.id for unit in units}
    if reviews and not ids & set(reviews):
        raise InputError(
            f"none of the {len(reviews)} ids in '{table}' (such as '{next(iter(reviews))}') is in '{source.name}', "
            f"which has such as '{units[0].id}'; is it the table of other data?"
        )
    kept = None if where is None else parse_where(where)
    places = [p for p, unit in enumerate(units) if kept is None or matches(unit.id, reviews, kept)]
    if not places:
        raise InputError(
            f"where='{where}' keeps none of the {len(units)} episodes or images of '{source.name}'; "
            f"{len(ids & set(reviews))} of them have a label in '{table}'."
        )
    if isinstance(source, FrameSource):
        return _ReviewedEpisodes(source, places, reviews)
    return _ReviewedItems(source, places, [units[place].id for place in places], reviews)


# ---- writing out ----


def export_curated(
    source: ItemSource, out: Path | str, *, fps: int | None = None, force: bool = False, crf: int = 16
) -> Path:
    """Write a source as a dataset of its own and return its folder.

    Episodes with actions become a LeRobot v3 dataset (video is lossy, see `write_lerobot`; masks of the first camera,
    labels and events go along); videos and images are copied as they are, with `items.csv` listing id, file, prompt
    and labels.

    Args:
        source: What `with_reviews` or `open_items` returned.
        out: Folder to make.
        fps: Frames per second of episodes that do not say (RLDS, HDF5).
        force: Replace a folder that vlascope wrote.
        crf: H.264 quality of a LeRobot dataset, 0 (lossless) to 51.

    Raises:
        InputError: episodes without instruction, state or frame rate.
        StorageError: `out` exists and `force` is False, or it cannot be written.
    """
    out = Path(out)
    base = _base(source)
    if isinstance(source, FrameSource) and not isinstance(base, VideoSource):
        return _export_lerobot(source, base, out, fps=fps, force=force, crf=crf)
    with new_folder(out, force=force, apart=_places(base)) as folder:
        _copy_files(source, folder)
    return out


def _places(base: ItemSource) -> list[Path]:
    """Return the files or folders that a source reads."""
    found = [getattr(base, "root", None), *getattr(base, "paths", ()), *getattr(base, "images", ())]
    return [Path(place) for place in found if isinstance(place, str | Path)]


def _base(source: ItemSource) -> ItemSource:
    """Return the reader below the views of it."""
    while not isinstance(source, LeRobotSource) and hasattr(source, "parent"):
        source = source.parent  # type: ignore[attr-defined]
    return source


def _export_lerobot(
    source: FrameSource, base: ItemSource, out: Path, *, fps: int | None, force: bool, crf: int
) -> Path:
    rate = source.fps if fps is None else fps
    if rate is None:
        raise InputError(f"'{source.name}' does not say how many frames per second it has; give fps (--fps).")
    if round(rate) != rate:
        raise InputError(
            f"'{source.name}' has {rate:g} frames per second; LeRobot needs a whole number: give fps."
        )
    first = source[0]
    if first.action is None or first.state is None:
        lacking = "action" if first.action is None else "state"
        raise InputError(
            f"'{source.name}' has no {lacking}, which a LeRobot dataset needs; with HDF5 name it (?state_keys=...)."
        )
    names = []
    for own, vector in (("state_names", first.state), ("action_names", first.action)):
        names.append(vector_names(getattr(base, own), len(vector)))
    robot = base.info.get("robot_type") if isinstance(base, LeRobotSource) else None
    return write_lerobot(
        out,
        (_episode(source, unit, base) for unit in units_of(source)),
        fps=int(rate),
        state_names=names[0],
        action_names=names[1],
        robot_type=robot or "unknown",
        crf=crf,
        force=force,
        apart=_places(base),
    )


def _episode(source: FrameSource, unit: Unit, base: ItemSource) -> EpisodeData:
    items = [source[unit.first + step] for step in range(unit.n_items)]
    tasks = {item.prompt for item in items}
    if len(tasks) != 1 or None in tasks:
        raise InputError(
            f"episode '{unit.id}' has {'no instruction' if None in tasks else f'{len(tasks)} instructions'}; a LeRobot "
            "episode needs one: give a prompt (--prompt)."
        )
    labels, frame_labels = _split_labels(items)
    events = {k.removeprefix("event."): labels.pop(k) for k in list(labels) if k.startswith("event.")}
    masks = [item.masks.get("segmentation") for item in items]
    has_masks = all(mask is not None and mask.dtype in (np.uint8, np.uint16) for mask in masks)
    poses = (
        base.poses(items[0].episode)
        if isinstance(base, LeRobotSource) and items[0].episode is not None
        else {}
    )
    return EpisodeData(
        frames={c: np.stack([i.images[k] for i in items]) for k, c in enumerate(items[0].cameras)},
        state=np.stack([np.asarray(item.state, np.float32) for item in items]),
        action=np.stack([np.asarray(item.action, np.float32) for item in items]),
        task=str(items[0].prompt),
        masks=np.stack([np.asarray(mask) for mask in masks]) if has_masks else None,
        mask_names=dict(items[0].mask_names.get("segmentation", {})) if has_masks else {},
        labels={**labels, "source_episode": unit.id},
        frame_labels=frame_labels,
        poses=poses,
        events=events,
    )


def _split_labels(items: Sequence[Item]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the labels that are the same in every frame, and those that are not, as arrays."""
    same: dict[str, Any] = {}
    changing: dict[str, Any] = {}
    for name in dict.fromkeys(name for item in items for name in item.labels):
        values = [item.labels.get(name) for item in items]
        if all(value == values[0] for value in values):
            same[name] = values[0]
        else:
            changing[name] = np.array(values, object)
    return same, changing


def _copy_files(source: ItemSource, folder: Path) -> None:
    """Copy the files of images or videos into `folder`, and list them with their labels."""
    rows: list[dict[str, Any]] = []
    has_masks = False
    for unit in units_of(source):
        item = source[unit.first]
        name = re.sub(r"[^\w./ -]", "_", unit.id).lstrip("/").replace("..", "_")
        origin = Path(item.source) if item.source else None
        if isinstance(source, FrameSource) and origin is not None:
            name = unit.id if Path(unit.id).suffix else unit.id + origin.suffix
        elif origin is not None and origin.is_file() and not Path(name).suffix:
            name += origin.suffix
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin is not None and origin.is_file():
            shutil.copy2(origin, place)
        else:
            from PIL import Image

            place = place.with_name(place.name + ".png")
            Image.fromarray(item.image).save(place)
        has_masks = has_masks or bool(item.masks)
        labels = {f"label.{key}": value for key, value in item.labels.items()}
        file = place.relative_to(folder).as_posix()
        rows.append({"id": unit.id, "file": file, "prompt": item.prompt, **labels})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if has_masks:
        warnings.warn(
            "the images were copied without their masks, which stay with the original.", stacklevel=3
        )
