"""One vector per item (or per region of an item) from a site's tokens, read block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.layout import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..runs import Run

TokenChoice = Literal["auto", "patch", "text", "last", "action", "state", "class", "all"]
BACKGROUND = ("background", "table", "arm", "pad")
"""Regions that are no objects."""


@dataclass(frozen=True)
class Pooled:
    """Mean features of groups of tokens.

    Attributes:
        features: float32 [n, d].
        items: int64 [n], the item of each row, increasing.
        names: The region of each row; empty when a row is a whole item.
        n_tokens: Tokens that were averaged in all.
    """

    features: NDArray[np.float32]
    items: NDArray[np.int64]
    names: tuple[str, ...]
    n_tokens: int

    def of_items(self, items: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the rows of some items (which must all be there), one per entry."""
        return self.features[np.searchsorted(self.items, items)]


def pool_items(run: Run, site: str, *, tokens: TokenChoice = "auto") -> Pooled:
    """Return the mean vector of each item's tokens at a site.

    Args:
        run: The run.
        site: A captured site.
        tokens: Which tokens: a kind, "all", "last" (an item's last token: where a language model decides what to
            say next), or "auto": patches where there are any, else all.

    Raises:
        InputError: the site has no such tokens, or activations are NaN.

    Cost: one pass over the site.
    """
    layout = run.site(site).layout
    table = run.tokens(layout)
    kind = tokens
    if kind == "auto":
        kind = "patch" if (table.kind == KINDS.index("patch")).any() else "all"
    if kind == "last":
        ends = np.append(table.item[1:] != table.item[:-1], True) if len(table) else np.zeros(0, bool)
        rows = np.flatnonzero(ends)
    elif kind == "all":
        rows = np.arange(len(table))
    else:
        rows = table.select(kind)
    if not len(rows):
        raise InputError(
            f"site '{site}' has no tokens of kind '{kind}'; choose other tokens or another site."
        )
    group = np.full(len(table), -1, np.int64)
    items, group[rows] = np.unique(table.item[rows], return_inverse=True)
    return Pooled(_means(run, site, group, len(items)), items.astype(np.int64), (), len(rows))


def pool_regions(
    run: Run,
    site: str,
    *,
    mask: str = "segmentation",
    regions: Sequence[str] | None = None,
    exclude: Sequence[str] = BACKGROUND,
) -> Pooled:
    """Return the mean vector of the patches whose centre lies in each named region of each item's mask.

    Args:
        run: A run with masks.
        site: A site with patches.
        mask: Name of the mask.
        regions: Names to keep; None keeps all but `exclude`.
        exclude: Names that are left out when `regions` is None.

    Raises:
        InputError: no masks, no patches, or no patch in any region.
    """
    group, items, names = region_groups(run, site, mask=mask, regions=regions, exclude=exclude)
    features = _means(run, site, group, len(items))
    return Pooled(features, items, names, int((group >= 0).sum()))


def region_groups(
    run: Run, site: str, *, mask: str, regions: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Return the group of each token (-1: none), and the item and region name of each group."""
    table = run.tokens(run.site(site).layout)
    patches = np.flatnonzero((table.camera == 0) & ~np.isnan(table.box).any(1))
    if not len(patches):
        raise InputError(f"site '{site}' has no patch tokens; choose a site with patches.")
    group = np.full(len(table), -1, np.int64)
    items: list[int] = []
    names: list[str] = []
    has_mask = False
    for item in np.unique(table.item[patches]):
        mask_hw = run.mask(int(item), mask)
        if mask_hw is None:
            continue
        has_mask = True
        rows = patches[table.item[patches] == item]
        height, width = mask_hw.shape
        x = (table.box[rows, 0] + table.box[rows, 2]) / 2
        y = (table.box[rows, 1] + table.box[rows, 3]) / 2
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        ids = np.full(len(rows), -1, np.int64)
        ids[inside] = mask_hw[y[inside].astype(int), x[inside].astype(int)]
        by_name: dict[str, list[int]] = {}
        for value, name in run.mask_names(int(item), mask).items():
            by_name.setdefault(name, []).append(int(value))
        for name, values in sorted(by_name.items()):
            if (regions is not None and name not in regions) or (regions is None and name in exclude):
                continue
            here = rows[np.isin(ids, values)]
            if len(here):
                group[here] = len(items)
                items.append(int(item))
                names.append(name)
    if not has_mask:
        raise InputError(
            f"no item of this run has a mask '{mask}'; measures against masks need data with masks, such as "
            "episodes of the simulator."
        )
    if not items:
        raise InputError(f"no patch lies in a region of mask '{mask}'; the masks are empty or name none.")
    return group, np.array(items, np.int64), tuple(names)


def image_pixels(run: Run, items: NDArray[np.integer], *, side: int = 16) -> NDArray[np.float32]:
    """Return the raw-pixel control of whole items: the first image at side x side, float32 [n, side² 3] in 0..1."""
    from PIL import Image

    out = np.empty((len(items), side * side * 3), np.float32)
    for i, item in enumerate(items):
        small = Image.fromarray(run.image(int(item))).resize((side, side), Image.Resampling.BOX)
        out[i] = np.asarray(small, np.float32).reshape(-1) / 255
    return out


def region_pixels(run: Run, site: str, pooled: Pooled, group: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the raw-pixel control of regions: mean pixels of the very same patches, float32 [n, 192] in 0..1."""
    table = run.tokens(run.site(site).layout)
    rows = np.flatnonzero(group >= 0)
    vectors = patch_pixels(run, table.item[rows], table.box[rows])
    out = np.zeros((len(pooled.items), vectors.shape[1]), np.float64)
    np.add.at(out, group[rows], vectors)
    return (out / np.bincount(group[rows], minlength=len(out))[:, None]).astype(np.float32)


def patch_pixels(
    run: Run, item_of_patch: NDArray[np.integer], box: NDArray[np.float32], *, side: int = 8
) -> NDArray[np.float32]:
    """Return the raw pixels of patches resampled to side x side, float32 [n, side² 3] in 0..1.

    Patches wholly in a model's padding are zeros.
    """
    from PIL import Image

    vectors = np.zeros((len(box), side * side * 3), np.float32)
    for item in np.unique(item_of_patch):
        image = Image.fromarray(run.image(int(item)))
        for patch in np.flatnonzero(item_of_patch == item):
            x0, y0, x1, y1 = (float(v) for v in box[patch])
            limits = (max(x0, 0.0), max(y0, 0.0), min(x1, image.width), min(y1, image.height))
            if limits[2] <= limits[0] or limits[3] <= limits[1]:
                continue
            tile = image.resize((side, side), Image.Resampling.BILINEAR, box=limits)
            vectors[patch] = np.asarray(tile, np.float32).reshape(-1) / 255
    return vectors


def _means(run: Run, site: str, group: NDArray[np.int64], n_groups: int) -> NDArray[np.float32]:
    acts = run.acts(site)
    sums = np.zeros((n_groups, acts.shape[1]), np.float64)
    for rows, values in acts.blocks():
        here = group[rows]
        kept = np.flatnonzero(here >= 0)
        np.add.at(sums, here[kept], np.asarray(values[kept], np.float64))
    if not np.isfinite(sums).all():
        raise InputError(f"site '{site}' holds NaN or Inf; capture again in float32.")
    counts = np.bincount(group[group >= 0], minlength=n_groups)
    return (sums / counts[:, None]).astype(np.float32)
