"""From eigenvectors to k groups of tokens, and from several k to one hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ._linalg import kmeans_pp, lloyd, one_thread
from .rows import to_tensor

METHODS = ("rotation", "qr", "kmeans")
MAX_PIVOT_ROWS = 8192
GROWTH = 8
MAX_ROTATIONS = 100
LAST_ROTATIONS = 5
ROTATION_GAIN = 1e-5
"""A rotation that fits the rows better by less than this share of a full fit is the last one."""

KMEANS_RUNS = 8
KMEANS_STEPS = 50
LAST_KMEANS_STEPS = 10

CHUNK_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class KWay:
    """Groups of tokens at one or several k.

    Attributes:
        labels: For each k int16 or int32 [n], 0..k-1; -1 where the eigenvectors are NaN (out of reach).
        scores: For each k float32 [n, k], how much a token belongs to each group: the cosine between its row of
            eigenvectors and the group's direction (for "kmeans" between the row and the centroid). NaN out of reach.
        parents: For each k int [k], the group at the next smaller k that holds it; -1 at the smallest k.
        directions: For each k float32 [columns, k groups]: `scores` of unit rows are rows @ directions.
        method: How the groups were found.
        weights: float32 [columns], what the columns of the eigenvectors are multiplied with first; None: nothing.
    """

    labels: dict[int, NDArray[Any]]
    scores: dict[int, NDArray[np.float32]]
    parents: dict[int, NDArray[np.int64]]
    directions: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    method: str = "rotation"
    weights: NDArray[np.float32] | None = None

    def assign(self, eigvecs: Any) -> dict[int, NDArray[Any]]:
        """Return the labels of new rows (from `NystromNCut.transform`), by the same directions, for each k.

        Args:
            eigvecs: [b, n_eig], the same columns as those that the groups were found on.
        """
        rows = _weighted(to_tensor(eigvecs).cpu(), self.weights)
        out: dict[int, NDArray[Any]] = {}
        parent_labels: NDArray[Any] | None = None
        for k, direction in self.directions.items():
            scores = _scores(unit_rows(rows[:, : direction.shape[0]]), torch.from_numpy(direction))
            parent_labels = _labels_within(scores, parent_labels, self.parents[k])
            out[k] = parent_labels
        return out


def kway(
    eigvecs: Any,
    k: int | Sequence[int] = 10,
    *,
    method: str = "rotation",
    eigenvalues: Any = None,
    per_group: int = 1,
    nested: bool = True,
    seed: int = 0,
) -> KWay:
    """Return k groups of tokens from the eigenvectors of a Normalized Cut; for a list of k, a hierarchy.

    Group g of k uses the first k eigenvectors. With several k the coarsest groups are exactly those of that k
    alone; each finer group belongs to the coarser group that holds most of it, and its stray tokens go to the
    nearest group inside their own parent, so that the levels nest. Ids are stable: the principal child of coarse
    group c is also c; new groups get the next free ids.

    Args:
        eigvecs: [n, n_eig] from `NystromNCut`, falling eigenvalues, the trivial vector first.
        k: Number of groups, 2 <= k <= n_eig, or several (any order).
        method: "rotation": the rotation of the eigenvectors nearest to group indicators (Yu and Shi), started
            from a pivoted QR, so that it does not depend on luck; "qr": that start alone, one pass (Damle et
            al.); "kmeans": k-means on unit rows.
        eigenvalues: [n_eig] of the cut, only for "kmeans": each column counts by its eigenvalue, as in the diffusion
            map after one step (Coifman and Lafon), so that late columns, which are mostly noise, count less. Their
            squares are two steps.
        per_group: Eigenvectors per group, only for "kmeans": k groups use the first `per_group` k of them (or all).
            With one, what only later columns tell apart is lost; with more, weigh them by `eigenvalues`.
        nested: Make the levels nest; False keeps the groups of each k as if it were alone (parents by majority).
        seed: Seeds "kmeans" only.

    Raises:
        InputError: k out of range, no finite rows, unknown method, eigenvalues of another length or method,
            `per_group` below 1 or of another method.

    Cost: O(n k²) for the start and per rotation step (n = 50,000, k = 50: about 0.15 s).
    References: Yu and Shi 2003; Damle, Minden and Ying 2019; Coifman and Lafon 2006, doi:10.1016/j.acha.2006.04.006.
    """
    rows = to_tensor(eigvecs).cpu()
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"got eigenvectors of shape {tuple(rows.shape)}; need [n, n_eig].")
    if method not in METHODS:
        raise InputError(f"got method={method!r}; need one of {', '.join(METHODS)}.")
    levels = sorted({int(level) for level in ([k] if isinstance(k, (int, np.integer)) else k)})
    if not levels:
        raise InputError("got an empty list of k; need at least one number of groups.")
    if levels[0] < 1 or levels[-1] > rows.shape[1]:
        raise InputError(
            f"got k={levels} for {rows.shape[1]} eigenvectors; need 1 <= k <= {rows.shape[1]}. "
            f"Cut with n_eig >= {levels[-1]} for more groups."
        )
    if per_group < 1 or (per_group > 1 and method != "kmeans"):
        raise InputError(
            f"got per_group={per_group} for method={method!r}; need 1, or more for method='kmeans' only."
        )
    weights = None if eigenvalues is None else _column_weights(eigenvalues, rows.shape[1], method=method)
    rows = _weighted(rows, weights)
    is_fine = torch.isfinite(rows.sum(1))  # a row's sum is finite only if all of it is
    n_fine = int(is_fine.sum())
    if n_fine < levels[-1]:
        raise InputError(f"got {n_fine} finite rows for k={levels[-1]}; need at least k.")
    fine = rows if n_fine == len(rows) else rows[is_fine]

    labels: dict[int, NDArray[Any]] = {}
    scores: dict[int, NDArray[np.float32]] = {}
    parents: dict[int, NDArray[np.int64]] = {}
    directions: dict[int, NDArray[np.float32]] = {}
    above: NDArray[Any] | None = None
    n_above = 0
    for level in levels:
        mine = fine[:, : level * per_group]
        unit = unit_rows(mine)
        direction = _directions(mine, unit, level, method=method, seed=seed)
        raw = _scores(unit, direction).argmax(1).numpy()
        parent = _parents(raw, above, level, n_above)
        order = _stable_order(raw, parent, level, n_above)
        parent, direction = parent[order], direction[:, order].contiguous()
        found = _scores(unit, direction)
        own = _labels_within(found, above if nested else None, parent)
        labels[level], scores[level] = own, found.numpy()
        parents[level], directions[level] = parent, direction.numpy()
        above, n_above = own, level
    if n_fine < len(rows):
        where = is_fine.numpy()
        labels = {level: _spread(values, where, -1) for level, values in labels.items()}
        scores = {level: _spread(values, where, np.nan) for level, values in scores.items()}
    return KWay(
        labels=labels, scores=scores, parents=parents, directions=directions, method=method, weights=weights
    )


def _column_weights(eigenvalues: Any, n_columns: int, *, method: str) -> NDArray[np.float32]:
    values = np.asarray(eigenvalues, np.float32)
    if values.shape != (n_columns,) or not np.isfinite(values).all():
        raise InputError(
            f"got eigenvalues of shape {values.shape} for {n_columns} eigenvectors; need one finite number per column."
        )
    if method != "kmeans":
        raise InputError(f"got eigenvalues for method={method!r}; only 'kmeans' weighs columns.")
    return np.clip(values, 0, None)


def _weighted(rows: Tensor, weights: NDArray[np.float32] | None) -> Tensor:
    return rows if weights is None else rows * torch.from_numpy(weights[: rows.shape[1]])


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows divided by their norm, float32; rows of zeros stay zero."""
    rows = rows.float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_(min=1e-30)


