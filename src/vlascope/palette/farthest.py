"""Choosing points that are spread evenly over what there is, however often each kind occurs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def farthest_points(x_nd: Tensor, n_points: int) -> NDArray[np.int64]:
    """Return row numbers of a greedy farthest-point sample, starting from the row nearest the mean.

    Stops early when every row coincides with a chosen one. Cost: O(n n_points d).
    """
    start = int(((x_nd - x_nd.mean(0)) ** 2).sum(1).argmin())
    chosen = [start]
    sq_norms = (x_nd * x_nd).sum(1)
    nearest = torch.full_like(sq_norms, torch.inf)
    floor = 1e-10 * float(sq_norms.max())
    while len(chosen) < n_points:
        last = x_nd[chosen[-1]]
        nearest = torch.minimum(nearest, sq_norms - 2 * (x_nd @ last) + sq_norms[chosen[-1]])
        best = int(nearest.argmax())
        if float(nearest[best]) <= floor:
            break
        chosen.append(best)
    return np.asarray(chosen, dtype=np.int64)
