"""Which captured token an edited one is most like: so an edit is shown in the colours that the cut has already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..palette import CutPart
    from ..runs import Run

SAMPLE_ROWS = 32_768
"""Tokens of the site that an edited one is compared with, evenly spread, besides those of its own image."""

PAIRS = 4096


def nearest_tokens(
    run: Run, site: str, part: CutPart, values_td: NDArray[np.float32], *, own: slice, seed: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return for each token of an item the token of the run that its new value is nearest to.

    A token that did not move is nearest to itself and keeps its colour to the bit; one that moved takes the colours
    and the concept of what it has become like. Nothing is fitted, so the picture depends on no new choice.

    Args:
        run: The run.
        site: One of its sites.
        part: Its share of the cut.
        values_td: float32 [t, d], the item's tokens at the site under the edit.
        own: Which tokens of the part they are.
        seed: Seeds the pairs that say how far apart two tokens usually are.

    Returns:
        int32 [t], numbers within the part; and bool [t], true where the token is farther from every one of them than
        two of them usually are (the median over random pairs): it is like nothing in the run.

    Cost: reads up to `SAMPLE_ROWS` tokens of the site; one product of [t, d] with them.
    """
    import torch

    n = len(part.token_rows)
    spread = np.unique(np.linspace(0, n - 1, min(n, SAMPLE_ROWS)).astype(np.int64))
    mine = np.arange(own.start, own.stop, dtype=np.int64)
    # Its own tokens come first: where distances are equal, a token stays itself.
    candidates = np.concatenate([mine, np.setdiff1d(spread, mine)])
    acts = run.acts(site)
    order = np.argsort(candidates, kind="stable")
    known = np.empty((len(candidates), acts.shape[1]), np.float32)
    known[order] = np.asarray(acts[np.asarray(part.token_rows)[candidates[order]]], np.float32)
    mean = known.mean(0)
    points = torch.from_numpy(known - mean)
    x = torch.from_numpy(np.asarray(values_td, np.float32) - mean)
    squares = (points * points).sum(1)
    gaps = squares[None] - 2 * (x @ points.T)  # plus |x|², the same for all
    found = gaps.argmin(1)
    # The shortest distances are taken from the differences themselves: the expansion above cancels there.
    stay = torch.arange(len(mine))
    moved = (x - points[found]).norm(dim=1)
    kept = (x - points[stay]).norm(dim=1)
    found = torch.where(kept <= moved, stay, found)
    shortest = torch.minimum(kept, moved)
    rng = np.random.default_rng([seed, 17])
    pairs = torch.from_numpy(rng.integers(0, len(candidates), (2, PAIRS)))
    usual = float((points[pairs[0]] - points[pairs[1]]).norm(dim=1).median())
    return candidates[found.numpy()].astype(np.int32), (shortest > max(usual, 1e-12)).numpy()
