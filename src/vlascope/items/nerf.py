"""Posed images of NeRF datasets (Blender, nerfstudio, instant-ngp): `transforms.json` as items."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, ItemNotFoundError
from ..files import content_hash, file_hash
from .images import IMAGE_SUFFIXES, file_facts, read_image
from .item import Item, ItemSource, OnError, Scalar

_LENS_NUMBERS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y")
_LENS_LABELS = ("camera_model", "k1", "k2", "k3", "k4", "p1", "p2")


def find_transforms(path: Path) -> list[Path]:
    """Return the transforms*.json files in a folder, in order of name; those that are no NeRF file are left out."""
    return [file for file in sorted(path.glob("transforms*.json")) if file.is_file()]


class NerfSource(ItemSource):
    """Images with camera poses from `transforms.json` or `transforms_{train,val,test}.json`.

    `item.pose` is the camera-to-world matrix as the file gives it (OpenGL axes: x right, y up, looking along -z);
    `item.intrinsics` is made of fl_x, fl_y, cx, cy, or of camera_angle_x and the size of the image (the principal
    point then lies in the middle). Lens distortion is left in the image and listed in the labels. A mask
    (`mask_path`) becomes the mask "kept". Transparent pixels are laid over white.

    Args:
        path: A transforms file, or the folder of one or several.
        prompt: Prompt of every item.
        on_error: "skip" leaves out frames whose image is missing and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such file, or an image of it is missing.
        ItemError: no NeRF dataset, a pose that is no 4x4 matrix, or a focal length (fl_x, ...) that is no number.
    """

    def __init__(self, path: Path | str, *, prompt: str | None = None, on_error: OnError = "raise") -> None:
        self.prompt, self.on_error = prompt, on_error
        path = Path(path)
        self.files = find_transforms(path) if path.is_dir() else [path]
        self.root = path if path.is_dir() else path.parent
        self.name = self.root.resolve().name
        if not self.files:
            raise ItemError(f"the folder '{path}' has no transforms.json or transforms_<split>.json.")
        self._frames: list[tuple[str, Path, Mapping[str, Any], Mapping[str, Any], str | None]] = []
        for file in self.files:
            self._open_file(file)
        if not self._frames:
            raise ItemError(f"no image of '{path}' is there: {self.skipped[0].reason}")

    def _open_file(self, file: Path) -> None:
        try:
            shared = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ItemNotFoundError(f"there is no file '{file}'; check the path.") from error
        except (OSError, ValueError) as error:
            raise ItemError(f"'{file}' cannot be read ({error}); fetch it again.") from error
        frames = shared.get("frames") if isinstance(shared, dict) else None
        if not isinstance(frames, list) or not frames:
            raise ItemError(f"'{file}' has no frames; need a list of file_path and transform_matrix.")
        split = file.stem.partition("_")[2] or None
        seen: set[str] = {entry[0] for entry in self._frames}
        for number, frame in enumerate(frames):
            if not isinstance(frame, dict) or "file_path" not in frame or "transform_matrix" not in frame:
                raise ItemError(f"'{file}', frame {number}, lacks file_path or transform_matrix.")
            _pose(frame, f"'{file}', frame {number}")
            _check_lens({**shared, **frame}, f"'{file}', frame {number}")
            try:
                image = _image_path(file.parent, str(frame["file_path"]), f"'{file}', frame {number}")
            except ItemNotFoundError as error:
                self._skip(str(frame["file_path"]), error)
                continue
            item_id = Path(str(frame["file_path"])).as_posix().removeprefix("./")
            item_id = f"{split}/{item_id}" if split and item_id in seen else item_id
            if item_id in seen:
                raise ItemError(f"'{file}' names the image '{item_id}' twice; every frame needs its own.")
            seen.add(item_id)
            self._frames.append((item_id, image, frame, shared, split))

    @property
    def item_ids(self) -> list[str]:
        """The id of every item."""
        return [entry[0] for entry in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, index: int) -> Item:
        item_id, path, frame, shared, split = self._frames[index]
        image = read_image(path)
        labels: dict[str, Scalar] = {} if split is None else {"split": split}
        for name in _LENS_LABELS:
            value = frame.get(name, shared.get(name))
            if value not in (None, 0, 0.0):
                labels[name] = value
        masks: dict[str, NDArray[np.integer]] = {}
        if frame.get("mask_path"):
            mask = read_image(self.root / frame["mask_path"])
            if mask.shape != image.shape:
                raise ItemError(f"'{frame['mask_path']}' is {mask.shape[:2]}, its image {image.shape[:2]}.")
            masks["kept"] = (mask.max(axis=2) > 0).astype(np.uint8)
        return Item(
            item_id=item_id,
            images=(image,),
            prompt=self.prompt,
            labels=labels,
            masks=masks,
            mask_names={"kept": {1: "kept"}} if masks else {},
            source=str(path),
            pose=_pose(frame, item_id),
            intrinsics=_intrinsics({**shared, **frame}, height=image.shape[0], width=image.shape[1]),
        )

    def fingerprint(self) -> str:
        facts = [file_facts(path) for _, path, *_ in self._frames]
        return content_hash([[file_hash(file, length=16) for file in self.files], facts, self.prompt])


def _pose(frame: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    try:
        pose = np.array(frame["transform_matrix"], np.float64)
    except (TypeError, ValueError) as error:
        raise ItemError(f"{name}: transform_matrix is no matrix of numbers ({error}).") from error
    if pose.shape == (3, 4):  # the last row is always 0 0 0 1, and some writers leave it out
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ItemError(
            f"{name}: transform_matrix has shape {pose.shape} or is not finite; need 4x4 numbers."
        )
    return pose


def _check_lens(camera: Mapping[str, Any], name: str) -> None:
    for key in _LENS_NUMBERS:
        value = camera.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ItemError(f"{name}: {key} is {value!r}; need a number, or leave it out.")


def _image_path(folder: Path, name: str, where: str) -> Path:
    """Return the image of a frame; Blender's files leave its ending out."""
    path = folder / name
    if path.is_file():
        return path
    for suffix in IMAGE_SUFFIXES:
        other = path.with_name(path.name + suffix)
        if other.is_file():
            return other
    raise ItemNotFoundError(f"{where}: there is no image '{path}'; fetch it again, or skip it.")


def _intrinsics(camera: Mapping[str, Any], *, height: int, width: int) -> NDArray[np.float64] | None:
    """Return the pinhole matrix in pixels of the stored image, or None when the file does not say."""
    camera = {key: value for key, value in camera.items() if value is not None}
    angle_x, angle_y = camera.get("camera_angle_x"), camera.get("camera_angle_y")
    fl_x = camera.get("fl_x")
    scale_x = width / camera["w"] if camera.get("w") else 1.0
    scale_y = height / camera["h"] if camera.get("h") else 1.0
    if fl_x is not None:
        fl_x, fl_y = fl_x * scale_x, camera.get("fl_y", fl_x) * scale_y
    elif angle_x:
        fl_x = width / 2 / math.tan(angle_x / 2)
        fl_y = height / 2 / math.tan(angle_y / 2) if angle_y else fl_x
    else:
        return None
    cx = camera["cx"] * scale_x if "cx" in camera else width / 2
    cy = camera["cy"] * scale_y if "cy" in camera else height / 2
    return np.array([[fl_x, 0, cx], [0, fl_y, cy], [0, 0, 1]], np.float64)
