"""Two closed loops on the same seeds, compared episode by episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..measure.resample import bootstrap_mean, units_of
from ..measure.result import Result, cannot_say, plain_json, table
from ..sim.rollout import wilson_interval
from .rollout import ClosedLoop


@dataclass(frozen=True)
class Comparison:
    """What a change did to the same episodes.

    Attributes:
        difference: Success rate with the change minus without, paired, with bootstrap interval; p from McNemar's
            exact test.
        lost: Episodes that succeeded without the change only.
        won: Episodes that succeeded with the change only.
        wrong_object: Difference of the share of episodes that lifted an object which was not asked for.
        stopped_good: Share of the episodes that succeed unwatched which a watcher stopped, with Wilson interval;
            "cannot say" without a watcher, without successes, or where the changed episodes were not played unwatched.
        stopped_bad: Share of the episodes that fail unwatched which it stopped.
        base: Name of the unchanged condition.
        change: Name of the changed one.
    """

    difference: Result
    lost: int
    won: int
    wrong_object: Result
    stopped_good: Result
    stopped_bad: Result
    base: str
    change: str

    def results(self) -> list[Result]:
        """Return all numbers."""
        return [self.difference, self.wrong_object, self.stopped_good, self.stopped_bad]

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per number."""
        return table(self.results())

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        names = ("difference", "wrong_object", "stopped_good", "stopped_bad")
        numbers = {name: result.to_json() for name, result in zip(names, self.results(), strict=True)}
        facts = {"base": self.base, "change": self.change, "lost": self.lost, "won": self.won}
        return plain_json(facts | numbers)


def compare(
    base: ClosedLoop, change: ClosedLoop, *, unwatched: ClosedLoop | None = None, seed: int = 0
) -> Comparison:
    """Return what a change (an edit, a watcher, another scene or wording) did to the same episodes.

    Args:
        base: Without it.
        change: With it, on the same task, seeds and number of episodes.
        unwatched: The changed episodes without the watcher: what would have become of those that it stopped. Needed
            to call them good or bad where some were stopped and more than the watcher is changed; else `base` says it.
        seed: Seeds the bootstrap.

    Raises:
        InputError: closed loops of other episodes, or `unwatched` ones under another edit, scene or a watcher.

    References: Q. McNemar, 1947, doi:10.1007/BF02295996 (here exact, by the binomial distribution).
    """
    for other in (change, *(() if unwatched is None else (unwatched,))):
        if (base.task, base.seed, base.n) != (other.task, other.seed, other.n):
            raise InputError(
                f"got {base.n} episodes of '{base.task}' from seed {base.seed} and {other.n} of '{other.task}' from "
                f"seed {other.seed}; pairs need the same task, seeds and number."
            )
    if unwatched is not None and not _is_unwatched(unwatched, change):
        raise InputError(
            f"got unwatched='{unwatched.condition}' for '{change.condition}'; need the same edit and scene, unwatched."
        )
    before = np.array([e.success for e in base.episodes])
    after = np.array([e.success for e in change.episodes])
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    wrong = [
        np.array([any(i != e.instruction.target for i in e.lifted) for e in one.episodes], float)
        for one in (base, change)
    ]
    difference = _paired(
        "success, change - base", after.astype(float) - before, p=mcnemar(lost, won), test="McNemar, exact", seed=seed,
        details={"base": base.success_rate, "change": change.success_rate, "lost": lost, "won": won},
    )  # fmt: skip
    stopped = np.array([v is not None for v in change.vetoes] or [False] * change.n)
    if unwatched is None and (_is_unwatched(base, change) or not stopped.any()):
        unwatched = base if _is_unwatched(base, change) else change  # nothing stopped is as good as unwatched
    return Comparison(
        difference=difference,
        lost=lost,
        won=won,
        wrong_object=_paired("wrong object lifted, change - base", wrong[1] - wrong[0], seed=seed),
        stopped_good=_stopped("good episodes stopped", stopped, change, unwatched, success=True),
        stopped_bad=_stopped("bad episodes stopped", stopped, change, unwatched, success=False),
        base=base.condition,
        change=change.condition,
    )


def success_result(loop: ClosedLoop) -> Result:
    """Return the success rate of a closed loop with its Wilson interval."""
    return Result(
        name=f"success / {loop.condition}", value=loop.success_rate, unit="share of episodes", n=loop.n, over="episode",
        n_units=loop.n, interval=loop.interval,
        details={"interval": "Wilson", "failures": loop.failure_labels, "vetoed": loop.n_vetoed},
    )  # fmt: skip


def share(name: str, hits: NDArray[np.bool_] | Sequence[bool], *, known: bool = True) -> Result:
    """Return a share of episodes with its Wilson interval."""
    hits = np.asarray(hits, bool)
    if not known or not len(hits):
        reason = "no episode of that kind" if known else "nothing watched these episodes"
        return cannot_say(name, reason, unit="share of episodes", over="episode")
    return Result(
        name=name, value=float(hits.mean()), unit="share of episodes", n=len(hits), over="episode",
        n_units=len(hits), interval=wilson_interval(int(hits.sum()), len(hits)), details={"interval": "Wilson"},
    )  # fmt: skip


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided exact p of McNemar's test: are wins and losses equally likely where a pair differs?"""
    n = lost + won
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return min(1.0, 2 * tail)


def detectable_difference(n: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest share of pairs that must change, all one way, for McNemar's test to see it.

    With the probability `power` at least as many of n pairs change as the test needs.
    """
    if n < 1 or not 0 < power < 1 or not 0 < alpha < 1:
        raise InputError(f"got n={n}, power={power}, alpha={alpha}; need n >= 1 and shares between 0 and 1.")
    from scipy.stats import binom

    need = next((k for k in range(1, n + 1) if mcnemar(0, k) <= alpha), None)
    if need is None:
        return float("nan")
    grid = np.linspace(0, 1, 2001)
    return float(grid[np.argmax(binom.sf(need - 1, n, grid) >= power)])


def _is_unwatched(loop: ClosedLoop, change: ClosedLoop) -> bool:
    """Whether a closed loop shows what becomes of changed episodes that nobody stops."""
    return not loop.watched and (loop.edit, loop.scene) == (change.edit, change.scene)


def _stopped(
    name: str, stopped: NDArray[np.bool_], change: ClosedLoop, unwatched: ClosedLoop | None, *, success: bool
) -> Result:
    """Return which share a watcher stopped of the episodes that end well (or badly) when it does not."""
    if change.watched and unwatched is None:
        return cannot_say(
            name, "how these changed episodes end unwatched was not played", unit="share of episodes", over="episode"
        )  # fmt: skip
    ends = np.array([e.success for e in (change if unwatched is None else unwatched).episodes])
    return share(name, stopped[ends == success], known=change.watched)


def _paired(name: str, difference: NDArray[np.floating], *, seed: int, **more: Any) -> Result:
    units = units_of(range(len(difference)), over="episode")
    return Result(
        name=name, value=float(difference.mean()), unit="share of episodes", n=len(difference), over="episode",
        n_units=units.n, interval=bootstrap_mean(difference, units, seed=seed), **more,
    )  # fmt: skip
