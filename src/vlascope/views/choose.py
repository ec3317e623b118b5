"""Which items a picture shows when the caller names none, and how they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from ..items.item import Scalar
    from ..runs import Run


def episodes_of(run: Run) -> dict[int, list[int]]:
    """Return the items of each episode, in order of their steps; empty where the items are stand-alone images."""
    found: dict[int, list[int]] = {}
    for index, item in enumerate(run.items):
        if item.episode is not None:
            found.setdefault(int(item.episode), []).append(index)
    return {e: sorted(ids, key=lambda i: (run.items[i].step or 0, i)) for e, ids in sorted(found.items())}


def spread(values: Sequence[int], *, n: int) -> list[int]:
    """Return up to `n` of `values`, evenly spread, with the first and the last (the middle one when n is 1)."""
    if len(values) <= n:
        return list(values)
    if n == 1:
        return [values[len(values) // 2]]
    return [values[i] for i in np.unique(np.round(np.linspace(0, len(values) - 1, n)).astype(int))]


def choose_items(run: Run, *, n: int, among: Sequence[int] | None = None) -> list[int]:
    """Return up to `n` items worth showing: evenly spread over each episode, or over the images.

    Args:
        run: Gives the episodes.
        n: At most so many.
        among: Only these items; None takes all.
    """
    allowed = set(range(run.n_items) if among is None else among)
    episodes = [[i for i in ids if i in allowed] for ids in episodes_of(run).values()]
    episodes = [ids for ids in episodes if ids]
    if not episodes:
        return spread(sorted(allowed), n=n)
    shown = [episodes[i] for i in spread(range(len(episodes)), n=n)]
    each, rest = divmod(n, len(shown))
    return [i for e, ids in enumerate(shown) for i in spread(ids, n=each + (e < rest))]


def check_items(run: Run, items: Sequence[int]) -> list[int]:
    """Return `items` as a list of ints.

    Raises:
        InputError: the list is empty, or an item is not in the run.
    """
    chosen = [int(i) for i in items]
    if not chosen:
        raise InputError("no items to draw; give at least one index, or None for a selection.")
    for i in chosen:
        if not 0 <= i < run.n_items:
            raise InputError(f"item {i} does not exist; the run holds items 0..{run.n_items - 1}.")
    return chosen


def item_title(run: Run, item: int) -> str:
    """Return how a picture calls an item: its episode and step, or its id."""
    row = run.items[item]
    if row.episode is None:
        return row.item_id
    return f"episode {row.episode}, step {row.step}"


def item_note(run: Run, item: int, *, with_prompt: bool = True) -> str:
    """Return what stands in small type beside an item: time, instruction, and how its episode ended."""
    row = run.items[item]
    notes = [f"{row.time_secs:.1f} s"] if row.time_secs is not None and row.episode is not None else []
    if row.prompt and with_prompt:
        notes.append(f"“{row.prompt}”")
    if row.labels.get("success") is not None:
        notes.append(outcome_text(row.labels))
    return " · ".join(notes)


def outcome_text(labels: Mapping[str, Scalar]) -> str:
    """Return how an episode with these labels ended, in words."""
    if labels.get("success"):
        return "success"
    reason = labels.get("outcome") or labels.get("failure")
    return f"failure: {str(reason).replace('_', ' ')}" if reason else "failure"
