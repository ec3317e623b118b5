"""How good a monitor is: AUROC, false alarms, delay and place, with intervals over episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..measure.resample import bootstrap_interval, bootstrap_mean, percentile_interval, units_of
from ..measure.result import Result, cannot_say
from .monitor import ANY_TASK, Monitor, Patches
from .monitor_thresholds import Rate, Rule

N_DRAWS = 500
MIN_EPISODES = 5
MIN_COVER = 0.5


@dataclass(frozen=True)
class Watched:
    """One episode to judge a monitor by.

    Attributes:
        name: Of the episode; clean and attacked versions of one episode share it.
        tokens: float32 [frames, p, d], the watched tokens.
        onset: First attacked frame; None for a clean episode.
        mask: bool [frames, p], patches that the attack changed; None where it has no place.
        task: Task of its thresholds.
    """

    name: str
    tokens: NDArray[np.float32]
    onset: int | None = None
    mask: NDArray[np.bool_] | None = None
    task: str = ANY_TASK


@dataclass(frozen=True)
class AttackResult:
    """How one kind of attack is seen by one detector.

    Attributes:
        attack, detector, rule: What.
        auroc: Frames after the onset against clean frames of the same steps; interval over episodes.
        false_alarms: Clean episodes that raise an alarm.
        detected: Attacked episodes with an alarm at or after the onset (and none before).
        early: Attacked episodes with an alarm before the onset: false ones.
        delay: Median steps from onset to alarm over the detected episodes.
        iou: Marked patches against attacked ones, at the first alarm after the onset.
    """

    attack: str
    detector: str
    rule: str
    auroc: Result
    false_alarms: Rate
    detected: Rate
    early: Rate
    delay: Result
    iou: Result

    def row(self) -> tuple[str, ...]:
        """Return one row of text under `ATTACK_HEAD`."""

        def cell(one: Result, digits: int) -> str:
            if one.value is None:
                return "-"
            text = f"{one.value:.{digits}f}"
            return (
                text
                if one.interval is None
                else f"{text} [{one.interval[0]:.{digits}f}, {one.interval[1]:.{digits}f}]"
            )

        return (
            self.attack,
            self.detector,
            cell(self.auroc, 3),
            self.detected.text(),
            cell(self.delay, 1),
            cell(self.iou, 2),
            self.false_alarms.text(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "attack": self.attack,
            "detector": self.detector,
            "rule": self.rule,
            "auroc": self.auroc.to_json(),
            "realised_false_alarms": self.false_alarms.to_json(),
            "detected": self.detected.to_json(),
            "alarm_before_onset": self.early.to_json(),
            "delay": self.delay.to_json(),
            "iou": self.iou.to_json(),
        }


ATTACK_HEAD = ("attack", "detector", "AUROC", "detected", "delay, steps", "IoU", "false alarms, clean")


def evaluate_attack(
    monitor: Monitor,
    *,
    attack: str,
    clean: Sequence[Watched],
    attacked: Sequence[Watched],
    detector: str = "sae",
    rule: Rule = "frame",
    camera: int | None = None,
    seed: int = 0,
) -> AttackResult:
    """Return how well a detector tells attacked frames from clean ones, when, and where.

    Args:
        monitor: The monitor.
        attack: Name of the attack.
        clean: Clean episodes that nothing was fitted on.
        attacked: Episodes with an onset.
        detector: "sae", "sae-fall", "mahalanobis" or "pca".
        rule: What raises the alarm.
        camera: Judge by this camera alone. Without it an alarm of any camera counts, and a frame scores what its
            highest camera does.
        seed: Seeds the bootstrap.

    Raises:
        InputError: no clean or no attacked episodes, attacked ones without an onset, or clean ones that are over
            before the first onset.
    """
    if not clean or not attacked or any(one.onset is None for one in attacked):
        raise InputError(
            f"got {len(clean)} clean and {len(attacked)} attacked episodes; need both, the latter with their onset."
        )
    fitted = monitor.use(detector)
    cameras = monitor.camera_numbers if camera is None else (camera,)

    def judged(one: Watched) -> tuple[NDArray[np.float32], NDArray[np.float64], int | None]:
        """Patch scores, frame scores and the step of the first alarm."""
        patch = monitor.patch_scores(one.tokens, detector=detector)
        scores = np.max([monitor.frame_scores(patch, camera=c) for c in cameras], axis=0)
        alarm = monitor.first_alarm(patch, task=one.task, detector=detector, rule=rule, cameras=cameras)
        return patch, scores, None if alarm is None else alarm[0]

    names, values, labels = [], [], []
    alarms = 0
    # Clean frames of the same steps: scores follow the course of an episode, attacked or not.
    low = min(one.onset for one in attacked if one.onset is not None)
    high = max(len(one.tokens) for one in attacked)
    for one in clean:
        _, scores, first = judged(one)
        alarms += first is not None
        same = scores[low:high]
        names += [one.name] * len(same)
        values.append(same)
        labels.append(np.zeros(len(same), bool))
    found, early, delays, overlaps = 0, 0, [], []
    for one in attacked:
        assert one.onset is not None
        patch, scores, first = judged(one)
        names += [one.name] * (len(scores) - one.onset)
        values.append(scores[one.onset :])
        labels.append(np.ones(len(scores) - one.onset, bool))
        if first is not None and first < one.onset:
            early += 1
        elif first is not None:
            found += 1
            delays.append(first - one.onset)
        if one.mask is not None and (first is None or first >= one.onset):
            at = one.onset if first is None else first
            overlaps.append(patch_iou(patch[at] > fitted.patch_threshold, one.mask[at]))
    flat, truth = np.concatenate(values), np.concatenate(labels)
    if truth.all():
        raise InputError(
            f"no clean episode lasts until step {low}, the first attacked one; there is nothing to compare."
        )
    units = units_of(names, over="episode")
    details = {"clean_episodes": len(clean), "attacked_episodes": len(attacked)}
    auroc = Result(
        name=f"{attack} / {detector}",
        value=weighted_auroc(flat, truth, np.ones(len(flat))),
        unit="AUROC",
        n=len(flat),
        over="episode",
        n_units=units.n,
        interval=bootstrap_interval(
            lambda w: weighted_auroc(flat, truth, w), units, n_draws=N_DRAWS, seed=seed
        ),
        controls={"chance": 0.5},
        details=details,
    )
    return AttackResult(
        attack=attack,
        detector=detector,
        rule=rule,
        auroc=auroc,
        false_alarms=Rate(alarms=alarms, n=len(clean)),
        detected=Rate(alarms=found, n=len(attacked)),
        early=Rate(alarms=early, n=len(attacked)),
        delay=_median(
            "delay", np.array(delays, float), unit="steps (median over detected episodes)", seed=seed
        ),
        iou=_mean("IoU", np.array(overlaps, float), unit="IoU of patches", seed=seed),
    )


def weighted_auroc(
    scores: NDArray[np.floating], truth: NDArray[np.bool_], weights: NDArray[np.floating]
) -> float:
    """Return the chance that a true one scores higher than a false one, ties counting half; NaN without both.

    Args:
        scores: [n].
        truth: bool [n].
        weights: [n], >= 0, such as how often a bootstrap drew each.
    """
    _, place = np.unique(scores, return_inverse=True)
    good = np.bincount(place, weights * truth)
    bad = np.bincount(place, weights * ~truth)
    total = good.sum() * bad.sum()
    if not total > 0:
        return float("nan")
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / total)


def patch_iou(marked: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two sets of patches; NaN when both are empty."""
    union = int((marked | truth).sum())
    return float((marked & truth).sum()) / union if union else float("nan")


