"""Change points of a series of frames, and how well they agree with known events (against other episodes')."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, missing_extra
from .resample import share_interval, summarise_null, units_of
from .result import Result, cannot_say

Kind = Literal["trend", "level"]
PENALTY = 3.0
TOLERANCE = 2
MIN_FRAMES = 8
"""Shorter episodes than this have no room for a change and its two sides."""
MAX_FRAMES = 2_000
N_ORDERS = 99
MIN_EPISODES_ASKED = 5
OTHER_EVENTS = "events of other episodes"


def change_points(
    signal_fk: NDArray[np.floating],
    *,
    kind: Kind = "trend",
    penalty: float = PENALTY,
    min_frames: int = 2,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the frames at which a series changes its course, increasing.

    "trend" fits a continuous line with knots: while a robot moves, the shares of concepts in the picture change
    all the time, and what marks an event is that they change in another way from then on. "level" fits steps.
    Series whose frames might as well stand in any other order (after their straight trend, for "trend") have no
    course and therefore no changes: von Neumann's ratio must be lower than in all but 2 % of 99 shuffles.

    Args:
        signal_fk: [f, k], one row per frame.
        kind: "trend" or "level".
        penalty: Cost of one change, in units of (variance between neighbouring frames) x log f. Higher: fewer.
        min_frames: Frames between changes, >= 2.
        seed: Seeds the shuffles.

    Returns:
        int64 [c], the frame of each knot ("trend") or the first frame of the new level ("level"); empty for
        constant series.

    Raises:
        InputError: fewer than 8 or more than 2,000 frames, NaN, or parameters out of range.
        MissingExtraError: ruptures is not installed.

    Cost: O(f²) segments at worst; 300 frames x 10 concepts take about 1 s ("trend").
    References: Killick et al. 2012 (PELT), doi:10.1080/01621459.2012.737745; Truong et al. 2020 (ruptures),
        doi:10.1016/j.sigpro.2019.107299.
    """
    x = np.asarray(signal_fk, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputError(f"got a series of shape {x.shape}; need finite numbers [frames, concepts].")
    if kind not in ("trend", "level"):
        raise InputError(f"got kind={kind!r}; need 'trend' or 'level'.")
    if penalty <= 0 or min_frames < 2:
        raise InputError(f"got penalty={penalty}, min_frames={min_frames}; need > 0 and at least 2.")
    if not MIN_FRAMES <= len(x) <= MAX_FRAMES:
        raise InputError(
            f"got {len(x)} frames; change points need {MIN_FRAMES} to {MAX_FRAMES} (take every n-th frame of longer "
            "episodes)."
        )
    x = x - x.mean(0)
    if not np.ptp(x, axis=0).any() or not _has_course(x, kind=kind, seed=seed):
        return np.zeros(0, np.int64)
    # Where most frames do not move at all, any jump is a change; the floor keeps the cost of one above 0.
    step = max(_step_variance(x), 1e-6 * float((x**2).sum(1).mean()))
    try:
        import ruptures
    except ImportError as error:
        raise missing_extra("ruptures", extra="measure", needed_for="change points") from error
    model = "clinear" if kind == "trend" else "l2"
    ends = (
        ruptures.Pelt(model=model, min_size=min_frames, jump=1)
        .fit(x)
        .predict(pen=penalty * step * np.log(len(x)))
    )
    # ruptures gives the end (exclusive) of each segment; a line's knot is the last frame of the old segment.
    return np.array(ends[:-1], np.int64) - (kind == "trend")


def _step_variance(x: NDArray[np.float64]) -> float:
    """Return the typical variance of one frame about its neighbours, summed over columns.

    Half the squared step between frames: the median, so that a few jumps do not hide themselves, but not less than
    what the steps of a series that mostly stands still have on average in its quiet four fifths.
    """
    squares = np.sort((np.diff(x, axis=0) ** 2).sum(1))
    quiet = squares[: max(1, int(0.8 * len(squares)))].mean()
    return float(max(np.median(squares), quiet)) / 2


def _has_course(x: NDArray[np.float64], *, kind: Kind, seed: int) -> bool:
    """Return whether neighbouring frames are more alike than frames in random order."""
    if kind == "trend":
        time = np.arange(len(x)) - (len(x) - 1) / 2
        x = x - np.outer(time, time @ x / (time @ time))
    size = float((x**2).sum())
    if size < 1e-18 * len(x):
        return False

    def roughness(order: NDArray[np.int64]) -> float:
        return float((np.diff(x[order], axis=0) ** 2).sum())

    rng = np.random.default_rng([seed, 7])
    value = roughness(np.arange(len(x)))
    lower = sum(roughness(rng.permutation(len(x))) <= value * (1 + 1e-12) for _ in range(N_ORDERS))
    return (1 + lower) / (1 + N_ORDERS) <= 0.02


def agreement(
    changes: Sequence[NDArray[np.integer]],
    events: Sequence[Mapping[str, int]],
    n_frames: Sequence[int],
    *,
    names: Sequence[str],
    tolerance: int = TOLERANCE,
    n_permutations: int = 499,
    seed: int = 0,
    name: str = "",
) -> Result:
    """Return in what share of episodes all of the named events have a change within `tolerance` frames.

    The null deals the events anew between episodes, each at the same share of its new episode. So nothing is assumed
    of when series change: change points avoid the ends, events do so too, and both may have their usual times. What
    is asked is whether the changes of an episode follow when it happened *there*.

    Args:
        changes: Frames of the changes of each episode.
        events: Frame at which each event of each episode is first seen.
        n_frames: Frames of each episode.
        names: Events that must all be hit; episodes that lack one are left out.
        tolerance: Frames.
        n_permutations: Deals behind the p-value.
        seed: Seeds deals.
        name: Name of the result.

    Returns:
        The result, over episodes; "cannot say" with fewer than 5 that have the events, or where these come at the same
        time in all of them, so that a clock would hit them as well. `details` holds the share of changes that are near
        an event, and changes per episode.

    Cost: O(episodes²).
    """
    name = name or " + ".join(names)
    unit = f"share of episodes hit within {tolerance} frames"
    has = [i for i, one in enumerate(events) if all(event in one for event in names)]
    if len(has) < MIN_EPISODES_ASKED or not names:
        reason = (
            f"{len(has)} episodes with {' and '.join(names) or 'events'}; need at least {MIN_EPISODES_ASKED}"
        )
        return cannot_say(name, reason, unit=unit, n=len(has), over="episode")
    there = np.array([[events[i][event] for event in names] for i in has], float)
    last = np.array([max(1, n_frames[i] - 1) for i in has], float)
    # [i, j]: the events of episode j at the same share of episode i.
    dealt = np.rint(there[None] * (last[:, None] / last[None])[:, :, None])
    if (np.abs(dealt - there[:, None]) <= tolerance).all():
        reason = f"it comes within {tolerance} frames of the same time in all {len(has)} episodes"
        return cannot_say(name, reason, unit=unit, n=len(has), over="episode")
    hit = np.array(
        [[_all_hit(changes[i], one, tolerance) for one in row] for i, row in zip(has, dealt, strict=True)],
        float,
    )
    every = np.arange(len(has))
    hits = hit[every, every]
    rng = np.random.default_rng([seed, 1])
    null = np.array([hit[every, rng.permutation(len(has))].mean() for _ in range(n_permutations)])
    test = summarise_null(float(hits.mean()), null)
    others = (hit.sum() - hits.sum()) / (len(has) * (len(has) - 1))
    near = [
        bool(np.abs(at - change).min() <= tolerance)
        for i, at in zip(has, there, strict=True)
        for change in changes[i]
    ]
    units = units_of(has, over="episode")
    return Result(
        name=name, value=test.value, unit=unit, n=len(has), over="episode", n_units=len(has),
        interval=share_interval(hits, units), controls={OTHER_EVENTS: float(others)},
        p=test.p, reach=test.reach, details={
            "changes_per_episode": float(np.mean([len(changes[i]) for i in has])),
            "share_of_changes_near": float(np.mean(near)) if near else None,
            "tolerance_frames": tolerance,
        },
    )  # fmt: skip


def _all_hit(changes: NDArray[np.integer], events: NDArray[np.floating], tolerance: int) -> bool:
    return len(changes) > 0 and bool((np.abs(events[:, None] - changes).min(1) <= tolerance).all())
