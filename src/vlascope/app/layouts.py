"""Where the tokens of a cut lie, in the form that the page needs: a few templates, and which item follows which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..views.tokens import TokenIndex

if TYPE_CHECKING:
    from ..palette import SavedCut


def site_of_layout(cut: SavedCut, layout: str) -> str | None:
    """Return the first site of a cut with a layout; all sites of one layout cut the same tokens."""
    return next((name for name, part in cut.parts.items() if part.layout == layout), None)


def layout_json(cut: SavedCut, index: TokenIndex, layout: str) -> dict[str, Any]:
    """Return the tokens of one layout of a cut, JSON-able.

    Returns:
        starts: For every item its first token (tokens are numbered within a site), -1 where it has none.
        template: For every item the index of its template, -1 where it has no tokens.
        templates: n (tokens), grids (camera, tile, rows, cols, frame in pixels of the image, index: the token of
            each patch from the item's first, -1 where a patch was not cut) and words (token, text, kind).

    Cost: O(n) plus one template for every different arrangement of patches and words.
    """
    site = site_of_layout(cut, layout)
    assert site is not None
    part = cut.parts[site]
    table = cut.run.tokens(layout)
    rows = np.asarray(part.token_rows)
    items = np.asarray(table.item)[rows]
    present, first = np.unique(items, return_index=True)
    stops = np.append(first[1:], len(rows))
    starts = np.full(cut.run.n_items, -1, np.int64)
    template = np.full(cut.run.n_items, -1, np.int64)
    known: dict[tuple[bytes, tuple[str, ...]], int] = {}
    templates: list[dict[str, Any]] = []
    columns = [np.asarray(getattr(table, c))[rows] for c in ("kind", "row", "col", "camera", "tile", "box")]
    text = table.text
    has_text = columns[0] != 0
    for item, start, stop in zip(present.tolist(), first.tolist(), stops.tolist(), strict=True):
        words = tuple(text[int(r)] for r in rows[start:stop][has_text[start:stop]])
        key = (b"".join(c[start:stop].tobytes() for c in columns), words)
        if key not in known:
            known[key] = len(templates)
            templates.append(
                _template(index, site, item, base=(part.rows.start or 0) + start, n=stop - start)
            )
        starts[item], template[item] = start, known[key]
    return {
        "layout": layout,
        "n": len(rows),
        "starts": starts.tolist(),
        "template": template.tolist(),
        "templates": templates,
    }


def _template(index: TokenIndex, site: str, item: int, *, base: int, n: int) -> dict[str, Any]:
    grids = []
    for grid in index.patches(site, item):
        local = np.where(grid.index_rc >= 0, grid.index_rc - base, -1)
        grids.append(
            {
                "camera": grid.camera,
                "tile": grid.tile,
                "rows": grid.rows,
                "cols": grid.cols,
                "frame": [round(v, 3) for v in grid.frame],
                "index": local.reshape(-1).tolist(),
            }
        )
    words = index.words(site, item)
    return {
        "n": n,
        "grids": grids,
        "words": [
            {"token": int(i) - base, "text": t, "kind": k}
            for i, t, k in zip(words.index, words.texts, words.kinds, strict=True)
        ],
    }
