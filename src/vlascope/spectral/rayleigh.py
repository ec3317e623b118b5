"""A landmark cut, corrected for what the landmarks do not explain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._linalg import eigh_falling
from .affinity import Kernel
from .fitted import unexplained
from .rows import Rows

N_ROWS = 1024
"""Rows whose affinities to all others are computed; twice or half as many change an error of 0.056 by 0.001."""

N_SPARE = 16
"""Vectors beyond the wanted ones that the correction may mix in."""

CHUNK_ROWS = 4096


def corrected(
    rows: Rows,
    kernel: Kernel,
    features: Tensor,
    eigvecs: Tensor,
    degree: Tensor,
    values: Tensor,
    *,
    weights: Tensor | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return better eigenvalues and the turn of the approximate eigenvectors that belongs to them (Rayleigh-Ritz).

    Landmarks explain F F' of the affinity A. Eigenvalues of that part are too small: much for vectors that are
    spread over many rows, not at all for those that sit on a landmark. Where eigenvalues are close, spread vectors
    then rank too low, and a cut to k columns drops the wrong ones. What is missing in U' D^-1/2 A D^-1/2 U and in
    the degrees D is estimated from the affinities of some rows to all; the diagonal of A - F F' is known for all.

    Args:
        rows: All rows.
        kernel: The affinity, "rbf" or "cosine".
        features: F, float32 [n, r].
        eigvecs: Approximate eigenvectors of falling eigenvalue, [n, p], orthonormal under the weights. The first is
            trivial and stays.
        degree: Degrees, [n].
        values: Their eigenvalues, float64 [p]; vectors of eigenvalue 0 stay.
        weights: float32 [n], how much each row counts; None means 1.
        seed: Seeds the choice of rows.

    Returns:
        (eigenvalues float64 [p], falling, in [0, 1]; turn float64 [p, p]: the new vectors are eigvecs @ turn).

    Cost: O(s n (d + p) + n r p) with s = 1024 rows.
    """
    n, n_vectors = eigvecs.shape
    turn = torch.eye(n_vectors, dtype=torch.float64)
    n_used = int((values > 0).sum())
    if n_used <= 2:
        return values, turn
    scaled = eigvecs[:, 1:n_used] * degree.rsqrt()[:, None]
    if weights is not None:
        scaled *= weights[:, None]
    index = np.sort(np.random.default_rng([seed, 2]).choice(n, min(N_ROWS, n), replace=False)).astype(
        np.int64
    )
    picks = torch.from_numpy(index).to(scaled.device)
    some = kernel.prepare(rows.take(index).to(scaled.device))
    image = torch.zeros((len(index), scaled.shape[1]), device=scaled.device)
    missing = -degree[picks]  # of the degrees of these rows
    for start, stop, raw in rows.chunks(CHUNK_ROWS):
        block = kernel.block(some, kernel.prepare(raw.to(scaled.device)))
        image += block @ scaled[start:stop]
        missing += block.sum(1) if weights is None else block @ weights[start:stop]
    left, mine = unexplained(features), scaled[picks]
    image -= features[picks] @ (features.T @ scaled) + left[picks, None] * mine
    share = n / len(index)
    estimated = (mine.T @ image).double().cpu() * share
    known = (scaled.T @ (scaled * left[:, None])).double().cpu()
    own = missing if weights is None else missing / weights[picks]
    grown = (mine.T @ (mine * own[:, None])).double().cpu() * share
    found, mix = _generalized(
        torch.diag(values[1:n_used]) + known + estimated, torch.eye(n_used - 1, dtype=torch.float64) + grown
    )
    out = values.clone()
    out[0] = 1.0  # with the whole degrees the constant function is an eigenvector of exactly this value
    out[1:n_used] = found.clamp(min=1e-6, max=1)
    turn[1:n_used, 1:n_used] = mix
    return out, turn


def _generalized(matrix: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return falling eigenvalues of matrix c = value metric c, and orthonormal columns with the same leading spans."""
    sizes, axes = eigh_falling(metric)
    half = axes * sizes.clamp(min=0.1).rsqrt()
    values, mix = eigh_falling(half.T @ ((matrix + matrix.T) / 2) @ half)
    basis, triangle = torch.linalg.qr(half @ mix)
    return values, basis * torch.sign(triangle.diagonal())
