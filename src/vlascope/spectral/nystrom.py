"""NystromNCut: Normalized Cut of any number of tokens, exact when small, by landmarks when large."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .affinity import AffinityFn, centered_mean
from .exact import MAX_EXACT_NODES
from .fitted import place
from .health import MIN_REACH
from .landmark_fit import fit_landmarks
from .rows import Rows, as_rows, require_finite
from .setup import (
    CHUNK_ROWS,
    Outcome,
    Settings,
    draw_sample,
    fit_constant,
    fit_exact,
    fit_kernel,
    n_landmarks_of,
)

DEFAULT_MEMORY = 512 * 2**20


class OutOfReachWarning(UserWarning):
    """Some new tokens are unlike everything that the cut was fitted on."""


class NystromNCut:
    """Normalized Cut of a set of tokens: embeds each token by the leading eigenvectors of their similarity graph.

    Use it on the features of one layer (or on aligned features of several, see `align`) to see which tokens the
    model treats alike. Up to about 10,000 rows all pairs are used; above that, landmarks (k-means centroids and
    the rows that they explain worst) stand for the rows, and every row still counts in the degrees. Follows
    scikit-learn's contract (`fit`, `transform`, `fit_transform`, `get_params`, `set_params`).

    Args:
        n_eig: Eigenvectors to keep, 1 <= n_eig <= n. The first is the trivial one.
        affinity: "rbf": exp(-d²/2 sigma²); "cosine": the same on rows of unit norm; or a function
            ([n, d], [m, d]) -> [n, m] that is symmetric and >= 0 (it gets the rows as they are, no scale).
        scale: "density", or sigma itself in the units of the features.
        density: For scale="density": mean affinity between two tokens, in (0, 1).
        landmarks: "auto" or their number (two thirds centroids, one third residual). Ignored when the cut is exact.
        balance: "density" counts every token; "uniform" gives sparse regions of feature space as much say as
            dense ones (weights against the local density) and averages each row over its nearest points of the
            fit, so that rare concepts are not drowned by the background: groups come out cleaner, while the
            columns are no longer exact eigenvectors of the plain graph.
        seed: Seeds samples and start vectors. Same rows + same seed = same bits on the same machine.
        device: Where to compute; None means where the rows are.
        memory_limit: Bytes of working memory beyond the input and the result; None means 512 MiB. Under a small
            limit the cut streams (and is not exact when 4 n² bytes do not fit).

    Attributes:
        eigenvalues_: float64 [n_eig], falling, in [0, 1]; the first is 1 (very close to it under Nystrom).
        sigma_: The scale used; None for a custom affinity.
        health_: Read-outs about the graph, see `Health`.
        n_features_in_: Width of the fitted rows.

    Cost: exact O(n² (d + n_eig)); Nystrom O(n m (d + 2 m)) with m landmarks.
    References: Shi and Malik 2000; Fowlkes, Belongie, Chung and Malik 2004 (Nystrom); Zhang, Tsang and Kwok 2008
    (k-means landmarks); recipe and measurements in `benchmarks/spectral.py`.
    """

    _PARAMS = (
        "n_eig",
        "affinity",
        "scale",
        "density",
        "landmarks",
        "balance",
        "seed",
        "device",
        "memory_limit",
    )

    def __init__(
        self,
        n_eig: int = 20,
        *,
        affinity: str | AffinityFn = "rbf",
        scale: str | float = "density",
        density: float = 0.05,
        landmarks: str | int = "auto",
        balance: str = "density",
        seed: int = 0,
        device: str | torch.device | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self.n_eig = n_eig
        self.affinity = affinity
        self.scale = scale
        self.density = density
        self.landmarks = landmarks
        self.balance = balance
        self.seed = seed
        self.device = device
        self.memory_limit = memory_limit

    # ------------------------------------------------------------------ scikit-learn's contract

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: getattr(self, name) for name in self._PARAMS}

    def set_params(self, **params: Any) -> NystromNCut:
        """Set constructor arguments by name and return self."""
        for name, value in params.items():
            if name not in self._PARAMS:
                raise InputError(f"NystromNCut has no parameter '{name}'; it has {', '.join(self._PARAMS)}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"NystromNCut({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def fit(self, X: Any, y: None = None, *, weights: Any = None) -> NystromNCut:
        """Fit the cut; see `fit_transform`. Nothing of an earlier fit is kept."""
        self.fit_transform(X, weights=weights)
        return self

    def fit_transform(self, X: Any, y: None = None, *, weights: Any = None) -> Any:
        """Return the eigenvectors of the rows.

        Args:
            X: [n, d] numpy, torch, memory-mapped or Zarr array, a list of such, an iterator of chunks, or a
                function that returns one; float16 to float64.
            y: Ignored (scikit-learn's contract).
            weights: [n] numbers > 0, how much each row counts (its image area, for mixed resolutions).

        Returns:
            float32 [n, n_eig], columns by falling eigenvalue; columns whose eigenvalue is 0 are 0. Unit norm over
            the (weighted) rows. A torch tensor when X is one, else numpy.

        Raises:
            InputError: NaN or Inf (the rows are named), empty, n_eig > n, not two axes, bad parameters.
        """
        rows = as_rows(X)
        self._check(rows)
        device = self._device(rows)
        w = _weights(weights, rows.n)
        outcome = _fit(rows, self._settings(), w, device)
        self._fitted = outcome.fitted
        self.n_features_in_ = rows.d
        self.sigma_ = outcome.health.sigma
        self.eigenvalues_ = outcome.eigenvalues
        self.health_ = outcome.health
        return outcome.eigvecs.to(device) if rows.is_torch else outcome.eigvecs.cpu().numpy()

    def transform(self, X: Any, *, return_reach: bool = False) -> Any:
        """Return the eigenvectors at new rows, by the same formula as `fit`.

        Rows that are farther than 3 sigma from everything fitted are out of reach: their entries are NaN (never
        noise), with one warning.

        Args:
            X: [b, d] in any form that `fit_transform` takes.
            return_reach: Also return bool [b]: which rows are within reach.

        Returns:
            float32 [b, n_eig], or that and the bool array.

        Raises:
            InputError: not fitted, another width, NaN or Inf.

        Cost: O(b m (d + r)) with m landmarks, r <= m; O(b n d) after an exact fit.
        """
        if not hasattr(self, "_fitted"):
            raise InputError("this NystromNCut is not fitted; call fit(X) or fit_transform(X) first.")
        rows = as_rows(X)
        if rows.d != self.n_features_in_:
            raise InputError(
                f"got rows of width {rows.d}; this cut was fitted on width {self.n_features_in_}."
            )
        fitted = self._fitted
        device = fitted.points.device
        out = torch.empty((rows.n, fitted.to_eig.shape[1]), dtype=torch.float32)
        reach = torch.ones(rows.n, dtype=torch.bool)
        for start, stop, raw in rows.chunks(2048 if fitted.white is None else CHUNK_ROWS):
            require_finite(raw, start)
            x = fitted.kernel.prepare(raw.to(device))
            values, _, nearest = place(fitted, x)
            far = nearest < MIN_REACH
            if fitted.kernel.fn is not None:
                far = nearest <= 0
            values[far] = torch.nan
            out[start:stop], reach[start:stop] = values.cpu(), ~far.cpu()
        n_far = int((~reach).sum())
        if n_far and not return_reach:
            warnings.warn(
                f"{n_far} of {rows.n} rows are unlike everything that the cut was fitted on (farther than 3 sigma "
                "from every landmark); their eigenvectors are NaN.",
                OutOfReachWarning,
                stacklevel=2,
            )
        result = out.to(device) if rows.is_torch else out.numpy()
        flags = reach.to(device) if rows.is_torch else reach.numpy()
        return (result, flags) if return_reach else result

    # ------------------------------------------------------------------ checks

    def _check(self, rows: Rows) -> None:
        if not isinstance(self.n_eig, (int, np.integer)) or self.n_eig < 1:
            raise InputError(f"got n_eig={self.n_eig!r}; need a whole number >= 1.")
        if self.n_eig > rows.n:
            raise InputError(f"got n_eig={self.n_eig} but only {rows.n} rows; need n_eig <= {rows.n}.")
        if not callable(self.affinity) and self.affinity not in ("rbf", "cosine"):
            raise InputError(f"got affinity={self.affinity!r}; need 'rbf', 'cosine' or a function.")
        if isinstance(self.scale, str):
            if self.scale != "density":
                raise InputError(f"got scale={self.scale!r}; need 'density' or sigma > 0.")
        elif not (np.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"got scale={self.scale!r}; need 'density' or sigma > 0.")
        if not 0 < self.density < 1:
            raise InputError(f"got density={self.density!r}; need a number between 0 and 1 (default 0.05).")
        if self.balance not in ("density", "uniform"):
            raise InputError(f"got balance={self.balance!r}; need 'density' or 'uniform'.")
        if self.landmarks != "auto" and (isinstance(self.landmarks, str) or self.landmarks < 2):
            raise InputError(f"got landmarks={self.landmarks!r}; need 'auto' or a number >= 2.")

    def _settings(self) -> Settings:
        return Settings(
            n_eig=int(self.n_eig),
            affinity=self.affinity,
            scale=self.scale,
            density=float(self.density),
            landmarks=self.landmarks,
            balance=self.balance,
            seed=int(self.seed),
            memory_limit=DEFAULT_MEMORY if self.memory_limit is None else int(self.memory_limit),
        )

    def _device(self, rows: Rows) -> torch.device:
        if self.device is not None:
            return torch.device(self.device)
        return rows.read(0, 1).device if rows.is_torch else torch.device("cpu")


def _fit(rows: Rows, settings: Settings, w: Tensor | None, device: torch.device) -> Outcome:
    n_landmarks = n_landmarks_of(settings, rows.n)
    sample = draw_sample(rows, n_landmarks, seed=settings.seed, device=device)
    kernel = fit_kernel(rows, sample, settings, device)
    if kernel is None:
        return fit_constant(rows, settings.n_eig, device, centered_mean(sample, settings.affinity))
    if rows.n <= MAX_EXACT_NODES and 4 * rows.n**2 <= settings.memory_limit:
        return fit_exact(rows, kernel, settings, w, device)
    handed_over = [
        kernel.prepare(sample)
    ]  # a list, so that the sample's memory is free once it is not needed
    del sample
    return fit_landmarks(rows, kernel, handed_over, n_landmarks, settings, w, device)


def _weights(weights: Any, n: int) -> Tensor | None:
    """Return weights as float64 [n] with mean 1, or None."""
    if weights is None:
        return None
    w = torch.as_tensor(
        np.asarray(weights.cpu() if isinstance(weights, Tensor) else weights, dtype=np.float64)
    )
    if w.shape != (n,):
        raise InputError(f"got weights of shape {tuple(w.shape)}; need one per row: ({n},).")
    if not bool(torch.isfinite(w).all()) or not bool((w > 0).all()):
        raise InputError("weights must be finite and > 0; leave rows out instead of giving them weight 0.")
    return w / w.mean()
