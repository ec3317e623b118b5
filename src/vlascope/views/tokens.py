"""Which tokens of a cut belong to which item, as patch grids and as words: what every picture is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SiteNotFoundError, nearest_text
from ..models.layout import KINDS

if TYPE_CHECKING:
    from ..palette import SavedCut
    from ..runs import TokenTable

Upsample = Literal["nearest", "smooth"]
PATCH = KINDS.index("patch")
TEXT_KINDS = tuple(KINDS.index(name) for name in ("text", "action", "special", "state"))


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """The patches of one camera (and crop) of one item at one site.

    Attributes:
        camera: Index of the item's image.
        tile: Index of the crop, 0 where there is one.
        index_rc: int64 [rows, cols], row of each patch in the arrays of the cut; -1 where it was not cut.
        frame: x0, y0, x1, y1 in pixels of the original image that the grid covers.
    """

    camera: int
    tile: int
    index_rc: NDArray[np.int64]
    frame: tuple[float, float, float, float]

    @property
    def rows(self) -> int:
        """Patch rows."""
        return self.index_rc.shape[0]

    @property
    def cols(self) -> int:
        """Patch columns."""
        return self.index_rc.shape[1]

    def values(self, per_token: NDArray, *, fill: int = 0) -> NDArray:
        """Return `per_token` [n, ...] arranged as [rows, cols, ...]; `fill` where a patch was not cut."""
        out = np.array(per_token[np.maximum(self.index_rc, 0)])
        out[self.index_rc < 0] = fill
        return out


@dataclass(frozen=True, kw_only=True)
class Words:
    """The tokens with a text of one item at one site, in order of position.

    Attributes:
        texts: What each token says, as the tokenizer has it.
        kinds: Names of their kinds, e.g. "text", "action".
        index: int64 [n_words], rows in the arrays of the cut.
        positions: int64 [n_words], positions in the sequence.
    """

    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    index: NDArray[np.int64]
    positions: NDArray[np.int64]


class TokenIndex:
    """Looks up the tokens of a cut by site and item.

    Cost: O(n log n) once per site, then O(tokens of the item) per look-up.
    """

    def __init__(self, cut: SavedCut) -> None:
        self.cut, self.run = cut, cut.run
        self._orders: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._has_patches: dict[str, bool] = {}
        self._has_words: dict[str, bool] = {}

    def check_site(self, site: str) -> str:
        """Return `site`, or raise `SiteNotFoundError` when this cut does not hold it."""
        if site not in self.cut.parts:
            raise SiteNotFoundError(
                f"this cut has no site '{site}'; it holds {', '.join(self.cut.sites)}."
                f"{nearest_text(site, self.cut.sites)} Cut it first with vs.cut(run, site='{site}')."
            )
        return site

    def has_patches(self, site: str) -> bool:
        """Return whether any token of `site` in the cut is an image patch."""
        part = self.cut.parts[self.check_site(site)]
        if part.layout not in self._has_patches:  # all sites of a layout cut the same tokens
            kinds = self.run.tokens(part.layout).kind[part.token_rows]
            self._has_patches[part.layout] = bool((kinds == PATCH).any())
        return self._has_patches[part.layout]

    def has_words(self, site: str) -> bool:
        """Return whether any token of `site` in the cut has a text."""
        part = self.cut.parts[self.check_site(site)]
        if part.layout not in self._has_words:
            kinds = self.run.tokens(part.layout).kind[part.token_rows]
            self._has_words[part.layout] = bool(np.isin(kinds, TEXT_KINDS).any())
        return self._has_words[part.layout]

    def patch_sites(self) -> tuple[str, ...]:
        """Return the sites of the cut with patches, in the order of the cut."""
        return tuple(site for site in self.cut.sites if self.has_patches(site))

    def word_sites(self) -> tuple[str, ...]:
        """Return the sites of the cut with words, in the order of the cut."""
        return tuple(site for site in self.cut.sites if self.has_words(site))

    def default_site(self) -> str:
        """Return the site shown when none is named: the last of the vision tower, else the last with patches.

        Raises:
            InputError: no site of the cut has patches.
        """
        sites = self.patch_sites()
        if not sites:
            raise InputError(
                f"none of the sites {', '.join(self.cut.sites)} has image patches to draw; cut a site of the "
                "vision tower, or use .words()."
            )
        vision = [site for site in sites if site.split(".")[0] == "vision"]
        return (vision or list(sites))[-1]

    def rows_of(self, site: str, item: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (rows in the arrays of the cut, rows of the layout's token table) of one item at one site."""
        part = self.cut.parts[self.check_site(site)]
        token_rows = np.asarray(part.token_rows)
        if (
            part.layout not in self._orders
        ):  # once for all sites of a layout: 16 bytes per token are much of a large run
            items = np.asarray(self.run.tokens(part.layout).item)[token_rows]
            order = np.argsort(items, kind="stable")
            self._orders[part.layout] = (order.astype(np.int64), items[order].astype(np.int64))
        order, sorted_items = self._orders[part.layout]
        first, last = np.searchsorted(sorted_items, [item, item + 1])
        local = order[first:last]
        start = part.rows.start or 0
        return start + local, token_rows[local]

    def items_of(self, site: str) -> list[int]:
        """Return the items that have tokens at `site` in the cut, ascending."""
        self.rows_of(site, 0)
        return [int(i) for i in np.unique(self._orders[self.cut.parts[site].layout][1])]

    def patches(self, site: str, item: int) -> list[PatchGrid]:
        """Return the patch grids of one item at one site, one per camera and crop; empty where it has none."""
        index, rows = self.rows_of(site, item)
        table = self.run.tokens(self.cut.parts[site].layout)
        is_patch = np.asarray(table.kind)[rows] == PATCH
        index, rows = index[is_patch], rows[is_patch]
        camera, tile = np.asarray(table.camera)[rows], np.asarray(table.tile)[rows]
        grids: list[PatchGrid] = []
        for key in sorted(set(zip(camera.tolist(), tile.tolist(), strict=True))):
            here = (camera == key[0]) & (tile == key[1])
            row, col = np.asarray(table.row)[rows[here]], np.asarray(table.col)[rows[here]]
            index_rc = np.full((int(row.max()) + 1, int(col.max()) + 1), -1, np.int64)
            index_rc[row, col] = index[here]
            frame = grid_frame(table, rows[here], shape=index_rc.shape)
            grids.append(PatchGrid(camera=key[0], tile=key[1], index_rc=index_rc, frame=frame))
        return grids

    def cameras(self, site: str, item: int) -> list[int]:
        """Return the images of one item that have patches at one site: those that the model read."""
        return sorted({grid.camera for grid in self.patches(site, item)})

    def words(self, site: str, item: int) -> Words:
        """Return the tokens with a text of one item at one site."""
        index, rows = self.rows_of(site, item)
        table = self.run.tokens(self.cut.parts[site].layout)
        kind = np.asarray(table.kind)[rows]
        keep = np.isin(kind, TEXT_KINDS)
        index, rows, kind = index[keep], rows[keep], kind[keep]
        positions = np.asarray(table.position)[rows]
        order = np.argsort(positions, kind="stable")
        return Words(
            texts=tuple(str(table.text[int(r)]) for r in rows[order]),
            kinds=tuple(KINDS[int(k)] for k in kind[order]),
            index=index[order],
            positions=positions[order].astype(np.int64),
        )


