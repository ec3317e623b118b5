"""When is a score an alarm: the mean plus two deviations, split-conformal thresholds by episode maxima, and CUSUM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..sim.rollout import wilson_interval

Rule = Literal["both", "frame", "cusum", "sigma"]
RULES: tuple[Rule, ...] = ("both", "frame", "cusum", "sigma")
DRIFT = 1.0
"""What CUSUM takes off at each step, in deviations of a clean frame's score."""
N_SIGMA = 2.0
CUSUM_CAP = 1e4
CAPTURE_MORE = "Capture more clean episodes, or state a higher rate with --alpha."


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many of some episodes (or frames) raised an alarm.

    Attributes:
        alarms: Those that did.
        n: All.
    """

    alarms: int
    n: int

    @property
    def share(self) -> float:
        """alarms / n; NaN for none."""
        return self.alarms / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval; 0 to 1 when there is nothing to count."""
        return wilson_interval(self.alarms, self.n) if self.n else (0.0, 1.0)

    def holds(self, stated: float) -> bool:
        """Whether the stated rate is not exceeded beyond chance: the interval's lower end is at most that."""
        return self.interval[0] <= stated

    def text(self) -> str:
        """Return "3 of 100 (3.0 % [1.0, 8.5])"."""
        if not self.n:
            return "0 of 0 (unknown)"
        low, high = self.interval
        return f"{self.alarms} of {self.n} ({self.share:.1%} [{100 * low:.1f}, {100 * high:.1f}])"

    def to_json(self) -> dict[str, Any]:
        """Return counts, share and interval as JSON types."""
        return {
            "alarms": self.alarms,
            "n": self.n,
            "share": self.share if self.n else None,
            "wilson_95": list(self.interval),
        }


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the scores of one task and camera may be.

    Attributes:
        mean: Of the frame scores of the reference episodes, which set no limit: what CUSUM is counted from.
        deviation: Their standard deviation, > 0.
        sigma: Mean + 2 deviations of the frame scores of the calibration episodes themselves.
        frame: Split-conformal threshold of a frame's score, at the full false-alarm rate.
        cusum: The same of the CUSUM.
        frame_half, cusum_half: At half the rate each, so that both together stay within the rate; None when there
            are too few calibration episodes for that.
        n_episodes: Calibration episodes.
    """

    mean: float
    deviation: float
    sigma: float
    frame: float
    cusum: float
    frame_half: float | None
    cusum_half: float | None
    n_episodes: int

    def first_alarm(self, scores: NDArray[np.floating], *, rule: Rule) -> int | None:
        """Return the first step at which a rule is broken; None when there is none.

        Args:
            scores: [steps], one episode's frame scores.
            rule: "frame", "cusum", "both" (either, at half the rate each) or "sigma" (mean + 2 deviations of the
                calibration's frames).
        """
        over = self.over(scores, rule=rule)
        return int(np.argmax(over)) if over.any() else None

    def over(self, scores: NDArray[np.floating], *, rule: Rule) -> NDArray[np.bool_]:
        """Return at which steps a rule is broken, bool [steps]."""
        return np.any([values > limit for _, values, limit in self.judged(scores, rule=rule)], axis=0)

    def judged(
        self, scores: NDArray[np.floating], *, rule: Rule
    ) -> list[tuple[str, NDArray[np.floating], float]]:
        """Return what a rule compares: name of the limit ("frame", "cusum" or "sigma"), values [steps], limit."""
        if rule == "sigma":
            return [("sigma", scores, self.sigma)]
        if rule == "frame":
            return [("frame", scores, self.frame)]
        if rule == "cusum":
            return [("cusum", self.cusums(scores), self.cusum)]
        if rule != "both":
            raise InputError(f"unknown rule '{rule}'; known are {', '.join(RULES)}.")
        frame, lasting = self.halves()
        return [("frame", scores, frame), ("cusum", self.cusums(scores), lasting)]

    def halves(self) -> tuple[float, float]:
        """Return the thresholds of the rule "both", of the frame's score and of the CUSUM.

        Raises:
            InputError: there were too few calibration episodes for half the rate.
        """
        if self.frame_half is None or self.cusum_half is None:
            raise InputError(
                f"{self.n_episodes} calibration episodes are too few for the rule 'both', which needs twice as many as "
                "'frame' or 'cusum' alone. Choose one of these, or fit on more episodes."
            )
        return self.frame_half, self.cusum_half

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that there are thresholds for."""
        return tuple(rule for rule in RULES if rule != "both" or self.frame_half is not None)

    def cusums(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the CUSUM of an episode's scores, float64 [steps], in deviations."""
        return cusum((np.asarray(scores, np.float64) - self.mean) / self.deviation)


def calibrate(
    episodes: Sequence[NDArray[np.floating]],
    *,
    reference: Sequence[NDArray[np.floating]],
    alpha: float,
    what: str = "",
    advice: str = CAPTURE_MORE,
) -> Thresholds:
    """Return thresholds from the frame scores of clean episodes that the detector was not fitted on.

    CUSUM counts from the mean of the reference, in its deviations: were they the calibration episodes' own, a new
    episode would not be exchangeable with those, and the limit would not keep its rate.

    Args:
        episodes: One [steps] array per episode.
        reference: The same for other clean episodes.
        alpha: Share of new clean episodes that may raise an alarm.
        what: Names the task and camera in errors.
        advice: What to do about too few episodes.

    Raises:
        InputError: too few episodes for that share, or scores without any spread.

    References: split conformal prediction: Vovk, Gammerman and Shafer 2005, doi:10.1007/b106715. CUSUM: E. S. Page
    1954, doi:10.1093/biomet/41.1-2.100.
    """
    need = episodes_needed(alpha)
    if len(episodes) < need:
        raise InputError(
            f"{what or 'the monitor'}: got {len(episodes)} calibration episodes; a rate of {alpha:.1%} needs at least "
            f"{need}. {advice}"
        )
    own_mean, own_deviation = _moments(
        episodes, what=f"{what or 'the monitor'}: all frames of the calibration"
    )
    mean, deviation = _moments(reference, what=f"{what or 'the monitor'}: all frames of the reference")
    maxima = np.array([np.max(one) for one in episodes])
    sums = np.array([cusum((np.asarray(one, np.float64) - mean) / deviation).max() for one in episodes])
    half = len(episodes) >= episodes_needed(alpha / 2)
    return Thresholds(
        mean=mean,
        deviation=deviation,
        sigma=own_mean + N_SIGMA * own_deviation,
        frame=conformal_threshold(maxima, alpha=alpha),
        cusum=conformal_threshold(sums, alpha=alpha),
        frame_half=conformal_threshold(maxima, alpha=alpha / 2) if half else None,
        cusum_half=conformal_threshold(sums, alpha=alpha / 2) if half else None,
        n_episodes=len(episodes),
    )


def _moments(episodes: Sequence[NDArray[np.floating]], *, what: str) -> tuple[float, float]:
    flat = np.concatenate([np.asarray(one, np.float64) for one in episodes])
    mean, deviation = float(flat.mean()), float(flat.std())
    if not deviation > 1e-12 * max(1.0, abs(mean)):
        raise InputError(f"{what} episodes have the same score; are they copies of one frame?")
    return mean, deviation


def episodes_needed(alpha: float) -> int:
    """Return how many calibration episodes a finite conformal threshold at rate `alpha` needs."""
    if not 0 < alpha < 1:
        raise InputError(f"got a false-alarm rate of {alpha}; need a share between 0 and 1, such as 0.05.")
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_threshold(maxima: NDArray[np.floating], *, alpha: float) -> float:
    """Return the smallest value that a new episode's maximum exceeds with probability at most `alpha`.

    It is the ceil((n + 1)(1 - alpha))-th smallest of the n maxima: exact for exchangeable episodes, whatever the
    distribution of scores, their dependence within an episode, or its length.

    Raises:
        InputError: too few episodes: no finite threshold keeps the rate.
    """
    n = len(maxima)
    if n < episodes_needed(alpha):
        raise InputError(
            f"got {n} episodes; a threshold at a rate of {alpha:.2%} needs at least {episodes_needed(alpha)}."
        )
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(np.asarray(maxima, np.float64))[min(rank, n) - 1])


def cusum(z: NDArray[np.floating], *, drift: float = DRIFT) -> NDArray[np.float64]:
    """Return c_t = max(0, c_{t-1} + z_t - drift), float64 [steps]: small but lasting rises add up.

    Capped at `CUSUM_CAP`, so that one enormous score stays a finite number.
    """
    out, value = np.empty(len(z)), 0.0
    for t, one in enumerate(np.asarray(z, np.float64)):
        value = out[t] = cusum_step(value, float(one), drift=drift)
    return out


def cusum_step(value: float, z: float, *, drift: float = DRIFT) -> float:
    """Return the next value of `cusum`."""
    return min(CUSUM_CAP, max(0.0, value + z - drift))
