"""Nystrom cut of many rows: every row is read, landmarks stand for the pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import landmarks as _landmarks
from ._linalg import eigh_falling, eigh_top
from .affinity import MAX_SCALE_ROWS, Kernel, has_half_products
from .balance import local, local_power, n_neighbors, uniform_weights
from .fitted import LOW_DEGREE, Fitted, health_of, place, signs, unexplained
from .health import MIN_REACH
from .rayleigh import N_SPARE, corrected
from .rows import Rows, require_finite
from .setup import CHUNK_ROWS, FEW_ROWS, Outcome, Settings, n_centroids

MAX_KEPT_ROWS = 131_072
"""Up to this many rows the affinities of all rows to the landmarks are kept and summed over (memory permitting)."""

MAX_MOMENT_ROWS = 40_960
"""Rows that the Gram matrix is summed over when there are more."""

SCREEN_CENTROIDS = 128
"""Among very many rows, those that the landmarks explain badly are looked for with this many merged centroids."""

MIN_MOMENT_ROWS = 16_384

HALF_ERROR = 0.01
"""Relative error of the whitened rows up to which affinities are computed in bfloat16. It is random from row to row,
and the eigenvectors, which average over many landmarks, are off by a fraction of it."""


def half_error(candidates: Tensor, centers: Tensor, kernel: Kernel) -> float:
    """Return how far bfloat16 products move the whitened rows of a sample, relative to their size.

    Tokens of many dimensions hardly notice; on a smooth low-dimensional manifold the small directions of the
    landmarks' affinity matrix amplify rounding, and the answer is large.
    """
    if kernel.fn is not None:
        return float("inf")
    white = _landmarks.whitener(centers, kernel).float()
    some = candidates[:: max(1, len(candidates) // 1024)].float()
    full = kernel.block(some, centers) @ white
    half = replace(kernel, is_half=True).block(some, centers) @ white
    return float((half - full).norm() / full.norm())


class _Worst:
    """The rows with the largest scores of a stream, ties by row number."""

    def __init__(self, n_keep: int) -> None:
        self.n_keep, self.floor = n_keep, 1e-12
        self.scores: list[Tensor] = []
        self.indices: list[Tensor] = []

    def add(self, score: Tensor, start: int) -> None:
        if not self.n_keep:
            return
        index = (score > self.floor).nonzero()[:, 0]
        self.scores.append(score[index])
        self.indices.append(index + start)
        if sum(map(len, self.scores)) > 8 * self.n_keep:
            self._prune()

    def rows(self) -> NDArray[np.int64]:
        self._prune()
        kept = self.indices[0].cpu().numpy() if self.indices else np.empty(0)
        return np.sort(kept).astype(np.int64)

    def _prune(self) -> None:
        if not self.scores:
            return
        score, index = torch.cat(self.scores), torch.cat(self.indices)
        keep = torch.argsort(score, descending=True, stable=True)[: self.n_keep]
        self.scores, self.indices = [score[keep]], [index[keep]]
        if len(keep) == self.n_keep:
            self.floor = float(score[keep[-1]])


@dataclass(frozen=True)
class _FirstLook:
    """What the pass over all rows against the centroids found."""

    far_rows: NDArray[np.int64]  # rows that the centroids explain worst
    weights: Tensor | None  # float64 [n] on the CPU, mean 1; None means ones
    sums: Tensor  # float64 [1 + m1]: weighted sum of (1, affinities to the centroids)


@dataclass(frozen=True)
class _Explained:
    """Whitened rows F = values white, [b, r]: formed (white is None), or left as a product.

    Forming costs as much as the Gram matrix; leaving it needs a well conditioned `white`.
    """

    values: Tensor
    white: Tensor | None

    def part(self, at: int) -> _Explained:
        return _Explained(self.values[at : at + CHUNK_ROWS], self.white)

    def times(self, right: Tensor) -> Tensor:
        return self.values @ (right if self.white is None else self.white @ right)

    def formed(self, index: Tensor | None = None) -> Tensor:
        values = self.values if index is None else self.values[index]
        return values if self.white is None else values @ self.white


@dataclass(frozen=True)
class _Moments:
    """Sums over the rows that the small eigenproblem is made of."""

    total: Tensor  # float64 [r], sum of w F
    gram: Tensor  # float64 [r, r], sum of w F F' / q
    affinity_sum: float  # sum of w q


def fit_landmarks(
    rows: Rows,
    kernel: Kernel,
    handed_over: list[Tensor],
    n_landmarks: int,
    settings: Settings,
    w: Tensor | None,
    device: torch.device,
) -> Outcome:
    """Return the cut of all rows by landmarks.

    With C = K(x, Z), M = K(Z, Z), F = C M^-1/2, the affinity is F F'; degrees are q = F (F' w) + the unexplained
    part of the own affinity; the eigenproblem of D^-1/2 F F' D^-1/2 is that of the small Gram matrix F' D^-1 F.

    When C of all rows fits into the memory limit it is formed once. Otherwise the sums F' w and F' D^-1 F come
    from a random sample of rows whose weights are calibrated such that the sample's sums of affinities to the
    centroids equal those of all rows; then each row is read twice: for landmarks and sums, and for its result.

    `handed_over` holds the prepared sample that centroids are made of; it is emptied.

    Cost: O(n m (d + 2 m)) with all rows in memory, O(n m d) beyond, m = n_landmarks.
    References: calibrated weights: Deville and Särndal 1992.
    """
    n = rows.n
    is_custom = kernel.fn is not None
    n_first = n_landmarks if is_custom else n_centroids(n_landmarks)
    candidates = handed_over.pop()
    centers, shares = _landmarks.centroids(candidates, n_first, seed=settings.seed, medoids=is_custom)
    counts = (shares * n).float()
    fast = kernel
    if n > FEW_ROWS and has_half_products(device) and half_error(candidates, centers, kernel) < HALF_ERROR:
        fast = replace(kernel, is_half=True)
    is_many = n > MAX_KEPT_ROWS
    fits = not is_many and 4 * n * n_landmarks <= settings.memory_limit or n <= MIN_MOMENT_ROWS
    cache = torch.empty((n, n_landmarks), dtype=torch.float32, device=device) if fits else None
    typical, power = None, 1.0
    if settings.balance == "uniform":
        power = local_power(kernel, candidates[:: max(1, len(candidates) // MAX_SCALE_ROWS)].float())
        typical = float((local(kernel.block(candidates, centers).float(), power) @ counts).median()) + 1e-6

    del candidates
    screen, crowd = centers, counts
    if is_many and not is_custom and typical is None:
        screen, crowd = _landmarks.merged(centers, counts, SCREEN_CENTROIDS)
    look = _first_look(
        rows, fast, screen, crowd, w, typical, power, cache, n_keep=4 * (n_landmarks - n_first)
    )
    points = centers
    if len(look.far_rows):
        worst = kernel.prepare(rows.take(look.far_rows).to(device))
        picks = _landmarks.pick_residual(worst, centers, counts, kernel, n_picks=n_landmarks - n_first)
        points = torch.cat([centers.float(), worst[picks].float()])
    white = _landmarks.whitener(points, kernel).float()
    weights = look.weights
    n_far, own = 0, None if weights is None else weights.to(device, torch.float32)
    if cache is not None:
        features, n_far = _all_features(rows, fast, points, white, cache, n_done=len(centers))
        moments = _moments(features, own, own, is_custom)
    else:
        features = None
        moments = _sampled_moments(rows, fast, points, white, screen, own, look.sums, settings)

    is_corrected = features is not None and features.white is None and n <= FEW_ROWS and not is_custom
    n_found = min(settings.n_eig + (N_SPARE if is_corrected else 0), len(moments.total))
    values, mix = _solve(moments.gram.cpu(), moments.total.cpu(), max(settings.n_eig, n_found))
    to_eig = mix * torch.where(values > 0, values.clamp(min=1e-300).rsqrt(), 0.0)
    if is_corrected:
        assert features is not None
        values, turn = _corrected(rows, kernel, features, moments, to_eig, values, own, seed=settings.seed)
        to_eig = to_eig @ turn
    values, to_eig = values[: settings.n_eig], to_eig[:, : settings.n_eig]
    fitted = Fitted(fast, points, to_eig.to(device, torch.float32), white=white, total=moments.total.float())
    eigvecs = torch.empty((n, settings.n_eig), dtype=torch.float32, device=device)
    n_near = n_neighbors(len(points), is_exact=False) if settings.balance == "uniform" else 0
    if n_near:
        fitted = replace(fitted, point_values=place(fitted, points)[0], n_near=n_near)
    if features is not None and not n_near:
        for at in range(0, n, CHUNK_ROWS):
            part, mine = features.part(at), None if own is None else own[at : at + CHUNK_ROWS]
            degree = _degree(part, moments.total.float(), mine, is_custom)
            eigvecs[at : at + CHUNK_ROWS] = part.times(fitted.to_eig) * degree.rsqrt()[:, None]
    else:
        for start, stop, raw in rows.chunks(CHUNK_ROWS):
            mine = None if own is None else own[start:stop]
            eigvecs[start:stop], _, nearest = place(fitted, kernel.prepare(raw.to(device)), own=mine)
            n_far += int((nearest < MIN_REACH).sum()) if features is None else 0
    flips = signs(eigvecs)
    eigvecs *= flips
    near = None if fitted.point_values is None else fitted.point_values * flips
    fitted = replace(fitted, to_eig=fitted.to_eig * flips, point_values=near)
    own_sum = float(n) if weights is None else float((weights * weights).sum())
    mean_affinity = (moments.affinity_sum - own_sum) / max(float(n) ** 2 - own_sum, 1e-300)
    health = health_of("nystrom", n, len(points), kernel, mean_affinity, values, n_far / n)
    return Outcome(fitted, eigvecs, values.numpy(), health)


def _first_look(
    rows: Rows,
    kernel: Kernel,
    centers: Tensor,
    counts: Tensor,
    w: Tensor | None,
    typical: float | None,
    power: float,
    cache: Tensor | None,
    *,
    n_keep: int,
) -> _FirstLook:
    """Return the worst explained rows, weights and sums; the only place where every row is checked for NaN.

    Args:
        typical: Median number of rows that are like a row, for balance="uniform"; None for "density".
        power: Makes affinities local for that count.
        cache: Its first columns are filled with the affinities to the centroids.
        n_keep: How many of the worst explained rows to return.
    """
    device = centers.device
    worst = _Worst(n_keep)
    weights = None if w is None and typical is None else torch.empty(rows.n, dtype=torch.float64)
    sums = torch.zeros(1 + len(centers), dtype=torch.float64, device=device)
    for start, stop, raw in rows.chunks(CHUNK_ROWS):
        x = kernel.prepare(raw.to(device))
        if kernel.fn is not None or not bool(torch.isfinite((x * x).sum())):
            require_finite(raw, start)
        block = kernel.block(x, centers).float()
        if cache is not None:
            cache[start:stop, : block.shape[1]] = block
        crowd = block @ counts
        if weights is None:
            sums[0] += stop - start
            sums[1:] += (block.new_ones(len(block)) @ block).double()
        else:
            own = torch.ones(stop - start, dtype=torch.float64) if w is None else w[start:stop]
            if typical is not None:
                own = uniform_weights(local(block, power) @ counts, own, typical=typical)
            weights[start:stop] = own
            own = own.to(device, torch.float32)
            sums[0] += own.sum(dtype=torch.float64)
            sums[1:] += (own @ block).double()
        worst.add(_landmarks.residual_scores(block, crowd), start)
    far_rows = worst.rows()
    if weights is not None:
        mean = float(weights.mean())
        weights, sums = weights / mean, sums / mean
    return _FirstLook(far_rows, weights, sums)


def _all_features(
    rows: Rows, kernel: Kernel, points: Tensor, white: Tensor, cache: Tensor, *, n_done: int
) -> tuple[_Explained, int]:
    """Return F = K(x, points) white of all rows, [n, r], and how many rows are far from every landmark.

    The cache, whose first `n_done` columns hold the affinities to the first points already, is overwritten by F;
    where products in bfloat16 do, `white` is well conditioned, and F stays a product.
    """
    n_far = 0
    for start, stop, raw in rows.chunks(CHUNK_ROWS):
        if n_done < len(points):
            x = kernel.prepare(raw.to(cache.device))
            cache[start:stop, n_done : len(points)] = kernel.block(x, points[n_done:])
        block = cache[start:stop, : len(points)]
        n_far += int((block.amax(1) < MIN_REACH).sum())
        if not kernel.is_half:
            cache[start:stop, : white.shape[1]] = block @ white
    if kernel.is_half:
        return _Explained(cache[:, : len(points)], white), n_far
    return _Explained(cache[:, : white.shape[1]], None), n_far


def _moments(features: _Explained, weights: Tensor | None, own: Tensor | None, is_custom: bool) -> _Moments:
    """Return the sums over rows of F.

    Args:
        features: F, [b, r].
        weights: float32 [b], how much each row counts in the sums; None means 1.
        own: float32 [b], weight of each row in its own degree; None means 1.
        is_custom: A custom affinity: the own affinity is not known to be 1.
    """
    values, white = features.values, None if features.white is None else features.white.double()
    width, device = values.shape[1], values.device
    total = torch.zeros(width, dtype=torch.float64, device=device)
    gram = torch.zeros((width, width), dtype=torch.float64, device=device)
    for at in range(0, len(values), CHUNK_ROWS):
        part = values[at : at + CHUNK_ROWS]
        count = torch.ones(len(part), device=device) if weights is None else weights[at : at + CHUNK_ROWS]
        total += (count @ part).double()
    total = total if white is None else white.T @ total
    total32, affinity_sum = total.float(), 0.0
    for at in range(0, len(values), CHUNK_ROWS):
        part = features.part(at)
        degree = _degree(part, total32, None if own is None else own[at : at + CHUNK_ROWS], is_custom)
        count = torch.ones_like(degree) if weights is None else weights[at : at + CHUNK_ROWS]
        scaled = part.values * (count / degree).sqrt()[:, None]
        gram += (scaled.T @ scaled).double()
        affinity_sum += float((degree * count).sum(dtype=torch.float64))
    return _Moments(total, gram if white is None else white.T @ gram @ white, affinity_sum)


def _degree(features: _Explained, total: Tensor, own: Tensor | None, is_custom: bool) -> Tensor:
    """Return degrees [b]: explained affinity to all rows, plus what is unexplained of a row's own affinity."""
    degree = features.times(total).clamp_(min=0)
    if not is_custom:
        low = (degree < LOW_DEGREE).nonzero()[:, 0]
        if len(low):
            left = unexplained(features.formed(low))
            degree[low] += left if own is None else left * own[low]
    return degree.clamp_(min=1e-12)


