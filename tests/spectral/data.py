"""Known token sets and slow references."""

from __future__ import annotations

import numpy as np


def mixture(
    n: int, *, d: int = 23, k: int = 5, gap: float = 2.0, seed: int = 0, shares: list[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [n, d] of a Gaussian mixture and the component of each row."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, size=n, p=shares)
    centers = rng.normal(size=(k, d)) * gap
    return (centers[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def dense_cut(
    x: np.ndarray, sigma: float, n_eig: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (falling) and vectors of D^-1/2 A D^-1/2 by a dense float64 eigendecomposition."""
    x = x.astype(np.float64)
    w = np.ones(len(x)) if weights is None else weights / weights.mean()
    affinity = np.exp(-((x[:, None] - x[None]) ** 2).sum(2) / (2 * sigma**2)) * w[:, None] * w[None]
    half = 1 / np.sqrt(affinity.sum(1))
    values, vectors = np.linalg.eigh(half[:, None] * affinity * half[None])
    return values[::-1][:n_eig], vectors[:, ::-1][:, :n_eig]


def angle(u: np.ndarray, v: np.ndarray) -> float:
    """Rms sine of the principal angles between two column spaces of equal dimension."""
    qu, qv = np.linalg.qr(u.astype(np.float64))[0], np.linalg.qr(v.astype(np.float64))[0]
    return float(np.linalg.norm(qv - qu @ (qu.T @ qv)) / np.sqrt(qv.shape[1]))
