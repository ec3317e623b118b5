"""Boxes: overlap, the inner-box rule that turns segments into an object's box, CorLoc and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

MIN_AREA = 0.01
"""Share of the grid below which a segment is a speck, not an object."""

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Proposals:
    """Boxes proposed in one image, best first.

    Attributes:
        boxes: float64 [n, 4], x0, y0, x1, y1; any unit, the same as that of the truth.
        scores: float64 [n], larger is surer; comparable between images.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """What the proposals of one image hit, in falling order of score.

    Attributes:
        scores: float64 [m].
        is_hit: bool [m], matched to an object.
        is_ignored: bool [m], matched to a crowd or a difficult object: counts neither way.
        n_objects: Objects to be found.
    """

    scores: NDArray[np.float64]
    is_hit: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    n_objects: int


def box_iou(
    a: NDArray[np.floating], b: NDArray[np.floating], *, is_crowd: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the intersection over union of every pair of boxes, float64 [n, m].

    Args:
        a: [n, 4], x0, y0, x1, y1.
        b: [m, 4].
        is_crowd: bool [m]; with a crowd the intersection is divided by the area of `a` alone (COCO's rule).
    """
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = (np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - inside
    if is_crowd is not None:
        union = np.where(np.asarray(is_crowd, bool)[None], area_a[:, None], union)
    return np.where(union > 0, inside / np.where(union > 0, union, 1), 0.0)


def mask_box(mask_hw: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the tight box x0, y0, x1, y1 (x1, y1 excluded) of a mask; None when it is empty."""
    rows, cols = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    if not len(rows):
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def borders_touched(mask_hw: NDArray[np.bool_]) -> int:
    """Return how many of the four borders of its grid a mask touches, 0..4."""
    return sum(bool(edge.any()) for edge in (mask_hw[0], mask_hw[-1], mask_hw[:, 0], mask_hw[:, -1]))


def components(mask_hw: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the connected parts (4 neighbours) of a mask, largest first."""
    from scipy import ndimage

    numbered, n = ndimage.label(mask_hw)  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(numbered.reshape(-1), minlength=n + 1)[1:]
    return [numbered == i + 1 for i in np.argsort(-sizes, kind="stable")]


def inner_segments(
    labels_hw: NDArray[np.integer], *, max_borders: int = 1, min_area: float = MIN_AREA
) -> list[tuple[NDArray[np.bool_], float]]:
    """Return the segments that could be objects, with a score each, best first: the inner-box rule.

    Of every segment the largest connected part is a candidate. Those that touch at most `max_borders` borders of
    the grid come first, larger before smaller; when there is none, the one that touches fewest stands in. Things
    lie inside of a picture, backgrounds run out of it.

    Args:
        labels_hw: int [h, w], the segment of each patch; negative where there is none.
        max_borders: Borders that an object may touch.
        min_area: Share of the grid below which a part is left out.

    Returns:
        (mask [h, w], score in 0..1) per candidate. The score is the share of the part's own box that it fills,
        times the share of its outline that does not lie on a border: compact inner parts score high.
    """
    found = []
    for label in np.unique(labels_hw[labels_hw >= 0]):
        part = components(labels_hw == label)[0]
        if part.sum() >= max(1.0, min_area * part.size):
            found.append((borders_touched(part), -int(part.sum()), part))
    if not found:
        return []
    inner = [one for one in found if one[0] <= max_borders]
    chosen = sorted(inner, key=lambda one: one[1]) or [min(found, key=lambda one: one[:2])]
    return [(part, _compactness(part)) for _, _, part in chosen]


def _compactness(part: NDArray[np.bool_]) -> float:
    box = mask_box(part)
    assert box is not None
    x0, y0, x1, y1 = box
    fill = part.sum() / ((x1 - x0) * (y1 - y0))
    padded = np.pad(part, 1)
    outline = sum(int((padded != np.roll(padded, step, axis)).sum()) for step in (1,) for axis in (0, 1))
    edge = sum(int(side.sum()) for side in (part[0], part[-1], part[:, 0], part[:, -1]))
    return float(fill * (1 - edge / outline))


def corloc(predicted: NDArray[np.floating], truth: NDArray[np.floating], *, iou: float = 0.5) -> bool:
    """Return whether a box [4] overlaps any true box [m, 4] by at least `iou` (correct localisation).

    References: Deselaers, Alexe and Ferrari 2012, doi:10.1007/s11263-012-0538-3.
    """
    return bool(len(truth)) and bool((box_iou(predicted, truth) >= iou).any())


def match_boxes(
    proposals: Proposals,
    truth: NDArray[np.floating],
    *,
    is_ignored: NDArray[np.bool_] | None = None,
    is_crowd: NDArray[np.bool_] | None = None,
    iou: float = 0.5,
) -> Matches:
    """Match the proposals of one image with its true boxes, one to one, surest first (COCO's rule).

    Args:
        proposals: At most 100 are looked at.
        truth: [m, 4].
        is_ignored: bool [m], objects that need not be found (VOC's "difficult"); hitting them is no mistake.
        is_crowd: bool [m]; crowds are ignored too, and may be hit many times.
        iou: Least overlap of a hit.
    """
    n_true = len(truth)
    crowd = np.zeros(n_true, bool) if is_crowd is None else np.asarray(is_crowd, bool)
    ignored = crowd if is_ignored is None else crowd | np.asarray(is_ignored, bool)
    order = np.argsort(-np.asarray(proposals.scores), kind="mergesort")[:MAX_DETECTIONS]
    overlap = box_iou(proposals.boxes[order], truth, is_crowd=crowd)
    is_taken = np.zeros(n_true, bool)
    is_hit, is_out = np.zeros(len(order), bool), np.zeros(len(order), bool)
    need = min(iou, 1 - 1e-10)
    for i in range(len(order)):
        # An object is always preferred to something that is ignored.
        for group in (~ignored, ignored):
            allowed = group & (~is_taken | crowd) & (overlap[i] >= need)
            if allowed.any():
                places = np.flatnonzero(allowed)
                best = places[len(places) - 1 - np.argmax(overlap[i][places][::-1])]
                is_taken[best] = True
                (is_out if ignored[best] else is_hit)[i] = True
                break
    return Matches(np.asarray(proposals.scores, np.float64)[order], is_hit, is_out, int((~ignored).sum()))


def average_precision(matches: Sequence[Matches], *, weights: NDArray[np.floating] | None = None) -> float:
    """Return the average precision of proposals over images: mean precision at 101 recalls, interpolated as COCO does.

    Proposals of one score stand on the same side of every threshold, so that the order of the images does not matter.
    (COCO's own tool takes them one by one, in the order of the images: it agrees where scores differ.)

    Args:
        matches: One per image, see `match_boxes`.
        weights: How often each image counts (bootstrap); None counts each once.

    Returns:
        0..1; NaN when there is no object to be found.

    References: Lin et al. 2014, arXiv:1405.0312; agrees with pycocotools in the tests, where no scores are tied.
    """
    if not matches:
        raise InputError("got no images; average precision needs at least one.")
    w = np.ones(len(matches)) if weights is None else np.asarray(weights, np.float64)
    n_objects = float(np.dot(w, [m.n_objects for m in matches]))
    if n_objects <= 0:
        return float("nan")
    scores = np.concatenate([m.scores for m in matches])
    count = np.repeat(w, [len(m.scores) for m in matches])
    hit = np.concatenate([m.is_hit for m in matches])
    counts = ~np.concatenate([m.is_ignored for m in matches])
    if not len(scores):
        return 0.0
    thresholds, place = np.unique(-scores, return_inverse=True)
    hits = np.cumsum(np.bincount(place, count * (hit & counts), minlength=len(thresholds)))
    misses = np.cumsum(np.bincount(place, count * (~hit & counts), minlength=len(thresholds)))
    recall = hits / n_objects
    precision = hits / np.maximum(hits + misses, np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALL_POINTS, side="left")
    return float(
        np.where(places < len(precision), precision[np.minimum(places, len(precision) - 1)], 0).mean()
    )
