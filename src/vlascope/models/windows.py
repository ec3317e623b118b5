"""Attention windows: an image grid cut into squares that a model folds into the batch, and back.

SAM-like encoders run most of their attention inside windows: a map [b, rows, cols, d] is padded at the bottom
and at the right until the window size divides it, and becomes [b * windows, size, size, d], windows row-major.
What a site shows is always the image grid; the padding is taken off on reading and kept on writing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a module's tensor is folded.

    Attributes:
        rows: Rows of the image grid, before padding.
        cols: Columns of the image grid, before padding.
        size: Side of a window, in places of the grid.
    """

    rows: int
    cols: int
    size: int

    @property
    def padded_hw(self) -> tuple[int, int]:
        """Rows and columns after padding."""
        return (-(-self.rows // self.size) * self.size, -(-self.cols // self.size) * self.size)

    @property
    def n_windows(self) -> int:
        """Windows per image."""
        height, width = self.padded_hw
        return (height // self.size) * (width // self.size)

    def unfold(self, folded: Tensor) -> Tensor:
        """Return [b, rows, cols, d], a copy, of a folded [b * n_windows, size, size, d].

        Raises:
            InputError: the tensor is not folded in this way.
        """
        return self._grid(folded)[:, : self.rows, : self.cols]

    def fold(self, grid: Tensor, *, into: Tensor) -> Tensor:
        """Return `into` (folded) with the places of the image replaced by `grid` [b, rows, cols, d].

        The padding keeps what it holds in `into`.
        """
        whole = self._grid(into)  # a copy already: windows are not contiguous in the grid
        whole[:, : self.rows, : self.cols] = grid
        height, width = self.padded_hw
        size, d = self.size, into.shape[-1]
        parts = whole.reshape(-1, height // size, size, width // size, size, d)
        return parts.permute(0, 1, 3, 2, 4, 5).reshape(into.shape)

    def _grid(self, folded: Tensor) -> Tensor:
        height, width = self.padded_hw
        if folded.ndim != 4 or folded.shape[1:3] != (self.size, self.size) or len(folded) % self.n_windows:
            raise InputError(
                f"got a tensor of shape {tuple(folded.shape)}; a {self.rows} x {self.cols} grid in windows of "
                f"{self.size} needs [b * {self.n_windows}, {self.size}, {self.size}, d]. Is the image of the "
                "size that the model was made for?"
            )
        size = self.size
        parts = folded.reshape(-1, height // size, width // size, size, size, folded.shape[-1])
        parts = parts.permute(0, 1, 3, 2, 4, 5).clone(memory_format=torch.contiguous_format)
        return parts.view(-1, height, width, folded.shape[-1])
