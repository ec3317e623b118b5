"""Distinct colours for labels that colour-blind people can tell apart too."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .color import VISIONS, oklab_from_srgb, seen_by

MAX_COLORS = 256

_OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
"""Okabe and Ito 2008, without black, the most different ones first."""


def discrete(k: int) -> NDArray[np.uint8]:
    """Return k distinct colours, bright enough to be seen over a photograph.

    The first seven are Okabe and Ito's; each further one is the colour that is farthest, in OKLab and under the
    worst of normal, red-, green- and blue-blind vision, from all before it. Fewer colours are always a prefix of
    more, so that ids keep their colour.

    Args:
        k: Number of colours, 1..256. Beyond about 16 not even normal sight tells all of them apart at a glance.

    Returns:
        uint8 [k, 3], sRGB.

    Cost: about 0.1 s the first time, then cached.
    """
    if not 1 <= k <= MAX_COLORS:
        raise InputError(f"got k={k}; need 1..{MAX_COLORS} colours.")
    return _table(64 if k <= 64 else MAX_COLORS)[:k].copy()


@lru_cache
def _table(size: int) -> NDArray[np.uint8]:
    steps = np.linspace(0, 1, 13)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lightness = oklab_from_srgb(grid)[:, 0]
    grid = grid[(lightness > 0.40) & (lightness < 0.95)]
    chosen = [np.asarray(color) / 255 for color in _OKABE_ITO]
    seen = [oklab_from_srgb(seen_by(grid, vision)) for vision in VISIONS]
    nearest = np.full(len(grid), np.inf)

    def note(color: NDArray[np.float64]) -> None:
        for vision, lab in zip(VISIONS, seen, strict=True):
            np.minimum(
                nearest, np.linalg.norm(lab - oklab_from_srgb(seen_by(color, vision)), axis=1), out=nearest
            )

    for color in chosen:
        note(color)
    while len(chosen) < size:
        color = grid[int(nearest.argmax())]
        chosen.append(color)
        note(color)
    return np.round(np.stack(chosen[:size]) * 255).astype(np.uint8)
