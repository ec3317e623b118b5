"""Which few points stand for all tokens in a Nystrom cut: k-means centroids plus what they explain worst."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._linalg import lloyd
from .affinity import Kernel, has_half_products

CANDIDATES_PER_CENTROID = 24
LLOYD_STEPS = 3
CANDIDATES_PER_RESIDUAL = 4


def centroids(x_nd: Tensor, n_centroids: int, *, seed: int, medoids: bool = False) -> tuple[Tensor, Tensor]:
    """Return centroids [m, d] of prepared rows and the share of the rows that each stands for [m].

    Centroids beat any choice of data points as landmarks, because they average noise away. A custom affinity
    gets `medoids` (the rows nearest the centroids), which are real rows.

    Cost: O(n m d) for a sample of n = 24 m rows.
    """
    rng = np.random.default_rng(seed)
    start = torch.from_numpy(np.sort(rng.choice(len(x_nd), size=min(n_centroids, len(x_nd)), replace=False)))
    x32 = x_nd.float()
    is_half = has_half_products(x_nd.device) and not medoids
    centers, labels, counts = lloyd(x32, x32[start.to(x_nd.device)], steps=LLOYD_STEPS, is_half=is_half)
    filled = counts > 0
    if medoids:
        distance = (x32 - centers[labels]).square().sum(1)
        order = torch.argsort(distance, stable=True)
        first = torch.full((len(centers),), len(x32), dtype=torch.int64, device=x32.device)
        first.scatter_reduce_(0, labels[order], torch.arange(len(order), device=x32.device), reduce="amin")
        centers = x_nd[order[first[filled]]]
        return centers, counts[filled] / len(x_nd)
    return centers[filled], counts[filled] / len(x_nd)


def merged(centers_md: Tensor, counts: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return at most `n_groups` centroids that stand for all centroids, and their member counts. Cost: O(m² d)."""
    step = -(-len(centers_md) // n_groups)
    if step == 1:
        return centers_md, counts
    groups, labels, _ = lloyd(centers_md.float(), centers_md[::step].float(), steps=LLOYD_STEPS)
    members = torch.zeros(len(groups), device=counts.device).index_put_((labels,), counts, accumulate=True)
    filled = members > 0
    return groups[filled], members[filled]


def residual_scores(block_nm: Tensor, crowd: Tensor) -> Tensor:
    """Return how badly each row is explained by the centroids, relative to its degree, [n], in [0, 1].

    Args:
        block_nm: Affinities of rows to centroids, in [0, 1].
        crowd: How many rows are like each row, by the centroids' counts, [n].
    """
    nearest = block_nm.amax(1)
    return (1 - nearest * nearest) / (1 + crowd)


def pick_residual(
    x_cd: Tensor, centers_md: Tensor, counts: Tensor, kernel: Kernel, *, n_picks: int
) -> Tensor:
    """Return row numbers of `x_cd` that add most to the centroids, in order of choice, [<= n_picks].

    Greedy pivoted Cholesky of the residual kernel (K - C M^-1 C') scaled by 1/sqrt(d_i d_j), in float64. Stops
    early when nothing is left to explain.

    Cost: O(c (m + n_picks)²) for c candidate rows.
    """
    centers = centers_md.float()
    gram = kernel.block(centers, centers).double()
    cross = kernel.block(x_cd, centers).double()
    own = kernel.block(x_cd, x_cd).double()
    jitter = 1e-8 * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor = torch.linalg.cholesky(gram + jitter)
    white = torch.linalg.solve_triangular(factor, cross.T, upper=False)  # [m, c]
    scale = (1 + cross @ counts.double()).rsqrt()
    residual = (own - white.T @ white) * scale[:, None] * scale[None]
    left = residual.diagonal().clone()
    floor = 1e-4 * float(scale.max()) ** 2 if len(scale) else 0.0
    columns = torch.zeros((n_picks, len(x_cd)), dtype=torch.float64, device=x_cd.device)
    picks: list[int] = []
    for at in range(min(n_picks, len(x_cd))):
        best = int(left.argmax())
        if float(left[best]) <= floor * 1e-2 or float(left[best]) <= 1e-5 * float(scale[best]) ** 2:
            break
        column = (residual[best] - columns[:at, best] @ columns[:at]) / left[best].sqrt()
        columns[at] = column
        left = (left - column * column).clamp_(min=0)
        left[best] = -1.0
        picks.append(best)
    return torch.tensor(picks, dtype=torch.int64, device=x_cd.device)


def whitener(landmarks: Tensor, kernel: Kernel) -> Tensor:
    """Return W [m, r] with K(x, Z) W K-orthonormal: W W' is the pseudo-inverse of the landmarks' affinity matrix.

    Directions with less than 1e-6 of the largest eigenvalue are dropped (they would amplify rounding).
    float64; the eigenproblem runs on one thread.
    """
    from ._linalg import eigh_falling

    gram = kernel.block(landmarks, landmarks).double()
    if kernel.fn is None:
        gram.fill_diagonal_(1.0)
    values, vectors = eigh_falling(gram)
    keep = values > 1e-6 * values[0]
    return (vectors[:, keep] * values[keep].rsqrt()).to(landmarks.device)
