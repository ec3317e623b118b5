"""Reading the activations of one site: all blocks as one lazy [n, d] array over memory maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .arrays import from_stored, open_array
from .paths import array_dir

MAX_OPEN_MAPS = 256
"""Memory maps kept open per site; the operating system allows about 65,000 in all."""


class Acts:
    """Activations of one site, [n_tokens, d]: indexed like an array, read from disk as needed.

    Rows are in the order of `run.tokens(layout)`. A slice or an array of rows gives a NumPy array: a slice within
    one block is a read-only view of the memory map, anything else a copy. bfloat16 comes back as float32.
    """

    def __init__(
        self, run_dir: Path, site_name: str, *, rows_per_block: Sequence[int], width: int, dtype: str
    ) -> None:
        self._run_dir, self.site = run_dir, site_name
        self._stored_dtype = dtype
        self._offsets = np.concatenate([[0], np.cumsum(np.asarray(rows_per_block, np.int64))])
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self.shape = (int(self._offsets[-1]), width)
        self.dtype = np.dtype(np.float16 if dtype == "float16" else np.float32)

    ndim = 2

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind when sent to a worker: it opens the files itself."""
        return {**self.__dict__, "_run_dir": self._run_dir.absolute(), "_maps": OrderedDict()}

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Acts({self.site!r}, shape={self.shape}, stored={self._stored_dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self._offsets) - 1

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield (rows, values [rows, d]) block by block, for work in bounded memory; values are read-only."""
        for block in range(self.n_blocks):
            rows = slice(int(self._offsets[block]), int(self._offsets[block + 1]))
            if rows.stop > rows.start:
                yield rows, from_stored(self._map(block), self._stored_dtype)

    def stored_blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the values block by block in the stored type (bfloat16 as its bits, uint16), read-only [rows, d]."""
        for block in range(self.n_blocks):
            if self._offsets[block + 1] > self._offsets[block]:
                yield self._map(block)

    def __getitem__(self, key: int | slice | Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Return rows: `[i]` gives [d]; a slice, int array or bool mask gives [m, d].

        Raises:
            IndexError: a row is out of range.
            InputError: the key is of another kind, or a mask has another length.
            RunIncompleteError: the block's file is missing or cut short.
        """
        if isinstance(key, int | np.integer):
            return self._gather(np.array([key], np.int64))[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._contiguous(start, max(start, stop))
            return self._gather(np.arange(start, stop, step, dtype=np.int64))
        rows = np.asarray(key)
        if rows.ndim == 1 and rows.dtype == np.bool_:
            if len(rows) != len(self):
                raise InputError(
                    f"site '{self.site}' has {len(self)} tokens but the mask has {len(rows)} entries."
                )
            return self._gather(np.flatnonzero(rows))
        if rows.ndim == 1 and (rows.dtype.kind in "iu" or rows.size == 0):
            return self._gather(rows.astype(np.int64))
        raise InputError(
            f"rows of site '{self.site}' are chosen by a slice, an int array or a bool mask; got an array of shape "
            f"{rows.shape} and type {rows.dtype}."
        )

    def _map(self, block: int) -> NDArray[Any]:
        if block in self._maps:
            self._maps.move_to_end(block)
            return self._maps[block]
        n_rows = int(self._offsets[block + 1] - self._offsets[block])
        stored = open_array(
            array_dir(self._run_dir, self.site, block),
            shape=(n_rows, self.shape[1]),
            dtype=self._stored_dtype,
        )
        self._maps[block] = stored
        if len(self._maps) > MAX_OPEN_MAPS:
            self._maps.popitem(last=False)
        return stored

    def _contiguous(self, start: int, stop: int) -> NDArray[Any]:
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        if start < stop <= self._offsets[first + 1]:
            base = int(self._offsets[first])
            return from_stored(np.asarray(self._map(first)[start - base : stop - base]), self._stored_dtype)
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        block, at = first, start
        while at < stop:
            base, end = int(self._offsets[block]), min(stop, int(self._offsets[block + 1]))
            if end > at:
                out[at - start : end - start] = from_stored(
                    self._map(block)[at - base : end - base], self._stored_dtype
                )
                at = end
            block += 1
        return out

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        n = len(self)
        bad = (rows < -n) | (rows >= n)
        if bad.any():
            raise IndexError(f"row {rows[bad][0]} of site '{self.site}' does not exist; it has {n} tokens.")
        rows = np.where(rows < 0, rows + n, rows)
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        block_of_row = np.searchsorted(self._offsets, rows, side="right") - 1
        for block in np.unique(block_of_row):
            here = np.flatnonzero(block_of_row == block)
            out[here] = from_stored(
                self._map(int(block))[rows[here] - self._offsets[block]], self._stored_dtype
            )
        return out
