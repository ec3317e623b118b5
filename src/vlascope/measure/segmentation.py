"""Scores of segments against true regions, all from one table of shared pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

VOID = -1
"""Label of true pixels that count for nothing."""


def overlap_table(labels_hw: NDArray[np.integer], truth_hw: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return how many pixels each segment shares with each true region, float64 [n_segments, n_regions].

    Args:
        labels_hw: int [h, w]. Negative pixels (no segment) form one segment of their own, the last.
        truth_hw: int [h, w], 0..n_regions-1; `VOID` pixels are left out.

    Raises:
        InputError: the shapes differ.

    Cost: O(h w). Every score of this file is O(table) after it.
    """
    if labels_hw.shape != truth_hw.shape:
        raise InputError(
            f"segments have shape {labels_hw.shape} but the truth {truth_hw.shape}; they must agree."
        )
    n_true, n_labels = max(int(truth_hw.max(initial=0)) + 1, 1), max(int(labels_hw.max(initial=-1)) + 2, 1)
    known = truth_hw != VOID
    found = np.where(labels_hw < 0, n_labels - 1, labels_hw)[known].astype(np.int64)
    counts = np.bincount(found * n_true + truth_hw[known], minlength=n_labels * n_true)
    return counts.reshape(n_labels, n_true).astype(np.float64)


def table_iou(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of every segment with every region, [n_segments, n_regions]; 0 where both are empty."""
    union = table.sum(1)[:, None] + table.sum(0)[None] - table
    return np.where(union > 0, table / np.where(union > 0, union, 1), 0.0)


def best_overlaps(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each region the IoU of the segment that fits it best; NaN for regions without pixels."""
    return np.where(table.sum(0) > 0, table_iou(table).max(0), np.nan)


def majority_confusion(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the confusion [n_regions found, n_regions true] when each segment is named after its commonest region.

    The oracle reading of unnamed segments: it rises with the number of segments, so compare at the same number.
    """
    n_true = table.shape[1]
    out = np.zeros((n_true, n_true))
    np.add.at(out, table.argmax(1), table)
    return out


def match_segments(table: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the region that each segment is matched with, one to one for the largest sum of IoU; -1 for the rest.

    References: Kuhn 1955 (the Hungarian method), as solved by SciPy.
    """
    from scipy.optimize import linear_sum_assignment

    iou = table_iou(table)
    rows, cols = linear_sum_assignment(-iou)
    out = np.full(len(table), -1, np.int64)
    out[rows] = cols
    out[iou[np.arange(len(table)), np.maximum(out, 0)] <= 0] = -1
    return out


def matched_counts(table: NDArray[np.float64], region_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return pixels right, pixels claimed and true pixels of each region, [3, n_regions], under a matching."""
    right, claimed = np.zeros(table.shape[1]), np.zeros(table.shape[1])
    for segment, region in enumerate(region_of):
        if region >= 0:
            right[region] += table[segment, region]
            claimed[region] += table[segment].sum()
    return np.stack([right, claimed, table.sum(0)])


def oracle_counts(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return pixels right, claimed and true of each region, [3, n_regions], under the majority naming."""
    confusion = majority_confusion(table)
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def mean_iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean IoU over the regions that occur, from counts [..., 3, n_regions] summed over images.

    A region that is claimed but never true is left out, as in VOC's and COCO-Stuff's tools; its pixels cost the
    regions that they were taken from.
    """
    right, claimed, true = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    union = claimed + true - right
    occurs = true > 0
    iou = np.where(occurs, right / np.where(union > 0, union, 1), 0.0)
    n = occurs.sum(-1)
    return np.where(n > 0, iou.sum(-1) / np.maximum(n, 1), np.nan)


def covering(table: NDArray[np.float64]) -> float:
    """Return how well segments cover the true regions: size-weighted mean of each region's best IoU, 0..1.

    References: Arbelaez, Maire, Fowlkes and Malik 2011, doi:10.1109/TPAMI.2010.161 (BSDS).
    """
    size = table.sum(0)
    return float((size * table_iou(table).max(0)).sum() / size.sum()) if size.sum() else float("nan")


def rand_index(table: NDArray[np.float64]) -> float:
    """Return the share of pixel pairs that both labellings put together or both put apart, 0..1.

    The probabilistic Rand index of an image is its mean over the human segmentations.
    References: Unnikrishnan, Pantofaru and Hebert 2007, doi:10.1109/TPAMI.2007.1046.
    """
    n = table.sum()
    if n < 2:
        return float("nan")
    same = ((table**2).sum() - n) / 2
    rows, cols = (((table.sum(axis) ** 2).sum() - n) / 2 for axis in (1, 0))
    pairs = n * (n - 1) / 2
    return float((pairs + 2 * same - rows - cols) / pairs)


def variation_of_information(table: NDArray[np.float64]) -> float:
    """Return the variation of information of two labellings in bits: 0 for equal ones, larger is worse.

    References: Meila 2007, doi:10.1016/j.jmva.2006.11.013.
    """
    n = table.sum()
    if not n:
        return float("nan")
    p = table / n

    def entropy(values: NDArray[np.float64]) -> float:
        values = values[values > 0]
        return float(-(values * np.log2(values)).sum())

    return max(0.0, 2 * entropy(p.reshape(-1)) - entropy(p.sum(0)) - entropy(p.sum(1)))


def jaccard(mask_hw: NDArray[np.bool_], truth_hw: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks (J of DAVIS); 1 when both are empty, as there.

    References: Perazzi et al. 2016, doi:10.1109/CVPR.2016.85.
    """
    union = (mask_hw | truth_hw).sum()
    return float((mask_hw & truth_hw).sum() / union) if union else 1.0
