"""NystromNCut: Normalized Cut of any number of tokens, exact when small, by landmarks when large."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from . import landmarks as _landmarks
from ._linalg import eigh_falling
from .affinity import MAX_SCALE_ROWS, AffinityFn, Kernel, centered, density_sigma
from .balance import uniform_weights
from .exact import MAX_EXACT_NODES, exact_cut, extend
from .health import MIN_REACH, NEAR_ONE, Health, notes_for
from .rows import Rows, as_rows

log = logging.getLogger(__name__)

CHUNK_ROWS = 8192
DEFAULT_MEMORY = 512 * 2**20
MANY_EIG = 32
"""Up to this many eigenvectors 256 + 256 landmarks do; above, 512 + 512."""


class OutOfReachWarning(UserWarning):
    """Some new tokens are unlike everything that the cut was fitted on."""


@dataclass(frozen=True)
class _Fitted:
    """What places a token in the cut: f(x) = K(x, points) `to_eig` / sqrt(degree(x))."""

    kernel: Kernel
    points: Tensor  # prepared landmarks, or all rows in exact mode
    is_exact: bool
    to_white: Tensor | None  # W, [m, r] float32; None in exact mode
    degree_of: Tensor | None  # s, [r]; None in exact mode
    to_eig: Tensor  # [r, k], or [n, k] in exact mode
    weights: Tensor | None  # weights of the fitted rows, exact mode only
    constant_row: float | None = None  # value of the trivial vector when all rows coincide


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
        landmarks: "auto" or their number (half centroids, half residual). Ignored when the cut is exact.
        balance: "density" counts every token; "uniform" gives sparse regions of feature space as much say as
            dense ones, so that rare concepts are not drowned by the background.
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
        fitted, eigvecs, values, health = _fit(rows, self, w, device)
        self._fitted = fitted
        self.n_features_in_ = rows.d
        self.sigma_ = health.sigma
        self.eigenvalues_ = values
        self.health_ = health
        return eigvecs.to(device) if rows.is_torch else eigvecs.cpu().numpy()

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
        for start, stop, raw in rows.chunks(2048 if fitted.is_exact else CHUNK_ROWS):
            _require_finite(raw, start)
            x = fitted.kernel.prepare(raw.to(device))
            values, nearest = _place(fitted, x)
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

    def _device(self, rows: Rows) -> torch.device:
        if self.device is not None:
            return torch.device(self.device)
        return rows.read(0, 1).device if rows.is_torch else torch.device("cpu")


# ---------------------------------------------------------------------- fitting


def _fit(
    rows: Rows, params: NystromNCut, w: Tensor | None, device: torch.device
) -> tuple[_Fitted, Tensor, NDArray[np.float64], Health]:
    limit = DEFAULT_MEMORY if params.memory_limit is None else int(params.memory_limit)
    is_exact = rows.n <= MAX_EXACT_NODES and 4 * rows.n**2 <= limit
    n_landmarks = _n_landmarks(params, rows.n)
    sample = _sample(rows, n_landmarks, seed=params.seed, device=device)
    kernel = _kernel(rows, sample, params, device)
    if kernel is None:
        return _constant(rows, params.n_eig, w, device, centered_mean(sample, params.affinity))
    if is_exact:
        return _fit_exact(rows, kernel, params, w, device)
    return _fit_nystrom(rows, kernel, sample, n_landmarks, params, w, device, limit)


def _n_landmarks(params: NystromNCut, n: int) -> int:
    if params.landmarks != "auto":
        wanted = int(params.landmarks)
        if wanted < params.n_eig:
            raise InputError(
                f"got landmarks={wanted} for n_eig={params.n_eig}; need at least n_eig landmarks."
            )
    else:
        wanted = 512 if params.n_eig <= MANY_EIG else 1024 if params.n_eig <= 256 else 4 * params.n_eig
    return min(wanted, n)


def _sample(rows: Rows, n_landmarks: int, *, seed: int, device: torch.device) -> Tensor:
    """Return a uniform sample of raw rows for mean, scale and centroids, in row order."""
    rng = np.random.default_rng(seed)
    n_sample = min(rows.n, max(MAX_SCALE_ROWS, _landmarks.CANDIDATES_PER_CENTROID * (n_landmarks // 2)))
    index = (
        np.sort(rng.choice(rows.n, size=n_sample, replace=False)) if n_sample < rows.n else np.arange(rows.n)
    )
    found = rows.take(index.astype(np.int64))
    _require_finite(found, index)
    return found.to(device)


def centered_mean(sample: Tensor, affinity: str | AffinityFn) -> Tensor:
    """Return the mean of sampled rows, float64 [d] (of their unit vectors for "cosine")."""
    x = sample.double()
    if affinity == "cosine":
        x = x / x.norm(dim=1, keepdim=True).clamp_(min=1e-300)
    return x.mean(0)


def _kernel(rows: Rows, sample: Tensor, params: NystromNCut, device: torch.device) -> Kernel | None:
    """Return the fitted kernel; None when all rows coincide."""
    if callable(params.affinity):
        return Kernel(
            "custom", None, torch.zeros(rows.d, dtype=torch.float64, device=device), params.affinity
        )
    kind = str(params.affinity)
    mean = centered_mean(sample, kind)
    if not isinstance(params.scale, str):
        return Kernel(kind, float(params.scale), mean)
    step = max(1, len(sample) // MAX_SCALE_ROWS)
    sigma = density_sigma(
        centered(sample[::step][:MAX_SCALE_ROWS], kind=kind, mean=mean), density=params.density
    )
    if sigma == 0.0:
        sigma = _rare_sigma(rows, kind, mean, params.density, device)
    return None if sigma == 0.0 else Kernel(kind, sigma, mean)


def _rare_sigma(rows: Rows, kind: str, mean: Tensor, density: float, device: torch.device) -> float:
    """Return the scale from the rows that differ, when the whole sample coincides; 0.0 when none does."""
    different: list[Tensor] = []
    n_found = 0
    size = float(mean.abs().max()) + 1e-300
    for start, _, raw in rows.chunks(CHUNK_ROWS):
        _require_finite(raw, start)
        x = centered(raw.to(device), kind=kind, mean=mean)
        odd = x[x.abs().amax(1) > 1e-5 * size]
        if len(odd):
            different.append(odd)
            n_found += len(odd)
        if n_found >= MAX_SCALE_ROWS:
            break
    if not different:
        return 0.0
    return density_sigma(
        torch.cat([torch.zeros_like(different[0][:1]), *different])[:MAX_SCALE_ROWS], density=density
    )


def _constant(
    rows: Rows, n_eig: int, w: Tensor | None, device: torch.device, mean: Tensor
) -> tuple[_Fitted, Tensor, NDArray[np.float64], Health]:
    """Return the one right answer for rows that all coincide: the trivial vector, and zeros."""
    if rows.n > 1:
        warnings.warn(
            "all rows coincide: only the trivial eigenvector is left, the others are 0.", stacklevel=4
        )
    value = rows.n**-0.5
    eigvecs = torch.zeros((rows.n, n_eig), dtype=torch.float32)
    eigvecs[:, 0] = value
    values = np.zeros(n_eig)
    values[0] = 1.0
    kernel = Kernel("rbf", 1.0, mean)
    to_eig = torch.zeros((1, n_eig), device=device)
    to_eig[0, 0] = value
    point = torch.zeros((1, rows.d), device=device)
    fitted = _Fitted(kernel, point, True, None, None, to_eig, None, constant_row=value)
    note = "all rows coincide; there is nothing to cut."
    health = Health(
        mode="constant",
        n=rows.n,
        n_landmarks=1,
        sigma=None,
        mean_affinity=1.0,
        lambda2=0.0,
        n_components=1,
        far_share=0.0,
        notes=(note,),
    )
    return fitted, eigvecs, values, health


def _fit_exact(
    rows: Rows, kernel: Kernel, params: NystromNCut, w: Tensor | None, device: torch.device
) -> tuple[_Fitted, Tensor, NDArray[np.float64], Health]:
    prepared = []
    for start, _, raw in rows.chunks(CHUNK_ROWS):
        _require_finite(raw, start)
        prepared.append(kernel.prepare(raw.to(device)))
    x = torch.cat(prepared)
    is_uniform = params.balance == "uniform"
    eigvecs, values, degree, own = exact_cut(
        x, kernel, n_eig=params.n_eig, weights=w, seed=params.seed, is_uniform=is_uniform
    )
    eigvecs, values = _settle(eigvecs, values)
    safe = torch.where(values > 0, values, torch.inf).to(device, torch.float32)
    to_eig = eigvecs * (own.float() / degree.sqrt())[:, None] / safe
    used = own if is_uniform or w is not None else None
    fitted = _Fitted(kernel, x, True, None, None, to_eig, used)
    mean_affinity = float((degree.double() * own).sum() - (own * own).sum()) / max(
        float(own.sum() ** 2 - (own * own).sum()), 1e-300
    )
    health = _health("exact", rows.n, rows.n, kernel, mean_affinity if rows.n > 1 else 0.0, values, 0.0)
    return fitted, eigvecs, values.numpy(), health


def _fit_nystrom(
    rows: Rows,
    kernel: Kernel,
    sample: Tensor,
    n_landmarks: int,
    params: NystromNCut,
    w: Tensor | None,
    device: torch.device,
    limit: int,
) -> tuple[_Fitted, Tensor, NDArray[np.float64], Health]:
    """Nystrom cut: every row in the degrees and in the Gram matrix, m landmarks in the kernel.

    With C = K(x, Z), M = K(Z, Z), F = C M^-1/2: K is F F'; degrees q = F (F' w) + the unexplained part of the own
    affinity; the eigenproblem of D^-1/2 F F' D^-1/2 is that of the small F' D^-1 F.
    """
    n = rows.n
    is_custom = kernel.fn is not None
    n_first = n_landmarks if is_custom else (n_landmarks + 1) // 2
    candidates = kernel.prepare(sample)
    centers, shares = _landmarks.centroids(candidates, n_first, seed=params.seed, medoids=is_custom)
    counts = (shares * n).float()
    n_cached = n * n_landmarks * 4
    cache = torch.empty((n, n_landmarks), dtype=torch.float32, device=device) if n_cached <= limit else None

    # Pass 1: which rows do the centroids explain worst? (Also the first look at every row: NaN, Inf.)
    far_rows, crowd = _worst_rows(
        rows, kernel, centers, counts, device, cache, n_keep=4 * (n_landmarks - n_first)
    )
    if params.balance == "uniform":
        w = uniform_weights(crowd, w)
    points = centers
    if len(far_rows):
        worst = kernel.prepare(rows.take(far_rows).to(device))
        picks = _landmarks.pick_residual(worst, centers, counts, kernel, n_picks=n_landmarks - n_first)
        points = torch.cat([centers.float(), worst[picks].float()])
    white = _landmarks.whitener(points, kernel).float()

    # Pass 2: F, its weighted column sums, and how near the nearest landmark is.
    m, r, n_centers = len(points), white.shape[1], len(centers)
    total = torch.zeros(r, dtype=torch.float64, device=device)
    n_far = 0
    for start, stop, block in _blocks(rows, kernel, points, device, cache, n_done=n_centers):
        n_far += int((block.max(1).values < MIN_REACH).sum())
        features = block @ white
        if cache is not None:
            cache[start:stop, :r] = features
        own = None if w is None else w[start:stop].to(device, torch.float32)
        total += (features if own is None else features * own[:, None]).sum(0).double()

    # Pass 3: degrees and the Gram matrix.
    total32 = total.float()
    gram = torch.zeros((r, r), dtype=torch.float64, device=device)
    affinity_sum = 0.0
    degrees = torch.empty(n, dtype=torch.float32, device=device)
    for start, stop, features in _features(rows, kernel, points, white, device, cache, r):
        own = None if w is None else w[start:stop].to(device, torch.float32)
        degree = _degree(features, total32, own, is_custom)
        degrees[start:stop] = degree
        scaled = features * (degree.reciprocal() if own is None else own / degree).sqrt()[:, None]
        gram += (scaled.T @ scaled).double()
        affinity_sum += float((degree if own is None else degree * own).sum(dtype=torch.float64))

    values, mix = _solve(gram.cpu(), total.cpu(), params.n_eig)
    scale = torch.where(values > 0, values.clamp(min=1e-300).rsqrt(), 0.0)
    to_eig = (mix * scale).to(device, torch.float32)

    # Pass 4: the eigenvectors.
    eigvecs = torch.empty((n, params.n_eig), dtype=torch.float32, device=device)
    for start, stop, features in _features(rows, kernel, points, white, device, cache, r):
        eigvecs[start:stop] = (features @ to_eig) * degrees[start:stop].rsqrt()[:, None]
    signs = _signs(eigvecs)
    eigvecs *= signs
    fitted = _Fitted(kernel, points, False, white, total32, to_eig * signs, None)
    own_sum = float(n) if w is None else float((w * w).sum())
    mean_affinity = (affinity_sum - own_sum) / max(float(n) ** 2 - own_sum, 1e-300)
    health = _health("nystrom", n, m, kernel, mean_affinity, values, n_far / n)
    return fitted, eigvecs, values.numpy(), health


def _worst_rows(
    rows: Rows,
    kernel: Kernel,
    centers: Tensor,
    counts: Tensor,
    device: torch.device,
    cache: Tensor | None,
    *,
    n_keep: int,
) -> tuple[NDArray[np.int64], Tensor]:
    """Return the rows with the largest residual scores, and how many rows are like each row, float32 [n].

    Fills the cache's first columns.
    """
    crowd = torch.empty(rows.n, dtype=torch.float32)
    best_score, best_row = torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    for start, stop, raw in rows.chunks(CHUNK_ROWS):
        x = kernel.prepare(raw.to(device))
        if kernel.fn is not None:
            _require_finite(raw, start)
        elif not bool(torch.isfinite((x * x).sum())):
            _require_finite(raw, start)
        block = kernel.block(x, centers).float()
        if cache is not None:
            cache[start:stop, : block.shape[1]] = block
        alike = block @ counts
        crowd[start:stop] = alike.cpu()
        if n_keep:
            score = torch.cat([best_score, _landmarks.residual_scores(block, alike)])
            index = torch.cat([best_row, torch.arange(start, stop, device=device)])
            keep = torch.argsort(score, descending=True, stable=True)[:n_keep]
            best_score, best_row = score[keep], index[keep]
    return np.sort(best_row[best_score > 1e-12].cpu().numpy()).astype(np.int64), crowd + 1e-6


def _blocks(
    rows: Rows, kernel: Kernel, points: Tensor, device: torch.device, cache: Tensor | None, *, n_done: int
) -> Any:
    """Yield (start, stop, K(x, points)); the first `n_done` columns come from the cache when there is one."""
    for start, stop, raw in rows.chunks(CHUNK_ROWS):
        if cache is not None:
            if n_done < len(points):
                x = kernel.prepare(raw.to(device))
                cache[start:stop, n_done : len(points)] = kernel.block(x, points[n_done:])
            yield start, stop, cache[start:stop, : len(points)]
        else:
            yield start, stop, kernel.block(kernel.prepare(raw.to(device)), points).float()


def _features(
    rows: Rows,
    kernel: Kernel,
    points: Tensor,
    white: Tensor,
    device: torch.device,
    cache: Tensor | None,
    r: int,
) -> Any:
    """Yield (start, stop, F) from the cache, or computed anew."""
    if cache is not None:
        for start in range(0, rows.n, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, rows.n)
            yield start, stop, cache[start:stop, :r]
        return
    for start, stop, block in _blocks(rows, kernel, points, device, None, n_done=0):
        yield start, stop, block @ white


def _degree(features: Tensor, total: Tensor, own: Tensor | None, is_custom: bool) -> Tensor:
    """Return degrees [b]: explained affinity to all rows, plus what is unexplained of a row's own affinity (1)."""
    degree = (features @ total).clamp_(min=0)
    if not is_custom:
        left = (1 - (features * features).sum(1)).clamp_(min=0)
        degree += left if own is None else left * own
    return degree.clamp_(min=1e-12)


