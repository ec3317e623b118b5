"""Which items a picture shows when the caller names none, and how they are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..items.outcome import succeeded

if TYPE_CHECKING:
    from ..items.item import Scalar
    from ..runs import Run


MAX_LABELS = 3
"""Labels that stand beside a stand-alone image."""

_OTHER_LABELS = ("success", "failure", "outcome", "target", "scene", "sim", "event")


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


def camera_note(run: Run, item: int, camera: int, *, shown: Sequence[int] | None = None) -> str:
    """Return which of an item's cameras a panel shows; "" where there is only one.

    Args:
        run: Holds the item.
        item: Its row.
        camera: The camera of the panel.
        shown: All cameras that are shown; where they are not all that there are, that is said.
    """
    names = run.items[item].cameras
    if len(names) < 2:
        return ""
    missing = " shown" if shown is not None and len(shown) < len(names) else ""
    return f"camera {camera + 1} of {len(names)}{missing}: {names[camera]}"


def item_note(run: Run, item: int, *, with_prompt: bool = True) -> str:
    """Return what stands in small type beside an item: time, labels, how its episode ended, and the instruction.

    Labels are those of a stand-alone image, three at most; an episode's stand beside the episode.
    """
    row = run.items[item]
    notes = [f"{row.time_secs:.1f} s"] if row.time_secs is not None and row.episode is not None else []
    if ended := outcome_text(row.labels):
        notes.append(ended)
    if row.episode is None:
        notes += label_texts(row.labels)
    if row.prompt and with_prompt:
        notes.append(f"“{row.prompt}”")
    return " · ".join(notes)


def row_notes(run: Run, items: Sequence[int]) -> list[tuple[str, str]]:
    """Return for each row of a sheet (note, instruction): the instruction once where an episode has several rows."""
    told, before = [], (None, None)
    for item in items:
        row = run.items[item]
        now = (row.episode, row.prompt)
        is_new = row.episode is None or now != before
        told.append(
            (item_note(run, item, with_prompt=False), f"“{row.prompt}”" if row.prompt and is_new else "")
        )
        before = now
    return told


def label_texts(labels: Mapping[str, Scalar], *, n: int = MAX_LABELS) -> list[str]:
    """Return the first `n` labels as "class: cat"; those that say how an episode ended or what a scene is are left."""
    found = []
    for name, value in labels.items():
        if value is None or value == "" or re.split(r"[_./]", name)[0] in _OTHER_LABELS:
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        found.append(f"{name.replace('_', ' ')}: {text if len(text) <= 40 else text[:39] + '…'}")
    return found[:n]


def outcome_text(labels: Mapping[str, Scalar]) -> str:
    """Return how an episode with these labels ended, in words; "" where they do not say."""
    won = succeeded(labels)
    if won is None:
        return ""
    if won:
        return "success"
    reason = labels.get("outcome") or labels.get("failure")
    return f"failure: {str(reason).replace('_', ' ')}" if reason else "failure"
