"""Successes and failures side by side: episodes aligned in time, concepts that differ, early warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .resample import (
    N_BOOTSTRAP,
    bootstrap_weights,
    expanded_tail,
    percentile_interval,
    share_interval,
    summarise_null,
    units_of,
)
from .result import Result, adjusted, cannot_say
from .timeline import Timeline, need_event

MIN_EACH = 5
"""Successes and failures below which neither a difference nor a warning can be told."""
FALSE_ALARMS = 0.1
N_BINS = 20


@dataclass(frozen=True)
class Aligned:
    """Episodes on one axis of time.

    Attributes:
        time: float64 [t]; frames from the event (0 is when it is first seen), or share of the episode, 0..1.
        curves: float32 [n_episodes, t, k], occupancy; NaN where an episode has no such frame.
        episodes: Number of each episode.
        event: The event; None where time is the share of the episode.
    """

    time: NDArray[np.float64]
    curves: NDArray[np.float32]
    episodes: tuple[int, ...]
    event: str | None


def align(lines: Sequence[Timeline], *, event: str | None = None, n_bins: int = N_BINS) -> Aligned:
    """Return the occupancy of several episodes on one axis of time.

    Args:
        lines: Episodes.
        event: Align at this event; episodes without it are left out. None stretches every episode to one length.
        n_bins: Points in time where episodes are stretched (linear interpolation).

    Raises:
        InputError: no episode has the event, or no episodes.
    """
    need_event(event, (name for line in lines for name in line.events))
    chosen = [line for line in lines if event is None or event in line.events]
    if not chosen:
        raise InputError("got no episodes to align.")
    k = chosen[0].occupancy.shape[1]
    if event is None:
        time = np.linspace(0, 1, n_bins)
        curves = np.empty((len(chosen), n_bins, k), np.float32)
        for out, line in zip(curves, chosen, strict=True):
            at = time * (line.n_frames - 1)
            for c in range(k):
                out[:, c] = np.interp(at, np.arange(line.n_frames), line.occupancy[:, c])
    else:
        before = max(line.events[event] for line in chosen)
        after = max(line.n_frames - line.events[event] for line in chosen)
        time = np.arange(-before, after, dtype=np.float64)
        curves = np.full((len(chosen), len(time), k), np.nan, np.float32)
        for out, line in zip(curves, chosen, strict=True):
            start = before - line.events[event]
            out[start : start + line.n_frames] = line.occupancy
    return Aligned(time, curves, tuple(line.episode for line in chosen), event)


def compare_outcomes(
    lines: Sequence[Timeline], *, event: str | None = None, n_permutations: int = 199, seed: int = 0
) -> list[Result]:
    """Return for each concept how far its occupancy differs between failures and successes, at its worst moment.

    The statistic is the largest |mean of failures - mean of successes| over aligned time; the null shuffles outcomes
    between episodes and takes the largest again, so that looking at many moments is paid for; p is corrected over
    concepts (Benjamini-Hochberg).

    Args:
        lines: Episodes; those of unknown outcome are left out.
        event: See `align`.
        n_permutations: Shuffles.
        seed: Seeds them.

    Returns:
        One result per concept; `details` holds the time. The interval is that of a band which holds the differences at
        all moments together, since the moment was chosen for its difference. One "cannot say" with fewer than 5 of
        either.

    Raises:
        InputError: no episode has the event.

    References: bands by the largest studentized deviation: Efron and Tibshirani 1993, doi:10.1201/9780429246593.
    """
    need_event(event, (name for line in lines for name in line.events))
    known = [one for one in lines if one.success is not None and (event is None or event in one.events)]
    success = np.array([one.success for one in known], bool)
    if min(int(success.sum()), int((~success).sum())) < MIN_EACH:
        reason = (
            f"{int(success.sum())} successes and {int((~success).sum())} failures; need {MIN_EACH} of each"
        )
        return [cannot_say("failure - success", reason, unit="occupancy", n=len(known), over="episode")]
    aligned = align(known, event=event)
    x = aligned.curves.astype(np.float64)
    seen = np.isfinite(x[:, :, 0])
    enough = (seen[success].sum(0) >= MIN_EACH) & (seen[~success].sum(0) >= MIN_EACH)
    if not enough.any():
        reason = "at no aligned moment there are enough successes and failures"
        return [cannot_say("failure - success", reason, unit="occupancy", n=len(known), over="episode")]
    x, seen, time = np.nan_to_num(x[:, enough]), seen[:, enough], aligned.time[enough]

    def differences(is_success: NDArray[np.bool_]) -> NDArray[np.float64]:
        means = []
        for group in (~is_success, is_success):
            means.append(
                np.einsum("e,etk->tk", group.astype(float), x) / np.maximum(seen[group].sum(0), 1)[:, None]
            )
        return means[0] - means[1]

    found = differences(success)
    rng = np.random.default_rng([seed, 2])
    null = np.stack([np.abs(differences(rng.permutation(success))).max(0) for _ in range(n_permutations)])
    reach = _band(x, seen, success, seed=seed)
    out = []
    for c in range(x.shape[2]):
        at = int(np.abs(found[:, c]).argmax())
        test = summarise_null(float(np.abs(found[at, c])), null[:, c])
        out.append(
            Result(
                name=f"concept {c}",
                value=float(found[at, c]),
                unit="occupancy, failure - success",
                n=len(known),
                over="episode",
                n_units=len(known),
                interval=(float(found[at, c] - reach[at, c]), float(found[at, c] + reach[at, c])),
                controls={"shuffled outcomes (absolute)": test.null_mean},
                p=test.p,
                reach=test.reach,
                details={
                    "time": float(time[at]),
                    "time_is": f"frames from {event}" if event else "share of episode",
                },
            )  # fmt: skip
        )
    return adjusted(out)


def _band(
    x_etk: NDArray[np.float64], seen_et: NDArray[np.bool_], success: NDArray[np.bool_], *, seed: int
) -> NDArray[np.float64]:
    """Return how far the 95 % band of mean of failures - mean of successes reaches to either side, float64 [t, k].

    The band of a concept holds all moments at once: its width is the 95 % quantile of the largest studentized
    deviation over resampled episodes of each outcome, widened for few episodes (see `expanded_tail`). Frames that
    are not seen must be 0.
    """
    t, k = x_etk.shape[1:]
    draws = np.zeros((N_BOOTSTRAP, t, k))
    sizes = []
    for number, group in enumerate((~success, success)):
        x, seen = x_etk[group], seen_et[group].astype(float)
        weights = bootstrap_weights(len(x), seed=seed + number)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weights @ x.reshape(len(x), -1)).reshape(-1, t, k) / (weights @ seen)[:, :, None]
        draws += (mean - x.sum(0) / seen.sum(0)[:, None]) * (1 - 2 * number)
        sizes.append(int(seen.sum(0).min()))
    error = np.nanstd(draws, axis=0)
    studentized = np.abs(draws, out=draws)
    studentized /= np.where(error > 0, error, np.inf)
    tail = expanded_tail(0.025, n_units=min(sizes))
    return error * np.nanquantile(np.nanmax(studentized, axis=1), 1 - 2 * tail, axis=0)


@dataclass(frozen=True)
class Warnings:
    """How early failures announce themselves.

    Attributes:
        caught: Share of failures with an alarm before they happen; control: share of successes with any alarm.
        lead: Median frames from alarm to failure, over the failures that were caught.
        alarms: Episode -> frame of its first alarm among the frames that are judged (None: no alarm).
        failures: Episode -> frame at which it failed.
        oddity: Episode -> float64 [frames], how unlike the frames of successes each frame is.
        thresholds: Episode -> oddity above which its alarm is raised; empty where nothing can be said.
    """

    caught: Result
    lead: Result
    alarms: dict[int, int | None]
    failures: dict[int, int]
    oddity: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    thresholds: dict[int, float] = field(default_factory=dict)


def early_warning(
    lines: Sequence[Timeline],
    *,
    failure_event: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    n_permutations: int = 199,
    seed: int = 0,
) -> Warnings:
    """Return how many frames before a failure its frames stop looking like those of successes.

    A frame's oddity is the distance of its occupancy from the nearest frame of other, successful episodes (episodes
    never judge themselves). An episode raises the alarm at its first frame above its threshold: the conformal quantile
    of the largest oddities of other successes, so that at most `false_alarms` of new successes would. The largest of
    many frames is larger than that of few, and late frames may be odder than early ones; so an episode is compared
    over as many frames from the start as it has before its end (or failure), with those successes that last as long,
    and is judged no further than enough successes last.

    Args:
        lines: Episodes with known outcomes.
        failure_event: Event at which failures happen, where an episode has it; else the last frame.
        false_alarms: Share of successes that may raise an alarm, 0..1.
        n_permutations: Shuffles of the outcomes behind the p-value of `caught`.
        seed: Seeds shuffles and bootstrap.

    Returns:
        The results; "cannot say" with fewer than 5 failures or too few successes for that share (about 1 / share), not
        counting episodes that end with their first frame. `details` holds the most frames that were judged.

    Raises:
        InputError: the share is out of range, or no episode has the event.

    Cost: all pairs of frames once, O(frames² k); then O(episodes²) per shuffle.
    References: conformal threshold: Vovk, Gammerman and Shafer 2005, doi:10.1007/b106715.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"got false_alarms={false_alarms}; need a share between 0 and 1.")
    need_event(failure_event, (name for line in lines for name in line.events))
    ends_at = {
        one.episode: one.events.get(failure_event, one.n_frames - 1)
        if failure_event and not one.success
        else one.n_frames - 1
        for one in lines
    }
    told = [one for one in lines if one.success is not None]
    failed_at = {one.episode: ends_at[one.episode] for one in told if not one.success}
    known = [one for one in told if ends_at[one.episode] > 0]
    success = np.array([one.success for one in known], bool)
    n_won, n_lost = int(success.sum()), int((~success).sum())
    need = max(MIN_EACH, int(np.ceil(1 / false_alarms)) - 1)
    unit = "share of failures warned of"
    if n_won < need or n_lost < MIN_EACH:
        reason = f"{n_won} successes and {n_lost} failures; need {need} and {MIN_EACH}"
        if len(known) < len(told):
            reason += f" ({len(told) - len(known)} end with their first frame)"
        nothing = cannot_say("early warning", reason, unit=unit, n=len(known), over="episode")
        lead = cannot_say("lead time", reason, unit="frames", n=len(known), over="episode")
        return Warnings(nothing, lead, {}, failed_at)
    near = _nearest(known)
    ends = np.array([ends_at[one.episode] for one in known])
    odd, thresholds, judged = _judge(near, ends, success, share=false_alarms, need=need)
    alarms = _alarms(odd, thresholds, judged)
    early = np.array([a is not None for a in alarms])
    value = float(early[~success].mean())
    rng = np.random.default_rng([seed, 3])
    null = []
    for _ in range(n_permutations):
        other = rng.permutation(success)
        raised = _alarms(*_judge(near, ends, other, share=false_alarms, need=need))
        null.append(np.mean([a is not None for a, won in zip(raised, other, strict=True) if not won]))
    test = summarise_null(value, np.array(null))
    units = units_of(np.flatnonzero(~success).tolist(), over="episode")
    raised_in_success = early[success].mean()
    caught = Result(
        name="early warning", value=value, unit=unit, n=n_lost, over="episode", n_units=n_lost,
        interval=share_interval(early[~success], units), p=test.p, reach=test.reach,
        controls={"false alarms in successes": float(raised_in_success), "shuffled outcomes": test.null_mean},
        details={"allowed_false_alarms": false_alarms, "successes": n_won, "most_frames_judged": int(judged.max())},
    )  # fmt: skip
    times = np.array(
        [end - a for a, end, hit in zip(alarms, ends, early & ~success, strict=True) if hit and a is not None]
    )
    if not len(times):
        lead = cannot_say("lead time", "no failure was warned of", unit="frames", n=n_lost, over="episode")
    else:
        draws = np.median(rng.choice(times, (2000, len(times))), axis=1)
        lead = Result(
            name="lead time", value=float(np.median(times)), unit="frames (median over warned failures)",
            n=len(times), over="episode", n_units=len(times), interval=percentile_interval(draws, n_units=len(times)),
        )  # fmt: skip
    episodes = [one.episode for one in known]
    return Warnings(
        caught,
        lead,
        dict(zip(episodes, alarms, strict=True)),
        failed_at,
        dict(zip(episodes, odd, strict=True)),
        dict(zip(episodes, thresholds.tolist(), strict=True)),
    )


