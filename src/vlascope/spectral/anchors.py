"""Which tokens of a run every layer shares, so that layers can be compared by their affinity to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..models.layout import KINDS

if TYPE_CHECKING:
    from ..runs.tables import TokenTable

WORD_SHARE = 0.25
"""Share of the anchors that are words where a layout has words."""

_PATCH = KINDS.index("patch")


def choose_anchors(
    tables: Mapping[str, TokenTable], chosen: Mapping[str, NDArray[np.int64]], *, n_anchors: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return the anchors of each layout as positions in its chosen rows, -1 where a layout lacks one.

    Patches are shared between layouts by where they lie: a patch of the layout with the fewest patches is matched,
    in every other layout, with the patch of the same item and camera whose centre is nearest. Words belong to their
    own layout.

    Args:
        tables: Token table of each layout.
        chosen: Rows of each layout's table that are cut, increasing.
        n_anchors: About how many; fewer when there are fewer tokens.
        seed: Seeds the choice.

    Returns:
        int64 [a] per layout, all of the same length a.
    """
    rng = np.random.default_rng(seed)
    patches = {name: np.flatnonzero(tables[name].kind[rows] == _PATCH) for name, rows in chosen.items()}
    words = {name: np.flatnonzero(tables[name].kind[rows] != _PATCH) for name, rows in chosen.items()}
    with_patches = [name for name in chosen if len(patches[name])]
    with_words = [name for name in chosen if len(words[name])]
    n_words = 0 if not with_words else n_anchors if not with_patches else int(n_anchors * WORD_SHARE)
    columns: dict[str, list[NDArray[np.int64]]] = {name: [] for name in chosen}
    if with_patches:
        base = min(with_patches, key=lambda name: len(patches[name]))
        picked = _pick(patches[base], n_anchors - n_words, rng)
        for name in chosen:
            if name == base:
                columns[name].append(picked)
            elif name in with_patches:
                columns[name].append(_matched(tables, chosen, patches[name], picked, base=base, name=name))
            else:
                columns[name].append(np.full(len(picked), -1, np.int64))
    for owner in with_words:
        picked = _pick(words[owner], max(1, n_words // len(with_words)), rng)
        for name in chosen:
            columns[name].append(picked if name == owner else np.full(len(picked), -1, np.int64))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _pick(index: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if len(index) <= n:
        return index.astype(np.int64)
    return np.sort(rng.choice(index, n, replace=False)).astype(np.int64)


def _matched(
    tables: Mapping[str, TokenTable],
    chosen: Mapping[str, NDArray[np.int64]],
    patches: NDArray[np.int64],
    picked: NDArray[np.int64],
    *,
    base: str,
    name: str,
) -> NDArray[np.int64]:
    """Return for each picked patch of layout `base` the nearest patch of layout `name`, -1 when it has none."""
    rows = chosen[base][picked]
    there = chosen[name][patches]
    item, camera = tables[name].item[there], tables[name].camera[there]
    centers = _centers(tables[name].box[there])
    wanted = _centers(tables[base].box[rows])
    out = np.full(len(picked), -1, np.int64)
    for at, row in enumerate(rows):
        low = np.searchsorted(item, tables[base].item[row])
        high = np.searchsorted(item, tables[base].item[row], side="right")
        same = np.flatnonzero(camera[low:high] == tables[base].camera[row]) + low
        if len(same):
            out[at] = patches[same[np.square(centers[same] - wanted[at]).sum(1).argmin()]]
    return out


def _centers(box: NDArray[np.float32]) -> NDArray[np.float64]:
    corners = box.astype(np.float64)
    return (corners[:, :2] + corners[:, 2:]) / 2
