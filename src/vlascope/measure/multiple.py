"""Correction for asking many questions at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


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
