"""Preprocessing that keeps the whole image and its shape: what does not fit is filled with one colour.

Robot models do this in three ways, told apart here: OpenVLA's letterbox pads to a square first and then resizes;
openpi and LeRobot resize first and then pad, around the image (pi0) or to its left and above (SmolVLA).
Both classes offer what `ImageTransform` offers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .images import Frame, ImageTransform

Anchor = Literal["center", "top-left", "bottom-right"]


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Pad to a square with equal borders, then resize and crop as `inner` says.

    Attributes:
        inner: Applied to the padded image.
        fill: Colour of the border, 0..255 per channel.
    """

    inner: ImageTransform
    fill: tuple[int, int, int]

    def output_hw(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the pixel values of an image of that size."""
        pad_y, pad_x = self._pads(height, width)
        return self.inner.output_hw(height + 2 * pad_y, width + 2 * pad_x)

    def frame(self, height: int, width: int) -> Frame:
        """Return the part of the image that the pixel values show, in its pixels; beyond it where it is padded."""
        pad_y, pad_x = self._pads(height, width)
        x0, y0, x1, y1 = self.inner.frame(height + 2 * pad_y, width + 2 * pad_x)
        return (x0 - pad_x, y0 - pad_y, x1 - pad_x, y1 - pad_y)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [3, H, W] of a uint8 [h, w, 3] image."""
        height, width = image.shape[:2]
        pad_y, pad_x = self._pads(height, width)
        padded = np.empty((height + 2 * pad_y, width + 2 * pad_x, 3), np.uint8)
        padded[:] = self.fill
        padded[pad_y : pad_y + height, pad_x : pad_x + width] = image
        return self.inner(padded)

    @staticmethod
    def _pads(height: int, width: int) -> tuple[int, int]:
        longest = max(height, width)
        return (longest - height) // 2, (longest - width) // 2


@dataclass(frozen=True, kw_only=True)
class FitAndPad:
    """Resize into a box without distortion, fill the rest, then scale to mean 0.

    Attributes:
        size_hw: The box.
        anchor: Where in the box the image lies: "center", "top-left" (padding right and below) or "bottom-right"
            (padding left and above).
        fill: Value of the padding, 0..255, before normalisation.
        smooth: True averages over the pixels that become one (PIL's bicubic filter); False samples between
            four of them, as `torch.nn.functional.interpolate` does without antialiasing.
        mean: Subtracted after scaling to 0..1.
        std: Divided by.
    """

    size_hw: tuple[int, int]
    anchor: Anchor = "center"
    fill: float = 0.0
    smooth: bool = False
    mean: float = 0.5
    std: float = 0.5

    def output_hw(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the pixel values: `size_hw` for every image."""
        return self.size_hw

    def frame(self, height: int, width: int) -> Frame:
        """Return the part of the image that the pixel values show, in its pixels; beyond it where it is padded."""
        new_h, new_w, top, left = self._place(height, width)
        x, y = width / new_w, height / new_h
        return (-left * x, -top * y, (self.size_hw[1] - left) * x, (self.size_hw[0] - top) * y)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [3, H, W] of a uint8 [h, w, 3] image."""
        new_h, new_w, top, left = self._place(*image.shape[:2])
        out = np.full((3, *self.size_hw), self.fill / 255.0, np.float32)
        out[:, top : top + new_h, left : left + new_w] = self._resize(image, new_h, new_w)
        return (out - np.float32(self.mean)) / np.float32(self.std)

    def _resize(self, image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
        """Return float32 [3, height, width] in 0..1."""
        if self.smooth:
            from PIL import Image

            picture = Image.fromarray(image).resize((width, height), resample=Image.Resampling.BICUBIC)
            return np.asarray(picture, np.float32).transpose(2, 0, 1) / 255.0
        import torch

        pixels = torch.from_numpy(image.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
        if image.shape[:2] != (height, width):
            pixels = torch.nn.functional.interpolate(
                pixels, size=(height, width), mode="bilinear", align_corners=False
            )
        return pixels[0].clamp(0.0, 1.0).numpy()

    def _place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return height and width after the resize, and where the image starts: top, left."""
        box_h, box_w = self.size_hw
        ratio = max(width / box_w, height / box_h)
        new_h, new_w = max(1, int(height / ratio)), max(1, int(width / ratio))
        if self.anchor == "top-left":
            return new_h, new_w, 0, 0
        if self.anchor == "bottom-right":
            return new_h, new_w, box_h - new_h, box_w - new_w
        return new_h, new_w, (box_h - new_h) // 2, (box_w - new_w) // 2
