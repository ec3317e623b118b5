"""The panels of the report, and the tokens behind them packed small enough to travel inside the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .html import array_base64, jpeg_uri, png_uri
from .tokens import PatchGrid, TokenIndex, of_camera

if TYPE_CHECKING:
    from ..palette import SavedCut


CLIPPED_SIDE = 168
"""Pixels of the longer side of a grid's picture where the grid reaches beyond its image."""


@dataclass(frozen=True, kw_only=True)
class GridView:
    """A patch grid laid over an image: a tiny picture, stretched by the browser. Places are % of the image.

    `fine` is how many pixels of the picture a patch has along each side. One is enough unless the grid reaches beyond
    the image: a browser that stretches a clipped picture rounds the part that it shows to whole pixels of the picture
    (Chromium does), which moved its patches by up to half of their size.
    """

    src: str
    left: float
    top: float
    width: float
    height: float
    offset: int
    rows: int
    cols: int
    fine: int = 1


@dataclass(frozen=True, kw_only=True)
class BoxView:
    """An outlined region of an image. Places are % of the image."""

    name: str
    left: float
    top: float
    width: float
    height: float
    named: bool


@dataclass(frozen=True, kw_only=True)
class HeatView:
    """A shade laid over an image: dark where something is low. Places are % of the image."""

    src: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class PanelView:
    """An image with patch grids and boxes over it."""

    image: int
    aspect: float
    label: str
    where: str
    grids: tuple[GridView, ...] = ()
    boxes: tuple[BoxView, ...] = ()
    heats: tuple[HeatView, ...] = ()


class TokenPack:
    """Collects the tokens that a page shows and numbers them, and the images, each once."""

    def __init__(self, index: TokenIndex) -> None:
        self.index, self.cut = index, index.cut
        self._rows: list[NDArray[np.int64]] = []
        self._size = 0
        self._offsets: dict[tuple[str, int, int, int], int] = {}
        self._words: dict[int, int] = {}
        self._images: dict[tuple[int, int], int] = {}
        self.images: dict[int, str] = {}
        self.sizes: dict[int, tuple[int, int]] = {}

    def image(self, item: int, camera: int = 0, *, max_side: int = 448) -> int:
        """Embed an image of an item (once) and return its number."""
        number = self._images.setdefault((item, camera), len(self._images))
        if number not in self.images:
            image = self.cut.run.image(item, camera)
            self.images[number] = jpeg_uri(image, max_side=max_side)
            self.sizes[number] = (image.shape[1], image.shape[0])
        return number

    def offset(self, site: str, item: int, grid: PatchGrid) -> int:
        """Return the number of the grid's first token; the others follow row by row."""
        key = (site, item, grid.camera, grid.tile)
        if key not in self._offsets:
            self._offsets[key] = self._add(grid.index_rc.reshape(-1))
        return self._offsets[key]

    def word(self, row: int) -> int:
        """Return the number of the token at a row of the cut."""
        if row not in self._words:
            self._words[row] = self._add(np.array([row], np.int64))
        return self._words[row]

    def _add(self, rows: NDArray[np.int64]) -> int:
        start = self._size
        self._rows.append(rows)
        self._size += len(rows)
        return start

    def panel(
        self,
        item: int,
        *,
        site: str | None,
        camera: int = 0,
        rgb_n3: NDArray[np.uint8] | None = None,
        label: str,
        where: str = "",
        boxes: Sequence[BoxView] = (),
    ) -> PanelView:
        """Return a panel of an item: an image, with the colours of its tokens at `site` over it if one is named."""
        number = self.image(item, camera)
        width, height = self.sizes[number]
        grids = []
        for grid in of_camera(self.index.patches(site, item), camera) if site else []:
            colors = grid.values(self.cut.rgb if rgb_n3 is None else rgb_n3)
            x0, y0, x1, y1 = grid.frame
            # Half a pixel: frames are stored in single precision.
            is_clipped = min(x0, y0) < -0.5 or x1 > width + 0.5 or y1 > height + 0.5
            fine = -(-CLIPPED_SIDE // max(grid.rows, grid.cols)) if is_clipped else 1
            shown = grid.index_rc >= 0
            if fine > 1:
                colors = colors.repeat(fine, axis=0).repeat(fine, axis=1)
                shown = shown.repeat(fine, axis=0).repeat(fine, axis=1)
            grids.append(
                GridView(
                    src=png_uri(colors, alpha_hw=shown),
                    left=round(100 * x0 / width, 4),
                    top=round(100 * y0 / height, 4),
                    width=round(100 * (x1 - x0) / width, 4),
                    height=round(100 * (y1 - y0) / height, 4),
                    offset=self.offset(site or "", item, grid),
                    rows=grid.rows,
                    cols=grid.cols,
                    fine=fine,
                )
            )
        return PanelView(
            image=number,
            aspect=round(width / height, 5),
            label=label,
            where=where,
            grids=tuple(grids),
            boxes=tuple(boxes),
        )

    def data(self, *, ks: Sequence[int]) -> dict[str, object]:
        """Return the packed tokens for the page's script.

        Rows of the eigenvectors are scaled to unit length and rounded to 1/127, so that an inner product is a
        cosine similarity; a patch that was not cut is a row of zeros.
        """
        cut = self.cut
        n_eig = cut.eigvecs.shape[1]
        rows = np.concatenate(self._rows) if self._rows else np.zeros(0, np.int64)
        vectors = np.asarray(cut.eigvecs, np.float32)[np.maximum(rows, 0)]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.where((norms > 0) & (rows[:, None] >= 0), vectors / np.maximum(norms, 1e-30), 0)
        labels = {
            str(k): array_base64(np.where(rows >= 0, cut.labels[k][np.maximum(rows, 0)], 0).astype(np.uint16))
            for k in ks
        }
        return {
            "n": len(rows),
            "n_eig": n_eig,
            "vectors": array_base64(np.round(unit * 127).astype(np.int8)),
            "labels": labels,
        }


def region_boxes(cut: SavedCut, item: int, *, named: str, others: Sequence[str], mask: str) -> list[BoxView]:
    """Return the bounding boxes of the named object and of the others in one item; hidden ones are left out."""
    mask_hw = cut.run.mask(item, mask)
    if mask_hw is None:
        return []
    height, width = mask_hw.shape
    boxes = []
    for name in (*others, named):  # the named one is drawn last, on top
        ids = [v for v, n in cut.run.mask_names(item, mask).items() if n == name]
        ys, xs = np.nonzero(np.isin(mask_hw, ids))
        if not len(xs):
            continue
        boxes.append(
            BoxView(
                name=name,
                left=round(100 * float(xs.min()) / width, 3),
                top=round(100 * float(ys.min()) / height, 3),
                width=round(100 * float(xs.max() + 1 - xs.min()) / width, 3),
                height=round(100 * float(ys.max() + 1 - ys.min()) / height, 3),
                named=name == named,
            )
        )
    return boxes