def _solve(gram: Tensor, total: Tensor, n_eig: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [n_eig] and vectors [r, n_eig] of the small problem, the trivial direction first."""
    r = len(gram)
    trivial = total / total.norm()
    # Orthonormal completion of the trivial direction by a Householder reflection.
    reflect = trivial.clone()
    reflect[0] += torch.copysign(torch.tensor(1.0, dtype=torch.float64), trivial[0])
    reflect /= reflect.norm()
    house = torch.eye(r, dtype=torch.float64) - 2 * torch.outer(reflect, reflect)
    rest = house[:, 1:]
    first = float(trivial @ gram @ trivial)
    values, mix = eigh_falling(rest.T @ gram @ rest)
    n_found = min(n_eig - 1, r - 1)
    out_values = torch.zeros(n_eig, dtype=torch.float64)
    out = torch.zeros((r, n_eig), dtype=torch.float64)
    out_values[0], out[:, 0] = first, trivial
    found = values[:n_found].clamp(min=0)
    found[found < 1e-6] = 0.0
    out_values[1 : 1 + n_found] = found
    out[:, 1 : 1 + n_found] = (rest @ mix[:, :n_found]) * (found > 0)
    return out_values, out


def _place(fitted: _Fitted, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvectors [b, k] and the largest affinity to a landmark [b] of prepared rows."""
    if fitted.constant_row is not None:
        size = float(fitted.kernel.mean.abs().max()) + 1e-300
        same = (x.abs().amax(1) <= 1e-5 * size).float()
        return fitted.to_eig.expand(len(x), -1).clone(), same
    if fitted.is_exact:
        return extend(x, fitted.points, fitted.kernel, map_nk=fitted.to_eig, weights=fitted.weights)
    assert fitted.to_white is not None and fitted.degree_of is not None
    block = fitted.kernel.block(x, fitted.points).float()
    features = block @ fitted.to_white
    degree = _degree(features, fitted.degree_of, None, fitted.kernel.fn is not None)
    return (features @ fitted.to_eig) * degree.rsqrt()[:, None], block.max(1).values


def _settle(eigvecs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Fix signs, and set columns whose eigenvalue is 0 within rounding to 0 (any vector would do)."""
    values = values.clone()
    values[values.abs() < 1e-6] = 0.0
    keep = (values > 0).to(eigvecs.device, torch.float32)
    return eigvecs * keep * _signs(eigvecs), values.clamp(min=0)


def _signs(eigvecs: Tensor) -> Tensor:
    """Return +1 or -1 per column, so that the sum of cubes is positive (does not depend on the order of rows)."""
    cubes = torch.zeros(eigvecs.shape[1], dtype=torch.float64, device=eigvecs.device)
    top = eigvecs.abs().amax(0).clamp(min=1e-30)
    for start in range(0, len(eigvecs), 65536):
        cubes += ((eigvecs[start : start + 65536] / top) ** 3).sum(0, dtype=torch.float64)
    cubes[0] = 1.0 if float(eigvecs[:, 0].sum()) >= 0 else -1.0
    return torch.where(cubes >= 0, 1.0, -1.0).float()


def _health(
    mode: str, n: int, m: int, kernel: Kernel, mean_affinity: float, values: Tensor, far_share: float
) -> Health:
    lambda2 = float(values[1]) if len(values) > 1 else 0.0
    n_components = 1 + int((values[1:] >= NEAR_ONE).sum())
    facts = {
        "mean_affinity": mean_affinity,
        "lambda2": lambda2,
        "n_components": n_components,
        "far_share": far_share,
    }
    notes = notes_for(**facts) if len(values) > 1 else ()
    return Health(mode=mode, n=n, n_landmarks=m, sigma=kernel.sigma, notes=notes, **facts)


# ---------------------------------------------------------------------- input checks


def _require_finite(raw: Tensor, first: int | NDArray[np.int64]) -> None:
    """Raise naming the rows with NaN or Inf; `first` is the number of row 0, or the numbers of all rows."""
    if bool(torch.isfinite(raw.sum(dtype=torch.float64))):
        return
    bad = (~torch.isfinite(raw)).any(1).nonzero()[:, 0].cpu().numpy()
    if not len(bad):
        return
    rows = first + bad if isinstance(first, int) else first[bad]
    shown = ", ".join(map(str, rows[:8].tolist())) + (", ..." if len(rows) > 8 else "")
    hint = (
        " float16 overflows above 65504: capture in bfloat16 or float32."
        if raw.dtype == torch.float16
        else ""
    )
    raise InputError(f"features hold NaN or Inf in {len(rows)} row(s): {shown}. Remove or repair them.{hint}")


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
