"""From an image to a model's pixel values, and where those pixels lie in the original image.

Written with PIL and numpy so that no checkpoint needs torchvision. The arithmetic follows the PIL image
processors of transformers step by step: the values are equal, not merely close.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Frame = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the original image."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3  # PIL.Image.Resampling


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resize, centre crop, rescale, normalise.

    Attributes:
        size_hw: Exact size after the resize; None when `shortest_edge` is used, or nothing is resized.
        shortest_edge: Size of the shorter side after an aspect-keeping resize; None when not used.
        crop_hw: Size of the centre crop; None for no crop. A smaller image is padded with zeros.
        scale: Factor on the 0..255 values.
        mean: Subtracted per channel after scaling.
        std: Divided by, per channel.
        resample: PIL filter number.
    """

    size_hw: tuple[int, int] | None = None
    shortest_edge: int | None = None
    crop_hw: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resample: int = BICUBIC

    def output_hw(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the pixel values of an image of that size."""
        return self.crop_hw or self._resized_hw(height, width)

    def frame(self, height: int, width: int) -> Frame:
        """Return the part of a height x width image that the pixel values show, in its pixels.

        Larger than the image where the crop pads it.
        """
        new_h, new_w = self._resized_hw(height, width)
        crop_h, crop_w = self.crop_hw or (new_h, new_w)
        # Floor division also when negative: that is where the processors put the zero padding.
        top, left = (new_h - crop_h) // 2, (new_w - crop_w) // 2
        x, y = width / new_w, height / new_h
        return (left * x, top * y, (left + crop_w) * x, (top + crop_h) * y)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [3, H, W] of a uint8 [h, w, 3] image."""
        from PIL import Image

        height, width = image.shape[:2]
        new_h, new_w = self._resized_hw(height, width)
        if self.size_hw is not None or self.shortest_edge is not None:
            picture = Image.fromarray(image).resize((new_w, new_h), resample=Image.Resampling(self.resample))
            image = np.asarray(picture)
        if self.crop_hw is not None:
            image = _center_crop(image, *self.crop_hw)
        scaled = (image.astype(np.float64) * self.scale).astype(np.float32)
        values = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized_hw(self, height: int, width: int) -> tuple[int, int]:
        if self.size_hw is not None:
            return self.size_hw
        if self.shortest_edge is None:
            return height, width
        short, long = min(height, width), max(height, width)
        new_long = int(self.shortest_edge * long / short)
        return (new_long, self.shortest_edge) if width <= height else (self.shortest_edge, new_long)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, default: ImageTransform) -> ImageTransform:
        """Read the content of a `preprocessor_config.json`.

        Args:
            config: What the file holds; keys that it lacks are taken from `default`.
            default: The family's usual preprocessing.

        Raises:
            InputError: the file asks for a step that this transform does not have.
        """
        if config.get("do_pad"):
            raise InputError(
                "this checkpoint's image processor pads images (do_pad), which this family does not support. "
                "Pass your own preprocessing through vlascope.wrap(module, preprocess=...)."
            )
        do_resize, do_crop = config.get("do_resize", True), config.get("do_center_crop")
        size_hw, shortest = default.size_hw, default.shortest_edge
        if (size := config.get("size")) is not None:
            # Old files write one number; CLIP-like processors mean the shorter side by it.
            square = config.get("default_to_square", default.shortest_edge is None)
            size_hw, shortest = _read_size(size, square=square)
        crop_hw = default.crop_hw
        if (crop := config.get("crop_size")) is not None:
            crop_hw = _read_size(crop, square=True)[0]
        if do_crop is False or (do_crop is None and default.crop_hw is None):
            crop_hw = None
        normalizes = config.get("do_normalize", True)
        scale = config.get("rescale_factor", default.scale) if config.get("do_rescale", True) else 1.0
        return cls(
            size_hw=size_hw if do_resize else None,
            shortest_edge=shortest if do_resize else None,
            crop_hw=crop_hw,
            scale=float(scale),
            mean=_three(config.get("image_mean", default.mean)) if normalizes else (0.0, 0.0, 0.0),
            std=_three(config.get("image_std", default.std)) if normalizes else (1.0, 1.0, 1.0),
            resample=int(config.get("resample", default.resample)),
        )


def squash(size: int, *, mean: tuple[float, float, float] = HALF, std: tuple[float, float, float] = HALF):
    """Return the transform that resizes any image to size x size (SigLIP's way)."""
    return ImageTransform(size_hw=(size, size), mean=mean, std=std)


def crop(
    size: int, *, resize: int | None = None, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> ImageTransform:
    """Return the transform that resizes the shorter side and cuts out the middle (CLIP's and DINOv2's way)."""
    return ImageTransform(shortest_edge=resize or size, crop_hw=(size, size), mean=mean, std=std)


def sub_frame(frame: Frame, *, shown_hw: tuple[int, int], used_hw: tuple[int, int]) -> Frame:
    """Return the top left part of `frame` when only `used_hw` of its `shown_hw` pixels become patches."""
    x0, y0, x1, y1 = frame
    return (
        x0,
        y0,
        x0 + (x1 - x0) * used_hw[1] / shown_hw[1],
        y0 + (y1 - y0) * used_hw[0] / shown_hw[0],
    )


def _center_crop(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    out = np.zeros((height, width, 3), np.uint8)
    y0, x0 = max(top, 0), max(left, 0)
    part = image[y0 : top + height, x0 : left + width]
    out[y0 - top : y0 - top + part.shape[0], x0 - left : x0 - left + part.shape[1]] = part
    return out


def _read_size(size: Any, *, square: bool) -> tuple[tuple[int, int] | None, int | None]:
    """Return (size_hw, shortest_edge), one of them None."""
    if isinstance(size, int):
        return ((size, size), None) if square else (None, size)
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        if set(given) == {"height", "width"}:
            return (int(given["height"]), int(given["width"])), None
        if set(given) == {"shortest_edge"}:
            return None, int(given["shortest_edge"])
    raise InputError(
        f"the checkpoint's image size {size!r} is of a kind that this family does not support; need a number, "
        "height and width, or shortest_edge. Pass your own preprocessing through vlascope.wrap()."
    )


def _three(value: Any) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in ([value] * 3 if isinstance(value, (int, float)) else value))
    return a, b, c
