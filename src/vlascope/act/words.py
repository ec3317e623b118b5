"""The direction between two words of a prompt, as a site holds it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items.perturb import swap_prompt
from .edits import check_batch_size, tokens_at
from .steer import SteerDirection, mean_difference, one_site

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model


def with_word(item: Item, *, old: str, new: str) -> Item | None:
    """Return the item with a word of its prompt exchanged; None when the prompt does not hold it."""
    # A function, since a string may hold escapes such as \d.
    text, n = re.subn(rf"\b{re.escape(old)}\b", lambda _: new, item.prompt or "")
    return swap_prompt(item, prompt=text) if n else None


def word_direction(
    model: Model,
    items: Sequence[Item],
    *,
    site: str,
    to: str,
    away_from: str,
    tokens: str = "text",
    batch_size: int = 16,
) -> SteerDirection:
    """Return the steering from one word of the prompts to another: the difference of the tokens' means.

    Each item that names one of the words is read with either of them; one unit is the distance of the two means.

    Args:
        model: The model.
        items: Items with prompts; those that hold neither word are left out.
        site: Where.
        to: Word to steer to.
        away_from: Word to steer from.
        tokens: Which tokens are compared, and steered: see `WHERE` (of the prompt, so "answer" is none).
        batch_size: Items per forward pass.

    Raises:
        InputError: no prompt holds one of the words, batches of none, or the site has no such tokens or does not tell
            them apart.
    """
    check_batch_size(batch_size)
    pairs = []
    for item in items:
        base = item if with_word(item, old=away_from, new=to) else with_word(item, old=to, new=away_from)
        other = None if base is None else with_word(base, old=away_from, new=to)
        if base is not None and other is not None:
            pairs.append((base, other))
    if not pairs:
        raise InputError(
            f"none of {len(items)} prompts holds '{away_from}' or '{to}'; choose words that they hold."
        )
    groups = [
        _rows(model, [pair[side] for pair in pairs], site=site, tokens=tokens, batch_size=batch_size)
        for side in (0, 1)
    ]
    if not len(groups[0]):
        what = "words" if tokens == "text" else f"'{tokens}' tokens"
        raise InputError(
            f"{site} has no {what}; choose a layer that reads the prompt, such as the last of the language model."
        )
    direction, unit = mean_difference(groups[1], groups[0])
    return SteerDirection(
        site=site, direction=direction, unit=unit, tokens=tokens, label=f"{away_from} to {to}"
    )


def _rows(
    model: Model, items: Sequence[Item], *, site: str, tokens: str, batch_size: int
) -> NDArray[np.float64]:
    found = one_site(model, site)
    where = tokens_at(model, tokens, layout_name=found.layout)
    out = []
    for start in range(0, len(items), batch_size):
        batch = model.prepare(list(items[start : start + batch_size]))
        captured = model.capture(batch, [found])[found.name]
        for layout, values in zip(batch.layouts[found.layout], captured, strict=True):
            rows = np.arange(len(layout)) if where is None else where(layout)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            out.append(values.double().cpu().numpy()[rows[rows < len(layout)]])
    return np.concatenate(out)
