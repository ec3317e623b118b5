"""How good a dictionary is, level by level, on tokens that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from .module import MatryoshkaSAE

DENSE_SHARE = 0.1
CHUNK = 4096


@dataclass(frozen=True)
class LevelMetrics:
    """Quality of one level.

    Attributes:
        level: Its width.
        fvu: Squared error over the variance around the mean of all tokens seen (0 is perfect, 1 is the mean).
        cosine: Mean cosine between token and reconstruction, both around the mean.
        l2_ratio: Mean norm of the reconstruction over that of the token, around the mean; below 1 is shrinkage.
        l0: Active latents per token among the first `level`.
        dead_share: Share of the level's own latents that no token activated.
        dense_share: Share of the level's own latents active in more than 10 % of the tokens.
    """

    level: int
    fvu: float
    cosine: float
    l2_ratio: float
    l0: float
    dead_share: float
    dense_share: float


LEVEL_HEAD = ("level", "FVU", "cosine", "norm ratio", "L0", "dead", "dense")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all levels over `n_tokens` tokens.

    Attributes:
        n_tokens: Tokens seen.
        levels: One entry per level, from coarse to fine.
        density: float64 [n_latents], share of tokens in which each latent is active.
    """

    n_tokens: int
    levels: tuple[LevelMetrics, ...]
    density: NDArray[np.float64]

    @property
    def fvu(self) -> float:
        """FVU of the whole dictionary."""
        return self.levels[-1].fvu

    @property
    def dead_share(self) -> float:
        """Share of all latents that no token activated."""
        return float((self.density == 0).mean())

    @property
    def dense_share(self) -> float:
        """Share of all latents active in more than 10 % of the tokens."""
        return float((self.density > DENSE_SHARE).mean())

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per level, under `LEVEL_HEAD`."""
        return [
            (
                str(m.level),
                f"{m.fvu:.4f}",
                f"{m.cosine:.3f}",
                f"{m.l2_ratio:.3f}",
                f"{m.l0:.1f}",
                f"{m.dead_share:.1%}",
                f"{m.dense_share:.1%}",
            )
            for m in self.levels
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the densities of single latents as JSON types."""
        return {
            "n_tokens": self.n_tokens,
            "dead_share": self.dead_share,
            "dense_share": self.dense_share,
            "levels": [dict(vars(m)) for m in self.levels],
            "density_log10_counts": density_histogram(self.density),
        }


def density_histogram(density: NDArray[np.float64]) -> dict[str, int]:
    """Return how many latents are active in 10^-6..10^-5 of the tokens, and so on; "never" for dead ones."""
    out = {"never": int((density == 0).sum())}
    logs = np.log10(density[density > 0])
    for low in range(-6, 0):
        inside = (logs >= low if low > -6 else logs >= -np.inf) & (logs < low + 1 if low < -1 else logs <= 0)
        out[f"1e{low}..1e{low + 1}"] = int(inside.sum())
    return out


@torch.no_grad()
def evaluate(sae: MatryoshkaSAE, chunks: Iterable[NDArray[Any]]) -> Evaluation:
    """Return metrics of all levels over tokens that come in chunks, in one pass and bounded memory.

    Args:
        sae: The dictionary.
        chunks: Arrays [n, d_in] of raw tokens, any length.

    Raises:
        InputError: no tokens, NaN, another width, or constant tokens.

    Cost: one encode and one decode per token.
    """
    n_levels, n_latents = len(sae.levels), sae.config.n_latents
    device = sae.encoder.device
    n = 0
    first, second = torch.zeros(sae.config.d_in, dtype=torch.float64, device=device), 0.0
    errors, cosines, ratios = (np.zeros(n_levels) for _ in range(3))
    fired = torch.zeros(n_latents, dtype=torch.int64, device=device)
    centre = None
    for values in chunks:
        for start in range(0, len(values), CHUNK):
            x = torch.from_numpy(np.array(values[start : start + CHUNK], np.float32)).to(device)
            codes = sae.encode(x)
            if centre is None:
                # Moments around a point near the mean: the difference of large sums would lose the variance.
                centre = x.double().mean(0)
            away = x.double() - centre
            first = first + away.sum(0)
            second += float(away.square().sum())
            fired += torch.bincount(codes.cols, minlength=n_latents)
            base = (sae.b_dec * sae.scale + sae.mean).float()
            around = x - base
            norms = torch.linalg.vector_norm(around, dim=1).clamp_min(1e-12)
            for i, (_, out) in enumerate(sae.reconstruct_levels(codes)):
                out_around = out - base
                out_norms = torch.linalg.vector_norm(out_around, dim=1)
                errors[i] += float((x - out).double().square().sum())
                dots = (around * out_around).sum(1)
                cosines[i] += float((dots / (norms * out_norms.clamp_min(1e-12))).double().sum())
                ratios[i] += float((out_norms / norms).double().sum())
            n += len(x)
    if not n:
        raise InputError("there are no tokens to evaluate on.")
    variance = second - float(first.square().sum()) / n
    if variance <= 1e-12 * max(second, 1e-30):
        raise InputError("all tokens are the same; their variance cannot be explained.")
    counts = fired.cpu().numpy()
    density = counts / n
    levels, low = [], 0
    for i, level in enumerate(sae.levels):
        own = density[low:level]
        levels.append(
            LevelMetrics(
                level=level,
                fvu=float(errors[i] / variance),
                cosine=float(cosines[i] / n),
                l2_ratio=float(ratios[i] / n),
                l0=float(density[:level].sum()),
                dead_share=float((own == 0).mean()),
                dense_share=float((own > DENSE_SHARE).mean()),
            )
        )
        low = level
    return Evaluation(n, tuple(levels), density)
