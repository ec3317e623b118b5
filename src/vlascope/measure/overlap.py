"""How well clusters of tokens match known masks: best-overlap IoU, against k-means on raw pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.layout import token_from_pixel
from .pooling import patch_pixels
from .resample import MIN_UNITS, bootstrap_mean, run_units, units_of

if TYPE_CHECKING:
    from ..runs import Run
    from ..spectral.cut import CutResult

N_BOOTSTRAP = 10_000
"""Resamples behind a 95 % interval: its ends then move by less than 1 % of its width from seed to seed."""


def best_overlap_iou(labels_hw: NDArray[np.integer], mask_hw: NDArray[np.bool_]) -> float:
    """Return the largest IoU of one cluster with one mask, in 0..1.

    Args:
        labels_hw: int [h, w], the cluster of each pixel; negative where there is none.
        mask_hw: bool [h, w], the true region.

    Returns:
        max over clusters c of |c and mask| / |c or mask|; NaN when the mask is empty (nothing to find).

    Raises:
        InputError: the shapes differ.

    Cost: O(h w).
    """
    if labels_hw.shape != mask_hw.shape:
        raise InputError(
            f"labels have shape {labels_hw.shape} but the mask {mask_hw.shape}; they must agree."
        )
    if not mask_hw.any():
        return float("nan")
    covered = labels_hw >= 0
    if not covered.any():
        return 0.0
    n_labels = int(labels_hw.max()) + 1
    sizes = np.bincount(labels_hw[covered], minlength=n_labels)
    inside = np.bincount(labels_hw[covered & mask_hw], minlength=n_labels)
    union = sizes + mask_hw.sum() - inside
    return float(np.max(inside / np.maximum(union, 1)))


def paired_interval(
    differences: NDArray[np.floating],
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the bootstrap interval of the mean of paired differences.

    Args:
        differences: float [n], one per item; NaN entries are left out.
        groups: One id per item (the episode): whole groups are resampled, because frames of one episode are
            not independent. None resamples items.
        level: Coverage, 0..1.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; None with fewer than five items or groups: see `percentile_interval`.
    """
    values = np.asarray(differences, np.float64)
    units = units_of(range(len(values)) if groups is None else groups)
    return bootstrap_mean(values, units, n_draws=N_BOOTSTRAP, level=level, seed=seed)


@dataclass(frozen=True, kw_only=True)
class OverlapResult:
    """Best-overlap IoU of a cut and of its control with the known regions of a run.

    Attributes:
        site: Site whose tokens were cut.
        k: Number of clusters, the same for the cut and for its control.
        names: The regions, e.g. ("gripper", "red fragile").
        iou: float [n_items, n_names], of the cut; NaN where a region is not visible.
        control_iou: float [n_items, n_names], k-means (same k, all items jointly) on the raw pixels of the
            same patches.
        interval: 95 % interval of the mean paired difference; None with fewer than five independent units.
        unit: What is independent and was resampled for the interval: "episode", or "item" without episodes.
        n_units: How many of them.
    """

    site: str
    k: int
    names: tuple[str, ...]
    iou: NDArray[np.float64]
    control_iou: NDArray[np.float64]
    interval: tuple[float, float] | None
    unit: str
    n_units: int

    @property
    def mean(self) -> float:
        """Mean over items of the mean over visible regions, for the cut."""
        return float(np.nanmean(np.nanmean(self.iou, axis=1)))

    @property
    def control_mean(self) -> float:
        """The same for k-means on raw pixels."""
        return float(np.nanmean(np.nanmean(self.control_iou, axis=1)))

    @property
    def difference(self) -> float:
        """Mean paired difference, cut minus control."""
        return self.mean - self.control_mean

    @property
    def n_items(self) -> int:
        """Items with at least one visible region."""
        return int((~np.isnan(self.iou)).any(axis=1).sum())

    def by_name(self) -> Mapping[str, tuple[float, float]]:
        """Return for each region the mean IoU of the cut and of the control over the items that show it."""
        return {
            name: (float(np.nanmean(self.iou[:, j])), float(np.nanmean(self.control_iou[:, j])))
            for j, name in enumerate(self.names)
            if not np.isnan(self.iou[:, j]).all()
        }

    def summary(self) -> str:
        """Return the result in one line, with its sample size, control and interval."""
        text = (
            f"best-overlap IoU {self.mean:.3f} (NCut, K={self.k}, {self.site}) against "
            f"{self.control_mean:.3f} (k-means on raw pixels), n={self.n_items} frames"
        )
        if self.interval is None:
            return f"{text}; no interval: {self.n_units} independent {self.unit}s, need {MIN_UNITS}"
        ends = ", ".join(f"{end:+.3f}" for end in self.interval)
        text = f"{text}; difference {self.difference:+.3f}, 95 % interval [{ends}]"
        return f"{text} over {self.n_units} {self.unit}s"


