"""NAVE: activations of several depths on one grid, each layer scaled alike, clustered by k-means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .boxes import inner_segments
from .groups import living_channels
from .patchmaps import PatchMap, patch_maps, resized
from .result import plain_json

if TYPE_CHECKING:
    from ..runs import Run

Scope = Literal["image", "joint"]
MAX_FULL_ROWS = 50_000
"""Tokens above which k-means sees them in mini-batches."""


@dataclass(frozen=True)
class NaveResult:
    """Concepts of several depths, per image or over all images.

    Attributes:
        sites: The layers.
        k: Clusters asked for (an image with fewer different patches has fewer).
        scope: "image": each image has clusters of its own; "joint": one set for all images.
        maps: Composite features of each image on the finest grid.
        labels: int64 [rows, cols] per image, 0..k-1.
        explained: Share of the composite's variance (around the mean of what was clustered together) that the
            clusters explain, per image for "image", one number for "joint".
    """

    sites: tuple[str, ...]
    k: int
    scope: Scope
    maps: tuple[PatchMap, ...]
    labels: tuple[NDArray[np.int64], ...]
    explained: tuple[float, ...]

    @property
    def items(self) -> NDArray[np.int64]:
        """The items, one per entry of `labels`."""
        return np.array([one.item for one in self.maps], np.int64)

    def boxes(self) -> list[NDArray[np.float64] | None]:
        """Return the object's box in each image, float64 [4] in pixels, by the inner-box rule; None without one."""
        out = []
        for one, labels in zip(self.maps, self.labels, strict=True):
            found = inner_segments(labels)
            out.append(one.box_of(found[0][0]) if found else None)
        return out

    def painted(self, index: int) -> NDArray[np.int64]:
        """Return the clusters of one image over its pixels, int64 [h, w]; -1 outside the patches."""
        one = self.maps[index]
        return one.paint(self.labels[index], height=one.size_hw[0], width=one.size_hw[1])

    def summary(self) -> str:
        """Return in one line what was clustered and how much of it the clusters explain."""
        share = float(np.mean(self.explained))
        where = "each image on its own" if self.scope == "image" else "all images together"
        rows, cols = self.maps[0].grid
        return (
            f"NAVE of {len(self.sites)} layers ({', '.join(self.sites)}), {where}: {len(self.maps)} images, "
            f"{rows} x {cols} patches, K={self.k}, {share:.0%} of the variance explained"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what was found as JSON types."""
        return plain_json(
            {
                "summary": self.summary(),
                "sites": self.sites,
                "k": self.k,
                "scope": self.scope,
                "explained": float(np.mean(self.explained)),
                "items": self.items,
                "labels": self.labels,
                "boxes": self.boxes(),
            }
        )


def nave(
    run: Run,
    *,
    sites: Sequence[str],
    k: int = 5,
    scope: Scope = "image",
    items: Sequence[int] | None = None,
    seed: int = 0,
) -> NaveResult:
    """Cluster the patches of images by their activations at several depths.

    In the spirit of NAVE (Boubekki, Fadel and Mair, arXiv:2411.19700); the exact choices are ours: maps are resized
    (bilinear) to the finest grid, every channel is standardised over the images, every layer divided by the root of
    its width so that all depths weigh the same, then k-means with k-means++ starts.

    Args:
        run: Any run of images.
        sites: Layers with patches, of any grid (ViT and CNN alike); three or four spread over the depth do well.
        k: Clusters.
        scope: "image" clusters each image alone, "joint" all images together, so that labels are comparable.
        items: Rows of items; None takes all.
        seed: Seeds k-means.

    Raises:
        SiteNotFoundError: no such site.
        InputError: no sites, k below 2, or features that do not vary.

    Cost: O(patches width k) per k-means step; above 50,000 patches mini-batches.
    """
    check_k(k)
    names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    maps = composite([patch_maps(run, name, items=items) for name in names])
    return nave_maps(maps, sites=names, k=k, scope=scope, seed=seed)


def nave_maps(
    maps: Sequence[PatchMap], *, sites: Sequence[str] = (), k: int = 5, scope: Scope = "image", seed: int = 0
) -> NaveResult:
    """Cluster composite maps; see `nave` and `composite`."""
    check_k(k)
    if scope not in ("image", "joint"):
        raise InputError(f"got scope={scope!r}; need 'image' or 'joint'.")
    labels, explained = cluster_maps(maps, k=k, scope=scope, seed=seed)
    return NaveResult(tuple(sites), k, scope, tuple(maps), tuple(labels), tuple(explained))


def check_k(*ks: int) -> None:
    """Raise unless every number of clusters is at least 2.

    Raises:
        InputError: one is not.
    """
    for k in ks:
        if k < 2:
            raise InputError(f"got k={k}; need at least 2 clusters.")


def composite(layers: Sequence[Sequence[PatchMap]]) -> list[PatchMap]:
    """Return one map per image with the channels of all layers, on the finest grid.

    Args:
        layers: For each layer the maps of the same images, in the same order.

    Raises:
        InputError: no layers, other images, or all features constant.
    """
    if not layers or not layers[0]:
        raise InputError("got no layers (or no images); name at least one site.")
    items = [one.item for one in layers[0]]
    if any([one.item for one in layer] != items for layer in layers):
        raise InputError(
            "the sites do not hold patches of the same images; give `items` that all of them have."
        )
    scaled: list[list[NDArray[np.float32]]] = [[] for _ in items]
    finest = [
        max((layer[i] for layer in layers), key=lambda one: one.grid[0] * one.grid[1])
        for i in range(len(items))
    ]
    for layer in layers:
        mean, spread = _moments([one.rows_nd for one in layer])
        lives = living_channels(mean, spread)
        if not lives.any():
            continue
        factor = (1 / np.sqrt(lives.sum()) / spread[lives]).astype(np.float32)
        for i, one in enumerate(layer):
            part = (one.features[..., lives] - mean[lives].astype(np.float32)) * factor
            scaled[i].append(resized(part, finest[i].grid))
    if not scaled[0]:
        raise InputError("the features do not vary between patches; there is nothing to cluster.")
    return [
        PatchMap(one.item, np.concatenate(parts, axis=2), one.box, one.size_hw)
        for one, parts in zip(finest, scaled, strict=True)
    ]


def cluster_maps(
    maps: Sequence[PatchMap], *, k: int, scope: Scope, seed: int = 0
) -> tuple[list[NDArray[np.int64]], list[float]]:
    """Return k-means labels [rows, cols] of each map, and the share of variance explained."""
    check_k(k)
    if scope == "image":
        pairs = [_kmeans(one.rows_nd, k, seed=seed) for one in maps]
        return [p[0].reshape(one.grid) for p, one in zip(pairs, maps, strict=True)], [p[1] for p in pairs]
    rows = np.concatenate([one.rows_nd for one in maps])
    labels, share = _kmeans(rows, k, seed=seed)
    ends = np.cumsum([one.grid[0] * one.grid[1] for one in maps])[:-1]
    return [part.reshape(one.grid) for part, one in zip(np.split(labels, ends), maps, strict=True)], [share]


def _kmeans(rows_nd: NDArray[np.float32], k: int, *, seed: int) -> tuple[NDArray[np.int64], float]:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    x = np.ascontiguousarray(rows_nd, np.float32)
    total = float(((x - x.mean(0)) ** 2).sum(dtype=np.float64))
    k = min(k, len(x))
    if total <= 1e-12 * max(float((x**2).sum(dtype=np.float64)), 1e-30):
        return np.zeros(len(x), np.int64), 0.0
    if k == len(x) or len(np.unique(x[: 4 * k + 64], axis=0)) < k:
        k = min(k, len(np.unique(x, axis=0)))
    if len(x) > MAX_FULL_ROWS:
        model: Any = MiniBatchKMeans(n_clusters=k, n_init=3, batch_size=4096, random_state=seed)  # pyright: ignore[reportArgumentType]
    else:
        model = KMeans(n_clusters=k, n_init=4, random_state=seed)  # pyright: ignore[reportArgumentType]
    labels = model.fit_predict(x).astype(np.int64)
    return labels, 1 - float(model.inertia_) / total


def _moments(parts: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = sum(len(part) for part in parts)
    mean = np.sum([part.sum(0, dtype=np.float64) for part in parts], axis=0) / n
    square = np.sum([((part - mean) ** 2).sum(0, dtype=np.float64) for part in parts], axis=0) / n
    return mean, np.sqrt(square)
