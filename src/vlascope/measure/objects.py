"""Finding the one object of an image without labels: LOST, TokenCut and a threshold on the first principal component.

Each is the published rule, written from the paper, on the patches of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .boxes import borders_touched

TOKENCUT_TAU = 0.2
TOKENCUT_EPS = 1e-5
LOST_SEEDS = 100


@dataclass(frozen=True)
class Foreground:
    """The object of one image.

    Attributes:
        region: bool [rows, cols], all patches on the object's side.
        component: bool [rows, cols], the connected part that is boxed.
        score: How sure, larger is surer, for ranking boxes of several images.
    """

    region: NDArray[np.bool_]
    component: NDArray[np.bool_]
    score: float


def lost(features_rcd: NDArray[np.floating], *, n_seeds: int = LOST_SEEDS) -> Foreground:
    """Return the object by LOST: the patch with fewest positive similarities is on it, those like it expand it.

    Args:
        features_rcd: [rows, cols, d], keys of the last attention layer in the paper; used as they are (not centred,
            not scaled), similarities are dot products.
        n_seeds: Patches of lowest degree among which the seed is expanded (100 in the paper).

    Cost: O(n² d) for n patches.
    References: Simeoni et al. 2021, arXiv:2109.14279.
    """
    grid, x = _rows(features_rcd)
    similar = x @ x.T
    degree = (similar > 0).sum(1)
    order = np.argsort(degree, kind="stable")
    seed = int(order[0])
    seeds = order[: min(n_seeds, len(x))]
    seeds = seeds[similar[seed, seeds] > 0]
    region = (similar[:, seeds].sum(1) > 0).reshape(grid) if len(seeds) else np.zeros(grid, bool)
    region[np.unravel_index(seed, grid)] = True
    return Foreground(region, _part_with(region, seed), float(1 - degree[seed] / len(x)))


def tokencut(features_rcd: NDArray[np.floating], *, tau: float = TOKENCUT_TAU) -> Foreground:
    """Return the object by TokenCut: the second eigenvector of the thresholded cosine graph, split at its mean.

    Args:
        features_rcd: [rows, cols, d], keys of the last attention layer in the paper.
        tau: Cosine above which two patches are linked (0.2 in the paper); all others get a weight of 1e-5.

    Returns:
        The side that holds the entry of largest absolute value; its score is 1 minus the second eigenvalue.

    Cost: O(n³) for n patches, below 1 s for 1,000.
    References: Wang et al. 2022, arXiv:2202.11539.
    """
    from scipy.linalg import eigh

    grid, x = _rows(features_rcd)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1)
    weight = np.where(unit @ unit.T > tau, 1.0, TOKENCUT_EPS)
    degree = weight.sum(1)
    half = 1 / np.sqrt(degree)
    # The generalised problem (D - W) y = lambda D y, with y = D^-1/2 z.
    values, vectors = eigh(np.eye(len(x)) - half[:, None] * weight * half[None], subset_by_index=[0, 1])
    second = half * vectors[:, 1]
    seed = int(np.abs(second).argmax())
    side = second > second.mean()
    region = (side if side[seed] else ~side).reshape(grid)
    return Foreground(region, _part_with(region, seed), float(1 - values[1]))


def pca_threshold(features_rcd: NDArray[np.floating]) -> Foreground:
    """Return the object by the sign of the first principal component: the side that touches fewer borders.

    The usual quick look at a vision transformer's features, as a floor. Of two sides that touch as many borders the
    smaller is taken.
    """
    grid, x = _rows(features_rcd)
    centred = x - x.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    side = (centred @ axes[0] > 0).reshape(grid)
    sides = [one for one in (side, ~side) if one.any()]
    region = min(sides, key=lambda one: (borders_touched(one), int(one.sum())))
    from .boxes import components

    total = float((centred**2).sum())
    share = float(((centred @ axes[0]) ** 2).sum() / total) if total else 0.0
    return Foreground(region, components(region)[0], share)


def _rows(features_rcd: NDArray[np.floating]) -> tuple[tuple[int, int], NDArray[np.float64]]:
    x = np.asarray(features_rcd, np.float64)
    if x.ndim != 3 or x.shape[0] * x.shape[1] < 2:
        raise InputError(f"got features of shape {x.shape}; need [rows, cols, d] with at least 2 patches.")
    return (x.shape[0], x.shape[1]), x.reshape(-1, x.shape[2])


def _part_with(region: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    numbered, _ = ndimage.label(region)  # pyright: ignore[reportGeneralTypeIssues]
    return numbered == numbered.reshape(-1)[seed]
