"""Token graphs inside attention layers: who looks at whom (queries, keys), whose content is alike (values)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .rows import require_finite, to_tensor

MIN_COSINE = 0.1
"""Neighbours that are less alike than this get no edge."""

CHUNK_ROWS = 2048


def attention_affinity(queries: Any, keys: Any, *, n_heads: int = 1) -> Tensor:
    """Return the symmetric affinity of one image's tokens by its attention: softmax(q k' / sqrt(d)), all heads.

    Give patch tokens only: class and register tokens are left out before the softmax, or they would drain it.

    Args:
        queries: [n, heads * d] of one image.
        keys: [n, heads * d].
        n_heads: Attention heads that the width is split into; 1 takes the full width as one head.

    Returns:
        float32 [n, n], D^-1/2 (A + A') D^-1/2 / 2 averaged over heads: symmetric, eigenvalues in [-1, 1].

    Cost: O(n² heads d).
    """
    q, k = _checked(queries, "queries"), _checked(keys, "keys")
    if q.shape != k.shape:
        raise InputError(f"got queries {tuple(q.shape)} and keys {tuple(k.shape)}; they need the same shape.")
    if n_heads < 1 or q.shape[1] % n_heads:
        raise InputError(f"got n_heads={n_heads} for width {q.shape[1]}; heads must divide the width.")
    width = q.shape[1] // n_heads
    out = torch.zeros((len(q), len(q)))
    for head in range(n_heads):
        columns = slice(head * width, (head + 1) * width)
        attention = torch.softmax(q[:, columns] @ k[:, columns].T / width**0.5, dim=1)
        out += symmetric_normalized(attention)
    return out / n_heads


def symmetric_normalized(affinity: Tensor) -> Tensor:
    """Return D^-1/2 A D^-1/2 of (A + A')/2, dense. A token without any affinity keeps a row of zeros."""
    symmetric = (affinity + affinity.T) / 2
    half = _inverse_root(symmetric.sum(1))
    return half[:, None] * symmetric * half[None]


def neighbour_affinity(
    left: Any,
    right: Any = None,
    *,
    image_of: NDArray[np.integer],
    n_intra: int = 50,
    n_inter: int = 50,
    min_cosine: float = MIN_COSINE,
) -> Tensor:
    """Return the sparse normalised affinity of tokens of many images: cosine to the nearest neighbours.

    Each token is linked to its nearest tokens in its own image and, separately, in all others, so that what
    images share is seen although an image's own tokens are always the most alike.

    Args:
        left: [n, d], values ("what"), or queries ("where").
        right: [n, d], keys; None takes `left`.
        image_of: [n], the image of each token.
        n_intra: Neighbours in the same image.
        n_inter: Neighbours in other images.
        min_cosine: Less alike tokens are not linked.

    Returns:
        Sparse symmetric float32 [n, n] (CSR), D^-1/2 A D^-1/2; a token without neighbours has an empty row.

    Cost: O(n² d) time, O(n (n_intra + n_inter)) memory.
    """
    a = _unit(_checked(left, "features"))
    b = a if right is None else _unit(_checked(right, "keys"))
    images = torch.from_numpy(np.asarray(image_of, dtype=np.int64))
    n = len(a)
    if a.shape != b.shape or images.shape != (n,):
        raise InputError(
            f"got {tuple(a.shape)} and {tuple(b.shape)} features of {len(images)} tokens; need one image number and "
            "one row of equal width per token."
        )
    if n_intra < 0 or n_inter < 0 or n_intra + n_inter == 0:
        raise InputError(f"got n_intra={n_intra}, n_inter={n_inter}; need at least one neighbour.")
    sources, targets, weights = [], [], []
    for start in range(0, n, CHUNK_ROWS):
        cosine = a[start : start + CHUNK_ROWS] @ b.T
        rows = torch.arange(start, start + len(cosine))
        cosine[torch.arange(len(cosine)), rows] = -torch.inf  # a token is not its own neighbour
        is_same = images[rows][:, None] == images[None]
        for count, allowed in ((n_intra, is_same), (n_inter, ~is_same)):
            count = min(count, n - 1)
            if count == 0:
                continue
            best, where = torch.topk(cosine.masked_fill(~allowed, -torch.inf), count, dim=1)
            keep = best > min_cosine
            sources.append(rows[:, None].expand_as(where)[keep])
            targets.append(where[keep])
            weights.append(best[keep])
    index = torch.stack([torch.cat(sources), torch.cat(targets)])
    values = torch.cat(weights) / 2
    both = torch.sparse_coo_tensor(
        torch.cat([index, index.flip(0)], 1), torch.cat([values, values]), (n, n), check_invariants=False
    ).coalesce()
    index, values = both.indices(), both.values()
    # The inverse root is guarded from within: a token without neighbours has degree 0, and stays at 0.
    degree = (
        torch.zeros(n).index_put_((index[0],), values, accumulate=True) if len(values) else torch.zeros(n)
    )
    half = _inverse_root(degree)
    scaled = torch.sparse_coo_tensor(
        index, values * half[index[0]] * half[index[1]], (n, n), check_invariants=False, is_coalesced=True
    )
    return _csr(scaled)


def _csr(matrix: Tensor) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


def _inverse_root(degree: Tensor) -> Tensor:
    return torch.where(degree > 0, degree.clamp(min=1e-30).rsqrt(), 0.0)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp_(min=1e-30)


def _checked(features: Any, name: str) -> Tensor:
    x = to_tensor(features).cpu().float()
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"got {name} of shape {tuple(x.shape)}; need [n tokens, d].")
    require_finite(x, 0)
    return x
