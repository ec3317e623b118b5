"""Sparse codes: which latents are active in which token, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Active latents of some tokens, as the rows of a compressed sparse matrix [n_tokens, n_latents].

    Attributes:
        offsets: int64 [n_tokens + 1]; the entries of token t are offsets[t] to offsets[t + 1].
        cols: int64 [n_entries], latents, increasing within a token.
        vals: [n_entries], activations.
        n_latents: Columns.
    """

    offsets: Tensor
    cols: Tensor
    vals: Tensor
    n_latents: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.offsets) - 1

    def rows(self) -> Tensor:
        """Return the token of each entry, int64 [n_entries]."""
        return row_of_entry(self.offsets)

    def below(self, width: int) -> Codes:
        """Return the codes of the first `width` latents only."""
        if width >= self.n_latents:
            return self
        return self.keep(self.cols < width)

    def active(self) -> Codes:
        """Return the entries that are above zero."""
        return self.keep(self.vals > 0)

    def keep(self, mask: Tensor) -> Codes:
        """Return the entries where `mask` (bool [n_entries]) holds."""
        kept = torch.zeros(len(self.cols) + 1, dtype=torch.int64, device=self.cols.device)
        torch.cumsum(mask, 0, out=kept[1:])
        return Codes(kept[self.offsets], self.cols[mask], self.vals[mask], self.n_latents)

    def dense(self) -> Tensor:
        """Return the codes as a dense matrix [n_tokens, n_latents] (large; for tests and small inputs)."""
        out = torch.zeros(self.n_tokens, self.n_latents, dtype=self.vals.dtype, device=self.vals.device)
        out[self.rows(), self.cols] = self.vals
        return out

    def scipy(self) -> Any:
        """Return a float32 `scipy.sparse.csr_array` [n_tokens, n_latents]."""
        from scipy.sparse import csr_array

        return csr_array(
            (
                self.vals.detach().float().cpu().numpy(),
                self.cols.cpu().numpy().astype(np.int32),
                self.offsets.cpu().numpy(),
            ),
            shape=(self.n_tokens, self.n_latents),
        )


def row_of_entry(offsets: Tensor) -> Tensor:
    """Return the row of each entry of a compressed sparse matrix, int64."""
    n_rows = len(offsets) - 1
    return torch.repeat_interleave(torch.arange(n_rows, device=offsets.device), offsets.diff())


def join(parts: list[Codes]) -> Codes:
    """Return the codes of consecutive groups of tokens as one."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(p.cols) for p in parts])
    offsets = [parts[0].offsets[:1]] + [p.offsets[1:] + int(s) for p, s in zip(parts, starts, strict=False)]
    return Codes(
        torch.cat(offsets),
        torch.cat([p.cols for p in parts]),
        torch.cat([p.vals for p in parts]),
        parts[0].n_latents,
    )