def _directions(rows: Tensor, unit: Tensor, k: int, *, method: str, seed: int) -> Tensor:
    if k == 1:
        return torch.nn.functional.one_hot(torch.tensor(0), unit.shape[1]).float()[:, None]
    if method == "kmeans":
        return _kmeans_directions(unit, k, seed=seed)
    start = _qr_start(rows if method == "qr" else unit, k)
    return start if method == "qr" else _rotate(unit, start)


def _qr_start(rows: Tensor, k: int) -> Tensor:
    """Return the orthogonal [k, k] whose columns point at k rows chosen by a pivoted QR (deterministic)."""
    from scipy.linalg import qr

    step = max(1, -(-len(rows) // MAX_PIVOT_ROWS))
    picked = rows[::step].double()
    _, pivots = cast("tuple[Any, Any]", qr(picked.numpy().T, mode="r", pivoting=True))
    pivots = pivots[:k]
    return _polar(picked[torch.from_numpy(pivots.astype(np.int64))].T)


def _polar(matrix: Tensor) -> Tensor:
    """Return the orthogonal matrix nearest to a square matrix, float32."""
    with one_thread():
        u, _, vh = torch.linalg.svd(matrix.double())
    return (u @ vh).float()


def _rotate(unit: Tensor, start: Tensor) -> Tensor:
    """Return the rotation after alternating between group indicators and the rotation nearest to them.

    Most of the way goes on an even subset of rows, a few steps on eight times as many, and so on to all.
    """
    step = len(unit) // MAX_PIVOT_ROWS
    if step > 1:
        start = _rotate(unit[:: min(step, GROWTH)].contiguous(), start)
    k = start.shape[1]
    rotation, best = start, -1.0
    for _ in range(MAX_ROTATIONS if step <= 1 else LAST_ROTATIONS):
        sums = torch.zeros((k, k), dtype=torch.float64)
        for begin in range(0, len(unit), CHUNK_ROWS):
            part = unit[begin : begin + CHUNK_ROWS]
            labels = (part @ rotation).argmax(1)
            # Adding rows up by label is many times faster than a product with the indicator matrix.
            sums += torch.zeros((k, k)).index_add_(0, labels, part).T.double()
        with one_thread():
            u, size, vh = torch.linalg.svd(sums)
        rotation = (u @ vh).float()
        fit = float(size.sum())
        if fit - best <= ROTATION_GAIN * len(unit):
            break
        best = fit
    return rotation


def _kmeans_directions(unit: Tensor, k: int, *, seed: int) -> Tensor:
    """Return unit centroids, [k columns, k]: the best of several k-means runs on a sample, refined on all rows."""
    rng = np.random.default_rng(seed)
    step = max(1, -(-len(unit) // MAX_PIVOT_ROWS))
    sample = unit[::step]
    best, best_loss = sample[:k], np.inf
    for _ in range(KMEANS_RUNS):
        centers, labels, _ = lloyd(sample, kmeans_pp(sample, k, rng=rng), steps=KMEANS_STEPS)
        loss = float((sample - centers[labels]).square().sum(dtype=torch.float64))
        if loss < best_loss:
            best, best_loss = centers, loss
    if step > 1:
        best, _, _ = lloyd(unit, best, steps=LAST_KMEANS_STEPS)
    return unit_rows(best).T.contiguous()


def _scores(unit: Tensor, direction: Tensor) -> Tensor:
    return unit @ direction


def _parents(labels: NDArray[Any], above: NDArray[Any] | None, k: int, n_above: int) -> NDArray[np.int64]:
    """Return for each group the coarser group that holds most of it, such that every coarser group has a child."""
    if above is None:
        return np.full(k, -1, dtype=np.int64)
    from scipy.optimize import linear_sum_assignment

    overlap = np.bincount(labels.astype(np.int64) * n_above + above, minlength=k * n_above).reshape(
        k, n_above
    )
    parent = overlap.argmax(1).astype(np.int64)
    child, coarse = linear_sum_assignment(-overlap)
    missing = np.setdiff1d(np.arange(n_above), parent)
    for group, owner in zip(child, coarse, strict=True):
        if owner in missing and overlap[group, owner] > 0:
            parent[group] = owner
    return parent


def _stable_order(labels: NDArray[Any], parent: NDArray[np.int64], k: int, n_above: int) -> NDArray[np.int64]:
    """Return which found group becomes id 0, 1, ...: principal children keep the parent's id, then by parent, size."""
    sizes = np.bincount(labels, minlength=k)
    if n_above == 0:
        return np.lexsort((np.arange(k), -sizes)).astype(np.int64)
    order = np.full(k, -1, dtype=np.int64)
    rest: list[int] = []
    for owner in range(n_above):
        children = np.flatnonzero(parent == owner)
        children = children[np.lexsort((children, -sizes[children]))]
        if len(children):
            order[owner] = children[0]
            rest += children[1:].tolist()
    order[order < 0] = rest
    return order


def _labels_within(scores: Tensor, above: NDArray[Any] | None, parent: NDArray[np.int64]) -> NDArray[Any]:
    """Return the best group of each row among the children of its coarser group, int16 (int32 for many groups)."""
    dtype = np.int16 if scores.shape[1] < 32_000 else np.int32
    if above is None:
        out = scores.argmax(1).numpy().astype(dtype)
    else:
        out = np.empty(len(scores), dtype=dtype)
        parents = torch.from_numpy(parent)
        childless = torch.from_numpy(np.setdiff1d(np.arange(int(above.max()) + 1), parent))
        for begin in range(0, len(scores), CHUNK_ROWS):
            mine = torch.from_numpy(above[begin : begin + CHUNK_ROWS].astype(np.int64))[:, None]
            allowed = (parents[None] == mine) | torch.isin(mine, childless)
            part = scores[begin : begin + CHUNK_ROWS].masked_fill(~allowed, -torch.inf)
            out[begin : begin + CHUNK_ROWS] = part.argmax(1).numpy()
    out[torch.isnan(scores[:, 0]).numpy()] = -1
    return out


def _spread(values: NDArray[Any], where: NDArray[np.bool_], fill: float) -> NDArray[Any]:
    out = np.full((len(where), *values.shape[1:]), fill, dtype=values.dtype)
    out[where] = values
    return out
