"""The summary grid (input, clusters at several K, continuous colour) and the layer strip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .choose import camera_note, check_items, choose_items, item_title, row_notes
from .describe import footer, model_name, picture_params
from .panels import color_panel, fit_size, input_panel
from .picture import Picture
from .sheet import SheetRow, draw_sheet
from .style import LIGHT, Theme
from .tokens import PatchGrid, TokenIndex, Upsample, of_camera

if TYPE_CHECKING:
    from ..palette import SavedCut


def grid(
    cut: SavedCut,
    *,
    site: str | None = None,
    ks: Sequence[int] | None = None,
    items: Sequence[int] | None = None,
    n_items: int = 6,
    upsample: Upsample = "nearest",
    panel_width: int = 208,
    scale: int = 2,
    theme: Theme = LIGHT,
) -> Picture:
    """Return the summary grid of one site: input, clusters at each K, continuous colour; one row per item
    and camera.

    Clusters have the mean colour of their members, so the columns can be compared with one another.

    Args:
        cut: What to draw.
        site: One of the cut's sites; None takes the last one of the vision tower.
        ks: Numbers of clusters; None takes all that the cut holds.
        items: Rows of the run; None spreads `n_items` over the episodes or images.
        n_items: At most so many rows when `items` is None.
        upsample: "nearest" shows each patch as it is, "smooth" interpolates the continuous colours.
        panel_width: Width of a column, layout pixels.
        scale: Picture pixels per layout pixel.
        theme: Colours of all that is no data.

    Raises:
        SiteNotFoundError: the cut does not hold `site`.
        InputError: the site has no patches, an item is not in the run, or the cut has no labels for a K.
    """
    index = TokenIndex(cut)
    site = index.default_site() if site is None else index.check_site(site)
    if not index.has_patches(site):
        raise InputError(f"site '{site}' has no image patches in this cut; use .words() to draw its tokens.")
    ks = tuple(cut.labels) if ks is None else tuple(ks)
    for k in ks:
        if k not in cut.labels:
            held = ", ".join(str(k) for k in cut.labels)
            raise InputError(
                f"the cut has no labels for K={k}; it holds K = {held}. Cut again with k=({k},)."
            )
    chosen = choose_items(cut.run, n=n_items, among=index.items_of(site)) if items is None else items
    per_k = [cut.cluster_colors(k)[cut.labels[k]] for k in ks]
    rows = []
    for item, camera, caption, note in _rows(index, check_items(cut.run, chosen), site=site):
        image = cut.run.image(item, camera)
        patches = of_camera(index.patches(site, item), camera)
        size = _panel_size(image, panel_width * scale)
        wh = (image.shape[1], image.shape[0])
        panels = [input_panel(image, out_wh=size, grids=patches, theme=theme)]
        panels += [color_panel(rgb, grids=patches, image_wh=wh, out_wh=size, theme=theme) for rgb in per_k]
        panels.append(
            color_panel(cut.rgb, grids=patches, image_wh=wh, out_wh=size, upsample=upsample, theme=theme)
        )
        rows.append(SheetRow(caption=caption, note=note, panels=panels))
    params = picture_params(cut, view="grid", sites=[site], ks=ks, items=list(chosen), upsample=upsample)
    picture = draw_sheet(
        rows,
        columns=["input", *(f"K = {k}" for k in ks), "continuous"],
        title=f"What {model_name(cut.run)} groups together at {site}",
        subtitle="Patches of one colour are one concept; a cluster has the mean colour of its members.",
        footer=footer(params),
        panel_width=panel_width,
        scale=scale,
        theme=theme,
    )
    return Picture(picture, params)


def strip(
    cut: SavedCut,
    *,
    items: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    n_items: int = 6,
    upsample: Upsample = "nearest",
    panel_width: int | None = None,
    scale: int = 2,
    theme: Theme = LIGHT,
) -> Picture:
    """Return the layer strip: one column per site, one row per item and camera, one palette for all.

    Args:
        cut: A joint cut over several sites (one site gives a strip of one column).
        items: Rows of the run; None spreads `n_items` over the episodes or images.
        sites: Columns; None takes all sites of the cut with patches.
        n_items: At most so many rows when `items` is None.
        upsample: "nearest" or "smooth".
        panel_width: Width of a column, layout pixels; None fits the columns into about 1700.
        scale: Picture pixels per layout pixel.
        theme: Colours of all that is no data.

    Raises:
        SiteNotFoundError: the cut does not hold a site.
        InputError: no site has patches, or an item is not in the run.
    """
    index = TokenIndex(cut)
    index.default_site()  # raises where there is nothing to draw
    names = index.patch_sites() if sites is None else tuple(index.check_site(s) for s in sites)
    for site in names:
        if not index.has_patches(site):
            raise InputError(
                f"site '{site}' has no image patches in this cut; use .words() to draw its tokens."
            )
    chosen = choose_items(cut.run, n=n_items, among=index.items_of(names[0])) if items is None else items
    width = panel_width or int(np.clip(1700 // (len(names) + 1), 88, 208))
    rows = []
    for item, camera, caption, note in _rows(index, check_items(cut.run, chosen), site=names[0]):
        image = cut.run.image(item, camera)
        size = _panel_size(image, width * scale)
        wh = (image.shape[1], image.shape[0])
        first = of_camera(index.patches(names[0], item), camera)
        panels = [input_panel(image, out_wh=size, grids=first, theme=theme)]
        for site in names:
            patches = of_camera(index.patches(site, item), camera)
            panels.append(
                color_panel(cut.rgb, grids=patches, image_wh=wh, out_wh=size, upsample=upsample, theme=theme)
            )
        rows.append(SheetRow(caption=caption, note=note, panels=panels))
    params = picture_params(cut, view="strip", sites=names, items=list(chosen), upsample=upsample)
    groups, columns = split_names(names)
    picture = draw_sheet(
        rows,
        columns=["input", *columns],
        groups=["", *groups],
        title=f"What {model_name(cut.run)} groups together, layer by layer",
        subtitle="All layers are cut together and share one palette: one colour is one concept in every column.",
        footer=footer(params),
        panel_width=width,
        scale=scale,
        theme=theme,
    )
    return Picture(picture, params)


def split_names(sites: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the group of each site ("vision") and what distinguishes it there ("3", or the whole name)."""
    groups = [site.split(".", 1)[0] if "." in site and ":" not in site else "" for site in sites]
    columns = [site.split(".", 1)[1] if group else site for site, group in zip(sites, groups, strict=True)]
    return groups, columns


def first_camera(grids: Sequence[PatchGrid]) -> list[PatchGrid]:
    """Return the grids of the item's first image."""
    return of_camera(grids, 0)


def _rows(index: TokenIndex, items: Sequence[int], *, site: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield (item, camera, caption, note) of every row: the cameras of an item stand under one another."""
    run = index.run
    for item, (note, prompt) in zip(items, row_notes(run, items), strict=True):
        cameras = index.cameras(site, item) or [0]
        for camera in cameras:
            which = camera_note(run, item, camera, shown=cameras)
            if camera == cameras[0]:
                yield item, camera, item_title(run, item), "\n".join(t for t in (which, note, prompt) if t)
            else:
                yield item, camera, "", which


def _panel_size(image: NDArray[np.uint8], width: int) -> tuple[int, int]:
    return fit_size((image.shape[1], image.shape[0]), width=width, max_height=round(1.25 * width))
