"""`open_items`: from whatever the user names, folder, file, list or demo, to a source of items."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ItemError, ItemNotFoundError, nearest_text
from ._demo import open_demo
from ._video import VIDEO_SUFFIXES
from .frames import MappedSource, select_frames
from .images import IMAGE_SUFFIXES, ImageFolder, ImageList, find_files, natural_key
from .item import Item, ItemSource
from .lerobot import LeRobotSource, is_lerobot
from .video import VideoSource

_GLOB_MARKS = frozenset("*?[")


def open_items(
    spec: Any,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    camera: str | Sequence[str] | None = None,
) -> ItemSource:
    """Return the items that `spec` names; nothing is decoded before it is asked for.

    Args:
        spec: One of
            "demo", "demo:pick", "demo:success", "demo:failure": the episodes inside the package;
            a folder: a LeRobot dataset (v2.x, v3), images (also in folders below), or else video files;
            an image file, a video file, or a pattern such as "photos/*.jpg";
            a list (or one) of paths, uint8 arrays [h, w, 3], PIL images or `Item`s;
            an `ItemSource`.
        prompt: Instruction or question given to every item instead of its own.
        limit: Number of items at most.
        stride: Take every n-th frame of each episode or video (for images: every n-th image).
        fps: Frames per second wanted from a video or dataset.
        camera: Name of the camera, or cameras, of a LeRobot dataset; all by default.

    Raises:
        ItemNotFoundError: nothing there.
        ItemError: nothing in it that can be read.
        InputError: an option that does not fit.
    """
    source = select_frames(_open(spec, prompt=prompt, camera=camera), stride=stride, fps=fps, limit=limit)
    is_given_as_items = isinstance(spec, ItemSource | Item) or (
        isinstance(spec, Sequence) and any(isinstance(x, Item) for x in spec)
    )
    if prompt is not None and is_given_as_items:
        return MappedSource(source, partial(_set_prompt, prompt=prompt), tag=f"prompt={prompt}")
    return source


def _set_prompt(item: Item, *, prompt: str) -> Item:
    return replace(item, prompt=prompt)


def _open(spec: Any, *, prompt: str | None, camera: str | Sequence[str] | None) -> ItemSource:
    if isinstance(spec, str) and (spec == "demo" or spec.startswith("demo:")):
        return open_demo(spec, prompt=prompt, camera=camera)
    if isinstance(spec, str | Path):
        if Path(spec).is_dir() and is_lerobot(spec):
            return LeRobotSource(spec, prompt=prompt, camera=camera)
        source = _open_path(spec, prompt=prompt)
    elif isinstance(spec, ItemSource):
        source = spec
    elif isinstance(spec, np.ndarray):
        source = ImageList(list(spec) if spec.ndim == 4 else [spec], prompt=prompt)
    elif isinstance(spec, Sequence):
        source = _open_list(spec, prompt=prompt)
    else:
        source = ImageList([spec], prompt=prompt)  # one PIL image or item; says so when it is neither
    if camera is not None:
        raise InputError(
            f"camera={camera!r} chooses among the cameras of a LeRobot dataset; leave it out here."
        )
    return source


def _open_list(spec: Sequence[Any], *, prompt: str | None) -> ItemSource:
    suffixes = [Path(x).suffix.lower() for x in spec if isinstance(x, str | Path)]
    are_videos = [suffix in VIDEO_SUFFIXES for suffix in suffixes]
    if any(are_videos):
        if len(suffixes) != len(spec) or not all(are_videos):
            raise ItemError("the list holds both videos and other things; open them separately.")
        return VideoSource(spec, prompt=prompt)
    return ImageList(spec, prompt=prompt)


def _open_path(spec: str | Path, *, prompt: str | None) -> ItemSource:
    path = Path(spec).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path, prompt=prompt)
    if path.is_file():
        if suffix in VIDEO_SUFFIXES:
            return VideoSource(path, prompt=prompt)
        if suffix in IMAGE_SUFFIXES:
            return ImageList([path], prompt=prompt, name=path.stem)
        raise ItemError(
            f"'{spec}' is a '{suffix or 'file without ending'}'; need an image ({', '.join(IMAGE_SUFFIXES)}), "
            f"a video ({', '.join(VIDEO_SUFFIXES)}) or a folder."
        )
    if _GLOB_MARKS & set(str(path)):
        found = sorted(glob.glob(str(path), recursive=True), key=lambda name: (natural_key(name), name))
        images = [name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        videos = [name for name in found if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        if images and videos:
            raise ItemError(
                f"'{spec}' matches {len(images)} images and {len(videos)} videos; open them separately."
            )
        if images:
            return ImageList(images, prompt=prompt, name=path.parent.name or "images")
        if videos:
            return VideoSource(videos, prompt=prompt)
        raise ItemNotFoundError(
            f"'{spec}' matches {len(found)} files, none of them an image or video; check the pattern."
        )
    raise ItemNotFoundError(_missing(spec, path))


def _missing(spec: str | Path, path: Path) -> str:
    there = path.parent if path.parent.is_dir() else None
    hint = nearest_text(path.name, [p.name for p in there.iterdir()]) if there else ""
    if isinstance(spec, str) and spec.count("/") == 1 and not there and not spec.startswith((".", "/", "~")):
        hint = f" If it is a dataset on the Hugging Face hub: `hf download {spec} --repo-type dataset --local-dir D`."
    return (
        f"there is no file or folder '{spec}'.{hint} Need a folder of images, an image, a video, a LeRobot dataset, "
        "or 'demo:pick'."
    )


def _open_folder(path: Path, *, prompt: str | None) -> ItemSource:
    images, _ = find_files(path, IMAGE_SUFFIXES)
    videos, _ = find_files(path, VIDEO_SUFFIXES)
    if images or not videos:
        return ImageFolder(path, prompt=prompt)
    return VideoSource(videos, prompt=prompt)
