"""Giving rare concepts as much say as frequent ones: weights that even out the density of tokens, and averages.

Two things drown a rare or sparse group in a plain cut: it has little mass, and its few rows carry noisy values.
balance="uniform" answers the first with weights against the local density, the second with an average of the
eigenvectors over the nearest points of the fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .affinity import Kernel, density_sigma

MAX_BOOST = 50.0
"""A token counts at most this many times the median token, so that a lone outlier cannot dominate."""

LOCAL_DENSITY = 0.02
"""Mean affinity at which the density around a token is measured. At the graph's own scale a small group's degree
is mostly that of its large neighbours, and says nothing about the group."""

MAX_NEIGHBORS = 32
NEIGHBORS_PER_ROW = 1 / 200
"""Points averaged over: one in two hundred, 32 at most, so that few rows are not smeared into one."""


def local_power(kernel: Kernel, sample: Tensor) -> float:
    """Return p >= 1 for which the mean of affinity**p between prepared sample rows is `LOCAL_DENSITY`.

    For exp(-d²/2 sigma²) raising to p is the same as a scale of sigma / sqrt(p), without new distances. A custom
    affinity has no scale: 1.
    """
    if kernel.fn is not None:
        return 1.0
    sigma = density_sigma(sample - sample.mean(0), density=LOCAL_DENSITY)
    return max(1.0, 1 / sigma**2) if sigma > 0 else 1.0  # prepared rows are in units of sigma


def local(block: Tensor, power: float) -> Tensor:
    """Return affinities at the local scale."""
    return block if power == 1 else block.pow(power)


def uniform_weights(degree: Tensor, base: Tensor | None, *, typical: float | None = None) -> Tensor:
    """Return the weight of each row under balance="uniform": inverse to how many rows are like it.

    With weights 1/q the graph approximates the geometry of the data whatever its density (the alpha = 1
    normalisation of diffusion maps), so that a small group is as much a group as a large one.

    Args:
        degree: q, [n], summed local affinity of each row to all rows, > 0.
        base: float64 [n], weights that the caller gave; None means ones.
        typical: Degree of the median token; None takes the median of `degree`.

    Returns:
        float64 [n], > 0, on the CPU; mean 1, or relative to the typical token (weight 1) when `typical` is given.

    References: Coifman and Lafon 2006.
    """
    q = degree.detach().to("cpu", torch.float64)
    middle = float(q.median()) if typical is None else typical
    weights = middle / q.clamp(min=middle / MAX_BOOST)
    if base is not None:
        weights = weights * base
    return weights / weights.mean() if typical is None else weights


def n_neighbors(n_points: int, *, is_exact: bool) -> int:
    """Return over how many points of the fit a row is averaged; 0 means not at all."""
    wanted = int(n_points * NEIGHBORS_PER_ROW) if is_exact else n_points // 16
    return min(MAX_NEIGHBORS, wanted) if wanted >= 3 else 0


def averaged(values_bk: Tensor, block_bm: Tensor, point_values_mk: Tensor, *, n_near: int) -> Tensor:
    """Return eigenvectors of rows averaged with those of the nearest points of the fit, [b, k].

    A row's own values count 1; those of the j-th nearest point count (l_n - l_j) / (l_n - l_2), 1 at most, with
    l = -log of the affinity (squared distance, for the built-in kernels). The weights fall to 0 at the n-th point,
    so the result is a continuous function of the row, and a group of three points far from all else averages over
    those three. The second point sets the unit because the first may be the row itself, at distance 0.

    Args:
        values_bk: Eigenvectors of the rows.
        block_bm: Affinities of the rows to the points, >= 0.
        point_values_mk: Eigenvectors of the points.
        n_near: How many nearest points to look at.

    Cost: O(b (m + n_near k)).
    """
    near, index = block_bm.topk(n_near, dim=1)
    level = -near.clamp(min=1e-30).log()
    last = level[:, -1:]
    weight = ((last - level) / (last - level[:, 1:2]).clamp(min=1e-6)).clamp(max=1)
    around = torch.einsum("bj,bjk->bk", weight, point_values_mk[index])
    return (values_bk + around) / (1 + weight.sum(1, keepdim=True))
