"""Ways to segment the images of a run, all on the same patches, so that only the method differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, missing_extra, nearest_text
from .boxes import inner_segments
from .nave import Scope, check_k, cluster_maps, composite
from .objects import Foreground, lost, pca_threshold, tokencut
from .patchmaps import PatchMap, patch_maps, pixel_maps, resized

if TYPE_CHECKING:
    from ..runs import Run


@dataclass(frozen=True)
class Segments:
    """The segments of one image.

    Attributes:
        map: The patches that they are made of (features are those of the method).
        labels: int64 [rows, cols], by patch.
        objects: Masks [rows, cols] that may be the object, with scores, best first.
        pixels: int64 [h, w], for methods that label pixels; None paints `labels`.
    """

    map: PatchMap
    labels: NDArray[np.int64]
    objects: tuple[tuple[NDArray[np.bool_], float], ...]
    pixels: NDArray[np.int64] | None = None

    def at(self, height: int, width: int) -> NDArray[np.int64]:
        """Return the segments over the image at any size, int64 [height, width]; -1 where there is none."""
        if self.pixels is None:
            return self.map.paint(self.labels, height=height, width=width)
        rows = np.arange(height) * self.pixels.shape[0] // height
        cols = np.arange(width) * self.pixels.shape[1] // width
        return self.pixels[rows][:, cols]


@dataclass(frozen=True)
class Features:
    """What methods work on.

    Attributes:
        layers: For each site the maps of all images, in forward order.
        main: The maps of the layer that single-layer methods take, on the finest grid of all layers.
        keys: The maps of LOST and TokenCut: keys of that layer where they were captured, else `main`.
        attention: Pairs of query and key maps per layer, for "where"; empty where they were not captured.
        values: Value maps per layer, for "what"; empty where they were not captured.
    """

    layers: dict[str, list[PatchMap]]
    main: list[PatchMap]
    keys: list[PatchMap]
    attention: list[tuple[list[PatchMap], list[PatchMap]]]
    values: list[list[PatchMap]]


def read_features(
    run: Run, sites: Sequence[str], *, site: str | None = None, items: Sequence[int] | None = None
) -> Features:
    """Return the patch maps that all methods share.

    Args:
        run: The run.
        sites: The layers of multi-layer methods, in forward order.
        site: The layer of single-layer methods; None takes the last.
        items: Rows of items.

    Raises:
        InputError: no sites, or sites without patches.
    """
    if not sites:
        raise InputError("got no sites; name at least one layer with patches.")
    main_site = sites[-1] if site is None else site
    layers = {name: patch_maps(run, name, items=items) for name in dict.fromkeys(sites)}
    main = layers[main_site] if main_site in layers else patch_maps(run, main_site, items=items)
    grids = [
        max((layer[i].grid for layer in layers.values()), key=lambda g: g[0] * g[1]) for i in range(len(main))
    ]
    finest = [
        next(layer[i] for layer in layers.values() if layer[i].grid == grid) for i, grid in enumerate(grids)
    ]

    def fine(maps: Sequence[PatchMap]) -> list[PatchMap]:
        """Bring maps of any grid to the common finest one, so that no method has coarser patches than another."""
        return [
            PatchMap(one.item, resized(one.features, like.grid), like.box, one.size_hw)
            for one, like in zip(maps, finest, strict=True)
        ]

    def tensor(layer: str, letter: str) -> list[PatchMap] | None:
        name = f"{layer}.{letter}"
        return fine(patch_maps(run, name, items=items)) if name in run.sites else None

    main = fine(main)
    found = {name: (tensor(name, "q"), tensor(name, "k"), tensor(name, "v")) for name in layers}
    attention = [(q, k) for q, k, _ in found.values() if q is not None and k is not None]
    values = [v for _, _, v in found.values() if v is not None]
    return Features(layers, main, tensor(main_site, "k") or main, attention, values)


Method = Callable[["Run", Features, int, Scope, int], list[Segments]]
_METHODS: dict[str, tuple[Method, str]] = {}


def _method(name: str, summary: str) -> Callable[[Method], Method]:
    def add(method: Method) -> Method:
        if name in _METHODS:
            raise InputError(f"two methods are called '{name}'.")
        _METHODS[name] = (method, summary)
        return method

    return add


def method_names() -> dict[str, str]:
    """Return each method with what it does."""
    return {name: summary for name, (_, summary) in _METHODS.items()}


def segment(
    run: Run, features: Features, *, method: str, k: int = 5, scope: Scope = "image", seed: int = 0
) -> list[Segments]:
    """Return the segments of every image by one method.

    Args:
        run: The run (for its images).
        features: See `read_features`.
        method: One of `method_names`.
        k: Segments per image ("image") or over all images ("joint"). LOST, TokenCut and PCA always make two.
        scope: Whether images are segmented one by one or together; only "ncut", "ncut-uniform", "joint", "nave",
            "kmeans" and "pixels" can do the latter, all others go image by image.
        seed: Seeds everything random.

    Raises:
        InputError: no such method.
        MissingExtraError: "slic" without scikit-image.
    """
    if method not in _METHODS:
        raise InputError(
            f"no method '{method}'; methods are {', '.join(_METHODS)}.{nearest_text(method, _METHODS)}"
        )
    check_k(k)
    return _METHODS[method][0](run, features, k, scope, seed)


def _by_inner_box(
    one: PatchMap, labels: NDArray[np.int64], pixels: NDArray[np.int64] | None = None
) -> Segments:
    return Segments(one, labels, tuple(inner_segments(labels)), pixels)


def _by_object(one: PatchMap, found: Foreground) -> Segments:
    return Segments(one, found.region.astype(np.int64), ((found.component, found.score),))


def _in_scope(
    maps: Sequence[PatchMap], scope: Scope, groups: Callable[[Sequence[int]], NDArray[np.int64]]
) -> list[Segments]:
    """Group the patches of each image, or of all; `groups` takes places in `maps` and returns stacked labels."""
    batches = [[i] for i in range(len(maps))] if scope == "image" else [list(range(len(maps)))]
    out = []
    for batch in batches:
        labels = groups(batch)
        ends = np.cumsum([maps[i].grid[0] * maps[i].grid[1] for i in batch])[:-1]
        for i, part in zip(batch, np.split(labels, ends), strict=True):
            out.append(_by_inner_box(maps[i], part.reshape(maps[i].grid)))
    return out


@_method("ncut", "Normalized Cut of the layer, k-way")
def _ncut(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    return _cut(features, k, scope, seed, balance="density", per_group=1)


@_method(
    "ncut-uniform",
    "Normalized Cut, sparse regions counting as much as dense ones, two diffusion steps",
)
def _ncut_uniform(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    # Twice as many eigenvectors as groups and two steps were chosen on 32 development episodes of the simulator.
    return _cut(features, k, scope, seed, balance="uniform", per_group=2)


def _cut(
    features: Features, k: int, scope: Scope, seed: int, *, balance: str, per_group: int
) -> list[Segments]:
    """Segment by k-means on the diffusion map: `per_group` eigenvectors per group, weighed by as many steps."""
    from ..spectral import NystromNCut, kway

    def groups(batch: Sequence[int]) -> NDArray[np.int64]:
        rows = np.concatenate([features.main[i].rows_nd for i in batch])
        if not np.ptp(rows, axis=0).any():
            return np.zeros(len(rows), np.int64)
        n = min(k, len(rows))
        ncut = NystromNCut(min(per_group * n, len(rows)), balance=balance, seed=seed)
        eigvecs = ncut.fit_transform(rows)
        found = kway(
            eigvecs,
            n,
            method="kmeans",
            eigenvalues=ncut.eigenvalues_**per_group,
            per_group=per_group,
            seed=seed,
        )
        return found.labels[n].astype(np.int64)

    return _in_scope(features.main, scope, groups)


@_method("joint", "joint cut of all layers: what (values), and where (attention) if it was captured")
def _joint(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    from ..spectral import attention_affinity, joint_cut, kway, neighbour_affinity

    grids = [one.grid for one in features.main]

    def fine(layer: Sequence[PatchMap]) -> list[PatchMap]:
        pairs = zip(layer, grids, strict=True)
        return [PatchMap(m.item, resized(m.features, grid), m.box, m.size_hw) for m, grid in pairs]

    contents = features.values or [fine(layer) for layer in features.layers.values()]

    def groups(batch: Sequence[int]) -> NDArray[np.int64]:
        image_of = np.repeat(batch, [grids[i][0] * grids[i][1] for i in batch])
        n_inter = 0 if len(batch) == 1 else 50

        def stacked(maps: Sequence[PatchMap]) -> NDArray[np.float32]:
            rows = np.concatenate([maps[i].rows_nd for i in batch])
            return rows - rows.mean(0)

        graphs = [
            neighbour_affinity(stacked(layer), image_of=image_of, n_inter=n_inter) for layer in contents
        ]
        for queries, keys in features.attention:
            if len(batch) == 1:
                graphs.append(attention_affinity(queries[batch[0]].rows_nd, keys[batch[0]].rows_nd))
            else:
                graphs.append(
                    neighbour_affinity(stacked(queries), stacked(keys), image_of=image_of, n_inter=n_inter)
                )
        n = min(k, len(image_of))
        eigvecs = joint_cut(graphs, n_eig=n, solver="direct", seed=seed).eigvecs
        return kway(eigvecs, n, method="kmeans", seed=seed).labels[n].astype(np.int64)

    return _in_scope(features.main, scope, groups)


@_method("nave", "k-means on several layers, each scaled alike (NAVE)")
def _nave(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    maps = composite(list(features.layers.values()))
    labels, _ = cluster_maps(maps, k=k, scope=scope, seed=seed)
    return [_by_inner_box(one, part) for one, part in zip(maps, labels, strict=True)]


@_method("kmeans", "k-means of the layer")
def _kmeans(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    labels, _ = cluster_maps(features.main, k=k, scope=scope, seed=seed)
    return [_by_inner_box(one, part) for one, part in zip(features.main, labels, strict=True)]


@_method("pca", "sign of the first principal component of the layer")
def _pca(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    return [_by_object(one, pca_threshold(one.features)) for one in features.main]


@_method("lost", "LOST, on the keys of the layer where captured")
def _lost(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    return [_by_object(one, lost(one.features)) for one in features.keys]


@_method("tokencut", "TokenCut, on the keys of the layer where captured")
def _tokencut(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    return [_by_object(one, tokencut(one.features)) for one in features.keys]


@_method("slic", "SLIC superpixels (no model)")
def _slic(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise missing_extra("scikit-image", extra="eval", needed_for="the method 'slic'") from error
    out = []
    for one in features.main:
        pixels = slic(run.image(one.item), n_segments=k, compactness=10.0, start_label=0).astype(np.int64)
        middle = np.clip(np.floor((one.box[..., :2] + one.box[..., 2:]) / 2).astype(int), 0, None)
        labels = pixels[
            middle[..., 1].clip(max=pixels.shape[0] - 1), middle[..., 0].clip(max=pixels.shape[1] - 1)
        ]
        out.append(_by_inner_box(one, labels, pixels))
    return out


@_method("pixels", "k-means on the raw pixels of the same patches (no model)")
def _pixels(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    maps = pixel_maps(run, features.main)
    labels, _ = cluster_maps(maps, k=k, scope=scope, seed=seed)
    return [_by_inner_box(one, part) for one, part in zip(maps, labels, strict=True)]


@_method("tiles", "k equal tiles of the image (no model, no image)")
def _tiles(run: Run, features: Features, k: int, scope: Scope, seed: int) -> list[Segments]:
    n_rows = max(r for r in range(1, int(k**0.5) + 1) if k % r == 0)
    out = []
    for one in features.main:
        rows = np.arange(one.grid[0]) * n_rows // one.grid[0]
        cols = np.arange(one.grid[1]) * (k // n_rows) // one.grid[1]
        labels = (rows[:, None] * (k // n_rows) + cols[None]).astype(np.int64)
        # The object of a picture that nobody looked at: the middle two thirds of it.
        centre = np.zeros(one.grid, bool)
        r, c = max(1, one.grid[0] // 6), max(1, one.grid[1] // 6)
        centre[r : one.grid[0] - r, c : one.grid[1] - c] = True
        out.append(Segments(one, labels, ((centre, 1.0),)))
    return out
