"""How two layers agree about the same tokens: linear CKA, eigenspaces, labels, each with an interval over items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..spectral import agreement, cka
from .resample import MIN_UNITS, Units, bootstrap_weights, percentile_interval, run_units
from .scores import contingency

if TYPE_CHECKING:
    from ..spectral.cut import CutResult

MAX_TOKENS = 1_000
"""Tokens that CKA and eigenspaces are compared on: a uniform sample of those that both layers hold."""
N_JACKKNIFE = 10


@dataclass(frozen=True, kw_only=True)
class LayerAgreement:
    """How one layer sees the tokens that it shares with another.

    Attributes:
        site, other: The two layers; `other` is the earlier.
        n: Tokens that CKA and subspace were measured on.
        n_shared: Tokens that the layers share; label agreement uses them all.
        cka: Debiased linear CKA; None when a layer is constant.
        cka_interval: 95 % interval, jackknife over groups of items.
        cka_shuffled: CKA after shuffling the tokens of one side.
        subspace: Overlap of the leading eigenspaces, 0..1.
        subspace_shuffled: The same after shuffling.
        ari: Adjusted Rand index of the labels of the shared cut.
        ari_interval: Bootstrap over items or episodes.
        over: What was resampled.
        note: Why numbers are missing; "" when none are.
    """

    site: str
    other: str
    n: int = 0
    n_shared: int = 0
    cka: float | None = None
    cka_interval: tuple[float, float] | None = None
    cka_shuffled: float | None = None
    subspace: float | None = None
    subspace_shuffled: float | None = None
    ari: float | None = None
    ari_interval: tuple[float, float] | None = None
    over: str = "item"
    note: str = ""


def layer_agreement(cut: CutResult, site: str, other: str, *, k: int, seed: int = 0) -> LayerAgreement:
    """Return how much of what `site` says was already said by `other`, on the tokens that both hold.

    Args:
        cut: A cut of both sites together.
        site: The later layer.
        other: The earlier layer.
        k: Level whose labels are compared.
        seed: Seeds the sample.

    Cost: two cuts of 1,000 tokens and 12 CKAs.
    """
    run = cut.run
    here, there = shared_tokens(cut, site, other)
    if len(here) < 20:
        return LayerAgreement(
            site=site, other=other, n_shared=len(here), note="the layers share too few tokens to compare"
        )
    part, before = cut.parts[site], cut.parts[other]
    rows, rows_before = part.token_rows[here], before.token_rows[there]
    items = run.tokens(part.layout).item[rows]
    units = run_units(run, items)
    labels = np.asarray(cut.labels[k])
    x_labels = labels[part.rows][here].astype(np.int64)
    y_labels = labels[before.rows][there].astype(np.int64)
    value, interval = _ari_with_interval(x_labels, y_labels, units, seed=seed)
    rng = np.random.default_rng(seed)
    keep = np.sort(rng.choice(len(rows), min(MAX_TOKENS, len(rows)), replace=False))
    x = np.asarray(run.acts(site)[rows[keep]], np.float64)
    y = np.asarray(run.acts(other)[rows_before[keep]], np.float64)
    common: dict[str, Any] = {
        "site": site,
        "other": other,
        "n": len(keep),
        "n_shared": len(rows),
        "ari": value,
        "ari_interval": interval,
        "over": units.over,
    }
    if not (np.ptp(x, 0).any() and np.ptp(y, 0).any()):
        return LayerAgreement(**common, note="one layer is constant: CKA and eigenspaces are not defined")
    try:
        found = agreement(x.astype(np.float32), y.astype(np.float32), n_eig=min(20, len(keep) - 2), seed=seed)
        x, y = _narrow(x), _narrow(y)
        shuffled = cka(x, y[rng.permutation(len(y))])
    except InputError as error:
        return LayerAgreement(**common, note=str(error))
    return LayerAgreement(
        **common,
        cka=found.cka,
        cka_interval=_cka_jackknife(x, y, units.take(keep), found.cka),
        cka_shuffled=shuffled,
        subspace=found.subspace,
        subspace_shuffled=found.subspace_chance,
    )


def shared_tokens(cut: CutResult, site: str, other: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places in the parts of two sites that hold the same token: same item, camera and patch, or word.

    Patches are the same when their grids have the same shape; words when their place in the sequence is the same in
    the same layout. Layers with other grids share nothing here.
    """
    part, before = cut.parts[site], cut.parts[other]
    if part.layout == before.layout:
        places = np.arange(len(part.token_rows))
        return places, places
    keys = []
    grids = []
    for one in (part, before):
        table = cut.run.tokens(one.layout)
        rows = one.token_rows
        key = np.stack(
            [table.item[rows], table.camera[rows], table.tile[rows], table.row[rows], table.col[rows]]
        ).astype(np.int64)
        is_patch = table.row[rows] >= 0
        grids.append((table.row[rows].max(initial=-1), table.col[rows].max(initial=-1)))
        size = np.array([1 << 8, 1 << 8, 1 << 12, 1 << 12], np.int64)
        flat = key[0]
        for column, factor in zip(key[1:], size, strict=True):
            flat = flat * factor + column
        keys.append(np.where(is_patch, flat, -1 - np.arange(len(flat)) - (len(keys) << 60)))
    if grids[0] != grids[1]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, here, there = np.intersect1d(keys[0], keys[1], return_indices=True)
    order = np.argsort(here)
    return here[order].astype(np.int64), there[order].astype(np.int64)