def of_camera(grids: Sequence[PatchGrid], camera: int) -> list[PatchGrid]:
    """Return the grids of one of an item's images."""
    return [grid for grid in grids if grid.camera == camera]


def grid_frame(
    table: TokenTable, rows: NDArray[np.int64], *, shape: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 in pixels of the image: what a patch grid covers.

    Args:
        table: The tokens of a layout.
        rows: Rows of the table that are patches of one image and crop.
        shape: (rows, cols) of the grid.
    """
    box = np.asarray(table.box)[rows].astype(np.float64)
    row, col = np.asarray(table.row)[rows], np.asarray(table.col)[rows]
    # Every patch of a grid has the same size, so any one of them fixes the whole frame.
    width, height = np.median(box[:, 2] - box[:, 0]), np.median(box[:, 3] - box[:, 1])
    x0, y0 = float(np.median(box[:, 0] - col * width)), float(np.median(box[:, 1] - row * height))
    return x0, y0, x0 + shape[1] * float(width), y0 + shape[0] * float(height)


def paint(
    values_rc3: NDArray[np.uint8],
    *,
    grid: PatchGrid,
    image_wh: tuple[int, int],
    out_wh: tuple[int, int],
    upsample: Upsample = "nearest",
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a patch grid painted over the part of the image that it covers.

    Args:
        values_rc3: uint8 [rows, cols, 3], a colour per patch.
        grid: Where the patches lie.
        image_wh: Size of the original image, pixels.
        out_wh: Size of the painting, pixels; the whole original image is scaled to it.
        upsample: "nearest" shows every patch as the rectangle that it is, "smooth" interpolates bilinearly
            between the centres of the patches.

    Returns:
        uint8 [h, w, 3] and bool [h, w], True where a patch covers the pixel's centre.

    Raises:
        InputError: unknown `upsample`.
    """
    if upsample not in ("nearest", "smooth"):
        raise InputError(f"upsample is {upsample!r}; need 'nearest' or 'smooth'.")
    x0, y0, x1, y1 = grid.frame
    u = (np.arange(out_wh[0]) + 0.5) * (image_wh[0] / out_wh[0])
    v = (np.arange(out_wh[1]) + 0.5) * (image_wh[1] / out_wh[1])
    u = (u - x0) / (x1 - x0) * grid.cols  # in patches from the grid's left edge
    v = (v - y0) / (y1 - y0) * grid.rows
    # The margin keeps a pixel centre that lies exactly on an edge with the patch to its right (as in
    # token_from_pixel) although boxes are float32.
    col, row = np.floor(u + 1e-4).astype(int), np.floor(v + 1e-4).astype(int)
    inside = ((row >= 0) & (row < grid.rows))[:, None] & ((col >= 0) & (col < grid.cols))[None, :]
    col, row = col.clip(0, grid.cols - 1), row.clip(0, grid.rows - 1)
    covered = inside & (grid.index_rc >= 0)[row][:, col]
    if upsample == "nearest":
        return values_rc3[row][:, col], covered
    source = values_rc3.astype(np.float32)
    ur, vr = (u - 0.5).clip(0, grid.cols - 1), (v - 0.5).clip(0, grid.rows - 1)
    c0, r0 = np.floor(ur).astype(int), np.floor(vr).astype(int)
    c1, r1 = (c0 + 1).clip(max=grid.cols - 1), (r0 + 1).clip(max=grid.rows - 1)
    fc, fr = (ur - c0)[None, :, None], (vr - r0)[:, None, None]
    top = source[r0][:, c0] * (1 - fc) + source[r0][:, c1] * fc
    bottom = source[r1][:, c0] * (1 - fc) + source[r1][:, c1] * fc
    return np.round(top * (1 - fr) + bottom * fr).astype(np.uint8), covered