class PixelClusters:
    """The control that knows no model: k-means on the raw pixels of patches, all images jointly.

    Layers that cover an image with the same patches (all blocks of a vision transformer, say) share one answer, which
    is therefore kept.

    Args:
        run: The run.
        k: Number of clusters.
        seed: Seeds k-means.
    """

    def __init__(self, run: Run, *, k: int, seed: int = 0) -> None:
        self.run, self.k, self.seed = run, k, seed
        self._known: list[tuple[tuple[NDArray, ...], NDArray[np.int64]]] = []

    def labels(
        self, items: Sequence[int], item_of_patch: NDArray[np.integer], box: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Return int64 [n_patches], the cluster of every patch (resampled to 8 x 8); -1 outside `items`.

        Args:
            items: Items that take part.
            item_of_patch: int [n_patches].
            box: float32 [n_patches, 4], the patches in pixels of their image.
        """
        asked = (np.asarray(items), item_of_patch, box)
        for before, clusters in self._known:
            if all(np.array_equal(a, b) for a, b in zip(before, asked, strict=True)):
                return clusters
        kept = np.isin(item_of_patch, items)
        clusters = np.full(len(box), -1, np.int64)
        clusters[kept] = self._kmeans(patch_pixels(self.run, item_of_patch[kept], box[kept]))
        self._known.append((asked, clusters))
        return clusters

    def _kmeans(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        from sklearn.cluster import KMeans

        n_distinct = len(np.unique(vectors, axis=0))
        model = KMeans(n_clusters=min(self.k, n_distinct), n_init=4, random_state=self.seed)  # pyright: ignore[reportArgumentType]
        return model.fit_predict(vectors).astype(np.int64)


def best_overlap(
    run: Run,
    cut: CutResult,
    *,
    site: str,
    k: int,
    mask: str = "segmentation",
    regions: Sequence[str] | None = None,
    exclude: Sequence[str] = ("background", "table", "arm", "pad"),
    seed: int = 0,
    pixels: PixelClusters | None = None,
) -> OverlapResult:
    """Return how well the clusters of a cut match the masks of a run, with k-means on raw pixels as control.

    For every item and region the best cluster is taken (IoU in image pixels, each patch painted over the pixels
    that it covers). The control clusters the raw pixel values of the very same patches with the same k, over all
    items jointly as the cut does, so that only the features differ.

    Args:
        run: Must hold masks.
        cut: A cut of that run.
        site: One of `cut.sites`, with patch tokens.
        k: One of the cut's k-way labels.
        mask: Name of the mask.
        regions: Names of the regions to look for; None takes all but `exclude`.
        exclude: Names that are left out when `regions` is None.
        seed: Seed of the control's k-means and of the bootstrap.
        pixels: The control, kept over several layers of one run; None makes one. Its k and seed must be these.

    Raises:
        InputError: no item has that mask, the site has no patch tokens, or `pixels` is of another run, k or seed.

    Cost: one k-means on n_tokens x patch pixels (once for all layers that share `pixels` and have the same patches),
    and O(pixels) per item.
    """
    pixels = PixelClusters(run, k=k, seed=seed) if pixels is None else pixels
    if (pixels.run, pixels.k, pixels.seed) != (run, k, seed):
        raise InputError(
            f"the given control is of another run, or of k={pixels.k} and seed={pixels.seed}; need k={k}, seed={seed}."
        )
    part = cut.parts[site]
    tokens = run.tokens(part.layout)
    rows = part.token_rows
    patch_index = np.flatnonzero((tokens.camera[rows] == 0) & ~np.isnan(tokens.box[rows]).any(axis=1))
    if not len(patch_index):
        raise InputError(f"site '{site}' has no patch tokens in this cut; choose a site of the vision tower.")
    item_of_patch = tokens.item[rows][patch_index]
    box = tokens.box[rows][patch_index]
    labels = cut.labels[k][part.rows][patch_index]

    items = [i for i in np.unique(item_of_patch) if run.mask(int(i), mask) is not None]
    if not items:
        raise InputError(
            f"no item of this run has a mask '{mask}'; measures against masks need data with masks, "
            "such as episodes of the simulator."
        )
    names = tuple(regions) if regions is not None else _region_names(run, items, mask, exclude)
    control = pixels.labels(items, item_of_patch, box)

    shape = (len(items), len(names))
    iou, control_iou = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, item in enumerate(items):
        mask_hw = run.mask(int(item), mask)
        assert mask_hw is not None
        height, width = mask_hw.shape
        here = np.flatnonzero(item_of_patch == item)
        token_hw = token_from_pixel(box[here], height=height, width=width)
        ids = _ids_by_name(run, int(item), mask)
        for j, name in enumerate(names):
            if name not in ids:
                continue
            region_hw = np.isin(mask_hw, ids[name])
            for out, per_patch in ((iou, labels), (control_iou, control)):
                labels_hw = np.where(token_hw >= 0, per_patch[here][token_hw], -1)
                out[i, j] = best_overlap_iou(labels_hw, region_hw)

    seen = ~np.isnan(iou).all(axis=1)
    per_item = np.nanmean(iou[seen], axis=1) - np.nanmean(control_iou[seen], axis=1)
    units = run_units(run, np.asarray(items)[seen])
    return OverlapResult(
        site=site,
        k=k,
        names=names,
        iou=iou[seen],
        control_iou=control_iou[seen],
        interval=bootstrap_mean(per_item, units, n_draws=N_BOOTSTRAP, seed=seed),
        unit=units.over,
        n_units=units.n,
    )


def _ids_by_name(run: Run, item: int, mask: str) -> dict[str, list[int]]:
    """Return the integers that stand for each region name in one item's mask."""
    ids: dict[str, list[int]] = {}
    for value, name in run.mask_names(item, mask).items():
        ids.setdefault(name, []).append(int(value))
    return ids


def _region_names(run: Run, items: Sequence[int], mask: str, exclude: Sequence[str]) -> tuple[str, ...]:
    names = {
        name: None for item in items for name in _ids_by_name(run, int(item), mask) if name not in exclude
    }
    if not names:
        raise InputError(f"the mask '{mask}' names no region besides {list(exclude)}; give `regions`.")
    return tuple(names)
