"""UMAP to three dimensions for one or two thousand points, reproducible bit for bit and without compiled helpers."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .tsne import pca_start

N_STEPS = 300
NEGATIVES = 5.0
"""Repulsive samples per attractive one, as in the sampled algorithm; here it is the weight of the exact sum."""


def umap3(points: NDArray[np.float32], *, neighbours: int = 15) -> NDArray[np.float32]:
    """Return a 3-D UMAP embedding, started from the first three principal components.

    The sampled algorithm draws edges and non-edges at random; this one follows the mean of those draws over all
    pairs (the "effective loss"), which needs no random numbers and, for the landmarks of a palette, no
    approximate neighbour search. The low-dimensional kernel is 1 / (1 + d²).

    Args:
        points: [n, d], n <= a few thousand.
        neighbours: Size of the neighbourhood of each point, itself not counted; lowered to n - 1 for few points.

    Returns:
        float32 [n, 3], centred.

    Cost: O(300 n²); n = 1024 takes about 2 s on one core, as long as umap-learn once its first call has
        compiled (40 s), at equal trustworthiness.
    References: McInnes, Healy and Melville 2018 (arXiv:1802.03426); Damrich and Hamprecht 2021 (arXiv:2103.14608,
    the effective loss); Böhm, Berens and Kobak 2022 (arXiv:2007.08902, the kernel).
    """
    n = len(points)
    x = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    x = x - x.mean(0)
    y = pca_start(x)
    if n < 5:
        return y.numpy()
    graph = fuzzy_graph(x, neighbours=min(neighbours, n - 1))
    left, right = graph.nonzero().T
    weight = graph[left, right, None]
    degree = graph.sum(1, keepdim=True)
    push = NEGATIVES / (2 * n) * (degree + degree.T)
    push.fill_diagonal_(0)
    pull_scale = 1 / degree.clamp(min=1e-6)
    y = y * (10 / y.abs().max().clamp(min=1e-12))
    step = torch.zeros_like(y)
    for iteration in range(N_STEPS):
        move = _pull(y, left, right, weight).add_(_push(y, push)).mul_(pull_scale)
        rate = 0.5 * (1 - iteration / N_STEPS)
        step = 0.5 * step + rate * move.clamp_(-4, 4)
        y = y + step
    return (y - y.mean(0)).numpy()


def fuzzy_graph(x: Tensor, *, neighbours: int) -> Tensor:
    """Return the symmetric neighbour graph [n, n]: weights in [0, 1], zero diagonal.

    Each point's nearest neighbour has weight 1; the others fall off so that their sum is log2(neighbours).
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    near, index = distance.sort(dim=1, stable=True)
    near, index = near[:, :neighbours], index[:, :neighbours]
    beyond = near - near[:, :1]
    target = max(math.log2(neighbours), 1.0)
    typical = near.mean().clamp(min=1e-12)
    low, high = torch.zeros(len(x), 1), torch.full((len(x), 1), 1e3) * typical
    for _ in range(50):
        middle = (low + high) / 2
        too_wide = torch.exp(-beyond / middle).sum(1, keepdim=True) > target
        low, high = torch.where(too_wide, low, middle), torch.where(too_wide, middle, high)
    # A width near zero would cut a point off from all but its duplicates.
    width = torch.maximum((low + high) / 2, 1e-3 * near.mean(1, keepdim=True)).clamp(min=1e-12)
    one_way = torch.zeros_like(distance)
    one_way.scatter_(1, index, torch.exp(-beyond / width))
    return one_way + one_way.T - one_way * one_way.T


def _pull(y: Tensor, left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Return how attraction along the edges moves every point, [n, 3]."""
    apart = y[right] - y[left]
    apart *= 2 * weight / (1 + (apart * apart).sum(1, keepdim=True))
    return torch.zeros_like(y).index_add_(0, left, apart)


def _push(y: Tensor, push: Tensor) -> Tensor:
    """Return how repulsion between all pairs moves every point, [n, 3]."""
    sq = (y * y).sum(1)
    d2 = torch.addmm(sq[None], y, y.T, alpha=-2).add_(sq[:, None]).clamp_(min=0)
    weight = push / ((d2 + 1e-3) * (d2 + 1))
    return 2 * (weight.sum(1, keepdim=True) * y - weight @ y)
