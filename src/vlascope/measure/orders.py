"""Insertion and deletion: is an order of parts by their relevance better than random orders?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .resample import MIN_UNITS, N_PERMUTATIONS, Units, bootstrap_mean, summarise_null
from .result import Result, cannot_say

N_STEPS = 5
N_RANDOM = 19
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
    n_steps: int = N_STEPS,
    n_random: int = N_RANDOM,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the areas of deletion and insertion of one thing, for an order and for random ones.

    Deletion hides parts, the most relevant first; insertion uncovers them on the hidden whole, the most relevant
    first. The area is the mean of `moved` over the same numbers of hidden parts in both, so that hiding the first
    parts of a random order for deletion is also a step of insertion in the reverse order: every random picture is
    asked once and counts for both.

    Args:
        moved: Asked once, for all ways to hide parts.
        relevance: float [n], larger for parts that matter more.
        n_steps: Shares of parts that are hidden, spread evenly.
        n_random: Random orders, at least 19.
        rng: Draws them.

    Returns:
        float64 [2, 1 + n_random]: deletion as it is and insertion as 1 - area, so that larger is better for both; the
        given order first, then the random ones.

    Raises:
        InputError: fewer than 2 steps, 19 random orders or 2 parts.

    Cost: n_steps (2 + n_random) evaluations.
    References: Petsiuk, Das and Saenko 2018, arXiv:1806.07421.
    """
    n = len(relevance)
    if n_random < 19 or n_steps < 2 or n < 2:
        raise InputError(
            f"got n_random={n_random}, n_steps={n_steps} for {n} parts; need at least 19, 2 and 2."
        )
    own = np.argsort(-np.asarray(relevance), kind="stable")
    orders = [own, own[::-1], *(rng.permutation(n) for _ in range(n_random))]
    hidden = np.zeros((len(orders), n_steps, n), bool)
    for step in range(n_steps):
        count = round(n * (step + 1) / (n_steps + 1))
        for row, order in enumerate(orders):
            hidden[row, step, order[:count]] = True
    shares = np.asarray(moved(hidden.reshape(-1, n)), np.float64).clip(max=MAX_SHARE)
    areas = shares.reshape(len(orders), n_steps).mean(1)
    return np.stack([np.r_[areas[0], areas[2:]], 1 - np.r_[areas[1], areas[2:]]])


def judge_orders(
    areas: Sequence[NDArray[np.float64]],
    units: Units,
    *,
    name: str,
    few: str = "",
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> list[Result]:
    """Return deletion and insertion over several things, each with a p-value against random orders.

    If relevance said nothing, the given order would be one more random order of each thing: the null exchanges it with
    one of them, in each unit on its own (the same one for all things of a unit). This is exact for independent things;
    things of one unit should be given the same random orders, being as alike as their own orders are.

    Args:
        areas: One `order_areas` per thing.
        units: What is independent, one id per thing.
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
    table = np.stack(list(areas))  # [things, 2, 1 + random]
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
                controls={"random orders": float(table[:, row, 1:].mean())},
                p=test.p,
                reach=test.reach,
            )
        )
    return out
