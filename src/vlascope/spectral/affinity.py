"""How alike two tokens are: the affinity between rows, and the scale at which it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

AffinityFn = Callable[[Tensor, Tensor], Tensor]
"""A custom affinity: ([n, d], [m, d]) -> non-negative [n, m], symmetric in its arguments."""

MAX_SCALE_ROWS = 1536
"""Rows that the density scale is measured on: about 1.2 million pairs."""


@dataclass(frozen=True)
class Kernel:
    """A fitted affinity between rows: exp(-d² / 2 sigma²) of centred rows, or a custom function.

    Rows go through `prepare` first (centre, normalise for "cosine", divide by sigma); `block` then takes prepared
    rows only, so that each row is prepared once.

    Attributes:
        kind: "rbf", "cosine" (the same kernel on rows of unit norm, exp((cos - 1) / sigma²)) or "custom".
        sigma: Scale in the units of the features (after normalising for "cosine"); None for "custom".
        mean: float64 [d], subtracted from every row before any product: |x|² - 2xy + |y|² cancels otherwise.
        fn: The custom affinity.
        is_half: Multiply in bfloat16: two to three times faster on processors that have it; affinities are then
            off by up to half a percent. Norms stay in float32.
    """

    kind: str
    sigma: float | None
    mean: Tensor
    fn: AffinityFn | None = None
    is_half: bool = False

    def prepare(self, rows: Tensor) -> Tensor:
        """Return rows ready for `block`, float32 (float64 stays float64 until it is centred), [n, d]."""
        if self.kind == "custom":
            return rows if rows.dtype == torch.float64 else rows.float()
        x = centered(rows, kind=self.kind, mean=self.mean)
        return x.div_(self.sigma) if self.sigma is not None else x

    def block(self, x_nd: Tensor, y_md: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return affinities [n, m] of prepared rows, in [0, 1] for "rbf" and "cosine".

        Args:
            x_nd: Prepared rows.
            y_md: Prepared rows.
            out: float32 [n, m] to write into and return (any strides).

        Raises:
            InputError: a custom affinity returned another shape, negative numbers, NaN or Inf.
        """
        if self.fn is not None:
            found = _checked(self.fn(x_nd, y_md), len(x_nd), len(y_md))
            return found if out is None else out.copy_(found)
        # exp(-|x - y|² / 2) = exp(xy - |x|²/2 - |y|²/2)
        half_norms = (y_md * y_md).sum(1).mul_(-0.5)[None]
        if self.is_half:
            out = torch.add(half_norms, x_nd.bfloat16() @ y_md.bfloat16().T, out=out)
        else:
            out = torch.addmm(half_norms, x_nd, y_md.T, out=out)
        return out.sub_((x_nd * x_nd).sum(1).mul_(0.5)[:, None]).clamp_(max=0).exp_()


def has_half_products(device: torch.device) -> bool:
    """Return whether bfloat16 products are fast here: CPUs with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return False
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())


def centered(rows: Tensor, *, kind: str, mean: Tensor) -> Tensor:
    """Return float32 rows minus `mean` (after division by their norm for "cosine"); a new tensor."""
    x = rows if rows.dtype == torch.float64 else rows.float()
    if kind == "cosine":
        x = x / x.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)
    return (x - mean.to(x.device, x.dtype)).float()


def centered_mean(sample: Tensor, affinity: str | AffinityFn) -> Tensor:
    """Return the mean of sampled rows, float64 [d] (of their unit vectors for "cosine")."""
    x = sample.double()
    if affinity == "cosine":
        x = x / x.norm(dim=1, keepdim=True).clamp_(min=1e-300)
    return x.mean(0)


def _checked(block: Tensor, n: int, m: int) -> Tensor:
    if not isinstance(block, Tensor) or tuple(block.shape) != (n, m):
        got = tuple(block.shape) if isinstance(block, Tensor) else type(block).__name__
        raise InputError(f"the custom affinity returned {got}; need a tensor of shape ({n}, {m}).")
    if not torch.isfinite(block).all():
        raise InputError("the custom affinity returned NaN or Inf; need finite numbers >= 0.")
    if (block < 0).any():
        raise InputError(
            f"the custom affinity returned negative numbers (smallest {float(block.min()):.3g}). A Normalized Cut "
            "needs affinities >= 0: repulsion (negative affinity) is not supported. Clip it at 0, or map it, for "
            "example with exp(a)."
        )
    return block


def density_sigma(rows: Tensor, *, density: float) -> float:
    """Return the sigma at which the mean affinity between distinct rows equals `density`.

    Multiplying the rows by a constant multiplies sigma by it: the graph does not change. Coincident rows are left
    out, because no scale changes their affinity.

    Args:
        rows: [n, d], centred, n >= 2; a uniform sample of the data (about `MAX_SCALE_ROWS`).
        density: Mean of exp(-d²/2 sigma²) over pairs of different rows, 0 < density < 1. At 0.05 a token is
            close to about one in twenty others.

    Returns:
        sigma > 0 in the units of the rows; 0.0 when all rows coincide.

    Cost: O(n² d); 1536 rows of 768 take about 0.1 s.
    """
    if not 0 < density < 1:
        raise InputError(f"got density={density}; need a number between 0 and 1 (default 0.05).")
    from scipy.optimize import brentq

    x = rows.double()
    sq_norms = (x * x).sum(1)
    gram = x.float() @ x.float().T
    upper = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    d2 = sq_norms[upper[0]] + sq_norms[upper[1]] - 2 * gram[upper[0], upper[1]].double()
    # Differences below the rounding of the Gram matrix are coincident rows.
    noise = 4e-6 * (sq_norms[upper[0]] + sq_norms[upper[1]])
    d2 = d2[d2 > noise].cpu().numpy()
    if d2.size == 0:
        return 0.0
    unit = float(np.median(d2))
    d2 = (d2 / unit).astype(np.float64)

    def excess(log_sigma: float) -> float:
        return float(np.exp(-d2 * (0.5 * np.exp(-2 * log_sigma))).mean()) - density

    low = 0.5 * float(np.log(d2.min())) - 4.0
    high = 0.5 * float(np.log(d2.max())) + 6.0
    root = cast("float", brentq(excess, low, high, xtol=1e-6))
    return float(np.exp(root)) * float(np.sqrt(unit))
