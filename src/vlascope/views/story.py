"""What happened in an episode: the object that was named, its concepts at each layer, and those of its neighbours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..models.layout import token_from_pixel
from .grid import first_camera
from .tokens import TokenIndex

if TYPE_CHECKING:
    from ..items.item import Scalar
    from ..runs import Run

NOT_OBJECTS = ("background", "table", "arm", "gripper", "hand", "robot", "pad")
"""Region names that an instruction's object is never looked for among."""

MIN_INSIDE = 0.5
"""A patch belongs to a region when at least this share of its area lies inside."""


@dataclass(frozen=True, kw_only=True)
class ConceptShare:
    """The concepts of one region at one layer.

    Attributes:
        n_patches: Patches at least half inside the region, summed over the frames.
        shares: (cluster, share of those patches), largest first; the shares sum to 1.
        shared_with_named: Overlap of these shares with those of the named object, sum of the smaller of both,
            0..1; None for the named object itself, and where either has no patch.
    """

    n_patches: int
    shares: tuple[tuple[int, float], ...]
    shared_with_named: float | None


@dataclass(frozen=True, kw_only=True)
class LayerConcepts:
    """One row of the table: a site and the concepts of each region there."""

    site: str
    regions: Mapping[str, ConceptShare]

    @property
    def most_shared(self) -> float | None:
        """The largest overlap of any other object with the named one; None where there is nothing to compare."""
        values = [r.shared_with_named for r in self.regions.values() if r.shared_with_named is not None]
        return max(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """The concepts of the objects of an episode, layer by layer.

    Attributes:
        k: Number of clusters of the cut.
        named: The region that the instruction names.
        others: Other objects.
        layers: One row per site with patches.
    """

    k: int
    named: str
    others: tuple[str, ...]
    layers: tuple[LayerConcepts, ...]

    def told_apart(self) -> tuple[list[str], list[str]]:
        """Return (sites where the named object shares less than half with every other, the other sites)."""
        apart, mixed = [], []
        for layer in self.layers:
            if layer.most_shared is not None:
                (apart if layer.most_shared < 0.5 else mixed).append(layer.site)
        return apart, mixed


def object_regions(run: Run, items: Sequence[int], *, mask: str = "segmentation") -> tuple[str, ...]:
    """Return the names of the objects in the masks of some items, in order of their mask values."""
    names: dict[str, int] = {}
    for i in items:
        for value, name in run.mask_names(i, mask).items():
            names.setdefault(name, value)
    return tuple(n for n in sorted(names, key=lambda n: names[n]) if n.lower() not in NOT_OBJECTS)


def named_region(
    prompt: str | None, labels: Mapping[str, Scalar], regions: Sequence[str]
) -> tuple[str | None, str]:
    """Return which region the instruction means, and how that is known.

    Labels called "target" or "target_..." come first: one that is a region's name, or else the region that shares
    most words with them. Without such labels it is the region that shares most words with the instruction. Where two
    regions fit equally well none is named.

    Returns:
        (region, "label" or "instruction"), or (None, "") when it cannot be told.
    """
    words = [v for name, v in labels.items() if name.split("_")[0] == "target" and isinstance(v, str)]
    exact = [v for v in words if v in regions]
    best = exact[0] if exact else _best_match(" ".join(words), regions)
    if best is not None:
        return best, "label"
    best = _best_match(prompt or "", regions)
    return (best, "instruction") if best is not None else (None, "")


def region_title(region: str) -> str:
    """Return how a sentence calls a region: "red fragile" and "red fragile object" are both "red fragile object"."""
    return region if region.lower().endswith(" object") else f"{region} object"


def held_spans(run: Run, items: Sequence[int], regions: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return (object, first step, last step) of every stretch in which the frame label "holding" names an object.

    The label counts the objects from 0 in the order of their mask values; -1 stands for none.
    """
    spans: list[tuple[str, int, int]] = []
    last = -1
    for item in items:
        row = run.items[item]
        value = row.labels.get("holding")
        held = value if isinstance(value, int) and 0 <= value < len(regions) else -1
        step = int(row.step or 0)
        if held >= 0 and held == last:
            spans[-1] = (spans[-1][0], spans[-1][1], step)
        elif held >= 0:
            spans.append((regions[held], step, step))
        last = held
    return spans


def _best_match(text: str, regions: Sequence[str]) -> str | None:
    spoken = set(re.findall(r"\w+", text.lower()))
    scores = [len(spoken & set(re.findall(r"\w+", region.lower()))) for region in regions]
    best = max(scores, default=0)
    return regions[scores.index(best)] if best > 0 and scores.count(best) == 1 else None


def episode_concepts(
    index: TokenIndex,
    items: Sequence[int],
    *,
    named: str,
    others: Sequence[str],
    k: int,
    sites: Sequence[str],
    mask: str = "segmentation",
) -> Concepts:
    """Return which concepts the objects of an episode have at each layer, over all its frames.

    Args:
        index: Looks up the tokens of the cut.
        items: Frames with masks.
        named: Region of the named object.
        others: Regions of the other objects.
        k: One of the cut's numbers of clusters.
        sites: Sites with patches.
        mask: Name of the mask.

    Cost: O(pixels + patches) per frame and site; frames whose patches lie alike at two sites share the first part.
    """
    run, labels = index.cut.run, index.cut.labels[k]
    regions = (named, *others)
    counts = {site: {r: np.zeros(k, np.int64) for r in regions} for site in sites}
    for item in items:
        mask_hw = run.mask(item, mask)
        if mask_hw is None:
            continue
        ids: dict[str, list[int]] = {}
        for value, name in run.mask_names(item, mask).items():
            ids.setdefault(name, []).append(value)
        inside_of: dict[tuple, dict[str, NDArray[np.bool_]]] = {}
        for site in sites:
            for grid in first_camera(index.patches(site, item)):
                place = (grid.frame, grid.rows, grid.cols)
                if place not in inside_of:
                    inside_of[place] = {
                        r: patches_inside(
                            np.isin(mask_hw, ids.get(r, [])), frame=grid.frame, shape=grid.index_rc.shape
                        )
                        for r in regions
                    }
                for region, inside in inside_of[place].items():
                    rows = grid.index_rc[inside & (grid.index_rc >= 0)]
                    counts[site][region] += np.bincount(labels[rows], minlength=k)
    layers = tuple(LayerConcepts(site=s, regions=_shares(counts[s], named=named)) for s in sites)
    return Concepts(k=k, named=named, others=tuple(others), layers=layers)


def patches_inside(
    region_hw: NDArray[np.bool_],
    *,
    frame: tuple[float, float, float, float],
    shape: tuple[int, ...],
    at_least: float = MIN_INSIDE,
) -> NDArray[np.bool_]:
    """Return bool [rows, cols]: the patches of which at least a share of the visible area lies in the region.

    Args:
        region_hw: bool [h, w], in pixels of the image.
        frame: x0, y0, x1, y1 that the grid covers, in the same pixels.
        shape: (rows, cols).
        at_least: Share, 0..1.
    """
    rows, cols = shape
    x, y = np.linspace(frame[0], frame[2], cols + 1), np.linspace(frame[1], frame[3], rows + 1)
    boxes = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(cols)]
    token_hw = token_from_pixel(
        np.asarray(boxes, np.float32), height=region_hw.shape[0], width=region_hw.shape[1]
    )
    seen = token_hw >= 0
    area = np.bincount(token_hw[seen], minlength=rows * cols)
    inside = np.bincount(token_hw[seen & region_hw], minlength=rows * cols)
    return ((inside >= at_least * area) & (inside > 0)).reshape(rows, cols)


def _shares(counts: Mapping[str, NDArray[np.int64]], *, named: str) -> dict[str, ConceptShare]:
    result = {}
    base = counts[named] / max(1, counts[named].sum())
    for region, count in counts.items():
        total = int(count.sum())
        share = count / max(1, total)
        order = np.argsort(-share, kind="stable")
        comparable = region != named and total > 0 and counts[named].sum() > 0
        result[region] = ConceptShare(
            n_patches=total,
            shares=tuple((int(c), float(share[c])) for c in order if share[c] > 0),
            shared_with_named=float(np.minimum(base, share).sum()) if comparable else None,
        )
    return result
