"""What kind of dataset a path holds, by its structure; and specs such as "rlds:PATH?split=train"."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from ..errors import InputError, ItemError, nearest_text
from ._video import VIDEO_SUFFIXES
from ._walk import find_files
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


def kinds_of_folder(path: Path) -> list[str]:
    """Return the kinds of dataset that a folder can be read as, by its own marks; loose files count only if none."""
    found = []
    if is_lerobot(path):
        found.append("lerobot")
    if is_rlds(path):
        found.append("rlds")
    if any(p.suffix.lower() in HDF5_SUFFIXES for p in path.glob("*")):
        found.append("hdf5")
    if find_transforms(path):
        found.append("nerf")
    if find_annotations(path):
        found.append("coco")
    if is_voc(path):
        found.append("voc")
    if is_factorial(path):
        found.append("factorial")
    if is_saved_dataset(path):
        found.append("hf")
    if found:
        return found
    # A folder below that cannot be listed is left to the reader, which knows what to do about it.
    _, endings = find_files(path, (), report=lambda name, error: None)
    return [
        k for k, some in (("images", IMAGE_SUFFIXES), ("video", VIDEO_SUFFIXES)) if endings.keys() & set(some)
    ]


def kind_of_folder(path: Path) -> str:
    """Return the one kind of dataset that a folder holds ("images" when it holds nothing: its reader says so).

    Raises:
        ItemError: it can be read in several ways; the message names them.
    """
    kinds = kinds_of_folder(path)
    if len(kinds) > 1:
        readings = " or ".join(f"{TITLES[kind]} ('{kind}:{path}')" for kind in kinds)
        raise ItemError(
            f"the folder '{path}' can be read as {readings}; write the one you mean, with its prefix."
        )
    return kinds[0] if kinds else "images"


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
