"""Landmarks: a few rows that an embedding places, and the extension from them to every row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .farthest import farthest_points


def choose_landmarks(rows: Tensor, n_landmarks: int, *, rng: np.random.Generator) -> Tensor:
    """Return up to `n_landmarks` distinct rows: half farthest points (the rare), half drawn uniformly (the usual)."""
    far = farthest_points(rows, max(2, n_landmarks // 2))
    others = np.setdiff1d(np.arange(len(rows)), far)
    n_more = min(n_landmarks - len(far), len(others))
    more = rng.choice(others, n_more, replace=False) if n_more > 0 else others[:0]
    return torch.unique(rows[torch.from_numpy(np.sort(np.concatenate([far, more])))], dim=0)


def landmark_arrays(points: Tensor) -> dict[str, NDArray[np.float32]]:
    """Return what `weights` needs: the landmarks, and for each how sharply its influence ends (its 5th neighbour)."""
    d2 = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    rank = min(5, len(points) - 1)
    local = d2.sort(1).values[:, rank].clamp(min=1e-6) if rank > 0 else torch.ones(len(points))
    return {"points": points.numpy(), "sharpness": (4.0 / local).numpy()}


def weights(rows: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """Return how much each landmark counts for each row, float32 [n, m], rows summing to 1. Cost: O(n m k)."""
    points = arrays["points"]
    d2 = torch.addmm((points * points).sum(1)[None], rows, points.T, alpha=-2)
    d2.add_((rows * rows).sum(1)[:, None]).clamp_(min=0)
    return torch.softmax(d2.mul_(-arrays["sharpness"][None]), dim=1)