def _corrected(
    rows: Rows,
    kernel: Kernel,
    features: _Explained,
    moments: _Moments,
    to_eig: Tensor,
    values: Tensor,
    own: Tensor | None,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return `rayleigh.corrected` of the vectors F to_eig / sqrt(degree)."""
    total = moments.total.float()
    degree = torch.cat(
        [
            _degree(features.part(at), total, None if own is None else own[at : at + CHUNK_ROWS], False)
            for at in range(0, rows.n, CHUNK_ROWS)
        ]
    )
    eigvecs = features.times(to_eig.to(degree.device, torch.float32)) * degree.rsqrt()[:, None]
    return corrected(rows, kernel, features.values, eigvecs, degree, values, weights=own, seed=seed)


def _sampled_moments(
    rows: Rows,
    kernel: Kernel,
    points: Tensor,
    white: Tensor,
    screen: Tensor,
    weights: Tensor | None,
    sums: Tensor,
    settings: Settings,
) -> _Moments:
    """Return the sums over all rows, estimated from a calibrated sample."""
    device = points.device
    # Three quarters of the limit: pieces of rows on their way need the rest.
    room = 3 * settings.memory_limit // (16 * (white.shape[1] + len(screen) + 1))
    n_sample = int(min(rows.n, MAX_MOMENT_ROWS, max(MIN_MOMENT_ROWS, room)))
    rng = np.random.default_rng([settings.seed, 1])
    index = np.sort(rng.choice(rows.n, n_sample, replace=False)).astype(np.int64)
    is_formed = not kernel.is_half
    width = white.shape[1] if is_formed else len(points)
    features = torch.empty((n_sample, width), dtype=torch.float32, device=device)
    known = torch.ones((n_sample, 1 + len(screen)), dtype=torch.float32, device=device)
    is_merged = len(screen) < len(points) and not torch.equal(screen.float(), points[: len(screen)].float())
    for start in range(0, n_sample, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, n_sample)
        x = kernel.prepare(rows.take(index[start:stop]).to(device))
        block = kernel.block(x, points).float()
        features[start:stop] = block @ white if is_formed else block
        known[start:stop, 1:] = kernel.block(x, screen).float() if is_merged else block[:, : len(screen)]
    own = None if weights is None else weights[torch.from_numpy(index).to(device)]
    base = torch.full((n_sample,), rows.n / n_sample, device=device)
    if own is not None:
        base = base * own
    calibrated = _calibrated(base, known, sums)
    del known
    return _moments(
        _Explained(features, None if is_formed else white), calibrated, own, kernel.fn is not None
    )


def _calibrated(base: Tensor, known: Tensor, sums: Tensor) -> Tensor:
    """Return weights near `base` for which the weighted sums of the known columns equal those of all rows.

    Args:
        base: float32 [b], design weights (rows of the population per row of the sample).
        known: float32 [b, c], columns whose sums over the population are known.
        sums: float64 [c], these sums.

    Returns:
        float32 [b], within a factor of five of `base` (where that bound is met the sums are nearly equal).
    """
    gram = torch.zeros((known.shape[1], known.shape[1]), dtype=torch.float64, device=known.device)
    have = torch.zeros(known.shape[1], dtype=torch.float64, device=known.device)
    for start in range(0, len(known), CHUNK_ROWS):
        part, mine = known[start : start + CHUNK_ROWS], base[start : start + CHUNK_ROWS]
        gram += ((part * mine[:, None]).T @ part).double()
        have += (mine @ part).double()
    values, vectors = eigh_falling(gram)
    inverse = torch.where(values > 1e-6 * values[0], 1 / values.clamp(min=1e-300), 0.0)
    tilt = vectors @ (inverse * (vectors.T @ (sums - have).cpu()))
    return base * (1 + known @ tilt.to(known.device, torch.float32)).clamp_(0.2, 5.0)


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
    n_found = min(n_eig - 1, r - 1)
    values, mix = eigh_top(rest.T @ gram @ rest, max(n_found, 1))
    out_values = torch.zeros(n_eig, dtype=torch.float64)
    out = torch.zeros((r, n_eig), dtype=torch.float64)
    out_values[0], out[:, 0] = min(first, 1.0), trivial
    found = values[:n_found].clamp(min=0, max=1)
    found[found < 1e-6] = 0.0
    out_values[1 : 1 + n_found] = found
    out[:, 1 : 1 + n_found] = (rest @ mix[:, :n_found]) * (found > 0)
    return out_values, out
