"""How a probe's guesses are scored: R² of numbers, balanced accuracy of classes, their intervals over units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .crossfit import balanced_accuracy
from .resample import Units, bootstrap_weights, percentile_interval, share_interval

Choices = Literal["all", "unit"]


def classes_of_units(y_nc: NDArray[np.floating], units: Units) -> NDArray[np.bool_]:
    """Return for each row which classes occur in its unit, bool [n, c]."""
    there = np.zeros((units.n, y_nc.shape[1]))
    np.add.at(there, units.ids, y_nc)
    return (there > 0)[units.ids]


class ProbeScore:
    """Scores of predictions: R² over the training folds' mean (averaged over outputs), or balanced accuracy.

    Args:
        y: [n, c] numbers, or class indicators.
        folds: Fold of each row.
        units: Unit of each row.
        is_class: Whether columns are class indicators.
        choices: Whether a class is chosen among all, or among those that occur in the row's unit.
    """

    def __init__(
        self,
        y: NDArray[np.float64],
        folds: NDArray[np.int64],
        units: Units,
        *,
        is_class: bool,
        choices: Choices = "all",
    ) -> None:
        self.folds, self.units, self.is_class = folds, units, is_class
        self.allowed = classes_of_units(y, units) if choices == "unit" else None
        self.spread = np.where(y.std(0) > 0, y.std(0), 1.0)

    def inputs(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the model is fitted to: classes weigh the same, numbers have unit variance."""
        return y / np.maximum(y.sum(0), 1) * len(y) if self.is_class else y / self.spread

    def chosen(self, guess: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the class that a guess means."""
        return (guess if self.allowed is None else np.where(self.allowed, guess, -np.inf)).argmax(1)

    def _errors(
        self, y: NDArray[np.float64], guess: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        z = y / self.spread
        base = np.empty_like(z)
        for fold in np.unique(self.folds):
            here = self.folds == fold
            base[here] = z[~here].mean(0)
        return (z - guess) ** 2, (z - base) ** 2

    def test(self, y: NDArray[np.float64], guess: NDArray[np.float64]) -> float:
        if self.is_class:
            return balanced_accuracy(y.argmax(1), self.chosen(guess), n_classes=y.shape[1])
        error, base = self._errors(y, guess)
        return float(np.mean(1 - error.sum(0) / base.sum(0)))

    def train(self, y: NDArray[np.float64], guess: NDArray[np.float64]) -> float:
        if self.is_class:
            return balanced_accuracy(y.argmax(1), self.chosen(guess), n_classes=y.shape[1])
        z = y / self.spread
        return float(np.mean(1 - ((z - guess) ** 2).sum(0) / ((z - z.mean(0)) ** 2).sum(0)))

    def interval(
        self, y: NDArray[np.float64], guess: NDArray[np.float64], *, seed: int
    ) -> tuple[float, float] | None:
        """Return the 95 % interval of the score over other held-out units, read by these fits.

        The predictions are fixed: units are resampled, the probe is not fitted again. So the interval says how far the
        score depends on which units were tested, not how far it would move with other units to fit; with few units the
        second is the larger. Percentiles are widened as Student's t for the number of units.
        """
        units = self.units
        if self.is_class:
            codes = y.argmax(1)
            return share_interval(codes == self.chosen(guess), units, strata=codes)
        top, bottom = self._errors(y, guess)
        draws = bootstrap_weights(units.n, seed=seed)
        tops, bottoms = (np.zeros((units.n, y.shape[1])) for _ in range(2))
        np.add.at(tops, units.ids, top)
        np.add.at(bottoms, units.ids, bottom)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (draws @ tops) / (draws @ bottoms)
        return percentile_interval(1 - share.mean(1), n_units=units.n, bounds=(-np.inf, 1))

    def per_output(
        self, y: NDArray[np.float64], guess: NDArray[np.float64], outputs: Sequence[str]
    ) -> dict[str, float]:
        if self.is_class:
            hit = y.argmax(1) == self.chosen(guess)
            return {name: float(hit[y[:, j] > 0].mean()) for j, name in enumerate(outputs)}
        error, base = self._errors(y, guess)
        return {name: float(1 - error[:, j].sum() / base[:, j].sum()) for j, name in enumerate(outputs)}

    def rmse(
        self, y: NDArray[np.float64], guess: NDArray[np.float64], outputs: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        error, base = (np.sqrt(e.mean(0)) * self.spread for e in self._errors(y, guess))
        return {name: (float(error[j]), float(base[j])) for j, name in enumerate(outputs)}
