"""Experiments with NAVE in one line each: number of clusters, one layer or several, a watermark, outlier patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import watched
from .controls import check_random, same_items
from .nave import check_k, cluster_maps, composite, nave
from .overlap import best_overlap_iou
from .patchmaps import patch_maps, pixel_maps, resized
from .resample import bootstrap_mean, run_units
from .result import Result
from .scores import ari

if TYPE_CHECKING:
    from ..items import Item, ItemSource
    from ..runs import Run

MARK = "watermark"
OUTLIER = 3.0
"""A patch whose norm is so many times the image's median has left the picture's content."""


def nave_sweep(
    run: Run,
    *,
    sites: Sequence[str],
    ks: Sequence[int] = (3, 5, 8, 12, 20),
    random_run: Run | None = None,
    seed: int = 0,
) -> list[Result]:
    """Return for each K the share of variance that NAVE's clusters explain, each image on its own.

    Controls: the same for the raw pixels of the same patches, and for random weights where given.

    Raises:
        InputError: no K, `random_run` of other items or the same weights, or as for `nave`.
    """
    if not ks:
        raise InputError("got no numbers of clusters; give at least one.")
    check_k(*ks)
    check_random(run, random_run)
    maps = composite([patch_maps(run, name) for name in sites])
    others = {"raw pixels": pixel_maps(run, maps)}
    if random_run is not None:
        others["random weights"] = composite([patch_maps(random_run, name) for name in sites])
    units = run_units(run, [one.item for one in maps])
    out = []
    for k in watched(ks, desc="numbers of clusters", unit="number"):
        share = np.array(cluster_maps(maps, k=k, scope="image", seed=seed)[1])
        controls = {
            name: float(np.mean(cluster_maps(other, k=k, scope="image", seed=seed)[1]))
            for name, other in others.items()
        }
        out.append(
            Result(
                name=f"K={k}",
                value=float(share.mean()),
                unit="variance explained",
                n=len(maps),
                over=units.over,
                n_units=units.n,
                interval=bootstrap_mean(share, units, seed=seed),
                controls=controls,
                details={"k": k},
            )
        )
    return out


def nave_layers(run: Run, *, sites: Sequence[str], k: int = 5, seed: int = 0) -> list[Result]:
    """Return how much each single layer's clusters agree with those of all layers together (ARI, per image).

    Layers of another grid are resized to the finest first. Control: the raw pixels of the same patches.
    """
    several = nave(run, sites=sites, k=k, seed=seed)
    units = run_units(run, several.items)
    candidates = {name: patch_maps(run, name, items=several.items.tolist()) for name in sites}
    pixels = cluster_maps(pixel_maps(run, several.maps), k=k, scope="image", seed=seed)[0]
    control = float(
        np.mean([ari(a.reshape(-1), b.reshape(-1)) for a, b in zip(pixels, several.labels, strict=True)])
    )
    out = []
    for name, maps in watched(candidates.items(), desc="layers", unit="layer", total=len(candidates)):
        alone = composite([maps])
        labels = cluster_maps(
            [
                replace(m, features=resized(m.features, like.grid))
                for m, like in zip(alone, several.maps, strict=True)
            ],
            k=k,
            scope="image",
            seed=seed,
        )[0]
        values = np.array(
            [ari(a.reshape(-1), b.reshape(-1)) for a, b in zip(labels, several.labels, strict=True)]
        )
        out.append(
            Result(
                name=name,
                value=float(values.mean()),
                unit="ARI with all layers",
                n=len(values),
                over=units.over,
                n_units=units.n,
                interval=bootstrap_mean(values, units, seed=seed),
                controls={"raw pixels": control},
            )
        )
    return out


def with_watermark(
    source: ItemSource,
    *,
    size: float = 0.25,
    place: tuple[float, float] = (0.02, 0.7),
    opacity: float = 0.8,
    seed: int = 0,
) -> ItemSource:
    """Return the items with the same mark pasted into each image, and a mask "watermark" of where it is.

    The mark is a fixed pattern of black and white squares. Capture these and the plain items with one model and
    compare them with `watermark_saturation`.

    Args:
        source: Items with images.
        size: Side of the mark, share of the image's shorter side.
        place: Left upper corner (x, y), shares of the image.
        opacity: 0..1.
        seed: Seeds the pattern.
    """
    from ..items.frames import MappedSource

    if not 0 < size <= 1 or not 0 <= opacity <= 1 or not all(0 <= p < 1 for p in place):
        raise InputError(
            f"got size={size}, place={place}, opacity={opacity}; need shares of the image, 0 to 1."
        )
    pattern = np.random.default_rng(seed).integers(0, 2, (6, 6)) * 255

    def change(item: Item) -> Item:
        image = item.image.copy()
        height, width = image.shape[:2]
        side = max(6, round(size * min(height, width)))
        x0, y0 = round(place[0] * width), round(place[1] * height)
        x1, y1 = min(width, x0 + side), min(height, y0 + side)
        rows, cols = (np.arange(n) * 6 // side for n in (y1 - y0, x1 - x0))
        mark = pattern[rows][:, cols, None]
        image[y0:y1, x0:x1] = np.rint((1 - opacity) * image[y0:y1, x0:x1] + opacity * mark).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[y0:y1, x0:x1] = 1
        return replace(
            item,
            images=(image, *item.images[1:]),
            masks={**item.masks, MARK: mask},
            mask_names={**item.mask_names, MARK: {1: MARK}},
        )

    return MappedSource(source, change, tag=f"watermark {size} {place} {opacity} {seed}")


def watermark_saturation(
    marked: Run, plain: Run, *, sites: Sequence[str], k: int = 5, seed: int = 0, n_permutations: int = 499
) -> Result:
    """Return how far a watermark takes a cluster for itself: IoU of its place with the best cluster, minus without it.

    Both runs are clustered in the same way; a model that pays no heed to the mark has the same clusters in both.
    The p-value flips the signs of the differences of whole items (or episodes).

    Args:
        marked: Captured from `with_watermark(items)`.
        plain: Captured from the same items.
        sites: Layers.
        k: Clusters.
        seed: Seeds k-means, bootstrap and sign flips.
        n_permutations: Sign flips.

    Raises:
        InputError: the runs hold other items, or the first has no mask "watermark".
    """
    same_items(marked, plain)
    with_mark, without = (nave(run, sites=sites, k=k, seed=seed) for run in (marked, plain))
    values = np.zeros((len(with_mark.items), 2))
    for i, item in enumerate(with_mark.items):
        mask = marked.mask(int(item), MARK)
        if mask is None:
            raise InputError("the first run has no mask 'watermark'; capture `with_watermark(items)`.")
        values[i] = [best_overlap_iou(one.painted(i), mask > 0) for one in (with_mark, without)]
    difference = values[:, 0] - values[:, 1]
    units = run_units(marked, with_mark.items)
    value = float(difference.mean())
    rng = np.random.default_rng([seed, 31])
    flips = rng.choice([-1.0, 1.0], (n_permutations, units.n))[:, units.ids]
    reached = int(((flips * difference).mean(1) >= value - 1e-12).sum())
    return Result(
        name="watermark",
        value=value,
        unit="IoU gained by the mark",
        n=len(difference),
        over=units.over,
        n_units=units.n,
        interval=bootstrap_mean(difference, units, seed=seed),
        p=(1 + reached) / (1 + n_permutations),
        controls={"same place without the mark": float(values[:, 1].mean())},
        details={"iou_with_mark": float(values[:, 0].mean()), "k": k},
    )


def outlier_patches(
    run: Run, *, sites: Sequence[str], random_run: Run | None = None, seed: int = 0
) -> list[Result]:
    """Return for each layer the share of patches whose norm is over three times their image's median.

    Transformers without registers put such patches into their late layers; compare a model with registers with one
    without. References: Darcet et al. 2023, arXiv:2309.16588.

    Raises:
        InputError: `random_run` of other items or the same weights.
    """
    check_random(run, random_run)
    out = []
    for name in sites:
        share = _outliers(run, name)
        units = run_units(run, share[0])
        controls = (
            {} if random_run is None else {"random weights": float(_outliers(random_run, name)[1].mean())}
        )
        out.append(
            Result(
                name=name,
                value=float(share[1].mean()),
                unit="share of patches",
                n=len(share[1]),
                over=units.over,
                n_units=units.n,
                interval=bootstrap_mean(share[1], units, seed=seed),
                controls=controls,
            )
        )
    return out


def _outliers(run: Run, site: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    items, shares = [], []
    for one in patch_maps(run, site):
        norm = np.linalg.norm(one.rows_nd.astype(np.float64), axis=1)
        items.append(one.item)
        shares.append(float((norm > OUTLIER * np.median(norm)).mean()))
    return np.array(items, np.int64), np.array(shares)
