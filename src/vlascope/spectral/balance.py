"""Giving rare concepts as much say as frequent ones: weights that even out the density of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BOOST = 50.0
"""A token counts at most this many times the median token, so that a lone outlier cannot dominate."""


def uniform_weights(degree: Tensor, base: Tensor | None, *, typical: float | None = None) -> Tensor:
    """Return the weight of each row under balance="uniform": inverse to how many rows are like it.

    With weights 1/q the graph approximates the geometry of the data whatever its density (the alpha = 1
    normalisation of diffusion maps), so that a small group is as much a group as a large one.

    Args:
        degree: q, [n], summed affinity of each row to all rows, > 0.
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
