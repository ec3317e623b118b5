"""How results show themselves in a notebook: a title, facts, and at most one table; plain HTML, all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MAX_ROWS = 24
"""Rows of a table that are shown; how many more there are is said below it."""

_STYLE = "font:13px/1.5 ui-sans-serif,system-ui,sans-serif"
_CELL = "text-align:left;padding:2px 16px 2px 0;vertical-align:top;background:none"


def card(
    title: str,
    facts: Sequence[tuple[str, object]] = (),
    *,
    head: Sequence[str] = (),
    rows: Sequence[Sequence[object]] = (),
    text: str = "",
) -> str:
    """Return HTML for `_repr_html_`: colours are those of the notebook, so it reads in light and dark.

    Args:
        title: First line.
        facts: (name, value), one line each.
        head: Titles of the table's columns.
        rows: The table; at most `MAX_ROWS` are shown.
        text: A sentence below the title.
    """
    parts = [f"<div style='{_STYLE}'><b>{escape(title)}</b>"]
    if text:
        parts.append(f"<div>{escape(text)}</div>")
    if facts:
        parts.append(
            _table([(f"<span style='opacity:.65'>{escape(n)}</span>", escape(str(v))) for n, v in facts])
        )
    if rows:
        heads = "".join(f"<th style='{_CELL};opacity:.65;font-weight:400'>{escape(h)}</th>" for h in head)
        shown = [[escape(str(cell)) for cell in row] for row in rows[:MAX_ROWS]]
        parts.append(_table(shown, head=f"<tr>{heads}</tr>" if head else ""))
        if len(rows) > MAX_ROWS:
            parts.append(f"<div style='opacity:.65'>{len(rows) - MAX_ROWS} more rows</div>")
    return "".join(parts) + "</div>"


def _table(rows: Sequence[Sequence[str]], *, head: str = "") -> str:
    body = "".join(
        "<tr>" + "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table style='border-collapse:collapse;margin:4px 0'>{head}{body}</table>"
