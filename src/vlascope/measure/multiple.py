"""Correction for asking many questions at once, and what a test could have told at best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

ALPHA = 0.05
"""Share of false positives that a verdict "found" may have when nothing is there."""

MIN_SHUFFLES = 19
"""Fewer can give no p of 5 %: the least is 1 / (1 + shuffles)."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The least p that a test could give. Where that is above 5 %, "not found" is no answer.

    Attributes:
        least: (1 + shuffles that change nothing) / (1 + shuffles).
        n_shuffles: Shuffles.
        family: Questions that are asked at once.
        adjusted: What `least` becomes by the correction for these, the other p-values being as they are.
    """

    least: float
    n_shuffles: int
    family: int = 1
    adjusted: float

    @property
    def enough(self) -> bool:
        """Whether the test can find anything."""
        return self.adjusted <= ALPHA + 1e-9

    def advice(self, *, n_units: int, over: str) -> str:
        """Return in a few words what is too few, and how to mend it."""
        at_once = f", and {self.family} questions are asked at once" if self.family > 1 else ""
        if self.least * (self.n_shuffles + 1) > 1.5:
            mend = " or ask fewer at once" if self.family > 1 else ""
            return (
                f"too few {over}s: {n_units} can be exchanged in so few ways that p cannot fall below "
                f"{self.least:.2g}{at_once}; add {over}s{mend}"
            )
        return (
            f"too few shuffles: with {self.n_shuffles} p cannot fall below {self.least:.2g}{at_once}; take "
            f"{math.ceil(self.family / ALPHA - 1e-9) - 1}"
        )


def enough_shuffles(n_shuffles: int) -> None:
    """Raise unless a p of 5 % is possible with so many shuffles.

    Raises:
        InputError: fewer than 19.
    """
    if n_shuffles < MIN_SHUFFLES:
        raise InputError(
            f"got {n_shuffles} shuffles; need at least {MIN_SHUFFLES} for p <= 0.05 to be possible."
        )


def best_adjusted(p_values: Sequence[float], least: Sequence[float]) -> NDArray[np.float64]:
    """Return for each question the adjusted p-value that its least p would have, the others' p being as they are.

    Args:
        p_values: In [0, 1].
        least: The least p of each.

    Returns:
        float64, in the same order.

    Cost: one correction per question (0.5 s for 2,600).
    """
    out = np.empty(len(p_values))
    for i, best in enumerate(least):
        p = np.array(p_values, np.float64)
        p[i] = best
        out[i] = benjamini_hochberg(p)[i]
    return out


def benjamini_hochberg(p_values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Return adjusted p-values: calling those of at most q found keeps the false discovery rate at or below q.

    When nothing is there at all, the chance of any false positive in the family is at most q.

    Args:
        p_values: In [0, 1], any order.

    Returns:
        float64, in the same order; each is at least its p-value.

    Raises:
        InputError: a value is NaN or outside [0, 1].

    References: Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError("p-values must be a list of numbers in [0, 1].")
    n = len(p)
    order = np.argsort(p)
    scaled = p[order] * n / np.arange(1, n + 1)
    out = np.empty(n)
    out[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return out
