"""Scores of groupings: normalised mutual information, adjusted Rand index, silhouette (scikit-learn's, checked)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

MAX_SILHOUETTE_ROWS = 2_000


def nmi(a: ArrayLike, b: ArrayLike) -> float:
    """Return the normalised mutual information of two labellings, 0..1 (arithmetic mean of entropies).

    With few rows per group it is above 0 for unrelated labels: compare it with shuffled ones.

    Raises:
        InputError: unequal lengths, or one side has a single class (then there is nothing to agree on).
    """
    x, y = _codes(a, b)
    return nmi_of_table(contingency(x, y))


def contingency(
    x: NDArray[np.int64], y: NDArray[np.int64], *, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the (weighted) counts of each pair of codes, float64 [max x + 1, max y + 1]."""
    n_x, n_y = int(x.max()) + 1, int(y.max()) + 1
    return np.bincount(x * n_y + y, weights, minlength=n_x * n_y).astype(np.float64).reshape(n_x, n_y)


def nmi_of_table(table: NDArray[np.float64]) -> float:
    """Return the normalised mutual information of a table of counts; NaN when a side has one class only."""
    p = table / table.sum()
    rows, cols = p.sum(1), p.sum(0)
    entropy = _entropy(rows) + _entropy(cols)
    if _entropy(rows) <= 0 or _entropy(cols) <= 0:
        return float("nan")
    return float(max(0.0, 2 * (entropy - _entropy(p.reshape(-1))) / entropy))


def nmi_of_tables(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `nmi_of_table` of many tables of counts, float64 [...] for [..., x, y]."""
    p = tables / tables.sum((-2, -1), keepdims=True)
    rows, cols = _entropies(p.sum(-1)), _entropies(p.sum(-2))
    total = rows + cols
    mutual = total - _entropies(p.reshape(*p.shape[:-2], -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((rows > 0) & (cols > 0), np.clip(2 * mutual / total, 0, None), np.nan)


def _entropies(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def ari(a: ArrayLike, b: ArrayLike) -> float:
    """Return the adjusted Rand index of two labellings: 1 for equal up to names, about 0 for unrelated.

    Raises:
        InputError: unequal lengths or no rows.
    """
    from sklearn.metrics import adjusted_rand_score

    x, y = _codes(a, b, need_two=False)
    return float(adjusted_rand_score(x, y))


def silhouette(features_nd: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> float:
    """Return the mean silhouette of labelled rows (Euclidean), -1..1; at most 2,000 rows are sampled.

    Raises:
        InputError: fewer than two classes, or no class with two rows, or all rows equal.

    References: Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7.
    """
    from sklearn.metrics import silhouette_score

    x = np.asarray(features_nd, np.float64)
    codes, _ = _codes(labels, labels)
    if len(x) != len(codes):
        raise InputError(f"got {len(x)} rows of features but {len(codes)} labels.")
    if len(x) > MAX_SILHOUETTE_ROWS:
        keep = np.random.default_rng(seed).choice(len(x), MAX_SILHOUETTE_ROWS, replace=False)
        x, codes = x[keep], codes[keep]
    n_classes = len(np.unique(codes))
    if not 2 <= n_classes < len(x):
        raise InputError(f"got {n_classes} classes for {len(x)} rows; a silhouette needs 2 to n - 1.")
    if not np.ptp(x, axis=0).any():
        raise InputError("all rows of features are equal: they separate nothing.")
    return float(silhouette_score(x, codes))


def _codes(
    a: ArrayLike, b: ArrayLike, *, need_two: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    x, y = (np.unique(np.asarray(v), return_inverse=True)[1].astype(np.int64) for v in (a, b))
    if len(x) != len(y) or not len(x):
        raise InputError(f"got labellings of {len(x)} and {len(y)} rows; need the same number, at least 1.")
    if need_two and (x.max() == 0 or y.max() == 0):
        raise InputError("one labelling has a single class; there is nothing to compare.")
    return x, y
