"""A sheet: titled columns, captioned rows of panels and a footer, set so that nothing overlaps or is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..items.fonts import font
from .style import BODY, LIGHT, SMALL, SPACE, TINY, TITLE, Theme, draw_lines, line_height, wrap

if TYPE_CHECKING:
    from PIL import Image


MAX_NOTE_LINES = 3
"""Lines that one part of a note may take; a longer one (an instruction) ends with an ellipsis."""


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of a sheet: a caption and one panel per column (None leaves the place empty).

    Each line of the note is wrapped, to `MAX_NOTE_LINES` at most.
    """

    caption: str
    note: str
    panels: Sequence[NDArray[np.uint8] | None]


def draw_sheet(
    rows: Sequence[SheetRow],
    *,
    columns: Sequence[str],
    title: str,
    subtitle: str,
    footer: str,
    panel_width: int,
    scale: int = 2,
    groups: Sequence[str] | None = None,
    theme: Theme = LIGHT,
) -> Image.Image:
    """Return the sheet.

    Args:
        rows: Panels are uint8 [h, w, 3], already `scale` times `panel_width` wide or narrower.
        columns: Column titles; wrapped where they are wider than a column.
        title: First line, large.
        subtitle: Below the title; wrapped.
        footer: Last line, small; wrapped.
        panel_width: Width of a column, layout pixels.
        scale: Picture pixels per layout pixel.
        groups: A group name per column: equal neighbours share one line above the column titles.
        theme: Colours of all that is no panel.
    """
    from PIL import Image, ImageDraw

    def px(value: float) -> int:
        return round(value * scale)

    title_face, body, bold = font(px(TITLE), bold=True), font(px(BODY)), font(px(BODY), bold=True)
    small, tiny = font(px(SMALL)), font(px(TINY))
    margin, gap = px(3 * SPACE), px(SPACE)
    caption_width = px(150)
    x_panels = margin + caption_width + gap
    column_px = px(panel_width)
    width = x_panels + len(columns) * column_px + (len(columns) - 1) * gap + margin
    inner = width - 2 * margin

    title_lines = wrap(title, face=title_face, width=inner)
    subtitle_lines = wrap(subtitle, face=body, width=inner)
    column_lines = [wrap(name, face=bold, width=column_px) for name in columns]
    footer_lines = wrap(footer, face=tiny, width=inner)
    head = len(title_lines) * line_height(title_face) + gap // 2 + len(subtitle_lines) * line_height(body)
    group_height = (line_height(small) + gap // 2) if groups else 0
    column_head = max((len(lines) for lines in column_lines), default=0) * line_height(bold) + gap // 2

    captions = [(wrap(r.caption, face=bold, width=caption_width, max_lines=3, middle=True),
                 [line for text in r.note.split("\n")
                  for line in wrap(text, face=small, width=caption_width, max_lines=MAX_NOTE_LINES)])
                for r in rows]  # fmt: skip
    heights = []
    for row, (caption, note) in zip(rows, captions, strict=True):
        text_height = len(caption) * line_height(bold) + len(note) * line_height(small)
        heights.append(max([text_height, *(p.shape[0] for p in row.panels if p is not None)]))

    y_rows = margin + head + 2 * gap + group_height + column_head
    rows_height = sum(heights) + gap * max(0, len(rows) - 1)
    y_footer = y_rows + rows_height + 2 * gap
    height = y_footer + gap + len(footer_lines) * line_height(tiny) + 2 * gap

    sheet = Image.new("RGB", (width, height), theme.background)
    draw = ImageDraw.Draw(sheet)
    draw_lines(draw, (margin, margin), title_lines, face=title_face, fill=theme.text)
    y = margin + len(title_lines) * line_height(title_face) + gap // 2
    draw_lines(draw, (margin, y), subtitle_lines, face=body, fill=theme.muted)

    y = margin + head + 2 * gap
    if groups:
        for first, last, name in _runs(groups):
            x0 = x_panels + first * (column_px + gap)
            x1 = x_panels + last * (column_px + gap) + column_px
            draw_lines(draw, (x0, y), [name], face=small, fill=theme.muted)
            y_line = y + line_height(small)
            draw.rectangle((x0, y_line, x1 - 1, y_line + scale - 1), fill=theme.line)
        y += group_height
    for number, lines in enumerate(column_lines):
        x = x_panels + number * (column_px + gap)
        y_text = y + column_head - gap // 2 - len(lines) * line_height(bold)  # titles sit on the panels
        draw_lines(draw, (x, y_text), lines, face=bold, fill=theme.text)

    y = y_rows
    for row, (caption, note), row_height in zip(rows, captions, heights, strict=True):
        used = draw_lines(draw, (margin, y), caption, face=bold, fill=theme.text)
        draw_lines(draw, (margin, y + used), note, face=small, fill=theme.muted)
        for number, panel in enumerate(row.panels):
            if panel is not None:
                sheet.paste(Image.fromarray(panel), (x_panels + number * (column_px + gap), y))
        y += row_height + gap

    draw.rectangle((margin, y_footer, width - margin - 1, y_footer + scale - 1), fill=theme.line)
    draw_lines(draw, (margin, y_footer + gap), footer_lines, face=tiny, fill=theme.muted)
    return sheet


def _runs(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first, last, name) of every stretch of equal neighbours with a name."""
    runs: list[tuple[int, int, str]] = []
    for i, name in enumerate(names):
        if runs and runs[-1][2] == name and runs[-1][1] == i - 1:
            runs[-1] = (runs[-1][0], i, name)
        else:
            runs.append((i, i, name))
    return [run for run in runs if run[2]]
