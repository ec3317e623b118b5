"""SigLIP 2 with native shapes (NaFlex): each image keeps its aspect and becomes at most so many patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..items.item import Item
from .batch import Rows
from .images import BILINEAR, HALF, ImageTransform
from .layout import TokenLayout, concat, grid_tokens
from .vision import VisionTower

_SCALES, _SCALE_TOLERANCE = (1e-6, 100.0), 1e-5  # those of the published preprocessing; they decide near ties


class NaflexTower(VisionTower):
    """A tower that reads patches instead of pictures, with a mask over the filling.

    Args:
        module: The model.
        config: The configuration of the vision part.
        root: Path of the vision part in the model; "" when it is the model.
        given: Content of `preprocessor_config.json`.
    """

    def __init__(self, module: nn.Module, *, config: Any, root: str, given: Mapping[str, Any]) -> None:
        # The size is found per image; the rest of the file is read in the usual way.
        plain = {
            key: value for key, value in given.items() if key not in ("size", "crop_size", "do_center_crop")
        }
        usual = ImageTransform(mean=HALF, std=HALF, resample=BILINEAR)
        self.max_patches = int(given.get("max_num_patches") or config.num_patches)
        super().__init__(
            module, config=config, root=root, transform=ImageTransform.from_config(plain, default=usual)
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (rows, cols): as many patches as allowed, each side rounded up to whole ones."""

        def at(scale: float) -> tuple[int, int]:
            rows, cols = (
                max(1, math.ceil(n * scale / p)) for n, p in zip((height, width), self.patch, strict=True)
            )
            return rows, cols

        low, high = _SCALES
        while high - low >= _SCALE_TOLERANCE:
            middle = (low + high) / 2
            if math.prod(at(middle)) <= self.max_patches:
                low = middle
            else:
                high = middle
        return at(low)

    def layout(self, height: int, width: int, *, camera: int = 0) -> TokenLayout:
        return grid_tokens(
            *self.grid(height, width), frame=(0.0, 0.0, float(width), float(height)), camera=camera
        )

    def batch(
        self, items: Sequence[Item], *, cameras: int | None = None
    ) -> tuple[Tensor, list[TokenLayout], list[Rows]]:
        """Return patches [n, max_patches, p * p * 3] of all images, and per item the layout and place of its tokens."""
        patches, layouts, rows = [], [], []
        for item in items:
            parts, places = [], []
            for camera, image in enumerate(item.images[:cameras]):
                part = self.layout(*image.shape[:2], camera=camera)
                places.append((len(patches), 0, len(part)))
                parts.append(part)
                patches.append(self._patches(image))
            layouts.append(concat(parts))
            rows.append(tuple(places))
        return torch.from_numpy(np.stack(patches)), layouts, rows

    def shapes(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Return what else the forward needs: rows and columns of each image, and which patches are no filling."""
        grids = [self.grid(*image.shape[:2]) for item in items for image in item.images]
        shapes = torch.tensor(grids, dtype=torch.int64)
        mask = torch.arange(self.max_patches)[None] < shapes.prod(dim=1)[:, None]
        return {"spatial_shapes": shapes, "pixel_attention_mask": mask.to(torch.int32)}

    def _patches(self, image: Any) -> np.ndarray:
        rows, cols = self.grid(*image.shape[:2])
        high, wide = self.patch
        pixels = replace(self.transform, size_hw=(rows * high, cols * wide))(image)
        parts = pixels.reshape(3, rows, high, cols, wide).transpose(1, 3, 2, 4, 0)
        out = np.zeros((self.max_patches, high * wide * 3), np.float32)
        out[: rows * cols] = parts.reshape(rows * cols, -1)
        return out
