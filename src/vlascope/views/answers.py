"""Batch debugging as a picture: each image with its truth, the model's answer, and its group at every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..palette import discrete
from .choose import camera_note, spread
from .describe import count, model_name
from .grid import split_names
from .panels import fit_size, input_panel
from .picture import Picture
from .sheet import SheetRow, draw_sheet
from .style import LIGHT, Theme

if TYPE_CHECKING:
    from ..measure import AssociationResult
    from ..runs import Run

FRAME = 0.09
"""Width of a group's frame, as a share of the panel's shorter side."""


def answers(
    run: Run,
    found: AssociationResult,
    *,
    n_items: int = 12,
    panel_width: int = 96,
    scale: int = 2,
    theme: Theme = LIGHT,
) -> Picture:
    """Return one row per image: truth and answer, the image, and the image framed by its group at each layer.

    Rows are sorted by truth and answer, so that a layer whose groups follow the truth has frames of one colour for
    each truth. A group has the colour of the one of the layer before that most of its images come from.

    Args:
        run: The run that was compared.
        found: See `vlascope.measure.association`.
        n_items: At most so many rows, spread evenly; wrong answers are kept first.
        panel_width: Width of a column, layout pixels.
        scale: Picture pixels per layout pixel.
        theme: Colours of all that is no data.
    """
    said = found.answers or ("",) * len(found.items)
    order = sorted(range(len(found.items)), key=lambda i: (found.truth[i], said[i], int(found.items[i])))
    wrong = [i for i in order if found.answers and said[i] != found.truth[i]]
    kept = set(spread(wrong, n=n_items // 2))
    kept |= set(spread([i for i in order if i not in kept], n=n_items - len(kept)))
    colors = discrete(max(int(layer.groups.max()) for layer in found.layers) + 1)
    rows = []
    for i in (i for i in order if i in kept):
        image = run.image(int(found.items[i]))
        size = fit_size(
            (image.shape[1], image.shape[0]), width=panel_width * scale, max_height=panel_width * scale
        )
        panel = input_panel(image, out_wh=size, theme=theme)
        framed = [_framed(panel, colors[layer.groups[i]]) for layer in found.layers]
        answer = (
            f"answer: {said[i]}{'' if said[i] == found.truth[i] else ' (wrong)'}" if found.answers else ""
        )
        which = camera_note(run, int(found.items[i]), 0, shown=[0])
        note = "\n".join(text for text in (answer, which) if text)
        rows.append(SheetRow(caption=f"truth: {found.truth[i]}", note=note, panels=[panel, *framed]))
    sites, verdict = [layer.site for layer in found.layers], found.verdict()
    groups, columns = split_names(sites)
    params = {
        "view": "answers",
        "vlascope": __version__,
        "model": model_name(run),
        "run": run.path.name,
        "sites": sites,
        "label": found.label,
        "groups": found.n_groups,
        "items": [int(found.items[i]) for i in order if i in kept],
    }
    picture = draw_sheet(
        rows,
        columns=["input", *columns],
        groups=["", *groups],
        title=f"Do the groups of {model_name(run)} follow the truth{' or its answers' if found.answers else ''}?",
        subtitle="Frames: the group of the image at each layer, coloured like the one before that shares most images. "
        f"{verdict[:1].upper()}{verdict[1:]}.",
        footer=(
            f"run {run.path.name} · {found.n_groups} groups of {count(len(found.items), 'item')}, k-means per layer · "
            f"vlascope {__version__}"
        ),
        panel_width=panel_width,
        scale=scale,
        theme=theme,
    )
    return Picture(picture, params)


def _framed(panel: NDArray[np.uint8], color: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = panel.copy()
    by = max(2, round(FRAME * min(panel.shape[:2])))
    for edge in (np.s_[:by], np.s_[-by:], np.s_[:, :by], np.s_[:, -by:]):
        out[edge] = color
    return out
