"""Main effects and interactions of crossed factors on many features at once, with permutations of whole units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

MIN_PER_CELL = 3


@dataclass(frozen=True)
class Design:
    """Which level of each factor every unit has.

    Attributes:
        names: Factors; the first is the target.
        levels: Names of the levels of each factor.
        codes: int64 [n_units, n_factors].
    """

    names: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    codes: NDArray[np.int64]

    @property
    def n(self) -> int:
        """Number of units."""
        return len(self.codes)

    def take(self, keep: NDArray[np.integer] | NDArray[np.bool_]) -> Design:
        """Return the design of some units."""
        return Design(self.names, self.levels, self.codes[keep])

    def strata(self, *, without: int) -> NDArray[np.int64]:
        """Return for each unit the combination of all factors but one."""
        others = np.delete(self.codes, without, axis=1)
        return np.unique(others, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def with_codes(self, factor: int, codes: NDArray[np.int64]) -> Design:
        """Return the design with another assignment of one factor."""
        changed = self.codes.copy()
        changed[:, factor] = codes
        return Design(self.names, self.levels, changed)


def make_design(labels: Mapping[str, list[object]]) -> Design:
    """Return the design of units with labels, the target first.

    Raises:
        InputError: a factor with one value, or a combination of values with fewer than 3 units.
    """
    names, levels, codes = tuple(labels), [], []
    for name, values in labels.items():
        found, which = np.unique(np.array([str(v) for v in values]), return_inverse=True)
        if len(found) < 2:
            raise InputError(f"factor '{name}' has one value only ({found[0] if len(found) else 'none'}).")
        levels.append(tuple(str(v) for v in found))
        codes.append(which)
    table = np.stack(codes, 1).astype(np.int64)
    shape = [len(level) for level in levels]
    counts = np.bincount(np.ravel_multi_index(tuple(table.T), tuple(shape)), minlength=int(np.prod(shape)))
    if counts.min() < MIN_PER_CELL:
        cell = np.unravel_index(int(counts.argmin()), shape)
        where = ", ".join(f"{n}={lv[int(i)]}" for n, lv, i in zip(names, levels, cell, strict=True))
        raise InputError(
            f"the cell {where} has {counts.min()} units; need at least {MIN_PER_CELL} in each of the {len(counts)} "
            "cells. Record more episodes, or merge values."
        )
    return Design(names, tuple(levels), table)


def _columns(design: Design, factor: int) -> NDArray[np.float64]:
    """Return the factor's effect-coded columns, [n, levels - 1]."""
    n_levels = len(design.levels[factor])
    one_hot = np.eye(n_levels)[design.codes[:, factor]]
    return one_hot[:, :-1] - one_hot[:, -1:]


