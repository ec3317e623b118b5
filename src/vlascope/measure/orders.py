"""Insertion and deletion: is an order of parts by their relevance better than the orders of other images?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .resample import MIN_UNITS, N_PERMUTATIONS, Units, bootstrap_mean, summarise_null
from .result import Result, cannot_say

N_STEPS = 5
MAX_OTHERS = 19
"""Orders of other images that are tried on each."""
CURVES = ("deletion", "insertion")
MAX_SHARE = 2.0
"""A part hidden may move the answer further than hiding everything does; further than this counts as this."""

Moved = Callable[[NDArray[np.bool_]], NDArray[np.floating]]
"""Takes bool [m, n] (m ways to hide some of n parts), returns how far each moves the answer [m], as a share of how far
hiding everything moves it."""


def order_areas(
    moved: Moved,
    relevance: NDArray[np.floating],
    *,
    others: Sequence[NDArray[np.floating]],
    n_steps: int = N_STEPS,
) -> NDArray[np.float64]:
    """Return the areas of deletion and insertion of one thing, for its own order and for those of other things.

    Deletion hides parts, the most relevant first; insertion uncovers them on the hidden whole, the most relevant
    first. The area is the mean of `moved` over the same numbers of hidden parts in both.

    Args:
        moved: Asked once, for all ways to hide parts.
        relevance: float [n], larger for parts that matter more.
        others: The same for other things, found in the same way, float [n] each.
        n_steps: Shares of parts that are hidden, spread evenly.

    Returns:
        float64 [2, 1 + len(others)]: deletion as it is and insertion as 1 - area, so that larger is better for both;
        the own order first.

    Raises:
        InputError: fewer than 2 steps or 2 parts, or others with another number of parts.

    Cost: 2 n_steps (1 + len(others)) evaluations.
    References: Petsiuk, Das and Saenko 2018, arXiv:1806.07421.
    """
    n = len(relevance)
    if n_steps < 2 or n < 2 or any(len(other) != n for other in others):
        raise InputError(
            f"got n_steps={n_steps} for {n} parts and orders of {sorted({len(o) for o in others})} parts; need at "
            "least 2 steps, 2 parts, and as many in all orders."
        )
    first = [np.argsort(-np.asarray(one), kind="stable") for one in (relevance, *others)]
    orders = [*first, *(order[::-1] for order in first)]
    hidden = np.zeros((len(orders), n_steps, n), bool)
    for step in range(n_steps):
        count = round(n * (step + 1) / (n_steps + 1))
        for row, order in enumerate(orders):
            hidden[row, step, order[:count]] = True
    shares = np.asarray(moved(hidden.reshape(-1, n)), np.float64).clip(max=MAX_SHARE)
    deletion, insertion = shares.reshape(2, len(first), n_steps).mean(2)
    return np.stack([deletion, 1 - insertion])


def other_things(units: Units, *, n: int = MAX_OTHERS, seed: int = 0) -> NDArray[np.int64]:
    """Return for each thing the things whose orders are tried on it, int64 [things, m]: one each of m other units.

    Things of one unit are given those of the same other units.
    """
    rng = np.random.default_rng([seed, 8])
    m = min(n, units.n - 1)
    out = np.zeros((len(units.ids), max(0, m)), np.int64)
    for unit in range(units.n):
        some = rng.permutation(np.delete(np.arange(units.n), unit))[:m]
        out[units.ids == unit] = [rng.choice(np.flatnonzero(units.ids == other)) for other in some]
    return out


def judge_orders(
    areas: Sequence[NDArray[np.float64]],
    units: Units,
    *,
    name: str,
    few: str = "",
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> list[Result]:
    """Return deletion and insertion over several things, each with a p-value against the orders of other things.

    Parts that matter lie together and often in the middle, so that any order which keeps neighbours together or begins
    there does better than random ones. If relevance said nothing about its own thing, the order of another thing would
    do as well, being of the same kind: the null exchanges it with one of them, in each unit on its own (the same one
    for all things of a unit). An order that is the same for all things is never better than itself.

    Args:
        areas: One `order_areas` per thing.
        units: What is independent, one id per thing; other orders come from other units (see `other_things`).
        name: Of the way that relevance was found, for the names of the results.
        few: What is missing where there are fewer than 5 units, for "cannot say".
        n_permutations: Exchanges.
        seed: Seeds exchanges and bootstrap.

    Returns:
        "NAME / deletion" and "NAME / insertion", larger is better.
    """
    if units.n < MIN_UNITS:
        reason = few or f"{units.n} independent {units.over}s; need at least {MIN_UNITS}"
        return [cannot_say(f"{name} / {c}", reason, n=len(areas), over=units.over) for c in CURVES]
    table = np.stack(list(areas))  # [things, 2, 1 + others]
    drawn = np.random.default_rng([seed, 9]).integers(0, table.shape[2], (n_permutations, units.n))[
        :, units.ids
    ]
    out = []
    for row, curve in enumerate(CURVES):
        null = table[np.arange(len(table)), row, drawn].mean(1)
        test = summarise_null(float(table[:, row, 0].mean()), null)
        out.append(
            Result(
                name=f"{name} / {curve}",
                value=test.value,
                unit="area, larger is better",
                n=len(table),
                over=units.over,
                n_units=units.n,
                interval=bootstrap_mean(table[:, row, 0], units, seed=seed),
                controls={"orders of other images": float(table[:, row, 1:].mean())},
                p=test.p,
                reach=test.reach,
            )
        )
    return out
