"""What every measure returns: a value with its sample size, interval, controls and a line of words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import InputError
from .multiple import ALPHA, Reach, benjamini_hochberg, best_adjusted
from .resample import MIN_UNITS

TABLE_HEAD = ("what", "value", "95 % interval", "n", "p", "p (BH)", "controls")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number and what it takes to believe it.

    Attributes:
        name: What was measured, e.g. "vision.3 / colour".
        value: The number; None when nothing can be said (then `reason` says why).
        unit: Unit of `value`, e.g. "balanced accuracy", "R²", "cm".
        n: Observations (items, frames, tokens) behind the value.
        over: What was resampled and shuffled: "episode" or "item". Never patches of one image.
        n_units: How many of them.
        interval: 95 % interval over those: bootstrap, or Wilson for shares; None with fewer than five.
        controls: The same number where nothing should be found, or by simpler means: "shuffled labels",
            "random weights", "raw pixels", "majority".
        p: P-value of `test`; one-sided where it is a permutation; None where nothing was tested.
        p_adjusted: p after Benjamini-Hochberg over the family that it was reported with.
        reach: The least p that the test could have given, see `undecided`; None where that is not known.
        reason: Why nothing can be said.
        details: Further JSON-able facts.
    """

    name: str
    value: float | None
    unit: str
    n: int
    over: str = "item"
    n_units: int = 0
    interval: tuple[float, float] | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    p: float | None = None
    p_adjusted: float | None = None
    reach: Reach | None = None
    test: str = "permutation"
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise InputError(f"result '{self.name}' has no value; give the reason why nothing can be said.")

    @property
    def found(self) -> bool:
        """Whether the value stands out from its shuffled control: p (adjusted where known) of at most 5 %."""
        p = self.p if self.p_adjusted is None else self.p_adjusted
        return self.value is not None and p is not None and p <= ALPHA + 1e-9  # 0.05 x 3 / 3 > 0.05 in binary

    @property
    def undecided(self) -> str:
        """Why "not found" is no answer: no p of this test could be low enough, and what to do; "" where one could."""
        if self.value is None or self.found or self.reach is None or self.reach.enough:
            return ""
        return self.reach.advice(n_units=self.n_units, over=self.over)

    def line(self) -> str:
        """Return the result in one line: value, interval, sample size, controls and p."""
        if self.value is None:
            return f"{self.name}: cannot say ({self.reason}); n={self.n}"
        text = f"{self.name}: {self.unit} {number_text(self.value)}"
        if self.interval is not None:
            low, high = (number_text(x) for x in self.interval)
            text += f" [{low}, {high}] (95 %, {self.n_units} {self.over}s, n={self.n})"
        else:
            text += f" (n={self.n}; too few {self.over}s for an interval)"
        if self.controls:
            text += "; " + ", ".join(f"{k} {number_text(v)}" for k, v in self.controls.items())
        if self.p_adjusted is not None:
            text += f"; p={self.p_adjusted:.3g} ({self.test}, Benjamini-Hochberg)"
        elif self.p is not None:
            text += f"; p={self.p:.3g} ({self.test})"
        return f"{text}; cannot say ({self.undecided})" if self.undecided else text

    def ends(self) -> str:
        """Return the interval as text; what it lacks where there are too few units for one."""
        if self.interval is not None:
            return " to ".join(number_text(x) for x in self.interval)
        return f"too few {self.over}s" if 0 < self.n_units < MIN_UNITS else ""

    def row(self) -> tuple[str, ...]:
        """Return the result as one row of text under `TABLE_HEAD`."""
        if self.value is None:
            return (self.name, f"cannot say: {self.reason}", "", str(self.n), "", "", "")
        return (
            self.name,
            f"{number_text(self.value)} {self.unit}",
            self.ends(),
            f"{self.n} ({self.n_units} {self.over}s)",
            "" if self.p is None else f"{self.p:.3g}",
            "" if self.p_adjusted is None else f"{self.p_adjusted:.3g}",
            ", ".join(f"{k} {number_text(v)}" for k, v in self.controls.items()),
        )

    def _repr_html_(self) -> str:
        from ..card import card

        return card(self.name, head=TABLE_HEAD, rows=[self.row()])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON scalars, lists and objects; NaN becomes null."""
        return plain_json(
            {
                "name": self.name,
                "value": self.value,
                "unit": self.unit,
                "n": self.n,
                "over": self.over,
                "n_units": self.n_units,
                "interval_95": self.interval,
                "controls": self.controls,
                "p": self.p,
                "p_adjusted": self.p_adjusted,
                "test": self.test if self.p is not None else None,
                "found": self.found,
                "undecided": self.undecided,
                "reason": self.reason,
                "details": self.details,
            }
        )


def cannot_say(name: str, reason: str, *, unit: str = "", n: int = 0, over: str = "item") -> Result:
    """Return the honest result of a question that the data cannot answer."""
    return Result(name=name, value=None, unit=unit, n=n, over=over, reason=reason)


def adjusted(results: Sequence[Result]) -> list[Result]:
    """Return the results with `p_adjusted` filled in: one Benjamini-Hochberg family over those with a p."""
    tested = [i for i, result in enumerate(results) if result.p is not None]
    p_values = [results[i].p or 0.0 for i in tested]
    reaches = [results[i].reach for i in tested]
    least = [p if reach is None else min(p, reach.least) for p, reach in zip(p_values, reaches, strict=True)]
    corrected, best = benjamini_hochberg(p_values), best_adjusted(p_values, least)
    out = list(results)
    for at, i in enumerate(tested):
        reach = reaches[at]
        if reach is not None:
            reach = replace(reach, family=len(tested), adjusted=float(best[at]))
        out[i] = replace(out[i], p_adjusted=float(corrected[at]), reach=reach)
    return out


def undecided(results: Sequence[Result]) -> str:
    """Return why "nothing was found" is no answer to questions asked together; "" where it is one.

    It is one where something was found, and where every test could have found something.
    """
    if any(one.found for one in results):
        return ""
    return next((one.undecided for one in results if one.undecided), "")


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return one row of text per result, under `TABLE_HEAD`."""
    return [result.row() for result in results]


def number_text(value: float) -> str:
    """Return a number with three significant places, for people."""
    if not math.isfinite(value):
        return "undefined"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def plain_json(value: Any) -> Any:
    """Return `value` made of JSON's own types; NumPy scalars and arrays are unpacked, NaN and Inf become None."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    if isinstance(value, np.generic):
        return plain_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
