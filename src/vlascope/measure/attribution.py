"""Which channels make a group a group, proved by removing them: the group must dissolve, and not for random ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..spectral.gradients import Attribution, attribute_channels
from ..spectral.kway import kway
from ..spectral.nystrom import NystromNCut
from .multiple import ALPHA
from .resample import Units, bootstrap_weights, percentile_interval, summarise_null
from .result import Result, adjusted, cannot_say

N_RANDOM = 39
"""Random sets of channels at least; by default 20 per group, so that one group can be told from the chance of all."""
MIN_TOKENS = 3
DENSITY = 0.2
"""Mean affinity at which gradients are taken: at the density of a cut (0.05) groups far apart have none left."""


def cluster_channels(
    features_nd: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    n_remove: int | None = None,
    n_random: int | None = None,
    density: float = DENSITY,
    units: Units | None = None,
    seed: int = 0,
) -> tuple[Attribution, list[Result]]:
    """Remove the channels that matter most to each group, cut again, and see whether the group is still there.

    Removing sets a channel to its mean. What is left of a group is the largest IoU of one new group with it; the
    value is 1 minus that. The null removes as many channels drawn at random. A group that is told from its neighbours
    by *their* channels as well stays although its own are gone; that is then the answer.

    Args:
        features_nd: [n, d], n <= 3000.
        labels: int [n], groups of a cut; negative means none.
        n_remove: Channels to remove; None takes a tenth of them, at least one.
        n_random: Random sets of channels, at least 19; None takes 20 per group, and at least 39.
        density: Mean affinity of the graph whose gradients are taken.
        units: The item (or episode) of each token, resampled whole for the interval; None gives no interval.
        seed: Seeds the cuts, the random sets and the bootstrap.

    Returns:
        The attribution, and one result per group (corrected over groups): "dissolved", 0..1, with random channels as
        control; `details` holds the channels. "Cannot say" for groups below 3 tokens or for constant features.

    Raises:
        InputError: shapes that do not fit, too many tokens, or parameters out of range.

    Cost: one cut per random set (all groups share them) and one per group.
    """
    x = np.asarray(features_nd, np.float32)
    labels = np.asarray(labels)
    if x.ndim != 2 or labels.shape != (len(x),):
        raise InputError(f"got features {x.shape} and labels {labels.shape}; need [n, d] and [n].")
    width = x.shape[1]
    n_remove = max(1, width // 10) if n_remove is None else n_remove
    if n_random is None:
        n_random = max(N_RANDOM, math.ceil(len(np.unique(labels[labels >= 0])) / ALPHA) - 1)
    if not 1 <= n_remove < width or n_random < 19:
        raise InputError(
            f"got n_remove={n_remove} of {width} channels, n_random={n_random}; need 1..{width - 1} and at least 19."
        )
    if units is not None and len(units.ids) != len(x):
        raise InputError(f"got {len(units.ids)} units for {len(x)} tokens; need the item of each token.")
    over, n_units = ("item", 0) if units is None else (units.over, units.n)
    found = attribute_channels(x, labels, density=density)
    k = len(found.groups)
    before = _again(x, k=k, seed=seed)
    rng = np.random.default_rng([seed, 6])
    random_cuts = [
        _again(_without(x, rng.choice(width, n_remove, replace=False)), k=k, seed=seed)
        for _ in range(n_random)
    ]
    results = []
    for group in found.groups.tolist():
        inside = labels == group
        name, unit = f"group {group}", "dissolved (1 - best IoU)"
        if inside.sum() < MIN_TOKENS:
            results.append(
                cannot_say(name, f"{int(inside.sum())} tokens", unit=unit, n=int(inside.sum()), over=over)
            )
            continue
        top = found.top(group, n_remove)
        after = _again(_without(x, top), k=k, seed=seed)
        value = 1 - _best_iou(inside, after)
        null = np.array([1 - _best_iou(inside, cut) for cut in random_cuts])
        test = summarise_null(value, null)
        results.append(
            Result(
                name=name,
                value=value,
                unit=unit,
                n=int(inside.sum()),
                over=over,
                n_units=n_units,
                interval=None if units is None else _interval(inside, after, units, seed=seed),
                p=test.p,
                reach=test.reach,
                controls={"random channels": test.null_mean, "none removed": 1 - _best_iou(inside, before)},
                details={"channels": top.tolist(), "n_remove": n_remove, "random_sets": n_random},
            )  # fmt: skip
        )
    return found, adjusted(results)


def _without(x: NDArray[np.float32], channels: NDArray[np.integer]) -> NDArray[np.float32]:
    out = x.copy()
    out[:, channels] = x[:, channels].mean(0)
    return out


def _again(x: NDArray[np.float32], *, k: int, seed: int) -> NDArray[np.integer]:
    if not np.ptp(x, axis=0).any():
        return np.zeros(len(x), np.int64)
    eigvecs = NystromNCut(max(k, 2), seed=seed).fit_transform(x)
    return kway(eigvecs, [k], seed=seed).labels[k]


def _best_iou(inside: NDArray[np.bool_], labels: NDArray[np.integer]) -> float:
    sizes = np.bincount(labels)
    shared = np.bincount(labels[inside], minlength=len(sizes))
    return float((shared / (sizes + inside.sum() - shared)).max())


def _interval(
    inside: NDArray[np.bool_], labels: NDArray[np.integer], units: Units, *, seed: int
) -> tuple[float, float] | None:
    """Return the interval of 1 - best IoU, resampling whole units."""
    n_groups = int(labels.max()) + 1
    sizes, shared = np.zeros((units.n, n_groups)), np.zeros((units.n, n_groups))
    np.add.at(sizes, (units.ids, labels), 1)
    np.add.at(shared, (units.ids, labels), inside)
    draws = bootstrap_weights(units.n, seed=seed)
    both = draws @ shared
    with np.errstate(invalid="ignore"):
        iou = both / (draws @ sizes + both.sum(1, keepdims=True) - both)
    return percentile_interval(1 - np.nan_to_num(iou).max(1), n_units=units.n, bounds=(0, 1))
