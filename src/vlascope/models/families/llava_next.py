"""LLaVA-NeXT (LLaVA-1.6): an overview of the image and crops of it at higher resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..family import Assets, register
from ..images import Frame
from ..layout import TokenLayout, concat, plain_tokens
from ..multimodal import ImageTextFamily, Shown, resized, take, tower_tokens, values_transform
from ..sites import Site
from ..vision import VisionTower, usual_transform

NEWLINE = "<newline>"
"""Text of the learned token that ends each row of patches; it has no id of its own."""


@register
class LlavaNextFamily(ImageTextFamily):
    """LLaVA-NeXT: every checkpoint of the class `LlavaNextForConditionalGeneration`.

    Tile 0 is the whole image squashed to the tower's square; tiles 1, 2, ... are the crops, row by row, of the
    image scaled into the best of the configuration's resolutions and padded there. In the language sequence the
    overview comes first; then the rows of patches of *all* crops together, without the padding, each row ended
    by a newline token (kind "special"). A patch keeps its tile, and its row and column inside that tile.
    """

    name = "llava-next"
    model_types = ("llava_next",)
    examples = ("llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf")
    summary = "LLaVA-NeXT (1.6): an overview and high-resolution crops"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        vision = self.config.vision_config
        image_config = assets.image_config
        usual = usual_transform(vision)
        self.size = int(vision.image_size)
        self.values = values_transform(image_config, default=usual)
        self.resample = int(image_config.get("resample") or usual.resample)
        self.pinpoints = [(int(h), int(w)) for h, w in self.config.image_grid_pinpoints]
        self.vision = VisionTower(module, config=vision, root=self.vision_root, transform=self.values)
        self.side = self.size // self.vision.patch[0]
        n_dropped = 1 if self.config.vision_feature_select_strategy == "default" else 0
        if n_dropped != len(self.vision.prefix):
            raise InputError(
                f"the configuration drops {n_dropped} token(s) before the patches (vision_feature_select_strategy="
                f"'{self.config.vision_feature_select_strategy}'), but the tower has {len(self.vision.prefix)}. "
                "LLaVA-NeXT needs exactly the patches: use 'default' for CLIP and 'full' for SigLIP."
            )
        self._check_files(image_config)

    def vision_sites(self) -> list[Site]:
        return self.vision.sites()

    @property
    def vision_blocks(self) -> str:
        return self.vision.blocks

    def show(self, image: NDArray[np.uint8], *, camera: int) -> Shown:
        height, width = image.shape[:2]
        best = best_resolution(height, width, self.pinpoints)
        canvas, frame = self._canvas(image, best)
        grid = (best[0] // self.size, best[1] // self.size)
        views = [resized(image, self.size, self.size, resample=self.resample)]
        frames: list[Frame] = [(0.0, 0.0, float(width), float(height))]
        tile_w, tile_h = (frame[2] - frame[0]) / grid[1], (frame[3] - frame[1]) / grid[0]
        for r in range(grid[0]):
            for c in range(grid[1]):
                y, x = r * self.size, c * self.size
                views.append(canvas[y : y + self.size, x : x + self.size])
                x0, y0 = frame[0] + c * tile_w, frame[1] + r * tile_h
                frames.append((x0, y0, x0 + tile_w, y0 + tile_h))
        patches = [
            tower_tokens(self.side, self.side, frame=f, camera=camera, tile=tile)
            for tile, f in enumerate(frames)
        ]
        tower = [
            tower_tokens(self.side, self.side, frame=f, camera=camera, tile=tile, prefix=self.vision.prefix)
            for tile, f in enumerate(frames)
        ]
        mosaic = self._mosaic(patches[1:], grid=grid, height=height, width=width, camera=camera)
        return Shown(
            pixels=torch.from_numpy(np.stack([self.values(view) for view in views])),
            tower=tuple(tower),
            projected=tuple(patches),
            sequence=concat([patches[0], mosaic]),
            grid=(height, width),
        )

    def image_inputs(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        # All crops one after another: the model splits them by the image sizes, and none is padding.
        return {**super().image_inputs(shown), "image_sizes": torch.tensor([one.grid for one in shown])}

    def _canvas(self, image: NDArray[np.uint8], best: tuple[int, int]) -> tuple[NDArray[np.uint8], Frame]:
        """Return the image scaled into `best` and padded with zeros, and what the whole canvas shows."""
        height, width = image.shape[:2]
        scale_h, scale_w = best[0] / height, best[1] / width
        if scale_w < scale_h:
            new_h, new_w = min(math.ceil(height * scale_w), best[0]), best[1]
        else:
            new_h, new_w = best[0], min(math.ceil(width * scale_h), best[1])
        top, left = (best[0] - new_h) // 2, (best[1] - new_w) // 2
        canvas = np.zeros((*best, 3), np.uint8)
        canvas[top : top + new_h, left : left + new_w] = resized(image, new_h, new_w, resample=self.resample)
        x, y = width / new_w, height / new_h
        return canvas, (-left * x, -top * y, (best[1] - left) * x, (best[0] - top) * y)

    def _mosaic(
        self,
        tiles: Sequence[TokenLayout],
        *,
        grid: tuple[int, int],
        height: int,
        width: int,
        camera: int,
    ) -> TokenLayout:
        """Return the tokens of all crops as the language model reads them."""
        side = self.side
        whole = concat(tiles)
        index = np.arange(len(whole)).reshape(*grid, side, side).transpose(0, 2, 1, 3)
        index = index.reshape(grid[0] * side, grid[1] * side)
        index = index[unpadded(index.shape, height=height, width=width)]
        newlines = plain_tokens("special", [NEWLINE] * len(index))
        newlines.camera[:] = camera
        newlines.tile[:] = whole.tile[index[:, -1]]
        ends = len(whole) + np.arange(len(index))
        return take(concat([whole, newlines]), np.concatenate([index, ends[:, None]], axis=1).reshape(-1))

    def _check_files(self, image_config) -> None:
        """The model computes the crops again from its own configuration: both files must say the same."""
        given = image_config.get("image_grid_pinpoints")
        if given is not None and [(int(h), int(w)) for h, w in given] != self.pinpoints:
            raise InputError(
                f"the image processor's resolutions {given} differ from the model's {self.pinpoints}. Make "
                "image_grid_pinpoints in preprocessor_config.json and config.json equal."
            )
        crop = image_config.get("crop_size")
        side = crop if isinstance(crop, int) else (crop or {}).get("height", self.size)
        if int(side) != self.size:
            raise InputError(
                f"the image processor cuts crops of {side} px, but the vision tower reads {self.size} px. Make "
                "crop_size in preprocessor_config.json equal to image_size of the vision configuration."
            )


def best_resolution(height: int, width: int, candidates: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the (height, width) of `candidates` that keeps most of an image's pixels, and wastes least then."""

    def merit(candidate: tuple[int, int]) -> tuple[int, int]:
        scale = min(candidate[1] / width, candidate[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=merit)  # the first of equals


def unpadded(shape: tuple[int, ...], *, height: int, width: int) -> tuple[slice, slice]:
    """Return the (rows, columns) of a padded patch grid of that shape that show a height x width image.

    The model cuts on the grid of patches and rounds there, so that a strip of padding may stay.
    """
    rows, cols = shape[:2]
    if width / height > cols / rows:
        cut = (rows - int(round(height * (cols / width), 7))) // 2
        return slice(cut, rows - cut), slice(None)
    cut = (cols - int(round(width * (rows / height), 7))) // 2
    return slice(None), slice(cut, cols - cut)
