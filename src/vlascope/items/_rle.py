"""COCO's masks: polygons and run lengths as arrays, pixel for pixel what pycocotools makes of them.

Run lengths count down the columns, zeros first (COCO data format, https://cocodataset.org/#format-data).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError

_UPSAMPLING = 5  # COCO follows an outline on a grid five times finer than the pixels


def mask_from_segmentation(
    segmentation: Any, *, height: int, width: int, name: str = "segmentation"
) -> NDArray[np.bool_]:
    """Return a COCO segmentation as bool [height, width].

    Args:
        segmentation: A list of polygons [x0, y0, x1, y1, ...] (their union is taken), or run lengths
            {"size": [h, w], "counts": list or packed text}.
        height, width: Size of the image, pixels.
        name: What to call it in errors.

    Raises:
        ItemError: of another form, or of another size than the image.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), bool)
        for polygon in segmentation:
            points = np.asarray(polygon, np.float64)
            if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
                raise ItemError(
                    f"{name}: a polygon of {points.size} numbers; need x, y of at least three points."
                )
            mask |= mask_from_polygon(points.reshape(-1, 2), height=height, width=width)
        return mask
    if isinstance(segmentation, dict) and "counts" in segmentation:
        size = tuple(segmentation.get("size", (height, width)))
        if size != (height, width):
            raise ItemError(f"{name}: run lengths for {size}, but the image is {(height, width)}.")
        counts = segmentation["counts"]
        runs = counts if isinstance(counts, list) else unpack_runs(counts)
        return mask_from_runs(runs, height=height, width=width, name=name)
    raise ItemError(f"{name}: is {type(segmentation).__name__}; need polygons or run lengths.")


def mask_from_runs(
    runs: Sequence[int], *, height: int, width: int, name: str = "segmentation"
) -> NDArray[np.bool_]:
    """Return run lengths (zeros first, down the columns) as bool [height, width]."""
    lengths = np.asarray(runs, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ItemError(
            f"{name}: run lengths cover {int(lengths.sum())} pixels of {height * width}; the file is damaged."
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def unpack_runs(packed: str | bytes) -> list[int]:
    """Return the run lengths of COCO's packed text.

    Each number is written in groups of 5 bits, low ones first, plus 48 to be printable; 32 says that another group
    follows, 16 in the last group that the number is negative. From the fourth number on the difference to the one
    two places before is kept.

    Raises:
        ItemError: the text ends within a number.
    """
    data = packed.encode("ascii") if isinstance(packed, str) else packed
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        group = byte - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ItemError("packed run lengths end within a number; the file is damaged.")
    return runs


def mask_from_polygon(points_n2: NDArray[np.float64], *, height: int, width: int) -> NDArray[np.bool_]:
    """Return the inside of one polygon as bool [height, width].

    The outline is followed on the fine grid; wherever it steps from one column of pixels into the next, the
    column is toggled from that row on, so a pixel is inside after an odd number of toggles above it.

    Args:
        points_n2: Corners (x, y), pixels; pixel (0, 0) covers 0..1.
    """
    corners = np.trunc(_UPSAMPLING * points_n2 + 0.5).astype(np.int64)
    path = np.concatenate([_line(a, b) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)])
    before, after = path[:-1], path[1:]
    steps = before[:, 0] != after[:, 0]
    x = np.where(after[:, 0] < before[:, 0], after[:, 0], after[:, 0] - 1)
    column = (x + 0.5) / _UPSAMPLING - 0.5
    y = np.minimum(before[:, 1], after[:, 1])
    row = np.ceil(np.clip((y + 0.5) / _UPSAMPLING - 0.5, 0, height))
    kept = steps & (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    places = (column[kept] * height + row[kept]).astype(np.int64)
    toggles = np.bincount(places, minlength=height * width + 1)[: height * width]
    return (np.cumsum(toggles) % 2 == 1).reshape(width, height).T


def _line(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the points of a line on the fine grid from `start` to `end`, both included, [n, 2]."""
    (xs, ys), (xe, ye) = start, end
    dx, dy = abs(int(xe - xs)), abs(int(ye - ys))
    is_flat = dx >= dy
    # The line is drawn with its main coordinate growing, so that it has the same points in both directions.
    is_flipped = xs > xe if is_flat else ys > ye
    if is_flipped:
        xs, ys, xe, ye = xe, ye, xs, ys
    n = max(dx, dy)
    slope = ((ye - ys) / dx if is_flat else (xe - xs) / dy) if n else 0.0
    along = np.arange(n + 1)
    across = np.trunc((ys if is_flat else xs) + slope * along + 0.5).astype(np.int64)
    points = np.stack([along + xs, across] if is_flat else [across, along + ys], axis=1)
    return points[::-1] if is_flipped else points