def ari_of_table(table: NDArray[np.float64]) -> float:
    """Return the adjusted Rand index of a table of (possibly weighted) counts; 1 when both sides are one group."""

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    n = float(table.sum())
    both, rows, cols = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * cols / (n * (n - 1) / 2)
    highest = (rows + cols) / 2
    return 1.0 if highest == expected else (both - expected) / (highest - expected)


def _ari_with_interval(
    x: NDArray[np.int64], y: NDArray[np.int64], units: Units, *, seed: int
) -> tuple[float, tuple[float, float] | None]:
    n_x, n_y = int(x.max()) + 1, int(y.max()) + 1
    per_unit = np.zeros((units.n, n_x * n_y))
    np.add.at(per_unit, (units.ids, x * n_y + y), 1)
    value = ari_of_table(contingency(x, y))
    if units.n < MIN_UNITS:
        return value, None
    tables = (bootstrap_weights(units.n, n_draws=500, seed=seed) @ per_unit).reshape(-1, n_x, n_y)
    draws = np.array([ari_of_table(one) for one in tables])
    return value, percentile_interval(draws, n_units=units.n, center=value, bounds=(-1, 1))


def _narrow(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows with the same inner products in at most n channels (CKA sees nothing else)."""
    if x.shape[1] <= len(x):
        return x
    values, vectors = np.linalg.eigh(x @ x.T)
    return vectors * np.sqrt(values.clip(min=0))


def _cka_jackknife(
    x: NDArray[np.float64], y: NDArray[np.float64], units: Units, value: float
) -> tuple[float, float] | None:
    """Return the interval by the delete-a-group jackknife (groups of whole units), within -1..1.

    So few groups leave their own spread uncertain: errors are multiplied by Student's quantile, not by 1.96.
    """
    from scipy.stats import t

    if units.n < MIN_UNITS:
        return None
    n_groups = min(N_JACKKNIFE, units.n)
    group = units.ids % n_groups
    left_out = []
    for g in range(n_groups):
        keep = group != g
        if keep.sum() < 10:
            return None
        left_out.append(cka(x[keep], y[keep]))
    spread = np.asarray(left_out) - np.mean(left_out)
    error = float(np.sqrt((n_groups - 1) / n_groups * (spread**2).sum()))
    reach = float(t.ppf(0.975, n_groups - 1)) * error
    return max(-1.0, value - reach), min(1.0, value + reach)
