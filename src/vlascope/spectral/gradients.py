"""Gradients through a cut: which channels, and where in the image, make a group a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .affinity import density_sigma
from .rows import require_finite, to_tensor

MAX_TOKENS = 3000
"""A full eigendecomposition of this many tokens takes some seconds and about 0.4 GB."""

MIN_GAP = 1e-9


class _Projector(torch.autograd.Function):
    """P = U_k U_k' of a symmetric matrix. Only the gap between kept and dropped eigenvalues is divided by, so that
    repeated eigenvalues on either side do no harm."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, k: int) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        kept, rest = vectors[:, -k:], vectors[:, :-k]
        gaps = values[None, -k:] - values[:-k, None]
        ctx.save_for_backward(kept, rest, gaps)
        return kept @ kept.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        kept, rest, gaps = ctx.saved_tensors
        grad = (grads[0] + grads[0].T) / 2
        half = rest @ ((rest.T @ grad @ kept) / gaps) @ kept.T
        return half + half.T, None


def spectral_projector(
    features: Tensor, k: int, *, sigma: float | None = None, density: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Return the projector onto the k leading eigenvectors of a cut, differentiable with respect to the features.

    Single eigenvectors have no stable gradient where eigenvalues (nearly) repeat; the space they span has, as
    long as it is separated from the rest. Build losses from the projector: P[i, j] says how much tokens i and j
    belong together, h' P h how well a grouping h is one of the cut's.

    Args:
        features: [n, d], n <= 3000; computed in float64 whatever their type.
        k: Eigenvectors kept, 1 <= k < n.
        sigma: Scale of exp(-d²/2 sigma²); None sets it by `density` (as a constant: no gradient through it).
        density: Mean affinity between two tokens.

    Returns:
        (P float64 [n, n], degrees float64 [n]); both carry gradients.

    Raises:
        InputError: too many tokens, k out of range, or eigenvalues k and k + 1 coincide.

    Cost: O(n³) forward and backward; n = 784 takes about 0.5 s.
    """
    if features.ndim != 2:
        raise InputError(f"got features of shape {tuple(features.shape)}; need [n, d].")
    n = len(features)
    if n > MAX_TOKENS:
        raise InputError(
            f"got {n} tokens; gradients take at most {MAX_TOKENS}. Choose the tokens of fewer images."
        )
    if not 1 <= k < n:
        raise InputError(f"got k={k} for {n} tokens; need 1 <= k < {n}.")
    require_finite(features.detach(), 0)
    x = features.double()
    x = x - x.mean(0)
    if sigma is None:
        sigma = density_sigma(x.detach(), density=density)
        if sigma == 0.0:
            raise InputError("all tokens coincide; there is nothing to cut.")
    square = (x * x).sum(1)
    distance = (square[:, None] + square[None] - 2 * x @ x.T).clamp(min=0)
    affinity = torch.exp(distance * (-0.5 / sigma**2))
    degree = affinity.sum(1)
    half = degree.rsqrt()
    normalized = half[:, None] * affinity * half[None]
    with torch.no_grad():
        values = torch.linalg.eigvalsh(normalized)
    if float(values[-k] - values[-k - 1]) < MIN_GAP:
        raise InputError(
            f"eigenvalues {k} and {k + 1} coincide, so that their space is not defined; change k."
        )
    projector: Tensor = _Projector.apply(normalized, k)  # type: ignore[assignment]
    return projector, degree


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Which channels make the groups of a cut.

    Attributes:
        groups: int64 [g], ids of the groups.
        scores: float64 [g], how well each group is one of the cut's own, in [0, 1].
        channels: float32 [g, d], mean over the group's tokens of feature (minus its mean) times gradient of the
            score: positive where the channel holds the group together. First order: comparable within a group.
        token_channels: float32 [g, n, d], the same before averaging: `map(group, channel)`.
    """

    groups: NDArray[np.int64]
    scores: NDArray[np.float64]
    channels: NDArray[np.float32]
    token_channels: NDArray[np.float32]

    def top(self, group: int, n: int = 10) -> NDArray[np.int64]:
        """Return the n channels that matter most for a group, the largest attribution first."""
        return np.argsort(-self.channels[self._row(group)], kind="stable")[:n].astype(np.int64)

    def map(self, group: int, channel: int) -> NDArray[np.float32]:
        """Return the attribution of one channel to a group at every token, float32 [n]."""
        return self.token_channels[self._row(group), :, channel]

    def _row(self, group: int) -> int:
        found = np.flatnonzero(self.groups == group)
        if not len(found):
            raise InputError(f"there is no group {group}; groups are {', '.join(map(str, self.groups))}.")
        return int(found[0])


def attribute_channels(
    features: Any,
    labels: NDArray[np.integer],
    *,
    k: int | None = None,
    sigma: float | None = None,
    density: float = 0.05,
) -> Attribution:
    """Return which channels of the features hold each group of a cut together.

    The score of a group is h' P h: h is its indicator in the cut's metric (fixed), P the projector onto the k
    leading eigenvectors. Its gradient with respect to the features, times the features, says what each channel
    of each token contributes.

    Args:
        features: [n, d], n <= 3000 (one or a few images).
        labels: int [n], group of each token, for example `kway(...).labels[k]`; negative means none.
        k: Eigenvectors; None takes the number of groups.
        sigma: Scale; None sets it by `density`.
        density: Mean affinity between two tokens.

    Raises:
        InputError: as `spectral_projector`, or labels that do not fit.

    Cost: O(n³) once and O(n² (n + d)) per group.
    """
    x = to_tensor(features).cpu().double().clone().requires_grad_(True)
    labels = np.asarray(labels)
    if x.ndim != 2 or labels.shape != (len(x),):
        raise InputError(f"got features {tuple(x.shape)} and labels {labels.shape}; need [n, d] and [n].")
    groups = np.unique(labels[labels >= 0]).astype(np.int64)
    if not len(groups):
        raise InputError("no token has a group (all labels are negative).")
    projector, degree = spectral_projector(x, len(groups) if k is None else k, sigma=sigma, density=density)
    mean = x.detach().mean(0)
    scores, maps = [], []
    for number, group in enumerate(groups):
        inside = torch.from_numpy(labels == group)
        h = degree.detach().sqrt() * inside
        h = h / h.norm()
        score = h @ projector @ h
        (gradient,) = torch.autograd.grad(score, x, retain_graph=number + 1 < len(groups))
        scores.append(float(score.detach()))
        maps.append(((x.detach() - mean) * gradient).float().numpy())
    stacked = np.stack(maps)
    channels = np.stack([m[labels == group].mean(0) for m, group in zip(stacked, groups, strict=True)])
    return Attribution(
        groups=groups, scores=np.asarray(scores), channels=channels.astype(np.float32), token_channels=stacked
    )
