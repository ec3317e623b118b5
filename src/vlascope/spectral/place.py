"""Placing and colouring many tokens block by block, on one machine or on a cluster."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .nystrom import OutOfReachWarning
from .rows import TakenRows, as_rows

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


def fit_and_place(
    ncut: NystromNCut, rows: Any, *, n_fit: int, seed: int, engine: Engine | None = None
) -> NDArray[np.float32]:
    """Fit a cut on some rows, drawn at random, and return the eigenvectors of all rows, placed block by block.

    For runs of many millions of tokens: the fit stays here and has a fixed cost, the rest is work for any number of
    machines.

    Args:
        ncut: Not fitted yet; fitted on return.
        rows: [n, d], see `place_tokens`.
        n_fit: Rows that are drawn, 2 <= n_fit.
        seed: Seeds the draw. Same rows, n_fit and seed = same bits, whatever the engine.
        engine: Who places; None is this process.

    Returns:
        float32 [n, n_eig]; NaN for rows that are unlike everything drawn, with one warning that counts them.

    Raises:
        InputError: `n_fit` is out of range; else as `place_tokens`.
    """
    source = as_rows(rows)
    if n_fit < 2:
        raise InputError(f"got {n_fit} tokens to fit on; need at least 2, and far more than groups.")
    rng = np.random.default_rng([seed, 3])
    drawn = np.sort(rng.choice(source.n, min(n_fit, source.n), replace=False)).astype(np.int64)
    ncut.fit(TakenRows(source, drawn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfReachWarning)  # one per block, and none from other machines
        eigvecs = place_tokens(ncut, source, engine=engine)
    if n_far := int(np.isnan(eigvecs[:, 0]).sum()):
        warnings.warn(
            f"{n_far} of {source.n} tokens are unlike all {len(drawn)} that the cut was fitted on; they get no group "
            "and are grey. Fit on more tokens.",
            OutOfReachWarning,
            stacklevel=2,
        )
    return eigvecs


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
