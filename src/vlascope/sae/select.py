"""Choosing the active latents: the k largest per token, the largest of a batch, or those above thresholds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .codes import Codes, join
from .kernel import sampled_dots

BLOCK_BYTES = 1 << 24
"""Pre-activations are worked out in blocks of rows of this size, in one buffer that is used again and again: fresh
memory costs a page fault per 4 kB, about a third of the time of the product itself."""
GROUP = 16
MIN_PART = 1 << 16
"""Values that are worth a thread of their own."""


def top_k(values_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their columns, [b, k] each, in no particular order.

    The same answer as `torch.topk`, faster on CPUs for wide rows: the columns are seen as groups of 16; the k groups
    with the largest maxima hold all of the k largest values, so only these are searched. (Among equal values another
    one may be chosen.)
    """
    b, n = values_bn.shape
    if values_bn.device.type != "cpu" or n % GROUP or n // GROUP < 4 * k:
        found = values_bn.topk(k, dim=1, sorted=False)
        return found.values, found.indices
    n_groups = n // GROUP  # group c holds the columns c, c + n_groups, c + 2 n_groups, ...
    grouped = values_bn.view(b, GROUP, n_groups)
    groups = _largest(grouped.amax(1), k)
    candidates = grouped.gather(2, groups[:, None, :].expand(b, GROUP, k)).view(b, GROUP * k)
    found = _largest(candidates, k)
    member, group = found // k, found % k
    return candidates.gather(1, found), member * n_groups + groups.gather(1, group)


def _largest(values_bn: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest values of each row, int64 [b, k].

    NumPy's partition finds the k-th largest value several times faster than `torch.topk` (it sorts vectors of values
    in registers); whatever reaches it is chosen. Rows with ties, where that is too many, are left to torch.
    """
    b, n = values_bn.shape
    if values_bn.dtype not in (torch.float32, torch.float64) or k >= n or not b:
        return values_bn.topk(k, dim=1, sorted=False).indices
    values = values_bn.numpy()
    cols = np.empty(b * k, np.int64)
    n_parts = max(1, min(torch.get_num_threads(), b * n // MIN_PART))
    edges = [b * i // n_parts for i in range(n_parts + 1)]
    tied = [False] * n_parts

    def choose(part: int) -> None:
        start, stop = edges[part], edges[part + 1]
        rows = values[start:stop]
        reached = rows >= np.partition(rows, n - k, axis=1)[:, n - k, None]
        places = np.flatnonzero(reached)
        if len(places) == k * (stop - start):
            np.remainder(places, n, out=cols[k * start : k * stop])
        else:
            tied[part] = True

    threads = [threading.Thread(target=choose, args=(part,)) for part in range(1, n_parts)]
    for thread in threads:
        thread.start()
    choose(0)
    for thread in threads:
        thread.join()
    out = torch.from_numpy(cols).view(b, k)
    for part in np.flatnonzero(tied):
        rows = slice(edges[part], edges[part + 1])
        out[rows] = values_bn[rows].topk(k, dim=1, sorted=False).indices
    return out


class Selector:
    """Finds active latents of centred tokens; holds the buffer for the pre-activations."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def pre_blocks(self, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, pre-activations) for blocks of rows; each block is overwritten by the next."""
        n = len(encoder_nd)
        step = max(1, BLOCK_BYTES // (n * x_bd.element_size()))
        weight = encoder_nd.t()
        for start in range(0, len(x_bd), step):
            rows = x_bd[start : start + step]
            out = self._take(len(rows), n, like=x_bd)
            yield start, torch.addmm(bias_n, rows, weight, out=out)

    def _take(self, rows: int, n: int, *, like: Tensor) -> Tensor:
        buffer = self._buffer
        if (
            buffer is None
            or buffer.numel() < rows * n
            or (buffer.dtype, buffer.device) != (like.dtype, like.device)
        ):
            buffer = self._buffer = torch.empty(rows * n, dtype=like.dtype, device=like.device)
        return buffer[: rows * n].view(rows, n)

    @torch.no_grad()
    def top_k(
        self, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor, *, k: int, screen: torch.dtype | None = None
    ) -> Codes:
        """Return the k largest pre-activations of each token (negative ones included, to be cut by the caller).

        Args:
            x_bd: Centred tokens.
            encoder_nd: Encoder rows.
            bias_n: Encoder bias.
            k: Per token.
            screen: None works in the type of `x_bd`. With torch.bfloat16, 2 k candidates are found in that type, and
                their exact values decide: the answer differs only if one of the k lies below 2 k others by rounding.
        """
        n = len(encoder_nd)
        n_candidates = k if screen is None else min(2 * k, n)
        low, weight, bias = x_bd, encoder_nd, bias_n
        if screen is not None:
            low, weight, bias = x_bd.to(screen), encoder_nd.to(screen), bias_n.to(screen)
        vals, cols = [], []
        for _, pre in self.pre_blocks(low, weight, bias):
            some, where = top_k(pre, n_candidates)
            vals.append(some)
            cols.append(where)
        val, col = torch.cat(vals), torch.cat(cols)
        if screen is not None:
            val = gathered_pre(x_bd, encoder_nd, bias_n, col.sort(1).values)
            col = col.sort(1).values
            if n_candidates > k:
                val, best = val.topk(k, dim=1, sorted=False)
                col = col.gather(1, best)
        col, order = col.sort(1)
        offsets = torch.arange(0, len(x_bd) * k + 1, k, device=x_bd.device)
        return Codes(offsets, col.reshape(-1), val.gather(1, order).reshape(-1), n)

    @torch.no_grad()
    def batch_top_k(self, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor, *, k: int) -> Codes:
        """Return the b x k largest pre-activations of the whole batch, however they fall on its tokens.

        Cost: holds all pre-activations [b, n] at once.
        """
        b, n = len(x_bd), len(encoder_nd)
        pre = F.linear(x_bd, encoder_nd, bias_n).view(-1)
        where = pre.topk(b * k, sorted=False).indices.sort().values
        row = where // n
        offsets = torch.zeros(b + 1, dtype=torch.int64, device=x_bd.device)
        torch.cumsum(torch.bincount(row, minlength=b), 0, out=offsets[1:])
        return Codes(offsets, where % n, pre[where], n)

    @torch.no_grad()
    def above(self, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor, *, threshold_n: Tensor) -> Codes:
        """Return all pre-activations above the threshold of their latent."""
        parts = []
        for _, pre in self.pre_blocks(x_bd, encoder_nd, bias_n):
            where = (pre > threshold_n).nonzero()
            offsets = torch.zeros(len(pre) + 1, dtype=torch.int64, device=pre.device)
            torch.cumsum(torch.bincount(where[:, 0], minlength=len(pre)), 0, out=offsets[1:])
            parts.append(Codes(offsets, where[:, 1], pre[where[:, 0], where[:, 1]], len(encoder_nd)))
        return join(parts)


def gathered_pre(x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor, cols_bk: Tensor) -> Tensor:
    """Return pre-activations [b, k] of chosen latents only."""
    b, k = cols_bk.shape
    offsets = torch.arange(0, b * k + 1, k, device=cols_bk.device)
    cols = cols_bk.reshape(-1)
    return (sampled_dots(x_bd, offsets, cols, encoder_nd) + bias_n[cols]).view(b, k)
