"""The panels that pictures and videos are put together from: the image, its colours, and both overlaid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .style import LIGHT, Theme
from .tokens import PatchGrid, Upsample, paint

OVERLAY_ALPHA = 0.58
"""Weight of the colours in an overlay: concepts stay distinct and the scene can still be read."""


def fit_size(image_wh: tuple[int, int], *, width: int, max_height: int) -> tuple[int, int]:
    """Return the largest size with the image's proportions within `width` x `max_height`, pixels."""
    scale = min(width / image_wh[0], max_height / image_wh[1])
    return max(1, round(image_wh[0] * scale)), max(1, round(image_wh[1] * scale))


def input_panel(
    image_hw3: NDArray[np.uint8],
    *,
    out_wh: tuple[int, int],
    grids: Sequence[PatchGrid] = (),
    theme: Theme = LIGHT,
) -> NDArray[np.uint8]:
    """Return the image scaled smoothly to `out_wh`; what no patch covers (a crop's margin) is veiled.

    Args:
        image_hw3: uint8 [h, w, 3].
        out_wh: Pixels.
        grids: The patches of this image; empty veils nothing.
        theme: The veil has its background colour.
    """
    picture = _resize(image_hw3, out_wh)
    if grids:
        covered = coverage(grids, image_wh=(image_hw3.shape[1], image_hw3.shape[0]), out_wh=out_wh)
        veil = np.asarray(theme.background, np.float32)
        mixed = picture[~covered].astype(np.float32) * 0.45 + veil * 0.55
        picture[~covered] = np.round(mixed).astype(np.uint8)
    return picture


def coverage(
    grids: Sequence[PatchGrid], *, image_wh: tuple[int, int], out_wh: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return bool [h, w], True where any patch covers the pixel."""
    covered = np.zeros((out_wh[1], out_wh[0]), bool)
    for grid in grids:
        blank = np.zeros((grid.rows, grid.cols, 3), np.uint8)
        covered |= paint(blank, grid=grid, image_wh=image_wh, out_wh=out_wh)[1]
    return covered


def color_panel(
    rgb_n3: NDArray[np.uint8],
    *,
    grids: Sequence[PatchGrid],
    image_wh: tuple[int, int],
    out_wh: tuple[int, int],
    upsample: Upsample = "nearest",
    theme: Theme = LIGHT,
) -> NDArray[np.uint8]:
    """Return the colours of an image's patches where they lie; the rest has the theme's surface colour.

    Args:
        rgb_n3: uint8 [n, 3], a colour for every token of the cut.
        grids: The patches of this image; later crops lie on top of earlier ones.
        image_wh: Size of the original image, pixels.
        out_wh: Size of the panel, pixels.
        upsample: "nearest" or "smooth".
        theme: Gives the colour of what no patch covers.
    """
    panel = np.empty((out_wh[1], out_wh[0], 3), np.uint8)
    panel[...] = theme.surface
    for grid in grids:
        colors, covered = paint(
            grid.values(rgb_n3), grid=grid, image_wh=image_wh, out_wh=out_wh, upsample=upsample
        )
        panel[covered] = colors[covered]
    return panel


def overlay_panel(
    image_hw3: NDArray[np.uint8],
    colors_hw3: NDArray[np.uint8],
    *,
    covered_hw: NDArray[np.bool_],
    alpha: float = OVERLAY_ALPHA,
) -> NDArray[np.uint8]:
    """Return `colors_hw3` laid over the grey image of the same size; uncovered pixels keep the image."""
    luminance = image_hw3.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    mixed = colors_hw3.astype(np.float32) * alpha + luminance[..., None] * (1 - alpha)
    return np.where(covered_hw[..., None], np.round(mixed), image_hw3).astype(np.uint8)


def _resize(image_hw3: NDArray[np.uint8], out_wh: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.array(Image.fromarray(image_hw3).resize(out_wh, Image.Resampling.LANCZOS))
