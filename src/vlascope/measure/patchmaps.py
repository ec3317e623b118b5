"""The patches of each image of a run as a map [rows, cols, d], and label maps painted back onto pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.layout import KINDS, token_from_pixel

if TYPE_CHECKING:
    from ..runs import Run


@dataclass(frozen=True)
class PatchMap:
    """Features of the patches of one image.

    Attributes:
        item: Row of the item in its run.
        features: float32 [rows, cols, d].
        box: float32 [rows, cols, 4], x0, y0, x1, y1 of each patch in pixels of the image.
        size_hw: (height, width) of the image.
    """

    item: int
    features: NDArray[np.float32]
    box: NDArray[np.float32]
    size_hw: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.features.shape[0], self.features.shape[1]

    @property
    def rows_nd(self) -> NDArray[np.float32]:
        """The patches one under the other, [rows * cols, d]."""
        return self.features.reshape(-1, self.features.shape[2])

    def box_of(self, mask_rc: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        """Return the box in pixels, float64 [4], around the patches of a mask, clipped to the image; None if empty."""
        if not mask_rc.any():
            return None
        inside = self.box[mask_rc].astype(np.float64)
        low, high = inside[:, :2].min(0), inside[:, 2:].max(0)
        height, width = self.size_hw
        return np.array([*np.clip(low, 0, [width, height]), *np.clip(high, 0, [width, height])])

    def paint(self, values_rc: NDArray[np.integer], *, height: int, width: int) -> NDArray[np.int64]:
        """Return the value of the patch over each pixel, int64 [height, width]; -1 where there is none.

        `height` and `width` may be any size; the whole image is scaled to it.
        """
        scale = np.array([width / self.size_hw[1], height / self.size_hw[0]] * 2, np.float32)
        token_hw = token_from_pixel(self.box.reshape(-1, 4) * scale, height=height, width=width)
        flat = np.append(np.asarray(values_rc, np.int64).reshape(-1), -1)
        return flat[token_hw]  # -1 (no patch) takes the last entry


def patch_maps(run: Run, site: str, *, items: Sequence[int] | None = None) -> list[PatchMap]:
    """Return one map of patches per item: those of its first camera, whole image (tile 0).

    Args:
        run: The run.
        site: A site with patches on a grid.
        items: Rows of items; None takes all that have patches.

    Raises:
        InputError: the site has no patches on a full grid, holds NaN, or an item has none.

    Cost: reads the chosen rows; keeps them in memory (4 bytes per number).
    """
    table = run.tokens(run.site(site).layout)
    is_patch = (table.kind == KINDS.index("patch")) & (table.camera == 0) & (table.tile == 0)
    is_patch &= ~np.isnan(table.box).any(1) & (table.row >= 0)
    wanted = np.unique(table.item[is_patch]) if items is None else np.asarray(list(items), np.int64)
    if not is_patch.any():
        raise InputError(f"site '{site}' has no patch tokens; choose a site of the vision tower.")
    acts, out = run.acts(site), []
    for item in wanted.tolist():
        span = table.rows_of(item)
        rows = np.flatnonzero(is_patch[span]) + span.start
        if not len(rows):
            raise InputError(f"site '{site}' has no patches for item {item}; leave that item out.")
        n_rows, n_cols = int(table.row[rows].max()) + 1, int(table.col[rows].max()) + 1
        if len(rows) != n_rows * n_cols:
            raise InputError(
                f"site '{site}', item {item}: {len(rows)} patches do not fill a grid of {n_rows} x {n_cols}; choose "
                "a site whose patches form one grid."
            )
        order = np.lexsort((table.col[rows], table.row[rows]))
        values = np.asarray(acts[span], np.float32)[rows - span.start][order]
        if not np.isfinite(values).all():
            raise InputError(f"site '{site}', item {item}, holds NaN or Inf; capture again in float32.")
        out.append(
            PatchMap(
                item,
                values.reshape(n_rows, n_cols, -1),
                table.box[rows][order].reshape(n_rows, n_cols, 4),
                run.items[item].image_sizes[0],
            )
        )
    return out


def resized(features_rcd: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map of features on another grid, float32 [rows, cols, d]: bilinear up, area mean down."""
    import torch

    if features_rcd.shape[:2] == grid:
        return features_rcd
    x = torch.from_numpy(np.ascontiguousarray(features_rcd)).permute(2, 0, 1)[None]
    is_smaller = grid[0] < features_rcd.shape[0] or grid[1] < features_rcd.shape[1]
    if is_smaller:
        x = torch.nn.functional.adaptive_avg_pool2d(x, grid)
    else:
        x = torch.nn.functional.interpolate(x, size=grid, mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0).contiguous().numpy()


def pixel_maps(run: Run, maps: Sequence[PatchMap], *, side: int = 8) -> list[PatchMap]:
    """Return the raw pixels of the very same patches as features: the control that knows no model."""
    from .pooling import patch_pixels

    out = []
    for one in maps:
        box = one.box.reshape(-1, 4)
        pixels = patch_pixels(run, np.full(len(box), one.item), box, side=side)
        out.append(PatchMap(one.item, pixels.reshape(*one.grid, -1), one.box, one.size_hw))
    return out


def spread_sites(run: Run, patterns: Sequence[str] | None = None, *, n: int = 4) -> tuple[str, ...]:
    """Return sites with patches: those that match, or up to `n` residual streams spread over the depth.

    Without patterns the sites are taken from the first token layouts that hold patches and no text (the vision
    tower), the last one always among them.

    Raises:
        InputError: no site has patches.
        SiteNotFoundError: a pattern matches nothing.
    """
    from ..models.sites import TENSORS, Site, resolve

    known = [
        Site(
            name=s,
            module_path="",
            layout=about.layout,
            tensor=t if (t := s.rsplit(".", 1)[-1]) in TENSORS else "out",
        )
        for s, about in run.sites.items()
    ]
    if patterns is not None:
        return tuple(s.name for s in resolve(list(patterns), sites=known, model_name=str(run.path)))
    patch, text = KINDS.index("patch"), KINDS.index("text")
    kinds = {layout: set(np.unique(run.tokens(layout).kind).tolist()) for layout in {s.layout for s in known}}
    seen = [s for s in known if patch in kinds[s.layout]]
    pure = [s for s in seen if text not in kinds[s.layout]] or seen
    chosen = [s.name for s in pure if s.tensor == "out"] or [s.name for s in pure]
    if not chosen:
        raise InputError("no site of this run has patches; capture layers of a vision tower.")
    places = np.unique(np.linspace(0, len(chosen) - 1, min(n + 1, len(chosen))).round().astype(int))
    return tuple(chosen[int(i)] for i in (places[1:] if len(places) > n else places))
