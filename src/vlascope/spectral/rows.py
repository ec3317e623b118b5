"""Rows of features wherever they lie (memory, disk, a stream of chunks), read piece by piece."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError


class Rows:
    """n rows of d numbers, read a slice at a time as torch tensors of their own dtype.

    Attributes:
        n: Number of rows.
        d: Numbers per row.
        is_torch: The caller gave a torch tensor (results are then torch tensors too).
    """

    n: int
    d: int
    is_torch: bool = False

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows start..stop-1, [stop - start, d], in their stored dtype, on the CPU or their device."""
        raise NotImplementedError

    def take(self, index: NDArray[np.int64]) -> Tensor:
        """Return the rows at `index` (any order), [len(index), d]. Reads only slices that hold some of them."""
        order = np.argsort(index, kind="stable")
        pieces: list[Tensor] = []
        at = 0
        while at < len(order):
            start = int(index[order[at]])
            stop_at = int(np.searchsorted(index[order], start + 4096, side="left"))
            wanted = index[order[at:stop_at]]
            piece = self.read(start, int(wanted[-1]) + 1)
            pieces.append(piece[torch.from_numpy(wanted - start).to(piece.device)])
            at = stop_at
        found = torch.cat(pieces) if pieces else self.read(0, 0)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return found[torch.from_numpy(back).to(found.device)]

    def chunks(self, size: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (start, stop, rows) over all rows, `size` rows at a time."""
        for start in range(0, self.n, size):
            stop = min(start + size, self.n)
            yield start, stop, self.read(start, stop)


class ArrayRows(Rows):
    """Rows of anything with `.shape` and slicing: numpy, a memory map, torch, Zarr, a run's `Acts`."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.n, self.d = int(array.shape[0]), int(array.shape[1])
        self.is_torch = isinstance(array, Tensor)

    def read(self, start: int, stop: int) -> Tensor:
        return to_tensor(self.array[start:stop])

    def take(self, index: NDArray[np.int64]) -> Tensor:
        if isinstance(self.array, Tensor):
            return self.array[torch.from_numpy(index).to(self.array.device)]
        if isinstance(self.array, np.ndarray):
            return to_tensor(self.array[index])
        return super().take(index)


class StackedRows(Rows):
    """Several row sources of equal width, one under the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        widths = {part.d for part in parts}
        if len(widths) != 1:
            raise InputError(
                f"chunks of rows have different widths {sorted(widths)}; all rows need the same number of columns."
            )
        self.parts = tuple(parts)
        self.starts = np.cumsum([0] + [part.n for part in parts])
        self.n, self.d = int(self.starts[-1]), parts[0].d
        self.is_torch = all(part.is_torch for part in parts)

    def read(self, start: int, stop: int) -> Tensor:
        pieces = [
            part.read(max(start - int(low), 0), min(stop - int(low), part.n))
            for part, low in zip(self.parts, self.starts, strict=False)
            if low < stop and low + part.n > start
        ]
        if not pieces:
            return self.parts[0].read(0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class TakenRows(Rows):
    """Some rows of another source, in increasing order (a selection of token kinds, for example)."""

    def __init__(self, parent: Rows, index: NDArray[np.int64]) -> None:
        self.parent, self.index = parent, index
        self.n, self.d, self.is_torch = len(index), parent.d, parent.is_torch
        self.is_whole = self.n == parent.n

    def read(self, start: int, stop: int) -> Tensor:
        if self.is_whole:
            return self.parent.read(start, stop)
        if stop <= start:
            return self.parent.read(0, 0)
        wanted = self.index[start:stop]
        low, high = int(wanted[0]), int(wanted[-1]) + 1
        if high - low > 8 * len(wanted):  # sparse selection: do not read what lies between
            return self.parent.take(wanted)
        piece = self.parent.read(low, high)
        return piece[torch.from_numpy(wanted - low).to(piece.device)]

    def take(self, index: NDArray[np.int64]) -> Tensor:
        return self.parent.take(self.index[index])


def to_tensor(array: Any) -> Tensor:
    """Return a floating-point torch tensor of an array, without a copy where that is possible."""
    if isinstance(array, Tensor):
        tensor = array.detach()
    else:
        array = np.asarray(array)
        if array.dtype.kind in "iub":
            array = array.astype(np.float32)
        if array.dtype.kind != "f":
            if array.dtype.name != "bfloat16":
                raise InputError(
                    f"got an array of type {array.dtype}; need real numbers (float16 to float64)."
                )
            array = array.astype(np.float32)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = np.array(array)  # torch wants memory that it may write to
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.is_complex():
        raise InputError("got complex numbers; need real features.")
    return tensor if tensor.is_floating_point() else tensor.float()


def flatten_maps(maps: Any, *, layout: str) -> Tensor:
    """Return the positions of feature maps as rows, [b * h * w, d], in (item, row, column) order.

    Args:
        maps: Four axes, numpy or torch.
        layout: "bchw" for [b, d, h, w] or "bhwc" for [b, h, w, d]; never guessed.

    Raises:
        InputError: not four axes, or another layout.

    Cost: one copy for "bchw", none for "bhwc".
    """
    tensor = to_tensor(maps)
    if layout not in ("bchw", "bhwc"):
        raise InputError(f"got layout '{layout}'; need 'bchw' ([b, d, h, w]) or 'bhwc' ([b, h, w, d]).")
    if tensor.ndim != 4:
        raise InputError(f"got maps of shape {tuple(tensor.shape)}; need four axes for layout '{layout}'.")
    if layout == "bchw":
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1, tensor.shape[-1])


def as_rows(features: Any) -> Rows:
    """Return a `Rows` over features in any of the accepted forms.

    Args:
        features: [n, d] numpy, torch, memory-mapped, Zarr or a run's activations; a list of [n_i, d] arrays; an
            iterator of such chunks (copied to a temporary file, because several passes are needed); a function
            without arguments that returns a fresh iterator of chunks (nothing is copied).

    Raises:
        InputError: not two axes, no rows, no columns.
    """
    if isinstance(features, Rows):
        return features
    if hasattr(features, "shape") and hasattr(features, "__getitem__"):
        shape = tuple(int(size) for size in features.shape)
        _check_shape(shape)
        return ArrayRows(features)
    if isinstance(features, (list, tuple)) and features and hasattr(features[0], "shape"):
        if len(features[0].shape) == 2:
            return StackedRows([as_rows(part) for part in features])
    if isinstance(features, (list, tuple)):
        array = np.asarray(features, dtype=np.float64)
        _check_shape(array.shape)
        return ArrayRows(array)
    if callable(features):
        return _ChunkFunction(cast("Callable[[], Iterator[Any]]", features))
    if hasattr(features, "__next__"):
        return _spooled(features)
    raise InputError(
        f"got features of type {type(features).__name__}; need an array [n, d] (numpy, torch, memory map, Zarr), "
        "a list of such arrays or an iterator of chunks."
    )


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) == 4:
        b, x, y, z = shape
        raise InputError(
            f"got features of shape {list(shape)}; need rows [n, d]. It could be [b, d, h, w] ({b * y * z} tokens of "
            f"width {x}) or [b, h, w, d] ({b * x * y} tokens of width {z}): say which with "
            "`vlascope.spectral.flatten_maps(features, layout='bchw')` or `layout='bhwc'`."
        )
    if len(shape) != 2:
        raise InputError(f"got features of shape {list(shape)}; need two axes [n tokens, d channels].")
    if 0 in shape:
        raise InputError(f"got features of shape {list(shape)}; need at least one row and one column.")


class _ChunkFunction(Rows):
    """Rows that a function yields anew, in order, each time it is called."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make
        self.n, self.d, self.is_torch = 0, 0, False
        for chunk in make():
            _check_shape(tuple(chunk.shape))
            if self.d and chunk.shape[1] != self.d:
                raise InputError(f"chunks of rows have different widths {self.d} and {chunk.shape[1]}.")
            self.n, self.d = self.n + int(chunk.shape[0]), int(chunk.shape[1])
        if self.n == 0:
            raise InputError("got an iterator without chunks; need at least one row.")

    def _parts(self, start: int, stop: int) -> Iterator[Tensor]:
        low = 0
        for chunk in self.make():
            high = low + int(chunk.shape[0])
            if high > start:
                yield to_tensor(chunk[max(start - low, 0) : max(stop - low, 0)])
            low = high
            if low >= stop:
                return

    def read(self, start: int, stop: int) -> Tensor:
        return torch.cat(list(self._parts(start, max(stop, start + 1))))[: stop - start]

    def take(self, index: NDArray[np.int64]) -> Tensor:
        order = np.argsort(index, kind="stable")
        pieces, low, sorted_index = [], 0, index[order]
        for chunk in self.make():
            high = low + int(chunk.shape[0])
            mine = sorted_index[np.searchsorted(sorted_index, low) : np.searchsorted(sorted_index, high)]
            if len(mine):
                pieces.append(to_tensor(chunk)[torch.from_numpy(mine - low)])
            low = high
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return torch.cat(pieces)[torch.from_numpy(back)]

    def chunks(self, size: int) -> Iterator[tuple[int, int, Tensor]]:
        low = 0
        for chunk in self.make():
            tensor = to_tensor(chunk)
            for start in range(0, len(tensor), size):
                part = tensor[start : start + size]
                yield low, low + len(part), part
                low += len(part)


def _spooled(chunks: Iterator[Any]) -> Rows:
    """Copy a one-shot iterator into a temporary file (deleted when it is no longer used) and map it."""
    n_rows, width, dtype = 0, 0, np.dtype(np.float32)
    with tempfile.TemporaryFile(prefix="vlascope-rows-") as handle:
        for chunk in chunks:
            tensor = to_tensor(chunk).cpu()
            _check_shape(tuple(tensor.shape))
            array = (tensor if tensor.dtype in (torch.float16, torch.float64) else tensor.float()).numpy()
            if n_rows == 0:
                width, dtype = array.shape[1], array.dtype
            if array.shape[1] != width:
                raise InputError(f"chunks of rows have different widths {width} and {array.shape[1]}.")
            handle.write(np.ascontiguousarray(array, dtype=dtype).tobytes())
            n_rows += len(array)
        if n_rows == 0:
            raise InputError("got an iterator without chunks; need at least one row.")
        handle.flush()
        # The map keeps the nameless file alive after its handle is closed.
        return ArrayRows(np.memmap(handle, dtype=dtype, mode="r+", shape=(n_rows, width)))


def require_finite(raw: Tensor, first: int | NDArray[np.int64]) -> None:
    """Raise naming the rows with NaN or Inf; `first` is the number of row 0, or the numbers of all rows."""
    if bool(torch.isfinite(raw.sum(dtype=torch.float64))):
        return
    bad = (~torch.isfinite(raw)).any(1).nonzero()[:, 0].cpu().numpy()
    if not len(bad):
        return
    rows = first + bad if isinstance(first, int) else first[bad]
    shown = ", ".join(map(str, rows[:8].tolist())) + (", ..." if len(rows) > 8 else "")
    hint = (
        " float16 overflows above 65504: capture in bfloat16 or float32."
        if raw.dtype == torch.float16
        else ""
    )
    raise InputError(f"features hold NaN or Inf in {len(rows)} row(s): {shown}. Remove or repair them.{hint}")
