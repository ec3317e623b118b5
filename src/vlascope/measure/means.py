"""The mean of one number per item as a result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .resample import Units, bootstrap_mean
from .result import Result, cannot_say


def mean_result(
    name: str,
    values: NDArray[np.floating],
    units: Units,
    *,
    unit: str,
    reason: str = "it applies to none of the items",
    seed: int = 0,
    **more: Any,
) -> Result:
    """Return the mean of one number per item with its interval over independent units.

    Args:
        name: What was measured.
        values: [n]; NaN where it does not apply.
        units: Unit of each value.
        unit: Unit of the values.
        reason: Why nothing can be said where all values are NaN.
        seed: Seeds the bootstrap.
        more: Further fields of the result, such as `controls`.
    """
    known = np.isfinite(values)
    if not known.any():
        return cannot_say(name, reason, unit=unit, n=0, over=units.over)
    here = units.take(np.flatnonzero(known))
    return Result(
        name=name,
        value=float(values[known].mean()),
        unit=unit,
        n=int(known.sum()),
        over=units.over,
        n_units=here.n,
        interval=bootstrap_mean(values[known], here, seed=seed),
        **more,
    )
