"""A fitted cut: what it takes to place a token in it, the same for fitted and for new tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .affinity import Kernel
from .balance import averaged
from .exact import extend
from .health import NEAR_ONE, Health, notes_for

LOW_DEGREE = 1000.0
"""Above this degree a row's own affinity (at most 1) is below 0.1 % of it; its unexplained part is left out."""


@dataclass(frozen=True)
class Fitted:
    """What places a token in the cut.

    Exact: f(x) = K(x, points) to_eig / sqrt(degree). With landmarks: f(x) = K(x, points) white to_eig /
    sqrt(degree), degree = K(x, points) white total + what `white` does not explain of the row's own affinity.
    """

    kernel: Kernel
    points: Tensor  # prepared landmarks [m, d], or all rows in exact mode
    to_eig: Tensor  # [r, k], or [n, k] in exact mode
    white: Tensor | None = None  # W, [m, r]; None in exact mode
    total: Tensor | None = None  # s, [r]: weighted sum of all whitened rows; None in exact mode
    weights: Tensor | None = None  # weights of the fitted rows, exact mode only
    constant_row: float | None = None  # value of the trivial vector when all rows coincide
    point_values: Tensor | None = None  # [m, k] eigenvectors of the points that rows are averaged with
    n_near: int = 0  # over how many of them; 0 without averages


def place(fitted: Fitted, x: Tensor, *, own: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvectors [b, k], degrees [b] and the largest affinity to a landmark [b] of prepared rows.

    Args:
        fitted: The cut.
        x: Prepared rows, [b, d].
        own: Weights of these rows, [b]; None means 1.
    """
    if fitted.constant_row is not None:
        size = float(fitted.kernel.mean.abs().max()) + 1e-300
        same = (x.abs().amax(1) <= 1e-5 * size).float()
        return fitted.to_eig.expand(len(x), -1).clone(), torch.ones_like(same), same
    block = fitted.kernel.block(x, fitted.points).float()
    if fitted.white is None:
        values, degree = extend(block, map_nk=fitted.to_eig, weights=fitted.weights)
    else:
        values, degree = _by_landmarks(fitted, block, own=own)
    if fitted.point_values is not None:
        values = averaged(values, block, fitted.point_values, n_near=fitted.n_near)
    return values, degree, block.amax(1)


def _by_landmarks(fitted: Fitted, block: Tensor, *, own: Tensor | None) -> tuple[Tensor, Tensor]:
    assert fitted.white is not None and fitted.total is not None
    # One product for the eigenvectors and the degree, without forming the whitened rows.
    maps = fitted.white @ torch.cat([fitted.to_eig, fitted.total[:, None]], 1)
    both = block @ maps
    degree = both[:, -1].clamp(min=0)
    if fitted.kernel.fn is None:
        low = (degree < LOW_DEGREE).nonzero()[:, 0]
        if len(low):
            left = unexplained(block[low] @ fitted.white)
            degree[low] += left if own is None else left * own[low]
    degree.clamp_(min=1e-12)
    return both[:, :-1] * degree.rsqrt()[:, None], degree


def unexplained(features: Tensor) -> Tensor:
    """Return how much of each row's affinity to itself (1) its whitened row does not explain, [b] in [0, 1]."""
    return (1 - (features * features).sum(1)).clamp_(min=0)


def settle(eigvecs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Fix signs, and set columns whose eigenvalue is 0 within rounding to 0 (any vector would do)."""
    values = values.clone()
    values[values.abs() < 1e-6] = 0.0
    keep = (values > 0).to(eigvecs.device, torch.float32)
    return eigvecs * keep * signs(eigvecs), values.clamp(min=0)


def signs(eigvecs: Tensor) -> Tensor:
    """Return +1 or -1 per column, so that the sum of cubes is positive (does not depend on the order of rows)."""
    cubes = torch.zeros(eigvecs.shape[1], dtype=torch.float64, device=eigvecs.device)
    low, high = torch.aminmax(eigvecs, dim=0)  # abs() would copy the whole result
    top = torch.maximum(-low, high).clamp(min=1e-30)
    for start in range(0, len(eigvecs), 65536):
        cubes += ((eigvecs[start : start + 65536] / top) ** 3).sum(0, dtype=torch.float64)
    cubes[0] = 1.0 if float(eigvecs[:, 0].sum()) >= 0 else -1.0
    return torch.where(cubes >= 0, 1.0, -1.0).float()


def health_of(
    mode: str, n: int, m: int, kernel: Kernel, mean_affinity: float, values: Tensor, far_share: float
) -> Health:
    """Return the read-outs of a fitted cut."""
    lambda2 = float(values[1]) if len(values) > 1 else 0.0
    n_components = 1 + int((values[1:] >= NEAR_ONE).sum())
    facts = {
        "mean_affinity": mean_affinity,
        "lambda2": lambda2,
        "n_components": n_components,
        "far_share": far_share,
    }
    notes = notes_for(**facts) if len(values) > 1 else ()
    return Health(mode=mode, n=n, n_landmarks=m, sigma=kernel.sigma, notes=notes, **facts)
