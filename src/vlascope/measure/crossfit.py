"""How well features tell classes or numbers apart, linearly and out of sample: ridge, whole units held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .resample import (
    MIN_UNITS,
    N_PERMUTATIONS,
    Scheme,
    Units,
    bootstrap_weights,
    n_unchanged,
    share_interval,
    shuffled,
    summarise_null,
)
from .result import Result, cannot_say

N_FOLDS = 5
RIDGE = 0.1
"""Penalty, in units of one standardised row's squared length: mild, and the same for every layer."""
MAX_ROWS = 2_000


def unit_folds(units: Units, *, n_folds: int = N_FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold of each observation; a unit lies wholly in one fold.

    Folds do not look at labels: shuffled labels then meet the same folds as the true ones, which keeps the
    permutation test exact.

    Args:
        units: Unit of each observation.
        n_folds: At most; never more than units.
        seed: Seeds the assignment.

    Raises:
        InputError: fewer than two units.
    """
    if units.n < 2:
        raise InputError(
            f"got {units.n} {units.over}; testing out of sample needs at least 2 (train and test)."
        )
    rng = np.random.default_rng(seed)
    fold_of_unit = rng.permutation(np.arange(units.n) % min(n_folds, units.n))
    return fold_of_unit[units.ids]


class CrossFit:
    """Ridge regression with held-out folds, prepared once for many targets (such as shuffled labels).

    Args:
        features_nd: [n, d], n at most a few thousand.
        folds: Fold of each row.
        ridge: Penalty relative to the mean squared length of a standardised row.

    Raises:
        InputError: NaN, or constant features.

    Cost: one n x n factorisation per fold; then O(n² c) per target matrix.
    """

    def __init__(
        self, features_nd: NDArray[np.floating], folds: NDArray[np.int64], *, ridge: float = RIDGE
    ) -> None:
        x = np.asarray(features_nd, np.float64)
        if not np.isfinite(x).all():
            raise InputError("features hold NaN or Inf; capture again in float32.")
        if not len(x) or not np.ptp(x, axis=0).any():
            raise InputError("features are constant over all observations: they can tell nothing apart.")
        self.folds, self._hats = folds, []
        for fold in np.unique(folds):
            test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
            mean, spread = x[train].mean(0), x[train].std(0)
            varies = spread > 1e-9 * max(float(spread.max()), 1e-30)
            scale = np.where(varies, spread, 1.0) * np.sqrt(max(int(varies.sum()), 1))
            z = (x - mean) / scale * varies
            gram = z[train] @ z[train].T
            gram[np.diag_indices_from(gram)] += ridge
            hat = np.linalg.solve(gram, z[train] @ z[test].T).T
            self._hats.append((test, train, hat))

    def predict(self, targets_nc: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return out-of-fold predictions [n, c]; each from rows of other folds only."""
        y = np.asarray(targets_nc, np.float64)
        out = np.empty_like(y)
        for test, train, hat in self._hats:
            mean = y[train].mean(0)
            out[test] = mean + hat @ (y[train] - mean)
        return out

    def classify(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return out-of-fold classes; every class weighs the same, however rare."""
        counts = np.bincount(codes)
        return self.predict(np.eye(len(counts))[codes] / np.maximum(counts, 1)).argmax(1)


def balanced_accuracy(
    truth: NDArray[np.int64],
    guess: NDArray[np.int64],
    *,
    n_classes: int,
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Return the mean over classes of the share of its rows that were recognised; chance is 1 / n_classes."""
    w = np.ones(len(truth)) if weights is None else weights
    hits = np.bincount(truth, w * (truth == guess), minlength=n_classes)
    sizes = np.bincount(truth, w, minlength=n_classes)
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(np.where(sizes > 0, hits / sizes, np.nan))) if sizes.any() else float("nan")


@dataclass(frozen=True)
class Question:
    """A class label of observations, to be asked of several feature sets.

    Attributes:
        name: What is asked.
        codes: int64 [n], 0..c-1.
        names: The classes.
        units: Unit of each observation.
        scheme: How labels are shuffled, see `resample.shuffled`.
    """

    name: str
    codes: NDArray[np.int64]
    names: tuple[str, ...]
    units: Units
    scheme: Scheme = "auto"


@dataclass(frozen=True)
class Reading:
    """How well classes were read, and which rows were: what two layers' readings are compared by.

    Attributes:
        result: The balanced accuracy with its controls.
        codes: int64 [n], the class of each row that was read; empty where nothing can be said.
        guess: int64 [n], what was read.
        units: Unit of each row.
    """

    result: Result
    codes: NDArray[np.int64]
    guess: NDArray[np.int64]
    units: Units


def separability(
    features_nd: NDArray[np.floating],
    question: Question,
    *,
    name: str,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> Result:
    """Return the result of `read_classes`."""
    return read_classes(features_nd, question, name=name, n_permutations=n_permutations, seed=seed).result


def read_classes(
    features_nd: NDArray[np.floating],
    question: Question,
    *,
    name: str,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> Reading:
    """Return how well a linear reader of held-out units tells the classes apart.

    Balanced accuracy of ridge on class indicators, 5 folds of whole units; the p-value shuffles labels between
    units (or within them, where labels vary there) and reads again. At most 2,000 rows are sampled.

    Args:
        features_nd: [n, d].
        question: The label of each row.
        name: Name of the result.
        n_permutations: Shuffles.
        seed: Seeds folds, shuffles and bootstrap.

    Returns:
        The result, "cannot say" with fewer than 5 units, with one class, or for constant features; and the guesses.
    """
    unit_text = "balanced accuracy"
    n = len(question.codes)
    units, codes = question.units, question.codes
    n_classes = len(question.names)
    over = units.over
    x = np.asarray(features_nd)
    reason = ""
    if len(np.unique(codes)) < 2:
        reason = "the label has a single class"
    elif units.n < MIN_UNITS:
        reason = f"{units.n} independent {over}s; need at least {MIN_UNITS}"
    elif not np.ptp(x, axis=0).any():
        reason = "constant features"
    if reason:
        none = np.zeros(0, np.int64)
        return Reading(
            cannot_say(name, reason, unit=unit_text, n=n, over=over), none, none, Units(none, over)
        )
    rows = np.arange(n)
    if n > MAX_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(n, MAX_ROWS, replace=False))
        x, codes, units = x[rows], codes[rows], units.take(rows)
    fit = CrossFit(x, unit_folds(units, seed=seed))
    guess = fit.classify(codes)
    value = balanced_accuracy(codes, guess, n_classes=n_classes)
    rng = np.random.default_rng([seed, 1])
    others = [shuffled(codes, units, scheme=question.scheme, rng=rng) for _ in range(n_permutations)]
    test = summarise_null(
        value,
        _null_accuracies(fit, np.stack(others), n_classes=n_classes),
        n_same=n_unchanged(codes, others),
    )
    result = Result(
        name=name,
        value=value,
        unit=unit_text,
        n=len(rows),
        over=over,
        n_units=units.n,
        interval=share_interval(codes == guess, units, strata=codes),
        controls={"chance": 1 / n_classes, "shuffled labels": test.null_mean},
        p=test.p,
        reach=test.reach,
        details={"classes": list(question.names), "sampled": len(rows) / n, "shuffles": n_permutations},
    )
    return Reading(result, codes, guess, units)


def reading_loss(
    before: Reading, after: Reading, *, n_compared: int = 1, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % interval of what a later reading loses: balanced accuracy before minus after.

    Units are resampled in pairs, the same ones for both, so that what both find hard cancels. A layer that is not
    separable is not yet worse than one that is; one whose interval lies above 0 is. The interval is Student's with
    the spread of the resamples: their percentiles end at 0 where the later layer misses a few units more and none
    less, however few these are.

    Args:
        before: Reading of one layer.
        after: Reading of another layer of the same rows.
        n_compared: How many comparisons are made at once: the interval is widened for them (Bonferroni).
        seed: Seeds the resampling.

    Returns:
        The interval; None where the rows differ or nothing was read.
    """
    same = np.array_equal(before.codes, after.codes) and np.array_equal(before.units.ids, after.units.ids)
    if not same or not len(before.codes):
        return None
    n_classes = int(before.codes.max()) + 1
    draws = [
        _accuracy_draws(one.codes, one.guess, one.units, n_classes=n_classes, seed=seed)
        for one in (before, after)
    ]
    from scipy.stats import t

    n = before.units.n
    first, last = (balanced_accuracy(one.codes, one.guess, n_classes=n_classes) for one in (before, after))
    spread = float(np.nanstd(draws[0] - draws[1])) * np.sqrt(n / (n - 1))
    reach = spread * float(t.ppf(1 - 0.025 / n_compared, n - 1))
    return first - last - reach, first - last + reach


def _null_accuracies(fit: CrossFit, codes_pn: NDArray[np.int64], *, n_classes: int) -> NDArray[np.float64]:
    """Return the balanced accuracy of each row of shuffled labels; `fit.classify` for many at once."""
    out = np.empty(len(codes_pn))
    step = max(1, 4_000_000 // (codes_pn.shape[1] * n_classes))
    for start in range(0, len(codes_pn), step):
        codes = codes_pn[start : start + step]
        one_hot = np.eye(n_classes)[codes]  # [p, n, c]
        sizes = one_hot.sum(1, keepdims=True)
        targets = one_hot / np.maximum(sizes, 1)
        flat = fit.predict(targets.transpose(1, 0, 2).reshape(codes.shape[1], -1))
        guess = flat.reshape(codes.shape[1], len(codes), n_classes).argmax(2).T
        hits = (one_hot * (guess == codes)[:, :, None]).sum(1)
        present = sizes[:, 0] > 0
        out[start : start + step] = (hits / np.maximum(sizes[:, 0], 1)).sum(1) / present.sum(1)
    return out


def _accuracy_draws(
    codes: NDArray[np.int64], guess: NDArray[np.int64], units: Units, *, n_classes: int, seed: int
) -> NDArray[np.float64]:
    """Return draws of `balanced_accuracy`, resampling whole units; classes that a draw lacks are left out."""
    sizes, hits = np.zeros((units.n, n_classes)), np.zeros((units.n, n_classes))
    np.add.at(sizes, (units.ids, codes), 1)
    np.add.at(hits, (units.ids, codes), codes == guess)
    draws = bootstrap_weights(units.n, seed=seed)
    with np.errstate(invalid="ignore"):
        shares = (draws @ hits) / (draws @ sizes)
    return np.nanmean(shares, axis=1)
