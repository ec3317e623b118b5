"""Groups of items at a layer, made without labels, and numbered alike over layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def group_items(features_nd: NDArray[np.floating], k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the group of each row: k-means on principal components that hold 95 % of the variance.

    Channels are standardised first: one of large scale, of which transformers have a few, would else be all that
    the groups follow. Channels that do not vary are left out. Rows that are all equal form one group.
    """
    from sklearn.cluster import KMeans

    x = np.asarray(features_nd, np.float64)
    mean, spread = x.mean(0), x.std(0)
    lives = living_channels(mean, spread)
    if not lives.any():
        return np.zeros(len(x), np.int64)
    x = (x[:, lives] - mean[lives]) / spread[lives]
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    share = np.cumsum(size**2) / (size**2).sum()
    keep = int(np.searchsorted(share, 0.95)) + 1
    z = left[:, :keep] * size[:keep]
    k = min(k, len(np.unique(z, axis=0)))
    model = KMeans(n_clusters=k, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    return model.fit_predict(z).astype(np.int64)


def living_channels(mean: NDArray[np.floating], spread: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which channels vary by more than rounding, bool [d], from their means and standard deviations [d]."""
    largest = max(float(np.abs(mean).max(initial=0)), float(spread.max(initial=0)), 1e-30)
    return np.asarray(spread > 1e-6 * largest)


def named_like(groups: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the same groups, numbered so that as many items as possible keep their number of another grouping.

    Args:
        groups: int64 [n], 0..k-1.
        before: int64 [n], another grouping of the same items, such as that of the layer before.
    """
    from scipy.optimize import linear_sum_assignment

    k = int(max(groups.max(), before.max())) + 1
    shared = np.zeros((k, k), np.int64)
    np.add.at(shared, (groups, before), 1)
    return linear_sum_assignment(-shared)[1][groups].astype(np.int64)
