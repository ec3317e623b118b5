"""Choosing the active latents: the k largest per token, the largest of a batch, or those above thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import share_blocks
from .codes import Codes, join
from .kernel import sampled_dots

BLOCK_BYTES = 1 << 24
"""Pre-activations are worked out in blocks of rows of this size, in one buffer that is used again and again: fresh
memory costs a page fault per 4 kB, about a third of the time of the product itself."""
MAX_ROWS = 1024
"""Rows that a thread takes at a time: enough for a product that is not mostly reading weights, and yet in the cache."""
GROUP = 16


def top_k(values_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their columns, [b, k] each, in no particular order.

    The same answer as `torch.topk`, faster on CPUs. (Among equal values another one may be chosen.)
    """
    b, n = values_bn.shape
    values, cols = values_bn.new_empty(b, k), torch.empty(b, k, dtype=torch.int64, device=values_bn.device)
    choosers = [Chooser() for _ in range(torch.get_num_threads())]

    def work(worker: int, rows: slice) -> None:
        values[rows], cols[rows] = choosers[worker](values_bn[rows], k)

    share_blocks(work, b, step=block_rows(n), alone=values_bn.device.type != "cpu")
    return values, cols


def block_rows(n: int, *, block_bytes: int | None = None) -> int:
    """Return how many rows of n pre-activations a thread takes at a time."""
    return max(1, min(MAX_ROWS, (block_bytes or BLOCK_BYTES) // (4 * n)))


class Chooser:
    """Finds the k largest values of each row, in work space that is used again and again.

    The columns are seen as groups of 16; the k groups with the largest maxima hold all of the k largest values, so only
    these are searched. NumPy's partition finds the k-th largest value several times faster than `torch.topk` (it sorts
    vectors of values in registers); whatever reaches it is chosen. Rows with ties, where that is too many, are left to
    torch.
    """

    def __init__(self) -> None:
        self._space: dict[str, Tensor] = {}

    def __call__(self, values_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return values and columns, [b, k] each; the next call writes over the values."""
        b, n = values_bn.shape
        n_groups = n // GROUP
        if values_bn.device.type != "cpu":
            return values_bn.topk(k, dim=1, sorted=False)
        if n % GROUP or n_groups < 4 * k:
            cols = self._largest(values_bn, k)
            return values_bn.gather(1, cols), cols
        # Group c holds the columns c, c + n_groups, c + 2 n_groups, ...
        grouped = values_bn.view(b, GROUP, n_groups)
        maxima = torch.amax(grouped, 1, out=self.take("maxima", values_bn, b, n_groups))
        groups = self._largest(maxima, k)
        places = groups[:, None, :].expand(b, GROUP, k)
        candidates = torch.gather(grouped, 2, places, out=self.take("candidates", values_bn, b, GROUP, k))
        candidates = candidates.view(b, GROUP * k)
        found = self._largest(candidates, k)
        values = torch.gather(candidates, 1, found, out=self.take("values", values_bn, b, k))
        return values, found.div(k, rounding_mode="floor") * n_groups + groups.gather(1, found % k)

    def _largest(self, values_bn: Tensor, k: int) -> Tensor:
        """Return the columns of the k largest values of each row, int64 [b, k]."""
        b, n = values_bn.shape
        if values_bn.dtype not in (torch.float32, torch.float64) or k >= n:
            return values_bn.topk(k, dim=1, sorted=False).indices
        values = values_bn.numpy()
        ranked = self.take("ranked", values_bn, b, n).copy_(values_bn).numpy()
        ranked.partition(n - k, axis=1)
        reached = self.take("reached", values_bn, b, n, dtype=torch.bool).numpy()
        np.greater_equal(values, ranked[:, n - k, None], out=reached)
        places = np.flatnonzero(reached)
        if len(places) == b * k:
            return torch.from_numpy(places.reshape(b, k) - np.arange(0, b * n, n)[:, None])
        tied = reached.sum(1) != k
        cols = np.empty((b, k), np.int64)
        cols[~tied] = np.nonzero(reached[~tied])[1].reshape(-1, k)
        cols[tied] = values_bn[torch.from_numpy(tied)].topk(k, dim=1, sorted=False).indices
        return torch.from_numpy(cols)

    def take(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return work space of a shape, of the type and on the device of `like`, with whatever it holds."""
        n, dtype = math.prod(shape), dtype or like.dtype
        old = self._space.get(name)
        if old is None or len(old) < n or (old.dtype, old.device) != (dtype, like.device):
            old = self._space[name] = torch.empty(n, dtype=dtype, device=like.device)
        return old[:n].view(shape)


class Selector:
    """Finds active latents of centred tokens; holds the work space of each thread."""

    def __init__(self) -> None:
        self._choosers = [Chooser()]  # one for each thread

    def pre_blocks(self, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, pre-activations) for blocks of rows; each block is overwritten by the next."""
        n = len(encoder_nd)
        step = max(1, BLOCK_BYTES // (n * x_bd.element_size()))
        weight = encoder_nd.t()
        for start in range(0, len(x_bd), step):
            rows = x_bd[start : start + step]
            out = self._choosers[0].take("pre", x_bd, len(rows), n)
            yield start, torch.addmm(bias_n, rows, weight, out=out)

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
        val, col = self._largest(low, weight, bias, n_candidates)
        if screen is not None:
            val = gathered_pre(x_bd, encoder_nd, bias_n, col.sort(1).values)
            col = col.sort(1).values
            if n_candidates > k:
                val, best = val.topk(k, dim=1, sorted=False)
                col = col.gather(1, best)
        col, order = col.sort(1)
        offsets = torch.arange(0, len(x_bd) * k + 1, k, device=x_bd.device)
        return Codes(offsets, col.reshape(-1), val.gather(1, order).reshape(-1), n)

    def _largest(self, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k largest pre-activations of each token and their columns, in no particular order."""
        b, n = len(x_bd), len(encoder_nd)
        vals, cols = x_bd.new_empty(b, k), torch.empty(b, k, dtype=torch.int64, device=x_bd.device)
        weight = encoder_nd.t()
        self._choosers += [Chooser() for _ in range(torch.get_num_threads() - len(self._choosers))]

        def work(worker: int, rows: slice) -> None:
            x, choose = x_bd[rows], self._choosers[worker]
            pre = torch.addmm(bias_n, x, weight, out=choose.take("pre", x, len(x), n))
            vals[rows], cols[rows] = choose(pre, k)

        share_blocks(work, b, step=block_rows(n), alone=x_bd.device.type != "cpu")
        return vals, cols

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
