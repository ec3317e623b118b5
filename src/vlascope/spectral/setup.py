"""The first steps of a cut: sample, scale, and the two cases without landmarks (few rows, or all rows equal)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .affinity import MAX_SCALE_ROWS, AffinityFn, Kernel, centered, centered_mean, density_sigma
from .balance import local_power, n_neighbors
from .exact import exact_cut
from .fitted import Fitted, health_of, place, settle
from .health import Health
from .landmarks import CANDIDATES_PER_CENTROID
from .rows import Rows, require_finite

CHUNK_ROWS = 4096
MANY_EIG = 32
"""Up to this many eigenvectors 512 landmarks do; above, 1024."""

FEW_ROWS = 32_768
"""Up to this many rows 768 landmarks cost little, and the error falls by a third."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The parameters of `NystromNCut` that fitting depends on, checked."""

    n_eig: int
    affinity: str | AffinityFn
    scale: str | float
    density: float
    landmarks: str | int
    balance: str
    seed: int
    memory_limit: int


@dataclass(frozen=True)
class Outcome:
    """A fitted cut, its eigenvectors [n, k] and eigenvalues [k], and its read-outs."""

    fitted: Fitted
    eigvecs: Tensor
    eigenvalues: NDArray[np.float64]
    health: Health


def n_landmarks_of(settings: Settings, n: int) -> int:
    """Return how many landmarks stand for n rows."""
    if settings.landmarks != "auto":
        wanted = int(settings.landmarks)
        if wanted < settings.n_eig:
            raise InputError(
                f"got landmarks={wanted} for n_eig={settings.n_eig}; need at least n_eig landmarks."
            )
    else:
        few = 512 if n > FEW_ROWS else 768
        wanted = few if settings.n_eig <= MANY_EIG else 1024 if settings.n_eig <= 256 else 4 * settings.n_eig
    return min(wanted, n)


def n_centroids(n_landmarks: int) -> int:
    """Return how many of the landmarks are centroids: two thirds; the others are rows that these explain worst.

    Centroids give the bulk its accuracy, the other third finds groups that no centroid stands for.
    """
    return (2 * n_landmarks + 2) // 3


def draw_sample(rows: Rows, n_landmarks: int, *, seed: int, device: torch.device) -> Tensor:
    """Return a uniform sample of raw rows for mean, scale and centroids, in row order."""
    rng = np.random.default_rng(seed)
    n_sample = min(rows.n, max(MAX_SCALE_ROWS, CANDIDATES_PER_CENTROID * n_centroids(n_landmarks)))
    index = (
        np.sort(rng.choice(rows.n, size=n_sample, replace=False)) if n_sample < rows.n else np.arange(rows.n)
    )
    found = rows.take(index.astype(np.int64))
    require_finite(found, index)
    return found.to(device)


def fit_kernel(rows: Rows, sample: Tensor, settings: Settings, device: torch.device) -> Kernel | None:
    """Return the fitted kernel; None when all rows coincide."""
    if callable(settings.affinity):
        return Kernel(
            "custom", None, torch.zeros(rows.d, dtype=torch.float64, device=device), settings.affinity
        )
    kind = str(settings.affinity)
    mean = centered_mean(sample, kind)
    if not isinstance(settings.scale, str):
        return Kernel(kind, float(settings.scale), mean)
    step = max(1, len(sample) // MAX_SCALE_ROWS)
    sigma = density_sigma(
        centered(sample[::step][:MAX_SCALE_ROWS], kind=kind, mean=mean), density=settings.density
    )
    if sigma == 0.0:
        sigma = _rare_sigma(rows, kind, mean, settings.density, device)
    return None if sigma == 0.0 else Kernel(kind, sigma, mean)


def _rare_sigma(rows: Rows, kind: str, mean: Tensor, density: float, device: torch.device) -> float:
    """Return the scale from the rows that differ, when the whole sample coincides; 0.0 when none does."""
    different: list[Tensor] = []
    n_found = 0
    size = float(mean.abs().max()) + 1e-300
    for start, _, raw in rows.chunks(CHUNK_ROWS):
        require_finite(raw, start)
        x = centered(raw.to(device), kind=kind, mean=mean)
        odd = x[x.abs().amax(1) > 1e-5 * size]
        if len(odd):
            different.append(odd)
            n_found += len(odd)
        if n_found >= MAX_SCALE_ROWS:
            break
    if not different:
        return 0.0
    return density_sigma(
        torch.cat([torch.zeros_like(different[0][:1]), *different])[:MAX_SCALE_ROWS], density=density
    )


def fit_constant(rows: Rows, n_eig: int, device: torch.device, mean: Tensor) -> Outcome:
    """Return the one right answer for rows that all coincide: the trivial vector, and zeros."""
    if rows.n > 1:
        warnings.warn(
            "all rows coincide: only the trivial eigenvector is left, the others are 0.", stacklevel=3
        )
    value = rows.n**-0.5
    eigvecs = torch.zeros((rows.n, n_eig), dtype=torch.float32)
    eigvecs[:, 0] = value
    values = np.zeros(n_eig)
    values[0] = 1.0
    kernel = Kernel("rbf", 1.0, mean)
    to_eig = torch.zeros((1, n_eig), device=device)
    to_eig[0, 0] = value
    point = torch.zeros((1, rows.d), device=device)
    fitted = Fitted(kernel, point, to_eig, constant_row=value)
    note = "all rows coincide; there is nothing to cut."
    health = Health(
        mode="constant",
        n=rows.n,
        n_landmarks=1,
        sigma=None,
        mean_affinity=1.0,
        lambda2=0.0,
        n_components=1,
        far_share=0.0,
        notes=(note,),
    )
    return Outcome(fitted, eigvecs, values, health)


def fit_exact(
    rows: Rows, kernel: Kernel, settings: Settings, w: Tensor | None, device: torch.device
) -> Outcome:
    """Return the cut over all pairs of rows."""
    prepared = []
    for start, _, raw in rows.chunks(CHUNK_ROWS):
        require_finite(raw, start)
        prepared.append(kernel.prepare(raw.to(device)))
    x = torch.cat(prepared)
    power = (
        local_power(kernel, x[:: max(1, len(x) // MAX_SCALE_ROWS)]) if settings.balance == "uniform" else None
    )
    eigvecs, values, degree, own = exact_cut(
        x, kernel, n_eig=settings.n_eig, weights=w, seed=settings.seed, power=power
    )
    eigvecs, values = settle(eigvecs, values)
    safe = torch.where(values > 0, values, torch.inf).to(device, torch.float32)
    to_eig = eigvecs * (own.float() / degree.sqrt())[:, None] / safe
    used = own if power is not None or w is not None else None
    fitted = Fitted(kernel, x, to_eig, weights=used)
    n_near = n_neighbors(rows.n, is_exact=True) if power is not None else 0
    if n_near:
        fitted = replace(fitted, point_values=eigvecs, n_near=n_near)
        eigvecs = torch.cat([place(fitted, part)[0] for part in x.split(2048)])
    mean_affinity = float((degree.double() * own).sum() - (own * own).sum()) / max(
        float(own.sum() ** 2 - (own * own).sum()), 1e-300
    )
    health = health_of("exact", rows.n, rows.n, kernel, mean_affinity if rows.n > 1 else 0.0, values, 0.0)
    return Outcome(fitted, eigvecs, values.numpy(), health)