def _nearest(lines: Sequence[Timeline]) -> list[NDArray[np.float64]]:
    """Return for each episode [f, n_episodes]: distance of each frame to the nearest frame of each other episode."""
    roots = [
        np.sqrt(one.occupancy.astype(np.float64)) for one in lines
    ]  # Hellinger: small shares count as well
    out = []
    for i, mine in enumerate(roots):
        columns = []
        for j, other in enumerate(roots):
            if i == j:
                columns.append(np.full(len(mine), np.inf))
            else:
                square = (mine**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * mine @ other.T
                columns.append(np.sqrt(square.min(1).clip(min=0)))
        out.append(np.stack(columns, 1))
    return out


def _judge(
    near: list[NDArray[np.float64]],
    ends: NDArray[np.integer],
    success: NDArray[np.bool_],
    *,
    share: float,
    need: int,
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.integer]]:
    """Return the oddity of each frame, and each episode's threshold and number of frames judged.

    Args:
        near: See `_nearest`.
        ends: Frames of each episode before its end or failure.
        success: Which episodes count as successes.
        share: Of successes that may raise an alarm.
        need: Successes that must last as long as what is judged.
    """
    odd = [one[:, success].min(1) for one in near]
    highest = np.full((len(near), int(ends.max())), -np.inf)
    for row, one, end in zip(highest, odd, ends, strict=True):
        row[:end] = np.maximum.accumulate(one[:end])
    thresholds, judged = np.empty(len(near)), np.empty(len(near), np.int64)
    for i in range(len(near)):
        others = np.flatnonzero(success & (np.arange(len(near)) != i))
        judged[i] = min(ends[i], np.sort(ends[others])[-min(need, len(others))])
        tops = np.sort(highest[others[ends[others] >= judged[i]], judged[i] - 1])
        thresholds[i] = tops[min(len(tops), int(np.ceil((len(tops) + 1) * (1 - share)))) - 1]
    return odd, thresholds, judged


def _alarms(
    odd: list[NDArray[np.float64]], thresholds: NDArray[np.float64], judged: NDArray[np.integer]
) -> list[int | None]:
    """Return the frame of each episode's first alarm among the frames judged."""
    over = [np.flatnonzero(one[:n] > at) for one, at, n in zip(odd, thresholds, judged, strict=True)]
    return [int(frames[0]) if len(frames) else None for frames in over]
