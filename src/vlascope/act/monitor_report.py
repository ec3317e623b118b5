"""What a monitor says about the episodes of a run: first alarms with their place and level, and the realised rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import progress
from .monitor import Monitor, Where, episode_tokens, episodes_of, task_of
from .monitor_evaluate import AttackResult, Watched, evaluate_attack
from .monitor_fit import items_fingerprint
from .monitor_thresholds import Rate, Rule

if TYPE_CHECKING:
    from ..runs import Run


@dataclass(frozen=True)
class EpisodeAlarm:
    """One episode as the monitor saw it.

    Attributes:
        episode: Its number, or the item's where items belong to none.
        item_id: Of its first item.
        task: Task of its thresholds.
        n_steps: Frames.
        step: Frame of the first alarm; None when there is none.
        camera: Camera of that alarm.
        kind: Limit that was broken, or came nearest to it: "frame", "cusum" or "sigma".
        score: The highest that this limit judges: of a frame, or of the sum ("cusum"); in the camera of the alarm.
        limit: That limit.
        where: What stands out in the frame of the first alarm.
        labelled: Whether the label says that something is wrong in it; None when no label was asked for.
    """

    episode: int
    item_id: str
    task: str
    n_steps: int
    step: int | None
    camera: str | None
    kind: str
    score: float
    limit: float
    where: Where | None
    labelled: bool | None = None

    def row(self) -> tuple[str, ...]:
        """Return one row of text under `EPISODE_HEAD`."""
        where = (
            ""
            if self.where is None
            else "x {:.0f}-{:.0f}, y {:.0f}-{:.0f}".format(*_x_then_y(self.where.box))
        )
        level = "" if self.where is None or self.where.level is None else str(self.where.level)
        step = "-" if self.step is None else f"{self.step} of {self.n_steps}"
        limit = f"{self.limit:.2f}" + (" (sum)" if self.kind == "cusum" else "")
        return (str(self.episode), self.task, step, f"{self.score:.2f}", limit, where, level)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        facts = {k: v for k, v in vars(self).items() if k != "where"}
        if self.where is not None:
            facts["where"] = {
                "box": list(self.where.box),
                "n_patches": len(self.where.patches),
                "level": self.where.level,
                "level_rises": {str(k): v for k, v in self.where.level_rises.items()},
            }
        return facts


EPISODE_HEAD = ("episode", "task", "alarm at", "highest score", "limit", "where, pixels", "level")


@dataclass(frozen=True)
class MonitorReport:
    """All episodes of a run.

    Attributes:
        detector, rule: What was asked.
        alpha: Stated rate; None for the rule that states none.
        episodes: One entry each.
        alarms: Episodes with an alarm among those that count as clean (all, without a label).
        fitted_rate: The realised rate on the clean episodes that the monitor was tested on when it was fitted.
        seen_before: Whether the run is the one that the monitor was fitted on, or another capture of its data: `alarms`
            then proves nothing.
        labelled: Against the labelled episodes, where a label was given.
    """

    detector: str
    rule: Rule
    alpha: float | None
    episodes: tuple[EpisodeAlarm, ...]
    alarms: Rate
    fitted_rate: Rate
    seen_before: bool
    labelled: AttackResult | None = None

    def lines(self) -> list[str]:
        """Return the outcome in sentences."""
        which = "clean episodes" if self.labelled else "episodes"
        promise = "no rate is stated" if self.alpha is None else f"stated for clean ones: {self.alpha:.1%}"
        out = [
            f"alarms in {self.alarms.text()} {which}; {promise}; realised when fitted: {self.fitted_rate.text()}"
        ]
        if self.seen_before:
            out.append(
                "the monitor was fitted on this run or its data: most of these episodes say nothing about new ones"
            )
        elif self.alpha is not None and self.alarms.n and not self.alarms.holds(self.alpha):
            out.append(
                "that is more than stated: either these episodes are not like the clean ones, or the monitor does not "
                "fit them; look at the first alarms before trusting it"
            )
        if self.labelled is not None:
            found = self.labelled
            out.append(f"labelled episodes detected: {found.detected.text()}; {found.auroc.line()}")
        return out

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "detector": self.detector,
            "rule": self.rule,
            "stated_false_alarms": self.alpha,
            "alarms": self.alarms.to_json(),
            "alarms_over": "clean episodes" if self.labelled else "all episodes",
            "realised_false_alarms_when_fitted": self.fitted_rate.to_json(),
            "run_was_fitted_on": self.seen_before,
            "episodes": [one.to_json() for one in self.episodes],
            "labelled": None if self.labelled is None else self.labelled.to_json(),
        }


def score_run(
    monitor: Monitor,
    run: Run,
    *,
    detector: str = "sae",
    rule: Rule = "frame",
    label: str | None = None,
    items: Sequence[int] | None = None,
    quiet: bool = False,
) -> MonitorReport:
    """Return what a monitor says about the episodes of a run of the same model.

    Args:
        monitor: The monitor.
        run: The run; it must hold the monitor's site.
        detector: "sae", "sae-fall", "mahalanobis" or "pca".
        rule: "frame", "cusum", "both" or "sigma".
        label: Label that is true (1, "yes", ...) for frames in which something is wrong: such episodes are left out of
            the realised rate and are what should be detected, from their first such frame on.
        items: Only these rows of items.
        quiet: No progress bar.

    Raises:
        InputError: another model or camera, patches elsewhere, an unknown task, NaN, a label without both kinds of
            episodes.
        SiteNotFoundError: the run does not hold the monitor's site.

    Cost: for "sae" about the encoder's product per token; memory for one episode.
    """
    model = run.config["model"]
    monitor.check_model(model.get("name"), model.get("fingerprint"))
    fitted = monitor.use(detector)
    found: list[EpisodeAlarm] = []
    watched: list[Watched] = []
    for group in progress(episodes_of(run, items), desc="scoring", unit="episode", quiet=quiet):
        task = task_of(run, group, monitor.by)
        monitor.check_cameras(run, group)
        tokens = episode_tokens(run, monitor.site, group, monitor.patches)
        one = _judge(monitor, tokens, task=task, detector=detector, rule=rule)
        first = run.items[int(group[0])]
        one = replace(
            one, episode=first.index if first.episode is None else first.episode, item_id=first.item_id
        )
        if label is not None:
            wrong = np.array([_is_true(run, int(i), label) for i in group])
            one = replace(one, labelled=bool(wrong.any()))
            onset = int(np.argmax(wrong)) if wrong.any() else None
            watched.append(Watched(str(one.episode), tokens, onset=onset, task=task))
        found.append(one)
    against = None
    if label is not None:
        clean = [one for one in watched if one.onset is None]
        attacked = [one for one in watched if one.onset is not None]
        if not clean or not attacked:
            raise InputError(
                f"label '{label}' is true in {len(attacked)} of {len(watched)} episodes; need both kinds to say "
                "anything about detection. Leave the label out, or add episodes."
            )
        against = evaluate_attack(
            monitor, attack=label, clean=clean, attacked=attacked, detector=detector, rule=rule
        )
    counted = [one for one in found if not one.labelled]
    return MonitorReport(
        detector=detector,
        rule=rule,
        alpha=monitor.stated(rule),
        episodes=tuple(found),
        alarms=Rate(alarms=sum(one.step is not None for one in counted), n=len(counted)),
        fitted_rate=fitted.rate(rule),
        seen_before=_is_fitted_on(monitor, run),
        labelled=against,
    )


def _judge(
    monitor: Monitor, tokens: NDArray[np.float32], *, task: str, detector: str, rule: Rule
) -> EpisodeAlarm:
    fitted = monitor.use(detector)
    patch = monitor.patch_scores(tokens, detector=detector)
    first = monitor.first_alarm(patch, task=task, detector=detector, rule=rule)
    # Without an alarm, what came nearest to its limit; with one, what was broken first.
    candidates: list[tuple[float, str, float, float]] = []
    for camera in monitor.camera_numbers if first is None else (first[1],):
        scores = monitor.frame_scores(patch, camera=camera)
        for kind, values, limit in fitted.thresholds[monitor.group(task, camera)].judged(scores, rule=rule):
            highest = float(values.max())
            if first is None:
                candidates.append((highest - limit, kind, highest, limit))
            elif values[first[0]] > limit:
                candidates.append((0.0, kind, highest, limit))
    _, kind, score, limit = max(candidates, key=lambda one: one[0])
    return EpisodeAlarm(
        episode=0,
        item_id="",
        task=task,
        n_steps=len(tokens),
        step=None if first is None else first[0],
        camera=None if first is None else monitor.camera_name(first[1]),
        kind=kind,
        score=score,
        limit=limit,
        where=None
        if first is None
        else monitor.explain(tokens[first[0]], detector=detector, camera=first[1]),
    )


def _is_fitted_on(monitor: Monitor, run: Run) -> bool:
    items = items_fingerprint(run)
    return run.info.get("content_sha256") == monitor.facts.get("run_sha256") or (
        items is not None and items == monitor.facts.get("items_fingerprint")
    )


def _is_true(run: Run, item: int, label: str) -> bool:
    row = run.items[item]
    if label not in row.labels:
        raise InputError(
            f"item '{row.item_id}' has no label '{label}'; it has: {', '.join(sorted(row.labels)) or 'none'}."
        )
    value = row.labels[label]
    return value.strip().lower() in ("1", "true", "yes") if isinstance(value, str) else bool(value)


def _x_then_y(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[0], box[2], box[1], box[3]
