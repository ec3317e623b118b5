"""Cosines of all tokens with one, in a single pass: compiled for this processor where numba is there, else by torch.

The product of a matrix with one vector ought to take as long as reading the matrix. Torch has no such product of half
floats in one pass: its matrix products compute sixteen columns for the one that is wanted, and a conversion first
writes twice the bytes. For 150,000 x 768 in bfloat16 that is 27 to 34 ms of processor time, or 25 ms when it converts
a piece at a time, against 14 ms compiled and 11 ms for reading alone.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .workers import each, each_with_torch

if TYPE_CHECKING:
    import torch

TORCH_ROWS = 1024
"""Tokens that torch converts to float32 at once: few enough to stay near the core, enough to be worth a call."""

Task = tuple[int, NDArray[Any]]
"""First row of a block, and the block as it is stored (bfloat16 as its bits, uint16)."""

_LOG = logging.getLogger(__name__)
_compiled: dict[str, Callable[..., None]] = {}
_compiling = threading.Lock()


def compile_for(dtype: str) -> bool:
    """Compile the pass over tokens of a stored type; until that is done, `cosines` uses torch.

    Returns:
        Whether it is compiled now; False where numba is not installed.

    Cost: a second and a half the first time, 60 MB of memory; then none.
    """
    with _compiling:
        if dtype in _compiled:
            return True
        try:
            from numba import njit
        except ImportError:
            _LOG.info("numba is not installed: a click takes about twice as long (pip install numba)")
            return False
        # Sums may be taken in another order, for the wide registers; NaN stays NaN.
        how: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}
        to_float = njit(**how)(_TO_FLOAT[dtype])
        stored = {"float32": "float32", "float16": "uint16", "bfloat16": "uint16"}[dtype]
        sign = f"void(Array({stored}, 2, 'C', readonly=True), float32[::1], float32, " \
               f"Array(float32, 1, 'C', readonly=True), float32[::1])"  # fmt: skip
        _compiled[dtype] = njit(sign, **how)(_pass_with(to_float))
        return True


def cosines(
    tasks: Iterable[Task],
    query_d: NDArray[np.float32],
    *,
    dtype: str,
    constant: float,
    norms_n: NDArray[np.float32],
    go_on: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return (x . query - constant) / norm of every token, float32 [n] in [-1, 1], on all cores.

    Products and sums are float32, whatever the stored type.

    Args:
        tasks: Blocks of stored tokens, C-contiguous [m, d], and where each begins.
        query_d: float32 [d].
        dtype: Stored type: "float32", "float16" or "bfloat16".
        constant: What each product is lowered by: that of the mean with the query.
        norms_n: float32 [n], the length of each token after the mean is taken away.
        go_on: Called before every block; what it raises ends the work.

    Cost: one pass over the tokens.
    """
    out = np.empty(len(norms_n), np.float32)
    compiled = _compiled.get(dtype)
    half = compiled is not None and dtype == "float16"

    def with_numba(task: Task) -> None:
        assert compiled is not None
        go_on()
        start, block = task
        part = slice(start, start + len(block))
        compiled(
            block.view(np.uint16) if half else block, query_d, np.float32(constant), norms_n[part], out[part]
        )

    def with_torch(task: Task) -> None:
        import torch

        go_on()
        start, block = task
        stored = as_tensor(block, dtype)
        query = torch.from_numpy(query_d)
        wide = torch.empty(min(TORCH_ROWS, len(block)), len(query_d))
        for at in range(0, len(block), TORCH_ROWS):
            rows = stored[at : at + TORCH_ROWS]
            product = torch.mv(wide[: len(rows)].copy_(rows), query).numpy()
            part = slice(start + at, start + at + len(rows))
            out[part] = (product - np.float32(constant)) / np.maximum(norms_n[part], np.float32(1e-30))
        part = slice(start, start + len(block))
        np.clip(out[part], -1, 1, out=out[part])

    if compiled is None:
        each_with_torch(with_torch, tasks)
    else:
        each(with_numba, tasks)
    return out


def as_tensor(block: NDArray[Any], dtype: str) -> torch.Tensor:
    """Return a block of a memory map as a tensor of its stored type, without a copy."""
    import torch

    _allow_read_only()
    # bfloat16 is stored as uint16; int16 has the same bits and is known to all releases of torch.
    tensor = torch.from_numpy(block.view(np.int16) if dtype == "bfloat16" else block)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


@lru_cache(maxsize=1)
def _allow_read_only() -> None:
    """Let torch say once, unheard, that it may not write to a memory map; nobody here does."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        values = np.zeros(1, np.float32)
        values.flags.writeable = False
        torch.from_numpy(values)


def _pass_with(to_float: Callable[[Any], Any]) -> Callable[..., None]:
    def over_rows(x: Any, query: Any, constant: Any, norms: Any, out: Any) -> None:
        for i in range(x.shape[0]):
            total = np.float32(0)
            for j in range(x.shape[1]):
                total += to_float(x[i, j]) * query[j]
            out[i] = min(
                max((total - constant) / max(norms[i], np.float32(1e-30)), np.float32(-1)), np.float32(1)
            )

    return over_rows


def _from_float32(value: Any) -> Any:
    return value


def _from_bfloat16(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def _from_float16(bits: Any) -> Any:
    # The exponent is made up for by a product, which holds for subnormal numbers as well; runs hold no infinite ones.
    size = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13)).view(np.float32)
    return -size * np.float32(2.0**112) if bits & np.uint16(0x8000) else size * np.float32(2.0**112)


_TO_FLOAT = {"float32": _from_float32, "float16": _from_float16, "bfloat16": _from_bfloat16}
