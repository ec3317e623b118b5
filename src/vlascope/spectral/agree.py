"""How well two layers or models agree on the same tokens: CKA of features, overlap of eigenspaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .nystrom import NystromNCut
from .rows import Rows, as_rows, require_finite, to_tensor

MAX_ROWS = 8_192
"""Tokens that agreement is measured on; a uniform sample of more."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike two layers or models see the same tokens.

    Attributes:
        cka: Debiased linear CKA of the features: 1 for equal up to rotation and scale, about 0 for unrelated
            (it can be slightly negative).
        subspace: Overlap of the two cuts' leading non-trivial eigenspaces: the mean squared cosine of the
            principal angles, in [0, 1].
        subspace_chance: The same after shuffling the tokens of one side: what unrelated layers would get.
        n: Tokens measured.
        n_eig: Eigenvectors compared, without the trivial one.
    """

    cka: float
    subspace: float
    subspace_chance: float
    n: int
    n_eig: int


def cka(x_nd: Any, y_ne: Any) -> float:
    """Return the debiased linear CKA of two sets of features of the same tokens.

    Does not depend on rotations, shifts or scale of either side. The plain estimate is biased towards 1 when
    there are fewer tokens than channels; this one is not.

    Args:
        x_nd: [n, d] features, n >= 4.
        y_ne: [n, e] features of the same tokens in the same order.

    Raises:
        InputError: different numbers of rows, fewer than 4, NaN or Inf, or constant features.

    Cost: O(n d e + n d² + n e²).
    References: Kornblith et al. 2019; unbiased HSIC of Song et al. 2012; Nguyen, Raghu and Kornblith 2021.
    """
    x, y = _checked_pair(x_nd, y_ne)
    if len(x) < 4:
        raise InputError(f"got {len(x)} tokens; CKA needs at least 4.")
    x, y = x - x.mean(0), y - y.mean(0)
    own_x, own_y = _hsic(x, x), _hsic(y, y)
    if own_x <= 0 or own_y <= 0:
        raise InputError("one side is constant (or pure noise for so few tokens): CKA is not defined.")
    return float(_hsic(x, y) / np.sqrt(own_x * own_y))


def _hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of linear kernels, without forming the n x n matrices K = xx' and L = yy' (zero diagonals)."""
    n = len(x)
    k_own, l_own = (x * x).sum(1), (y * y).sum(1)
    k_sums, l_sums = x @ x.sum(0) - k_own, y @ y.sum(0) - l_own
    trace = float((x.T @ y).square().sum() - (k_own * l_own).sum())
    total = float(k_sums.sum() * l_sums.sum()) / ((n - 1) * (n - 2))
    cross = 2 * float(k_sums @ l_sums) / (n - 2)
    return (trace + total - cross) / (n * (n - 3))


def subspace_overlap(u_nk: Any, v_nk: Any) -> float:
    """Return the mean squared cosine of the principal angles between two column spaces, in [0, 1].

    Args:
        u_nk: [n, k] eigenvectors (without the trivial one); columns of zeros are left out.
        v_nk: [n, k'] eigenvectors of the same tokens.

    Returns:
        1 for the same space (whatever the rotation within), about k / n for unrelated ones. With unequal
        dimensions, the mean is over the smaller.
    """
    u, v = _checked_pair(u_nk, v_nk)
    u, v = (torch.linalg.qr(m[:, m.abs().amax(0) > 0])[0] for m in (u, v))
    if 0 in u.shape or 0 in v.shape:
        raise InputError(
            "one side has no eigenvector with a positive eigenvalue; there is nothing to compare."
        )
    return float((u.T @ v).square().sum() / min(u.shape[1], v.shape[1]))


def agreement(x: Any, y: Any, *, n_eig: int = 20, density: float = 0.05, seed: int = 0) -> Agreement:
    """Return how well two layers or models agree on the same tokens.

    Args:
        x: [n, d] features, in any form that `NystromNCut` takes.
        y: [n, e] features of the same tokens in the same order.
        n_eig: Non-trivial eigenvectors compared.
        density: Mean affinity of both cuts.
        seed: Seeds the sample of tokens (at most 8192), the cuts and the shuffled control.

    Raises:
        InputError: different numbers of rows, or features that cannot be cut.

    Cost: two exact cuts of at most 8192 tokens.
    """
    return agreement_matrix({"x": x, "y": y}, n_eig=n_eig, density=density, seed=seed)["x", "y"]


def agreement_matrix(
    layers: Mapping[str, Any], *, n_eig: int = 20, density: float = 0.05, seed: int = 0
) -> dict[tuple[str, str], Agreement]:
    """Return the agreement of every pair of layers that describe the same tokens, keyed by (name, later name).

    Each layer is cut once. See `agreement`.
    """
    sources = {name: as_rows(features) for name, features in layers.items()}
    sizes = {name: rows.n for name, rows in sources.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(
            f"layers need the same tokens in the same order; got these numbers of rows: {sizes}."
        )
    n = min(next(iter(sizes.values())), MAX_ROWS)
    k = min(n_eig, n - 1)
    if k < 1:
        raise InputError(f"got {n} tokens and n_eig={n_eig}; need at least 2 tokens and n_eig >= 1.")
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(next(iter(sizes.values())), n, replace=False)).astype(np.int64)
    order = rng.permutation(n)
    features = {name: _take(rows, index) for name, rows in sources.items()}
    spaces = {}
    for name, values in features.items():
        cut = NystromNCut(k + 1, density=density, seed=seed, memory_limit=8 * MAX_ROWS**2)
        spaces[name] = np.asarray(cut.fit_transform(values))[:, 1:]
    names = list(features)
    return {
        (one, two): Agreement(
            cka=cka(features[one], features[two]),
            subspace=subspace_overlap(spaces[one], spaces[two]),
            subspace_chance=subspace_overlap(spaces[one], spaces[two][order]),
            n=n,
            n_eig=k,
        )
        for at, one in enumerate(names)
        for two in names[at + 1 :]
    }


def _take(rows: Rows, index: NDArray[np.int64]) -> Tensor:
    found = rows.take(index)
    require_finite(found, index)
    return found.cpu().float()


def _checked_pair(x: Any, y: Any) -> Sequence[Tensor]:
    x, y = to_tensor(x).cpu().double(), to_tensor(y).cpu().double()
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(
            f"got arrays of shape {tuple(x.shape)} and {tuple(y.shape)}; need [n, d] and [n, e] of the same tokens."
        )
    for side in (x, y):
        require_finite(side, 0)
    return x, y