def _basis(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an orthonormal basis of the columns' span."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > 1e-9 * max(s[0], 1e-30)] if len(s) else columns[:, :0]


def _added(base: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an orthonormal basis of what `columns` add to an orthonormal `base`."""
    left = columns - base @ (base.T @ columns)
    norms = np.linalg.norm(left, axis=0)
    return _basis(left) if norms.max(initial=0) > 1e-9 else left[:, :0]


@dataclass(frozen=True)
class Effects:
    """Tests of one effect on all features.

    Attributes:
        name: A factor, or "interaction".
        f: float64 [n_features], F statistics.
        p: float64 [n_features], permutation p-values (null pooled over features).
        q: float64 [n_features], after Benjamini-Hochberg.
        share: float64 [n_features], partial eta squared: share of the variance within strata that it explains.
    """

    name: str
    f: NDArray[np.float64]
    p: NDArray[np.float64]
    q: NDArray[np.float64]
    share: NDArray[np.float64]


def factor_effect(
    y_nf: NDArray[np.floating], design: Design, factor: int, *, n_permutations: int, rng: np.random.Generator
) -> Effects:
    """Test a factor's main effect beyond all other factors' main effects.

    The factor's values are shuffled among units that agree in all other factors, so that these are held fixed:
    exact under the null that the factor has no effect at all.
    """
    base, groups = _others(design, factor)
    y = _residual(_scores(y_nf), base)

    def statistic(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        return _f(y, _added(base, _columns(design.with_codes(factor, codes), factor)), base.shape[1])

    null = np.empty((n_permutations, y.shape[1]))
    for row in null:
        row[:] = statistic(_shuffle(design.codes[:, factor], groups, rng))
    return _effects(
        design.names[factor],
        statistic(design.codes[:, factor]),
        null,
        y,
        base.shape[1],
        len(design.levels[factor]) - 1,
    )


def _others(design: Design, factor: int) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Return a basis of all other factors' main effects, and the units that agree in all of these."""
    columns = [_columns(design, i) for i in range(len(design.names)) if i != factor]
    strata = design.strata(without=factor)
    groups = [np.flatnonzero(strata == s) for s in range(strata.max() + 1)]
    return _basis(np.concatenate([np.ones((design.n, 1)), *columns], 1)), groups


def _shuffle(
    codes: NDArray[np.int64], groups: list[NDArray[np.int64]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return codes in another order within each group."""
    out = codes.copy()
    for group in groups:
        out[group] = out[rng.permutation(group)]
    return out


def interaction_effect(
    y_nf: NDArray[np.floating], design: Design, *, n_permutations: int, rng: np.random.Generator
) -> Effects:
    """Test whether the target's effect depends on the other factors: residuals of the additive model are shuffled.

    Where the cells leave nothing to compare (two by two without one of them), no feature has an interaction.

    References: D. Freedman and D. Lane, 1983, doi:10.1080/07350015.1983.10509354.
    """
    target = _columns(design, 0)
    additive = _basis(
        np.concatenate([np.ones((design.n, 1)), *(_columns(design, i) for i in range(len(design.names)))], 1)
    )
    products = [
        (target[:, :, None] * _columns(design, i)[:, None, :]).reshape(design.n, -1)
        for i in range(1, len(design.names))
    ]
    added = _added(additive, np.concatenate(products, 1))
    y = _residual(_scores(y_nf), additive)
    null = np.empty((n_permutations, y.shape[1]))
    for row in null:
        row[:] = _f(_residual(y[rng.permutation(design.n)], additive), added, additive.shape[1])
    return _effects(
        "interaction", _f(y, added, additive.shape[1]), null, y, additive.shape[1], added.shape[1]
    )


def _scores(y: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return normal scores of each feature's ranks: features of any distribution then share one null."""
    from scipy.stats import norm, rankdata

    ranks = rankdata(y, axis=0)
    return norm.ppf((ranks - 0.375) / (len(y) + 0.25))


def _residual(y: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    return y - base @ (base.T @ y)


def _f(y: NDArray[np.float64], added: NDArray[np.float64], n_base: int) -> NDArray[np.float64]:
    """Return F statistics of `added` on residuals `y` of a base model with `n_base` columns."""
    explained = np.square(added.T @ y).sum(0)
    left = np.square(y).sum(0) - explained
    free = max(1, len(y) - n_base - added.shape[1])
    return (explained / max(1, added.shape[1])) / np.maximum(left / free, 1e-12)


def _effects(
    name: str,
    f: NDArray[np.float64],
    null: NDArray[np.float64],
    y: NDArray[np.float64],
    n_base: int,
    n_added: int,
) -> Effects:
    from scipy.stats import false_discovery_control

    pooled = np.sort(null.ravel())
    reached = len(pooled) - np.searchsorted(pooled, f * (1 - 1e-9), side="left")
    p = (1 + reached) / (1 + len(pooled))
    ratio = f * n_added / max(1, len(y) - n_base - n_added)
    return Effects(name, f, p, false_discovery_control(p, method="bh"), ratio / (1 + ratio))


def detectable_effect(
    design: Design,
    *,
    n_tests: int,
    n_permutations: int,
    power: float = 0.8,
    level: float = 0.05,
    n_draws: int = 200,
    seed: int = 0,
) -> float | None:
    """Return the smallest standardised difference between the target's last and first value that would be found.

    The test itself is tried on normal features with such a difference (values between the two lie halfway), at the
    first step of Benjamini-Hochberg (level / n_tests). Formulas with normal quantiles promise too much in small
    designs: they know neither the residual degrees of freedom nor that few units can be shuffled in few ways.

    Args:
        design: The units that are searched.
        n_tests: Features tested.
        n_permutations: Shuffles behind the p-values.
        power: How often it must be found.
        level: Share of false discoveries.
        n_draws: Features tried.
        seed: Seeds them.

    Returns:
        The difference in units of the standard deviation; None where none up to 8 would be.

    Cost: about a second.
    """
    from scipy.stats import f as f_distribution

    if n_permutations < 1:
        return None
    rng = np.random.default_rng([seed, 4])
    base, groups = _others(design, 0)
    n_levels = len(design.levels[0])
    shape = np.array([0.0, *[0.5] * (n_levels - 2), 1.0])[design.codes[:, 0]]
    noise = rng.standard_normal((design.n, n_draws))
    own = _added(base, _columns(design, 0))
    shuffled = [
        _added(base, _columns(design.with_codes(0, _shuffle(design.codes[:, 0], groups, rng)), 0))
        for _ in range(min(n_permutations, 199))
    ]
    free = design.n - base.shape[1] - own.shape[1]
    if free < 1:
        return None

    def found(difference: float) -> float:
        y = _residual(_scores(noise + difference * shape[:, None]), base)
        f = _f(y, own, base.shape[1])
        by_itself = np.mean([_f(y, one, base.shape[1]) >= f * (1 - 1e-9) for one in shuffled], axis=0)
        # Shuffled features without an effect follow the F distribution.
        by_others = (n_tests - 1) * f_distribution.sf(f, own.shape[1], free)
        p = (1 + n_permutations * (by_itself + by_others)) / (1 + n_permutations * n_tests)
        return float((p <= level / n_tests).mean())

    low, high = 0.0, 8.0
    if found(high) < power:
        return None
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high