def mask_patches(patches: Patches, mask_hw: NDArray[np.bool_], *, camera: int = 0) -> NDArray[np.bool_]:
    """Return which patches are covered by a pixel mask for at least half, bool [p]; the most covered one at least."""
    out = np.zeros(len(patches), bool)
    cover = np.zeros(len(patches))
    height, width = mask_hw.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = np.cumsum(np.cumsum(mask_hw, 0), 1)
    for i in patches.of_camera(camera):
        x0, y0, x1, y1 = np.rint(patches.box[i]).astype(int).clip(0, [width, height, width, height])
        area = max(1, (x1 - x0) * (y1 - y0))
        cover[i] = (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / area
    out[cover >= MIN_COVER] = True
    if mask_hw.any() and not out.any():
        out[int(np.argmax(cover))] = True
    return out


def _median(name: str, values: NDArray[np.float64], *, unit: str, seed: int) -> Result:
    if not len(values):
        return cannot_say(name, "nothing was detected", unit=unit, over="episode")
    rng = np.random.default_rng([seed, 7])
    draws = np.median(rng.choice(values, (2000, len(values))), axis=1)
    return Result(
        name=name, value=float(np.median(values)), unit=unit, n=len(values), over="episode", n_units=len(values),
        interval=percentile_interval(draws, n_units=len(values)),
    )  # fmt: skip


def _mean(name: str, values: NDArray[np.float64], *, unit: str, seed: int) -> Result:
    values = values[np.isfinite(values)]
    if not len(values):
        return cannot_say(name, "the attack has no place, or nothing was seen", unit=unit, over="episode")
    units = units_of(list(range(len(values))), over="episode")
    return Result(
        name=name, value=float(values.mean()), unit=unit, n=len(values), over="episode", n_units=len(values),
        interval=bootstrap_mean(values, units, seed=seed),
    )  # fmt: skip
