"""M-space: a small network from eigenvectors to three dimensions that keeps the flag of their subspaces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu

from ..errors import InputError
from .farthest import farthest_points

N_STEPS = 400
BATCH = 512
HIDDEN = 128
RATE = 1e-2
N_FAR = 512
REACHES = ((0, 1.0, 2.0), (1, 1.0, 1.0), (1, 8.0, 0.25))
"""(subspace: 0 the leading eigenvectors, 1 all; sharpness of the similarity; its reach in M-space), coarse to fine."""
N_LEADING = 4


def fit_mspace(rows: Tensor, *, seed: int, n_steps: int | None = None) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a network [n, k] -> [n, 3], see `encode`.

    A cut's first j eigenvectors span a subspace; these nested subspaces, a flag, are what the cut knows, from
    coarse to fine. The entry (a, b) of the projector onto one of them, divided by the root of its diagonal, is the
    cosine of the rows a and b cut to j columns: 1 in one concept, 0 in two. The network places tokens so that the
    kernel s² / (s² + d²) of their distances d equals these similarities: over a long reach s for the leading
    subspace, over a shorter one for all, and over the shortest for its sharpened similarities, in least squares
    (the Frobenius distance between kernel and projector, on batches of token pairs). A kernel in three dimensions
    has any rank; an inner product in three dimensions, which could keep three concepts at most, has rank three.

    Args:
        rows: float32 [n, k], unit rows of eigenvectors, leading one first; finite.
        seed: Seeds first weights and batches, half of them from farthest points, so that rare concepts count.
        n_steps: Steps of Adam, on one thread; None takes 400.

    Raises:
        InputError: the training diverged.

    Cost: 400 steps take about 2.5 s on one core, whatever n is (up to the farthest points, O(512 n k)).
    References: Hamm and Lee 2008 (kernels on subspaces, doi:10.1145/1390156.1390204); Ye, Wong and Lim 2022
        (flags, doi:10.1007/s10107-021-01640-3).
    """
    n_steps = N_STEPS if n_steps is None else n_steps
    generator = torch.Generator().manual_seed(seed)
    far = torch.from_numpy(farthest_points(rows, min(N_FAR, len(rows))))
    batch = min(BATCH, max(2, len(rows)))
    n_eig = rows.shape[1]
    depths = (min(N_LEADING, n_eig), n_eig)
    weights = _first_weights(rows, generator=generator)
    for weight in weights.values():
        weight.requires_grad_(True)
    trained = [weight for name, weight in weights.items() if name != "mean"]
    weights["mean"].requires_grad_(False)
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in trained]
    with _one_thread(), torch.enable_grad():
        for step in range(n_steps):
            n_far = batch // 2
            at = torch.randint(len(far), (n_far,), generator=generator)
            more = torch.randint(len(rows), (batch - n_far,), generator=generator)
            x = rows[torch.cat([far[at], more])]
            z = _network(x, weights)
            loss, slope = _flag_loss(x, z.detach(), depths)
            if not math.isfinite(loss):
                raise InputError(
                    f"M-space diverged at step {step} of {n_steps} (loss {loss}) on {len(rows)} rows of {n_eig} "
                    "eigenvectors; check the cut, try another seed, or use method='tsne'."
                )
            grads = torch.autograd.grad(z, trained, slope)
            _adam(trained, grads, moments, step=step, rate=_rate(step, n_steps))
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def encode(rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the place in M-space of unit rows of eigenvectors, float32 [n, 3]. Cost: O(n), 50,000 rows take 0.1 s."""
    with torch.no_grad():
        return _network(rows, weights)


@contextmanager
def _one_thread() -> Iterator[None]:
    # Batches are too small for threads to help, and sums on one thread repeat bit for bit.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _network(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Two hidden layers beside a linear path, which starts as the principal components."""
    x = x - weights["mean"]
    hidden = gelu(x @ weights["in_kh"] + weights["in_h"])
    hidden = gelu(hidden @ weights["mid_hh"] + weights["mid_h"])
    return hidden @ weights["out_h3"] + x @ weights["linear_k3"]


def _first_weights(rows: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
    n_eig = rows.shape[1]
    mean = rows.mean(0)
    x = rows - mean
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    axes = vectors.flip(1)[:, :3].float()
    # The sign of an eigenvector is arbitrary: take the one with the longer tail on the positive side.
    axes = axes * torch.where(((x @ axes).double() ** 3).sum(0) >= 0, 1.0, -1.0)
    linear = torch.zeros(n_eig, 3)
    linear[:, : axes.shape[1]] = axes / (x @ axes).square().mean().sqrt().clamp(min=1e-6)

    def normal(n_in: int, n_out: int, gain: float) -> Tensor:
        return torch.randn(n_in, n_out, generator=generator) * (gain / math.sqrt(n_in))

    return {
        "mean": mean,
        "in_kh": normal(n_eig, HIDDEN, 3.0),  # entries of unit rows are about 1 / sqrt(k)
        "in_h": torch.zeros(HIDDEN),
        "mid_hh": normal(HIDDEN, HIDDEN, 1.0),
        "mid_h": torch.zeros(HIDDEN),
        "out_h3": normal(HIDDEN, 3, 0.1),
        "linear_k3": linear,
    }


def _flag_loss(x: Tensor, z: Tensor, depths: tuple[int, int]) -> tuple[float, Tensor]:
    """Return the mean squared difference of kernels and projectors, and its gradient by z, float32 [b, 3].

    In plain words: mean over pairs of sum over REACHES of (1 / (1 + d² / s²) - cosine^p)².
    """
    sq = (z * z).sum(1)
    d2 = torch.addmm(sq[None], z, z.T, alpha=-2).add_(sq[:, None]).clamp_(min=0)
    cosines = []
    for depth in depths:
        part = x[:, :depth]
        part = part / part.norm(dim=1, keepdim=True).clamp(min=1e-6)
        cosines.append((part @ part.T).clamp_(0, 1))
    loss, by_d2 = 0.0, torch.zeros_like(d2)
    for which, sharpness, reach in REACHES:
        similar = cosines[which]
        for _ in range(round(math.log2(sharpness))):
            similar = similar * similar
        kernel = (d2 / reach**2).add_(1).reciprocal_()
        error = kernel - similar
        error.fill_diagonal_(0)
        loss += float(error.square().mean(dtype=torch.float64))
        by_d2 -= error.mul_(kernel).mul_(kernel).div_(reach**2)
    by_d2 *= 2 / d2.numel()
    return loss, 4 * (by_d2.sum(1, keepdim=True) * z - by_d2 @ z)


def _rate(step: int, n_steps: int) -> float:
    """Rise over the first quarter, then fall along a cosine."""
    rise = 0.25 * n_steps
    if step < rise:
        return RATE * (0.1 + 0.9 * step / rise)
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - rise) / (n_steps - rise)))


def _adam(
    weights: list[Tensor],
    grads: tuple[Tensor, ...],
    moments: list[tuple[Tensor, Tensor]],
    *,
    step: int,
    rate: float,
) -> None:
    """Adam (arXiv:1412.6980) in a few lines: torch.optim loads a compiler at its first use, for seconds."""
    with torch.no_grad():
        for weight, grad, (first, second) in zip(weights, grads, moments, strict=True):
            first.lerp_(grad, 0.1)
            second.lerp_(grad * grad, 0.01)
            unbiased = first / (1 - 0.9 ** (step + 1))
            spread = (second / (1 - 0.99 ** (step + 1))).sqrt_().add_(1e-8)
            weight -= rate * unbiased / spread
