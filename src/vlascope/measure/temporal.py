"""Concepts over time: one cut over all frames, when it changes, and whether that is when something happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spectral.cut import CutResult, cut_run
from .changes import OTHER_EVENTS, PENALTY, TOLERANCE, Kind, agreement
from .findings import EpisodeSeries, Finding, Row
from .outcomes import FALSE_ALARMS, Warnings, compare_outcomes, early_warning
from .phrases import phrase_results
from .result import Result, adjusted, number_text, plain_json, table, undecided
from .timeline import Timeline, events_of, frames_of, need_event, timelines

if TYPE_CHECKING:
    from ..runs import Run

N_SHUFFLES = 199


@dataclass(frozen=True)
class TemporalResult:
    """What happens over time at one layer.

    Attributes:
        cut: The cut over all frames of all episodes.
        site: The layer.
        k: Number of concepts.
        lines: One time line per episode.
        events: For each event (and for all of the usual ones together) whether change points hit it.
        phrases: The same for the change points of the prompt's phrases; empty unless asked for.
        outcomes: Concepts whose occupancy differs between failures and successes.
        warning: How early failures announce themselves.
    """

    cut: CutResult
    site: str
    k: int
    lines: tuple[Timeline, ...]
    events: tuple[Result, ...]
    phrases: tuple[Result, ...]
    outcomes: tuple[Result, ...]
    warning: Warnings

    @property
    def n_too_short(self) -> int:
        """Episodes with too few frames for change points."""
        return sum(line.changes is None for line in self.lines)

    def verdict(self) -> str:
        """Return in a few sentences what the change points hit and whether failures announce themselves."""
        counts = [len(line.changes) for line in self.lines if line.changes is not None]
        if not counts:
            return f"cannot say: all {len(self.lines)} episodes are too short for change points"
        text = f"{number_text(float(np.mean(counts)))} changes per episode at {self.site}"
        hit = [r for r in self.events if r.found]
        told = [r for r in self.events if r.value is not None]
        if hit:
            some = ", ".join(
                f"{r.name} in {r.value or 0:.0%} of {r.n} episodes ({r.controls[OTHER_EVENTS]:.0%} of {OTHER_EVENTS})"
                for r in hit
            )
            text += f"; they hit {some}"
        elif unclear := undecided(told):
            text += f"; cannot say what they hit ({unclear})"
        elif told:
            text += f"; they hit no event more often than {OTHER_EVENTS} ({', '.join(r.name for r in told)})"
        else:
            text += f"; cannot say what they hit: {self.events[0].reason if self.events else 'no events are known'}"
        caught = self.warning.caught
        if caught.value is None:
            text += f". Early warning: cannot say ({caught.reason})"
        elif caught.found:
            lead = self.warning.lead.value
            text += f". {caught.value:.0%} of {caught.n} failures announce themselves, {lead:g} frames ahead (median)"
        elif caught.undecided:
            text += f". Early warning: cannot say ({caught.undecided})"
        else:
            text += (
                f". Failures do not announce themselves more often than shuffled outcomes do (n={caught.n})"
            )
        return text

    def results(self) -> list[Result]:
        """Return every number."""
        return [*self.events, *self.phrases, self.warning.caught, self.warning.lead, *self.outcomes]

    def finding(self) -> Finding:
        """Return the numbers and every episode's time line as they are kept in a run."""
        return Finding(
            measure="temporal",
            title=self.site,
            verdict=self.verdict(),
            rows=tuple(Row(site=self.site, result=one) for one in self.results()),
            episodes=tuple(_series(self, line) for line in self.lines),
            settings={"site": self.site, "k": self.k, "cut": self.cut.path.name},
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per number, under `result.TABLE_HEAD`."""
        return table(self.results())

    def to_json(self) -> dict[str, Any]:
        """Return everything but the cut's arrays as JSON types."""
        return plain_json(
            {
                "verdict": self.verdict(),
                "cut": self.cut.path.name,
                "site": self.site,
                "k": self.k,
                "n_too_short": self.n_too_short,
                "events": [r.to_json() for r in self.events],
                "phrases": [r.to_json() for r in self.phrases],
                "early_warning": self.warning.caught.to_json(),
                "lead_time": self.warning.lead.to_json(),
                "outcomes": [r.to_json() for r in self.outcomes],
                "episodes": [_episode_json(self, line) for line in self.lines],
            }
        )


def temporal(
    run: Run,
    *,
    site: str,
    k: int = 10,
    kinds: Sequence[str] = ("patch",),
    success: str = "success",
    align_at: str | None = None,
    failure_event: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    words_site: str | None = None,
    tolerance: int = TOLERANCE,
    kind: Kind = "trend",
    penalty: float = PENALTY,
    n_permutations: int = N_SHUFFLES,
    seed: int = 0,
    cut: CutResult | None = None,
    color: str = "tsne",
) -> TemporalResult:
    """Follow the concepts of a layer through all episodes of a run.

    One cut over all frames gives the concepts; the share of each frame that they take gives one series per episode,
    and its change points are compared with what is known to happen (grasp, release, switches of the gripper).

    Args:
        run: A run of episodes.
        site: A layer with patches.
        k: Number of concepts.
        kinds: Which tokens are counted.
        success: Label with the outcome.
        align_at: Event at which successes and failures are aligned; None stretches episodes to one length.
        failure_event: Event at which failures happen; None takes the last frame.
        false_alarms: Share of successes that may raise an alarm.
        words_site: A layer with words, to follow the phrases of the prompt as well.
        tolerance: Frames between a change and an event that count as a hit.
        kind: "trend" (changes of course) or "level" (steps), see `change_points`.
        penalty: Cost of a change point.
        n_permutations: Shuffles behind each p-value.
        seed: Seeds the cut and everything random.
        cut: Use this cut, which must hold the site and k.
        color: Palette of the cut.

    Raises:
        InputError: frames that belong to no episode, no such event, no such tokens, or parameters out of range.
        SiteNotFoundError: no such site.
        MissingExtraError: ruptures is not installed.

    Cost: the cut, and about 1 s per 300 frames.
    """
    run.site(site)
    known = {name for rows in frames_of(run).values() for name in events_of(rows)}
    for asked_for in (align_at, failure_event):
        need_event(asked_for, known)
    if cut is None:
        cut = cut_run(run, sites=(site,), k=(k,), kinds=tuple(kinds), seed=seed, color=color)
    lines = timelines(
        run, cut, site=site, k=k, kinds=kinds, success=success, kind=kind, penalty=penalty, seed=seed
    )
    long = [line for line in lines if line.changes is not None]
    names = list(dict.fromkeys(name for line in lines for name in line.events))
    asked = [(name,) for name in names]
    ends = next(
        (pair for pair in (("grasp", "release"), ("gripper 1", "gripper 2")) if set(pair) <= set(names)), None
    )
    asked += [ends] if ends else []
    events = [
        agreement(
            [line.changes for line in long if line.changes is not None],
            [line.events for line in long],
            [line.n_frames for line in long],
            names=some,
            tolerance=tolerance,
            n_permutations=n_permutations,
            seed=seed,
        )  # fmt: skip
        for some in asked
    ]
    phrases = [] if words_site is None else phrase_results(
        run, lines, site=words_site, tolerance=tolerance, kind=kind, penalty=penalty,
        n_permutations=n_permutations, seed=seed,
    )  # fmt: skip
    return TemporalResult(
        cut=cut,
        site=site,
        k=k,
        lines=tuple(lines),
        events=tuple(adjusted(events)),
        phrases=tuple(phrases),
        outcomes=tuple(compare_outcomes(lines, event=align_at, n_permutations=n_permutations, seed=seed)),
        warning=early_warning(
            lines,
            failure_event=failure_event,
            false_alarms=false_alarms,
            n_permutations=n_permutations,
            seed=seed,
        ),
    )


def _series(result: TemporalResult, line: Timeline) -> EpisodeSeries:
    def step(frame: int) -> int:
        return int(line.steps[frame])

    odd = result.warning.oddity.get(line.episode)
    alarm = result.warning.alarms.get(line.episode)
    return EpisodeSeries(
        episode=line.episode,
        site=result.site,
        items=tuple(line.items.tolist()),
        steps=tuple(line.steps.tolist()),
        change_points=None if line.changes is None else tuple(step(frame) for frame in line.changes),
        events={name: step(frame) for name, frame in line.events.items()},
        occupancy=tuple(tuple(row) for row in np.round(line.occupancy.astype(np.float64), 4).tolist()),
        anomaly=() if odd is None else tuple(np.round(odd, 4).tolist()),
        threshold=result.warning.thresholds.get(line.episode),
        alarm=None if alarm is None else step(alarm),
    )


def _episode_json(result: TemporalResult, line: Timeline) -> dict[str, Any]:
    return {
        "episode": line.episode,
        "n_frames": line.n_frames,
        "prompt": line.prompt,
        "success": line.success,
        "steps": line.steps,
        "changes": line.changes,
        "events": dict(line.events),
        "alarm": result.warning.alarms.get(line.episode),
        "spells": [[s.concept, s.onset, s.duration] for s in line.spells()],
        "occupancy": np.round(line.occupancy.astype(np.float64), 4),
    }
