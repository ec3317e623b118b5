"""What kind of dataset a path holds, by its structure; and specs such as "rlds:PATH?split=train"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from ..errors import InputError, ItemError, nearest_text
from ._video import VIDEO_SUFFIXES
from ._walk import find_files, subfolders
from .coco import find_annotations
from .factorial import is_factorial
from .hdf5 import HDF5_SUFFIXES
from .hf_datasets import is_saved_dataset
from .images import IMAGE_SUFFIXES
from .lerobot import is_lerobot
from .nerf import find_transforms
from .rlds import is_rlds
from .voc import is_voc

OPTIONS: dict[str, tuple[str, ...]] = {
    "images": (),
    "video": (),
    "lerobot": (),
    "rlds": ("split",),
    "hdf5": ("turn", "state_keys"),
    "nerf": (),
    "coco": ("images",),
    "voc": ("image_set",),
    "factorial": (),
    "hf": ("split", "config", "prompt_column"),
    "sim": ("n", "seed", "image_px", "failure"),
}
"""The kinds that can stand before a path, with the options that can stand behind it."""

TITLES = {
    "images": "images",
    "video": "video files",
    "lerobot": "a LeRobot dataset",
    "rlds": "an RLDS dataset",
    "hdf5": "HDF5 demonstrations",
    "nerf": "posed images (transforms.json)",
    "coco": "a COCO dataset",
    "voc": "a VOC dataset",
    "factorial": "a factorial set of the simulator",
    "hf": "a saved Hugging Face dataset",
}


_MAX_NAMED = 12  # readings that an error lists


@dataclass(frozen=True)
class Spec:
    """A spec taken apart: "rlds:data/bridge?split=train" is kind rlds, path data/bridge, options {split: train}."""

    kind: str
    path: str
    options: dict[str, str] = field(default_factory=dict)


def parse_spec(text: str) -> Spec | None:
    """Return a spec with its kind in front taken apart; None for a plain path.

    Raises:
        InputError: an option that the kind does not have.
    """
    kind, mark, rest = text.partition(":")
    if not mark or kind not in OPTIONS or Path(text).exists():
        return None
    path, _, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise InputError(f"'{text}': after '?' need name=value, joined by '&' ({error}).") from error
    for name, _ in pairs:
        if name not in OPTIONS[kind]:
            known = ", ".join(OPTIONS[kind]) or "none"
            raise InputError(
                f"'{text}': '{kind}:' has no option '{name}'; it has {known}.{nearest_text(name, OPTIONS[kind])}"
            )
    if not path:
        raise InputError(f"'{text}' names nothing behind '{kind}:'.")
    return Spec(kind, path, dict(pairs))


_MARKS = {"meta", "annotations", "JPEGImages"}  # folders by which datasets are known, beside the files below
_MARK_SUFFIXES = (".json", *HDF5_SUFFIXES)


def marked_kinds(path: Path) -> list[str]:
    """Return the kinds of dataset that a folder can be read as, by marks of its own."""
    tests = (
        ("lerobot", is_lerobot),
        ("rlds", is_rlds),
        ("hdf5", lambda folder: any(p.suffix.lower() in HDF5_SUFFIXES for p in folder.glob("*"))),
        ("nerf", find_transforms),
        ("coco", find_annotations),
        ("voc", is_voc),
        ("factorial", is_factorial),
        ("hf", is_saved_dataset),
    )
    return [kind for kind, test in tests if test(path)]


def _may_have_marks(path: Path) -> bool:
    """Return whether it is worth while to look closely: one look at the names, for there may be many folders."""
    try:
        names = os.listdir(path)
    except OSError:  # whoever reads the files says so
        return False
    return any(
        name in _MARKS or name[:1].isdigit() or ".tfrecord" in name or name.lower().endswith(_MARK_SUFFIXES)
        for name in names
    )


def _loose_kinds(path: Path, *, apart_from: Sequence[Path] = ()) -> list[str]:
    """Return "images" and "video" where there are such files in a folder or below, but for some folders."""
    # A folder below that cannot be listed is left to the reader, which knows what to do about it.
    files, _ = find_files(path, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES), report=lambda name, error: None)
    endings = {file.suffix.lower() for file in files if not any(file.is_relative_to(p) for p in apart_from)}
    return [k for k, some in (("images", IMAGE_SUFFIXES), ("video", VIDEO_SUFFIXES)) if endings & set(some)]


def spec_of_folder(path: Path) -> Spec:
    """Return the one dataset that a folder holds ("images" when it holds nothing: its reader says so).

    By its own marks; else the dataset in the folder below, when there is nothing else; else loose images or videos.

    Raises:
        ItemError: it can be read in several ways; the message names them.
    """
    found = [(kind, path) for kind in marked_kinds(path)]
    if not found:
        below = [(kind, p) for p in subfolders(path) if _may_have_marks(p) for kind in marked_kinds(p)]
        loose = _loose_kinds(path, apart_from=[p for _, p in below])
        found = [*below, *((kind, path) for kind in loose)]
    if len(found) > 1:
        shown = [f"{TITLES[kind]} ('{kind}:{place}')" for kind, place in found[:_MAX_NAMED]]
        more = f" or {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        raise ItemError(
            f"the folder '{path}' can be read as {' or '.join(shown)}{more}; write the one you mean, with its prefix."
        )
    kind, place = found[0] if found else ("images", path)
    return Spec(kind, str(place))


def kind_of_file(path: Path) -> str | None:
    """Return the kind of a single file by its ending and name; None when it is none that can be read."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    if suffix == ".json":
        if path.name.startswith("transforms"):
            return "nerf"
        if path in find_annotations(path.parent):
            return "coco"
    return None
