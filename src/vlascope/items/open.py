"""`open_items`: from whatever the user names, folder, file, list or demo, to a source of items."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ItemError, ItemNotFoundError, nearest_text
from ._demo import open_demo
from ._video import VIDEO_SUFFIXES
from ._walk import find_files, natural_key
from .coco import CocoSource
from .curate import with_reviews
from .factorial import FactorialSource
from .frames import MappedSource, select_frames
from .hdf5 import HDF5_SUFFIXES, Hdf5Source
from .hf_datasets import HfSource, is_hf_dataset
from .images import IMAGE_SUFFIXES, ImageFolder, ImageList
from .item import Item, ItemSource, OnError, Skipped
from .lerobot import LeRobotSource
from .memory import simulate
from .nerf import NerfSource
from .recognise import OPTIONS, Spec, kind_of_file, parse_spec, spec_of_folder
from .reviews import reviews_beside
from .rlds import RldsSource
from .video import VideoSource
from .voc import VocSource

_GLOB_MARKS = frozenset("*?[")
_WITH_CAMERAS = ("lerobot", "rlds", "hdf5", "hf")


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """The options of `open_items` that go to the readers."""

    prompt: str | None
    camera: str | Sequence[str] | None
    on_error: OnError


def open_items(
    spec: Any,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    camera: str | Sequence[str] | None = None,
    on_error: OnError = "raise",
    labels: Path | str | None = None,
    where: str | None = None,
) -> ItemSource:
    """Return the items that `spec` names; nothing is decoded before it is asked for.

    Args:
        spec: One of
            "demo", "demo:pick", "demo:success", "demo:failure": the episodes inside the package;
            "sim:pick?n=4&seed=0": episodes played by the simulator now;
            a folder or file, known by its structure: LeRobot (v2.x, v3), RLDS, HDF5 demonstrations (robomimic,
            LIBERO), posed images (transforms.json), COCO, VOC, a factorial set of the simulator, a saved Hugging Face
            dataset, else images or videos
            (also in folders below). A prefix says which one is meant, and may have options:
            "images:P", "video:P", "lerobot:P", "rlds:P?split=train", "hdf5:P?turn=flip&state_keys=a,b", "nerf:P",
            "coco:P?images=FOLDER", "voc:P?image_set=val", "hf:P?split=train&prompt_column=caption";
            a pattern such as "photos/*.jpg";
            a list (or one) of paths, uint8 arrays [h, w, 3], PIL images or `Item`s; a `datasets.Dataset`;
            an `ItemSource`.
        prompt: Instruction or question given to every item instead of its own.
        limit: Number of items at most.
        stride: Take every n-th frame of each episode or video (for images: every n-th image).
        fps: Frames per second wanted from a video or dataset, at most those that it has.
        camera: Name of the camera, or cameras, of a LeRobot, RLDS, HDF5 or Hugging Face dataset; all by default.
        on_error: "skip" leaves out what is missing or damaged when opening, passes over it when iterating, and
            lists it in `source.skipped`; "raise" stops there.
        labels: Table of `vlascope label`; by default the one beside the data when `where` is given. Items get
            the labels "review" and "review_reason".
        where: Keep the episodes (or images) of that review only: "success", "failure,drop", "not drop",
            "unlabelled".

    Raises:
        ItemNotFoundError: nothing there.
        ItemError: nothing in it that can be read, or a folder that can be read in several ways.
        InputError: an option that does not fit.
        MissingExtraError: the format needs a package that is not installed.
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}; need 'raise' or 'skip'.")
    try:
        source = _open(spec, _Wishes(prompt=prompt, camera=camera, on_error=on_error))
    except PermissionError as error:
        raise ItemError(
            f"'{error.filename or spec}' cannot be read: permission denied. Change its permissions, or name other "
            "data."
        ) from error
    if on_error == "skip":
        source.on_error = on_error
    if labels is not None or where is not None:
        source = with_reviews(source, labels or reviews_beside(spec), where=where)
    source = select_frames(source, stride=stride, fps=fps, limit=limit)
    is_given_as_items = isinstance(spec, ItemSource | Item) or (
        isinstance(spec, Sequence) and any(isinstance(x, Item) for x in spec)
    )
    if prompt is not None and is_given_as_items:
        return MappedSource(source, partial(_set_prompt, prompt=prompt), tag=f"prompt={prompt}")
    return source


