"""What each token is and where it lies: kind, camera, row, column, text, and its box in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

KINDS = ("patch", "class", "register", "text", "state", "action", "special")
"""Token kinds; `TokenLayout.kind` holds indices into this tuple."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """What the t tokens of one item at one site are. All arrays have t rows.

    Attributes:
        kind: int8 [t], index into `KINDS`.
        row: int16 [t], row in the patch grid of that camera (and tile); -1 where it is no patch.
        col: int16 [t], column in the patch grid; -1 where it is no patch.
        camera: int16 [t], index of the item's image; -1 for text and the like.
        tile: int16 [t], index of the crop for multi-crop models, 0 otherwise; -1 for text and the like.
        text: t strings, the word or word piece of text, action and special tokens; "" for patches.
        box: float32 [t, 4], x0, y0, x1, y1 of a patch in pixels of the item's original image (before any
            resize or crop; may reach beyond the image where the model pads); NaN where it is no patch.
    """

    kind: NDArray[np.int8]
    row: NDArray[np.int16]
    col: NDArray[np.int16]
    camera: NDArray[np.int16]
    tile: NDArray[np.int16]
    text: tuple[str, ...]
    box: NDArray[np.float32]

    def __post_init__(self) -> None:
        n_tokens = len(self.kind)
        sizes = [len(x) for x in (self.row, self.col, self.camera, self.tile, self.text, self.box)]
        if any(size != n_tokens for size in sizes):
            raise InputError(
                f"a token layout needs columns of equal length; got {n_tokens} kinds and {sizes}."
            )

    def __len__(self) -> int:
        return len(self.kind)

    def is_kind(self, *kinds: str) -> NDArray[np.bool_]:
        """Return bool [t]: which tokens are of one of `kinds`.

        Raises:
            InputError: no such kind.
        """
        if wrong := [kind for kind in kinds if kind not in KINDS]:
            raise InputError(f"got token kind {wrong[0]!r}; there are {', '.join(KINDS)}.")
        return np.isin(self.kind, [KINDS.index(kind) for kind in kinds])


def concat(parts: Sequence[TokenLayout]) -> TokenLayout:
    """Return one layout of the tokens of `parts`, in order."""
    return TokenLayout(
        kind=np.concatenate([p.kind for p in parts]),
        row=np.concatenate([p.row for p in parts]),
        col=np.concatenate([p.col for p in parts]),
        camera=np.concatenate([p.camera for p in parts]),
        tile=np.concatenate([p.tile for p in parts]),
        text=tuple(word for p in parts for word in p.text),
        box=np.concatenate([p.box for p in parts]),
    )


def plain_tokens(kind: str, texts: Sequence[str]) -> TokenLayout:
    """Return the layout of tokens that lie nowhere in an image, one per entry of `texts`."""
    n = len(texts)
    return TokenLayout(
        kind=np.full(n, KINDS.index(kind), np.int8),
        row=np.full(n, -1, np.int16),
        col=np.full(n, -1, np.int16),
        camera=np.full(n, -1, np.int16),
        tile=np.full(n, -1, np.int16),
        text=tuple(texts),
        box=np.full((n, 4), np.nan, np.float32),
    )


def grid_tokens(
    rows: int, cols: int, *, frame: tuple[float, float, float, float], camera: int = 0, tile: int = 0
) -> TokenLayout:
    """Return the layout of a row-major patch grid that covers `frame`.

    Args:
        rows: Patch rows, >= 1.
        cols: Patch columns, >= 1.
        frame: x0, y0, x1, y1 in pixels of the original image that the whole grid covers. For a resize without
            crop this is (0, 0, width, height); after a centre crop it is smaller, after padding larger.
        camera: Index of the item's image.
        tile: Index of the crop.
    """
    row, col = (x.reshape(-1) for x in np.mgrid[0:rows, 0:cols])
    x0, y0, x1, y1 = frame
    width, height = (x1 - x0) / cols, (y1 - y0) / rows
    box = np.stack([x0 + col * width, y0 + row * height, x0 + (col + 1) * width, y0 + (row + 1) * height], 1)
    n = rows * cols
    return TokenLayout(
        kind=np.full(n, KINDS.index("patch"), np.int8),
        row=row.astype(np.int16),
        col=col.astype(np.int16),
        camera=np.full(n, camera, np.int16),
        tile=np.full(n, tile, np.int16),
        text=("",) * n,
        box=box.astype(np.float32),
    )


@dataclass(frozen=True)
class Grid:
    """A declared token layout for `vs.wrap`: `prefix` special tokens, then rows x cols patches, row-major.

    Attributes:
        rows: Patch rows.
        cols: Patch columns.
        prefix: Tokens before the patches (class, registers).
        channels_first: For 4-D feature maps: True reads [b, d, rows, cols], False reads [b, rows, cols, d].
            A 4-D map without this declaration is an error, never a guess.

    Raises:
        InputError: sizes that are no whole numbers, or too small.
    """

    rows: int
    cols: int
    prefix: int = 0
    channels_first: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("cols", 1), ("prefix", 0)):
            value = getattr(self, name)
            if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__") or value < least:
                raise InputError(f"got Grid({name}={value!r}); need a whole number, at least {least}.")
            object.__setattr__(self, name, int(value))
        if self.channels_first not in (None, True, False):
            raise InputError(f"got Grid(channels_first={self.channels_first!r}); need True, False or None.")


def token_from_pixel(box: NDArray[np.float32], *, height: int, width: int) -> NDArray[np.int32]:
    """Return int32 [height, width]: the row of `box` whose patch covers each pixel's centre, -1 where none does.

    Args:
        box: float32 [t, 4], x0, y0, x1, y1 in pixels (`TokenLayout.box`); rows with NaN are skipped. Where
            boxes overlap the later row wins.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    token_hw = np.full((height, width), -1, np.int32)
    # A pixel (x, y) has its centre at x + 0.5: it lies in [x0, x1) when ceil(x0 - 0.5) <= x < ceil(x1 - 0.5).
    # Rounding to 1e-3 px first keeps 23.500002 (float32 noise) from opening a one-pixel gap between neighbours.
    is_patch = np.logical_not(np.isnan(box).any(axis=1))
    edges = np.ceil(np.round(np.where(is_patch[:, None], box, 0).astype(np.float64), 3) - 0.5).astype(
        np.int64
    )
    edges = edges.clip(0, [width, height, width, height])
    for token in np.flatnonzero(is_patch):
        x0, y0, x1, y1 = edges[token]
        token_hw[y0:y1, x0:x1] = token
    return token_hw
