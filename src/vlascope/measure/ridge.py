"""Ridge regression in closed form from running sums, tested on folds that it never saw.

Only sums per fold are kept (of x, y, x xᵀ, x yᵀ, yᵀy), so rows may stream by in any order and any number; leaving a
fold out is a subtraction, and the penalty is chosen on inner folds of the training data without reading a row again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried penalties, relative to the number of rows (channels have unit variance)."""
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

    def add(self, x_nd: NDArray[np.floating], folds: NDArray[np.int64]) -> None:
        """Add rows; call it block by block.

        Raises:
            InputError: NaN or Inf.
        """
        x = np.asarray(x_nd, np.float64)
        if not np.isfinite(x).all():
            raise InputError("features hold NaN or Inf; capture again in float32.")
        self._spectra.clear()
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
            return self._solve(targets, train, (1e-1,))[0]
        errors = np.zeros((len(PENALTIES), n_columns))
        for held in train:
            inner = tuple(f for f in train if f != held)
            errors += [self._error(m, targets, held) for m in self._solve(targets, inner, PENALTIES)]
        chosen = errors.reshape(len(PENALTIES), n_groups, -1).sum(2).argmin(0)
        which = np.repeat(chosen, n_columns // n_groups)
        models = self._solve(targets, train, PENALTIES)
        weights, bias = np.empty((self.d, n_columns)), np.empty(n_columns)
        for i in np.unique(chosen):
            weights[:, which == i], bias[which == i] = (
                models[i].weights[:, which == i],
                models[i].bias[which == i],
            )
        return Linear(weights, bias, PENALTIES[int(chosen[0])])

    def _solve(self, targets: Targets, train: tuple[int, ...], penalties: tuple[float, ...]) -> list[Linear]:
        folds = list(train)
        n, mean = self.n[folds].sum(), self.x[folds].sum(0) / self.n[folds].sum()
        y_mean = targets.y[folds].sum(0) / n
        scale, values, vectors = self._spectrum(train)
        b = (targets.xy[folds].sum(0) - n * np.outer(mean, y_mean)) / n / scale[:, None]
        turned = vectors.T @ b
        out = []
        for penalty in penalties:
            w = vectors @ (turned / (values + penalty)[:, None]) / scale[:, None]
            out.append(Linear(w, y_mean - mean @ w, penalty))
        return out

    def _spectrum(self, train: tuple[int, ...]) -> tuple[NDArray, NDArray, NDArray]:
        if train not in self._spectra:
            folds = list(train)
            n = self.n[folds].sum()
            mean = self.x[folds].sum(0) / n
            cov = self.xx[folds].sum(0) / n - np.outer(mean, mean)
            variance = np.diag(cov).clip(min=0)
            # A channel that does not vary in training must not be blown up on the test folds.
            dead = variance <= 1e-10 * max(float(variance.max()), 1e-30)
            scale = np.where(dead, np.inf, np.sqrt(np.where(dead, 1, variance)))
            values, vectors = np.linalg.eigh(cov / scale[:, None] / scale[None])
            self._spectra[train] = (scale, values.clip(min=0), vectors)
        return self._spectra[train]

    def _error(self, model: Linear, targets: Targets, fold: int) -> NDArray[np.float64]:
        """Sum of squared errors of each column on a fold, from the sums alone."""
        w, b = model.weights, model.bias
        return (
            targets.yy[fold]
            - 2 * (w * targets.xy[fold]).sum(0)
            - 2 * b * targets.y[fold]
            + (w * (self.xx[fold] @ w)).sum(0)
            + 2 * b * (self.x[fold] @ w)
            + self.n[fold] * b**2
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