def _set_prompt(item: Item, *, prompt: str) -> Item:
    return replace(item, prompt=prompt)


def _open(spec: Any, wishes: _Wishes) -> ItemSource:
    if isinstance(spec, str) and not spec.strip():
        raise InputError(
            "got an empty name of the data; need a file, a folder ('.' is this one) or 'demo:pick'."
        )
    if isinstance(spec, str) and (spec == "demo" or spec.startswith("demo:")):
        return open_demo(spec, prompt=wishes.prompt, camera=wishes.camera)
    if isinstance(spec, str | Path):
        found = parse_spec(spec) if isinstance(spec, str) else None
        found = found or _spec_of_path(spec)
        return _open_spec(found, wishes)
    if is_hf_dataset(spec):
        return HfSource(spec, prompt=wishes.prompt, camera=wishes.camera)
    if isinstance(spec, ItemSource):
        source = spec
    elif isinstance(spec, np.ndarray):
        source = ImageList(list(spec) if spec.ndim == 4 else [spec], prompt=wishes.prompt)
    elif isinstance(spec, Sequence):
        source = _open_list(spec, wishes)
    else:
        source = ImageList([spec], prompt=wishes.prompt)  # one PIL image or item; says so when it is neither
    _refuse_camera(wishes)
    return source


def _refuse_camera(wishes: _Wishes) -> None:
    if wishes.camera is not None:
        raise InputError(
            f"camera={wishes.camera!r} chooses among the cameras of a LeRobot, RLDS, HDF5 or Hugging Face dataset; "
            "leave it out here."
        )


def _open_list(spec: Sequence[Any], wishes: _Wishes) -> ItemSource:
    suffixes = [Path(x).suffix.lower() for x in spec if isinstance(x, str | Path)]
    for kind, endings in (("videos", VIDEO_SUFFIXES), ("HDF5 files", HDF5_SUFFIXES)):
        are_such = [suffix in endings for suffix in suffixes]
        if not any(are_such):
            continue
        if len(suffixes) != len(spec) or not all(are_such):
            raise ItemError(f"the list holds both {kind} and other things; open them separately.")
        reader = VideoSource if kind == "videos" else Hdf5Source
        return reader(spec, prompt=wishes.prompt, on_error=wishes.on_error)
    return ImageList(spec, prompt=wishes.prompt, on_error=wishes.on_error)


def _spec_of_path(spec: str | Path) -> Spec:
    path = Path(spec).expanduser()
    if path.is_dir():
        return spec_of_folder(path)
    if path.is_file():
        kind = kind_of_file(path)
        if kind is None:
            raise ItemError(
                f"'{spec}' is a '{path.suffix.lower() or 'file without ending'}'; need an image "
                f"({', '.join(IMAGE_SUFFIXES)}), a video ({', '.join(VIDEO_SUFFIXES)}), HDF5 "
                f"({', '.join(HDF5_SUFFIXES)}), a dataset's JSON with its kind in front ('coco:{spec}') or a folder."
            )
        return Spec(kind, str(path))
    if _GLOB_MARKS & set(str(path)):
        images, videos, n_found = _expand(path)
        if images and videos:
            raise ItemError(
                f"'{spec}' matches {len(images)} images and {len(videos)} videos; open them separately."
            )
        if images or videos:
            return Spec("images" if images else "video", str(path))
        raise ItemNotFoundError(
            f"'{spec}' matches {n_found} files, none of them an image or video; check the pattern."
        )
    raise ItemNotFoundError(_missing(spec, path))


