"""Placing and colouring many tokens block by block, on one machine or on a cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .rows import as_rows

if TYPE_CHECKING:
    from ..palette import Palette
    from ..runs import Engine
    from .nystrom import NystromNCut

BLOCK_ROWS = 16_384
"""Rows per block: a multiple of the chunks inside, so that the bits do not depend on who computes them."""


def place_tokens(ncut: NystromNCut, rows: Any, *, engine: Engine | None = None) -> NDArray[np.float32]:
    """Return the eigenvectors of tokens in a fitted cut, as `ncut.transform` does, block by block.

    Args:
        ncut: A fitted cut.
        rows: [n, d], anything that `NystromNCut.transform` takes. With the engine "ray" best a run's `acts(site)`: the
            workers then read the files themselves.
        engine: Who computes; None is this process. The bits are the same.

    Returns:
        float32 [n, n_eig]; NaN for rows that are out of reach of the cut.

    Raises:
        InputError: not fitted, another width, no rows, NaN or Inf.
    """
    source = as_rows(rows)
    parts = _mapped(partial(_place, ncut, rows if hasattr(rows, "shape") else source), source.n, engine)
    return np.concatenate(parts)


def color_tokens(
    palette: Palette, eigvecs: NDArray[Any], *, engine: Engine | None = None
) -> NDArray[np.uint8]:
    """Return the colours of rows of eigenvectors, uint8 [n, 3], as `palette.apply` does, block by block.

    Args:
        palette: A fitted palette.
        eigvecs: [n, n_eig].
        engine: Who computes; None is this process. The bits are the same.
    """
    if engine is None:
        return palette.apply(eigvecs)
    return np.concatenate(
        list(
            engine.map_blocks(
                palette.apply, (eigvecs[at : at + BLOCK_ROWS] for at in range(0, len(eigvecs), BLOCK_ROWS))
            )
        )
    )


def _mapped(fn: Any, n: int, engine: Engine | None) -> list[Any]:
    spans = [(at, min(at + BLOCK_ROWS, n)) for at in range(0, n, BLOCK_ROWS)]
    return [fn(span) for span in spans] if engine is None else list(engine.map_blocks(fn, spans))


def _place(ncut: NystromNCut, rows: Any, span: tuple[int, int]) -> NDArray[np.float32]:
    found = ncut.transform(as_rows(rows).read(*span))
    return np.asarray(found, np.float32)
