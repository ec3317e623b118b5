"""From a few clicked tokens to a mask, on these images and on new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .rows import to_tensor

THRESHOLD = 0.5
"""Similarity to a positive click from which a token is in the mask, where no negative click is nearer."""

MIN_GAP = 0.02
"""Floor of 1 - eigenvalue in the weights, so that a split-off outlier does not outweigh everything."""


@dataclass(frozen=True)
class ClickMask:
    """A mask described by clicked tokens; applies to every row of eigenvectors of the same cut.

    Attributes:
        positive: float32 [p, k], unit rows of the tokens that shall be in.
        negative: float32 [m, k], unit rows of the tokens that shall be out; m may be 0.
        gains: float32 [k], weight of each eigenvector, 1 / sqrt(1 - eigenvalue).
        threshold: Similarity in (-1, 1) that a token needs to its nearest positive click.
    """

    positive: NDArray[np.float32]
    negative: NDArray[np.float32]
    gains: NDArray[np.float32]
    threshold: float

    def scores(self, eigvecs: Any) -> NDArray[np.float32]:
        """Return for each token how much nearer it is to the positive clicks than to anything else, [n] in [-2, 2].

        Above 0: in the mask. NaN for tokens out of the cut's reach.

        Cost: O(n k (p + m)); 50,000 tokens and ten clicks take about 10 ms.
        """
        rows = _weighted(to_tensor(eigvecs).cpu(), torch.from_numpy(self.gains))
        likeness = (rows @ torch.from_numpy(self.positive).T).amax(1)
        rival = torch.full_like(likeness, self.threshold)
        if len(self.negative):
            rival = torch.maximum(rival, (rows @ torch.from_numpy(self.negative).T).amax(1))
        return (likeness - rival).numpy()

    def mask(self, eigvecs: Any) -> NDArray[np.bool_]:
        """Return which tokens are in the mask, bool [n]; tokens out of reach are not."""
        return self.scores(eigvecs) > 0


def click(
    eigvecs: Any,
    positive: Sequence[int] | NDArray[np.integer],
    negative: Sequence[int] | NDArray[np.integer] = (),
    *,
    eigenvalues: Any = None,
    threshold: float = THRESHOLD,
) -> ClickMask:
    """Return the mask that clicked tokens describe. Clicks may lie in different images.

    Tokens are compared by the cosine of their rows of eigenvectors, each eigenvector weighted by 1/sqrt(1 -
    eigenvalue) (slow modes of the random walk on the token graph, which separate large parts, count more). A token
    is in when its nearest click is a positive one and that similarity exceeds `threshold`.

    Args:
        eigvecs: [n, k] from `NystromNCut`.
        positive: Rows of tokens that shall be in, at least one.
        negative: Rows of tokens that shall be out.
        eigenvalues: [k] of the cut, for the weights; None weighs all alike.
        threshold: In (-1, 1). Lower grows the mask.

    Raises:
        InputError: no positive click, a row out of range or out of the cut's reach, one token clicked both ways.

    References: the weights are those of biased normalized cuts (Maji, Vishnoi and Malik 2011).
    """
    rows = to_tensor(eigvecs).cpu()
    if rows.ndim != 2:
        raise InputError(f"got eigenvectors of shape {tuple(rows.shape)}; need [n, n_eig].")
    if not -1 < threshold < 1:
        raise InputError(f"got threshold={threshold}; need a number between -1 and 1.")
    chosen = {}
    for name, clicks in (("positive", positive), ("negative", negative)):
        index = np.asarray(clicks, dtype=np.int64).reshape(-1)
        if index.size and (index.min() < 0 or index.max() >= len(rows)):
            raise InputError(f"a {name} click is row {index.max()}, but rows run 0..{len(rows) - 1}.")
        if index.size and not bool(torch.isfinite(rows[torch.from_numpy(index)]).all()):
            raise InputError(f"a {name} click is on a token out of the cut's reach; click another one.")
        chosen[name] = index
    if not chosen["positive"].size:
        raise InputError("got no positive click; click at least one token that shall be in the mask.")
    both = np.intersect1d(chosen["positive"], chosen["negative"])
    if both.size:
        raise InputError(f"token {both[0]} is clicked as positive and as negative; choose one.")
    if eigenvalues is None:
        gains = torch.ones(rows.shape[1])
    else:
        values = torch.as_tensor(np.asarray(eigenvalues, dtype=np.float64))[: rows.shape[1]]
        if values.shape != (rows.shape[1],):
            raise InputError(f"got {len(values)} eigenvalues for {rows.shape[1]} eigenvectors.")
        gains = (1 - values).clamp(min=MIN_GAP).rsqrt().float()
        gains[0] = gains[1:].min() if len(gains) > 1 else 1.0  # the trivial vector separates nothing
    unit = {
        name: _weighted(rows[torch.from_numpy(index)], gains).numpy().reshape(-1, rows.shape[1])
        for name, index in chosen.items()
    }
    return ClickMask(unit["positive"], unit["negative"], gains.numpy(), threshold)


def _weighted(rows: Tensor, gains: Tensor) -> Tensor:
    if rows.shape[1] != len(gains):
        raise InputError(f"got {rows.shape[1]} eigenvectors; the clicks were made on {len(gains)}.")
    weighted = rows.float() * gains
    return weighted / weighted.norm(dim=1, keepdim=True).clamp_(min=1e-30)
