"""Ridge regression in closed form from running sums, tested on folds that it never saw.

Only sums per fold are kept (of x, y, x xᵀ, x yᵀ, yᵀy), so rows may stream by in any order and any number; leaving a
fold out is a subtraction, and the penalty is chosen on inner folds of the training data without reading a row again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried penalties, relative to the number of rows (channels have unit variance)."""
FEW_FOLDS = 3
"""Which of them is taken where a single fold of training data leaves none to choose by."""
MAX_SPECTRA = 20
MAX_CHANNELS = 512
"""Wider features are first reduced to that many principal components."""


@dataclass(frozen=True)
class Linear:
    """A fitted map: x @ weights + bias."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    penalty: float

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return predictions [n, c]."""
        return np.asarray(x, np.float64) @ self.weights + self.bias


class FoldedRidge:
    """Sums per fold, and ridge fits on any set of folds.

    Args:
        n_folds: Number of folds.
        n_channels: Width d of the features.
    """

    def __init__(self, n_folds: int, n_channels: int) -> None:
        self.n_folds, self.d = n_folds, n_channels
        self.n = np.zeros(n_folds)
        self.x = np.zeros((n_folds, n_channels))
        self.xx = np.zeros((n_folds, n_channels, n_channels))
        self._spectra: dict[tuple[int, ...], tuple[NDArray, NDArray, NDArray]] = {}
        self._maps: dict[tuple[int, ...], tuple[NDArray, NDArray]] = {}
        self._maps_of: Targets | None = None

    def add(self, x_nd: NDArray[np.floating], folds: NDArray[np.int64]) -> None:
        """Add rows; call it block by block.

        Raises:
            InputError: NaN or Inf.
        """
        x = np.asarray(x_nd, np.float64)
        if not np.isfinite(x).all():
            raise InputError("features hold NaN or Inf; capture again in float32.")
        self._spectra.clear()
        self._maps.clear()
        for fold in np.unique(folds):
            part = x[folds == fold]
            self.n[fold] += len(part)
            self.x[fold] += part.sum(0)
            self.xx[fold] += part.T @ part

    def targets(
        self, x_nd: NDArray[np.floating], y_nc: NDArray[np.floating], folds: NDArray[np.int64]
    ) -> Targets:
        """Return the sums that depend on targets, for one block of rows (add blocks with `+`)."""
        x, y = np.asarray(x_nd, np.float64), np.asarray(y_nc, np.float64)
        xy = np.zeros((self.n_folds, self.d, y.shape[1]))
        sums, yy = (np.zeros((self.n_folds, y.shape[1])) for _ in range(2))
        for fold in np.unique(folds):
            here = folds == fold
            xy[fold] = x[here].T @ y[here]
            sums[fold] = y[here].sum(0)
            yy[fold] = (y[here] ** 2).sum(0)
        return Targets(xy, sums, yy)

    def fit(self, targets: Targets, train: tuple[int, ...], *, n_groups: int = 1) -> Linear:
        """Return ridge on the folds `train`, its penalty chosen by holding each of them out in turn.

        Args:
            targets: Sums of c columns; with several groups, c / n_groups columns each.
            train: Folds to fit on.
            n_groups: Groups of columns that choose their penalty on their own (such as shuffled targets).
        """
        n_columns = targets.y.shape[1]
        if len(train) < 2:
            weights, bias = self._solve(targets, train)
            return Linear(weights[FEW_FOLDS], bias[FEW_FOLDS], PENALTIES[FEW_FOLDS])
        errors = np.zeros((len(PENALTIES), n_columns))
        for held in train:
            inner = tuple(f for f in train if f != held)
            errors += self._errors(*self._solve(targets, inner), targets, held)
        chosen = errors.reshape(len(PENALTIES), n_groups, -1).sum(2).argmin(0)
        which = np.repeat(chosen, n_columns // n_groups)
        weights, bias = self._solve(targets, train)
        columns = np.arange(n_columns)
        return Linear(weights[which, :, columns].T, bias[which, columns], PENALTIES[int(chosen[0])])

    def _solve(
        self, targets: Targets, train: tuple[int, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the maps of all penalties at once: weights [p, d, c] and bias [p, c].

        Those of the last targets are kept: two folds that are left out together are so for either being tested.
        """
        if self._maps_of is not targets:
            self._maps_of = targets
            self._maps.clear()
        if train in self._maps:
            return self._maps[train]
        folds = list(train)
        n = self.n[folds].sum()
        mean, y_mean = self.x[folds].sum(0) / n, targets.y[folds].sum(0) / n
        scale, values, vectors = self._spectrum(train)
        b = (targets.xy[folds].sum(0) - n * np.outer(mean, y_mean)) / n / scale[:, None]
        shrunk = (vectors.T @ b) / (values[:, None] + np.asarray(PENALTIES)[:, None, None])
        weights = vectors @ shrunk / scale[:, None]
        self._maps[train] = (weights, y_mean - mean @ weights)
        return self._maps[train]

    def _spectrum(self, train: tuple[int, ...]) -> tuple[NDArray, NDArray, NDArray]:
        if train not in self._spectra:
            # Cross-validation asks for all as large in turn: many small matrices are solved faster together.
            few = comb(self.n_folds, len(train)) <= MAX_SPECTRA
            self._add_spectra(list(combinations(range(self.n_folds), len(train))) if few else [train])
        return self._spectra[train]

    def _add_spectra(self, trains: list[tuple[int, ...]]) -> None:
        """Scale each channel to unit variance within some folds, and decompose what is left of the covariance."""
        member = np.zeros((len(trains), self.n_folds))
        for row, train in enumerate(trains):
            member[row, list(train)] = 1
        n = np.maximum(member @ self.n, 1)[:, None]
        mean = member @ self.x / n
        cov = np.tensordot(member, self.xx, 1) / n[..., None] - mean[:, :, None] * mean[:, None, :]
        variance = np.diagonal(cov, axis1=1, axis2=2).clip(min=0)
        # A channel that does not vary in training must not be blown up on the test folds.
        dead = variance <= 1e-10 * np.maximum(variance.max(1, keepdims=True), 1e-30)
        scale = np.where(dead, np.inf, np.sqrt(np.where(dead, 1, variance)))
        values, vectors = np.linalg.eigh(cov / scale[:, :, None] / scale[:, None, :])
        found = zip(scale, values.clip(min=0), vectors, strict=True)
        self._spectra.update(zip(trains, found, strict=True))

    def _errors(
        self, weights: NDArray[np.float64], bias: NDArray[np.float64], targets: Targets, fold: int
    ) -> NDArray[np.float64]:
        """Sum of squared errors of each map and column on a fold [p, c], from the sums alone."""
        crossed = self.xx[fold] @ weights - 2 * targets.xy[fold]
        return (
            targets.yy[fold]
            + (weights * crossed).sum(1)
            + 2 * bias * (self.x[fold] @ weights - targets.y[fold])
            + self.n[fold] * bias**2
        )


@dataclass(frozen=True)
class Targets:
    """Sums over rows that involve the targets: x yᵀ [f, d, c], y [f, c], y² [f, c]."""

    xy: NDArray[np.float64]
    y: NDArray[np.float64]
    yy: NDArray[np.float64]

    def __add__(self, other: Targets) -> Targets:
        return Targets(self.xy + other.xy, self.y + other.y, self.yy + other.yy)


class HeldOutRidge:
    """Ridge whose predictions of each row come from folds without it; prepared once for many targets.

    Args:
        features_nd: [n, d]; wider than 512 channels, they are reduced to principal components first (which look at
            no target).
        folds: Fold of each row, at least 2 folds.

    Raises:
        InputError: NaN, constant features, or a single fold.
    """

    def __init__(self, features_nd: NDArray[np.floating], folds: NDArray[np.int64]) -> None:
        x = np.asarray(features_nd, np.float64)
        if not np.isfinite(x).all():
            raise InputError("features hold NaN or Inf; capture again in float32.")
        if not len(x) or not np.ptp(x, axis=0).any():
            raise InputError("features are constant over all observations: they predict nothing.")
        self.folds = np.unique(folds, return_inverse=True)[1].astype(np.int64)
        self.n_folds = int(self.folds.max()) + 1
        if self.n_folds < 2:
            raise InputError("got a single fold; testing out of sample needs at least 2.")
        self.x = reduce_channels(x)
        self.ridge = FoldedRidge(self.n_folds, self.x.shape[1])
        self.ridge.add(self.x, self.folds)

    def predict(
        self, y_nc: NDArray[np.floating], *, n_groups: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (test, train) predictions [n, c]: from the model that held a row out, and the mean over those fitted
        to it. With several groups of columns, each chooses its penalty on its own."""
        y = np.asarray(y_nc, np.float64)
        sums = self.ridge.targets(self.x, y, self.folds)
        test, train = np.empty_like(y), np.zeros_like(y)
        for fold in range(self.n_folds):
            train_folds = tuple(f for f in range(self.n_folds) if f != fold)
            model = self.ridge.fit(sums, train_folds, n_groups=n_groups)
            guess, here = model(self.x), self.folds == fold
            test[here] = guess[here]
            train[~here] += guess[~here] / (self.n_folds - 1)
        return test, train

    __call__ = predict


def reduce_channels(x_nd: NDArray[np.float64], *, n_channels: int = MAX_CHANNELS) -> NDArray[np.float64]:
    """Return rows in at most `n_channels` principal components (unchanged when they are no wider)."""
    if x_nd.shape[1] <= n_channels:
        return x_nd
    x = x_nd - x_nd.mean(0)
    spread = x.std(0)
    x = x / np.where(spread > 0, spread, 1)
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh(x @ x.T)
        return (vectors * np.sqrt(values.clip(min=0)))[:, ::-1][:, :n_channels].copy()
    _, vectors = np.linalg.eigh(x.T @ x)
    return x @ vectors[:, ::-1][:, :n_channels]