def _expand(path: Path) -> tuple[list[str], list[str], int]:
    """Return the images and the videos that match a pattern, and how many files match."""
    found = sorted(glob.glob(str(path), recursive=True), key=lambda name: (natural_key(name), name))
    images = [name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    videos = [name for name in found if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    return images, videos, len(found)


def _open_spec(spec: Spec, wishes: _Wishes) -> ItemSource:
    if wishes.camera is not None and spec.kind not in _WITH_CAMERAS:
        _refuse_camera(wishes)
    if spec.kind == "sim":
        numbers: dict[str, Any] = {
            name: _whole(spec, name) for name in ("n", "seed", "image_px") if name in spec.options
        }
        return simulate(
            spec.path, **numbers, failure=spec.options.get("failure", "none"), prompt=wishes.prompt
        )
    path = Path(spec.path).expanduser()
    if spec.kind == "hf":
        is_local = path.exists()
        return HfSource(
            path if is_local else spec.path, **spec.options, prompt=wishes.prompt, camera=wishes.camera
        )
    if not path.exists() and not (spec.kind in ("images", "video") and _GLOB_MARKS & set(str(path))):
        raise ItemNotFoundError(_missing(spec.path, path))
    options: dict[str, Any] = dict(spec.options)
    if "state_keys" in options:
        options["state_keys"] = [key for key in options["state_keys"].split(",") if key]
    if spec.kind in _WITH_CAMERAS:
        options["camera"] = wishes.camera
    return _READERS[spec.kind](path, **options, prompt=wishes.prompt, on_error=wishes.on_error)


def _whole(spec: Spec, name: str) -> int:
    try:
        return int(spec.options[name])
    except ValueError as error:
        raise InputError(f"'{spec.kind}:': {name}={spec.options[name]!r}; need a whole number.") from error


def _open_images(path: Path, *, prompt: str | None, on_error: OnError) -> ItemSource:
    if path.is_dir():
        return ImageFolder(path, prompt=prompt, on_error=on_error)
    if path.is_file():
        return ImageList([path], prompt=prompt, name=path.stem, on_error=on_error)
    images, _, _ = _expand(path)
    if not images:
        raise ItemNotFoundError(f"'{path}' matches no image; check the pattern.")
    return ImageList(images, prompt=prompt, name=path.parent.name or "images", on_error=on_error)


def _open_videos(path: Path, *, prompt: str | None, on_error: OnError) -> ItemSource:
    if path.is_dir():
        unread: list[tuple[str, ItemError]] = []
        videos, _ = find_files(path, VIDEO_SUFFIXES, report=lambda name, error: unread.append((name, error)))
        if unread and on_error == "raise":
            raise unread[0][1]
        if not videos:
            raise ItemError(f"the folder '{path}' has no video ({', '.join(VIDEO_SUFFIXES)}).")
        source = VideoSource(videos, prompt=prompt, on_error=on_error)
        source.skipped.extend(Skipped(name, str(error)) for name, error in unread)
        return source
    if path.is_file():
        return VideoSource(path, prompt=prompt, on_error=on_error)
    _, videos, _ = _expand(path)
    if not videos:
        raise ItemNotFoundError(f"'{path}' matches no video; check the pattern.")
    return VideoSource(videos, prompt=prompt, on_error=on_error)


_READERS: dict[str, Callable[..., ItemSource]] = {
    "images": _open_images,
    "video": _open_videos,
    "lerobot": LeRobotSource,
    "rlds": RldsSource,
    "hdf5": Hdf5Source,
    "nerf": NerfSource,
    "coco": CocoSource,
    "voc": VocSource,
    "factorial": FactorialSource,
}


def _missing(spec: str | Path, path: Path) -> str:
    there = path.parent if path.parent.is_dir() else None
    hint = nearest_text(path.name, [p.name for p in there.iterdir()]) if there else ""
    if isinstance(spec, str) and spec.count("/") == 1 and not there and not spec.startswith((".", "/", "~")):
        hint = f" If it is a dataset on the Hugging Face hub: `hf download {spec} --repo-type dataset --local-dir D`."
    kind, mark, _ = str(spec).partition(":")
    if mark and "/" not in kind:
        hint = (
            f" Kinds that can stand before ':' are demo, {', '.join(OPTIONS)}.{nearest_text(kind, OPTIONS)}"
        )
    return (
        f"there is no file or folder '{spec}'.{hint} Need a folder of images, an image, a video, a dataset (LeRobot, "
        "RLDS, HDF5, COCO, VOC, transforms.json), or 'demo:pick'."
    )
