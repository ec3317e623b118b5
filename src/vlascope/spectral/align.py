"""Making tokens of different layers and models comparable: affinity to shared anchor tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..progress import watched
from .affinity import Kernel, centered, centered_mean, density_sigma
from .rows import Rows, as_rows, require_finite

CHUNK_ROWS = 16_384
SCALE_ROWS = 768
"""Rows of each layer that its scale is measured on: 0.3 million pairs, 0.05 s."""


def relative_affinity(
    features_per_layer: Sequence[Any],
    anchors: Sequence[Any] | NDArray[np.integer],
    *,
    density: float = 0.05,
    affinity: str = "rbf",
    seed: int = 0,
) -> list[NDArray[np.float32]]:
    """Return, for every layer, features of equal width that can be cut together: affinity to shared anchors.

    A token is described by which anchor tokens it is close to *within its own layer*, at the same density in every
    layer. Anchors are the same tokens everywhere (the same patch of the same item), so that the descriptions mean
    the same in all layers and models, whatever their widths and units. Each description has unit norm, so that a
    token far from everything still says which anchors it is nearest to.

    Args:
        features_per_layer: One [n_l, d_l] array (any form that `NystromNCut` takes) per layer.
        anchors: Row numbers [a] of the anchors, the same in every layer; or one array of row numbers per layer, all
            of length a, with -1 where an anchor does not exist in that layer (a word, in the vision tower). The
            descriptions are 0 there.
        density: Mean affinity between two tokens of a layer, in (0, 1).
        affinity: "rbf" or "cosine".
        seed: Seeds the sample that the scale is measured on.

    Returns:
        float32 [n_l, a] per layer.

    Raises:
        InputError: no layers, anchors out of range or of unequal number, a layer whose tokens all coincide.

    Cost: O(n a d) per layer, one pass.
    References: the idea of describing tokens by affinity to shared tokens follows AlignedCut (Yang et al. 2024).
    """
    sources = [as_rows(features) for features in features_per_layer]
    if not sources:
        raise InputError("got no layers; need at least one array of features.")
    per_layer = _anchors_per_layer(anchors, sources)
    return [
        _describe(rows, mine, density=density, affinity=affinity, seed=seed)
        for rows, mine in zip(sources, per_layer, strict=True)
    ]


def _anchors_per_layer(anchors: Any, sources: Sequence[Rows]) -> list[NDArray[np.int64]]:
    is_shared = np.ndim(anchors[0]) == 0 if len(anchors) else True
    found = (
        [np.asarray(anchors, np.int64)] * len(sources)
        if is_shared
        else [np.asarray(a, np.int64) for a in anchors]
    )
    if len(found) != len(sources):
        raise InputError(f"got anchors for {len(found)} layers but {len(sources)} layers of features.")
    sizes = {len(a) for a in found}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"every layer needs the same number of anchors, at least 1; got {sorted(sizes)}.")
    for number, mine in enumerate(watched(found, desc="sites", unit="site")):
        rows = sources[number]
        if mine.min() < -1 or mine.max() >= rows.n:
            raise InputError(f"an anchor of layer {number} is no row of it; its rows run 0..{rows.n - 1}.")
        if not (mine >= 0).any():
            raise InputError(
                f"layer {number} holds none of the anchors; choose anchors that all layers share."
            )
    return found


def _describe(
    rows: Rows, anchors: NDArray[np.int64], *, density: float, affinity: str, seed: int
) -> NDArray[np.float32]:
    kernel = layer_kernel(rows, density=density, affinity=affinity, seed=seed)
    exists = np.flatnonzero(anchors >= 0)
    points = kernel.prepare(rows.take(anchors[exists]))
    columns = torch.from_numpy(exists)
    out = np.zeros((rows.n, len(anchors)), dtype=np.float32)
    view = torch.from_numpy(out)
    for start, stop, raw in rows.chunks(CHUNK_ROWS):
        if not bool(torch.isfinite(raw.sum(dtype=torch.float64))):
            require_finite(raw, start)
        view[start:stop, columns] = _profiles(kernel.prepare(raw), points).cpu()
    return out


def layer_kernel(rows: Rows, *, density: float, affinity: str = "rbf", seed: int = 0) -> Kernel:
    """Return the affinity of one layer at constant density.

    Raises:
        InputError: NaN or Inf in the sample, or all its rows coincide.
    """
    rng = np.random.default_rng(seed)
    size = min(rows.n, SCALE_ROWS)
    index = np.sort(rng.choice(rows.n, size=size, replace=False)).astype(np.int64)
    sample = rows.take(index)
    require_finite(sample, index)
    mean = centered_mean(sample, affinity)
    sigma = density_sigma(centered(sample, kind=affinity, mean=mean), density=density)
    if sigma == 0.0:
        raise InputError("all sampled tokens of a layer coincide; there is nothing to align.")
    return Kernel(affinity, sigma, mean)


def _profiles(x: Tensor, points: Tensor) -> Tensor:
    """Return affinities of prepared rows to prepared anchors, scaled to unit norm (also where all underflow)."""
    logits = torch.addmm((points * points).sum(1).mul_(-0.5)[None], x, points.T)
    shares = torch.softmax(logits, dim=1)
    return shares / shares.norm(dim=1, keepdim=True)
