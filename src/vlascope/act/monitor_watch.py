"""A monitor at work: it sees an episode step by step and says when, where and why not to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .monitor_thresholds import RULES, Rule, Thresholds, cusum_step
from .watcher import Veto

if TYPE_CHECKING:
    from .monitor import Monitor


class MonitorWatcher:
    """Watches one episode (see `Watcher`); `start` begins another.

    Attributes:
        monitor: The fitted monitor.
        detector: "sae", "sae-fall", "mahalanobis" or "pca".
        rule: "both", "frame", "cusum" or "sigma".
        scores: Frame scores so far, one list per camera, in the order of the monitor's cameras.
    """

    def __init__(self, monitor: Monitor, *, detector: str = "sae", rule: Rule = "both") -> None:
        if rule not in RULES:
            raise InputError(f"unknown rule '{rule}'; known are {', '.join(RULES)}.")
        self.monitor, self.detector, self.rule = monitor, detector, rule
        self.fitted = monitor.use(detector)
        self.scores: list[list[float]] = []
        self._sums: list[float] = []
        self._groups: list[str] = []

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site that it reads."""
        return (self.monitor.site,)

    def start(self, task: str, camera: str) -> None:
        """Begin an episode.

        Args:
            task: As in the label that the monitor was fitted by; any when it was fitted for all tasks alike.
            camera: Name of the camera that the rollout shows; ignored when the monitor knows several.

        Raises:
            InputError: the monitor was not fitted on that task or camera.
        """
        numbers = self.monitor.camera_numbers
        known = [self.monitor.camera_name(n) for n in numbers]
        if len(numbers) == 1 and camera not in known:
            raise InputError(
                f"the monitor was fitted on camera '{known[0]}', not on '{camera}'. Fit one on that camera."
            )
        self._groups = [self.monitor.group(task, n) for n in numbers]
        self._sums = [0.0 for _ in numbers]
        self.scores = [[] for _ in numbers]

    def watch(self, step: int, tokens: dict[str, NDArray[np.float32]]) -> Veto | None:
        """Judge one step; see `Watcher.watch`.

        Raises:
            InputError: no episode was started, the site is missing, tokens of another shape, or NaN.
        """
        monitor = self.monitor
        if not self._groups:
            raise InputError("no episode was started; call start(task, camera) first.")
        if monitor.site not in tokens:
            raise InputError(
                f"the tokens of site '{monitor.site}' are missing; got {', '.join(tokens) or 'none'}."
            )
        values = np.asarray(tokens[monitor.site])
        last = int(monitor.patches.position.max())
        if values.ndim != 2 or len(values) <= last:
            raise InputError(
                f"got tokens of shape {values.shape} at site '{monitor.site}'; the monitor watches rows up to {last}."
            )
        own = values[monitor.patches.position]
        patch = monitor.patch_scores(own[None], detector=self.detector)
        veto: Veto | None = None
        for i, camera in enumerate(monitor.camera_numbers):
            score = float(monitor.frame_scores(patch, camera=camera)[0])
            limits = self.fitted.thresholds[self._groups[i]]
            self.scores[i].append(score)
            self._sums[i] = cusum_step(self._sums[i], (score - limits.mean) / limits.deviation)
            broken = self._broken(score, self._sums[i], limits)
            if broken is not None and veto is None:
                veto = self._veto(step, own, camera, broken, group=self._groups[i])
        return veto

    def _broken(self, score: float, total: float, limits: Thresholds) -> tuple[str, float, float] | None:
        if self.rule == "sigma":
            return ("sigma", score, limits.sigma) if score > limits.sigma else None
        frame, lasting = limits.halves() if self.rule == "both" else (limits.frame, limits.cusum)
        if self.rule in ("frame", "both") and score > frame:
            return "frame", score, frame
        if self.rule in ("cusum", "both") and total > lasting:
            return "cusum", total, lasting
        return None

    def _veto(
        self,
        step: int,
        own: NDArray[np.float32],
        camera: int,
        broken: tuple[str, float, float],
        *,
        group: str,
    ) -> Veto:
        monitor = self.monitor
        rule, score, limit = broken
        where = monitor.explain(own, detector=self.detector, camera=camera)
        x0, y0, x1, y1 = where.box
        level = "" if where.level is None else f", most at the dictionary's level {where.level}"
        what = "is" if rule != "cusum" else "adds up to"
        stated = monitor.stated(self.rule)
        promise = "no rate is stated" if stated is None else f"stated {stated:.1%}"
        realised = self.fitted.rate(self.rule, task=group.rpartition("|")[0])
        return Veto(
            reason=(
                f"step {step}: the {self.detector} score at {monitor.site} {what} {score:.2f} (limit {limit:.2f}) in "
                f"camera {monitor.camera_name(camera)} at x {x0:.0f}-{x1:.0f}, y {y0:.0f}-{y1:.0f}{level}; clean "
                f"episodes raised an alarm {realised.text()}, {promise}"
            ),
            score=score,
            threshold=limit,
            site=monitor.site,
            box=where.box,
            details={
                "step": step,
                "rule": rule,
                "detector": self.detector,
                "camera": monitor.camera_name(camera),
                "patches": [
                    [int(monitor.patches.row[i]), int(monitor.patches.col[i])] for i in where.patches
                ],
                "level": where.level,
                "level_rises": {str(k): v for k, v in where.level_rises.items()},
                "stated_false_alarms": stated,
                "realised_false_alarms": realised.to_json(),
            },
        )
