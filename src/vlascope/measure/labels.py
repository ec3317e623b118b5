"""Reading what is known about a run's items as classes or numbers: labels, prompts, answers, states, actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, nearest_text

if TYPE_CHECKING:
    from ..runs import Run


@dataclass(frozen=True)
class Classes:
    """Class labels of some items.

    Attributes:
        items: int64 [n], the items that have a label, increasing.
        codes: int64 [n], 0..len(names)-1.
        names: The classes.
    """

    items: NDArray[np.int64]
    codes: NDArray[np.int64]
    names: tuple[str, ...]


def item_values(run: Run, name: str) -> list[Any]:
    """Return one value per item, None where unknown.

    Args:
        run: The run.
        name: A label; or "prompt", "answer" (what the model said), "episode", "step".

    Raises:
        InputError: no item has it; the message lists what there is.
    """
    if name == "answer":
        values: list[Any] = [None if (r := run.response(i)) is None else r.text for i in range(run.n_items)]
        missing = "the model gave no answers to this run's items; capture with answers (--respond yes)."
    elif name in ("prompt", "episode", "step") and not any(name in row.labels for row in run.items):
        values = [getattr(row, name) for row in run.items]
        missing = f"no item of this run has a {name}."
    else:
        values = [row.labels.get(name) for row in run.items]
        known = sorted({key for row in run.items for key in row.labels})
        has = f"Labels are: {', '.join(known)}." if known else "Its items carry no labels at all."
        missing = f"no item of this run has a label '{name}'.{nearest_text(name, known)} {has}"
    if all(value is None for value in values):
        raise InputError(missing)
    return values


def item_classes(run: Run, name: str, *, min_count: int = 2, max_classes: int = 64) -> Classes:
    """Return the classes that a label or the model's answers sort the items into.

    Args:
        run: The run.
        name: See `item_values`.
        min_count: Classes with fewer items are left out.
        max_classes: More than that is no class label (a number, a free text).

    Raises:
        InputError: fewer than two classes remain, or too many.
    """
    values = item_values(run, name)
    texts = [None if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    names = tuple(sorted(text for text, count in counts.items() if count >= min_count))
    if len(names) < 2:
        raise InputError(
            f"'{name}' sorts the items into {len(names)} classes of at least {min_count} items ({_some(counts)}); "
            "need 2 or more. Choose a label that varies, or capture more items."
        )
    if len(names) > max_classes:
        raise InputError(
            f"'{name}' has {len(names)} different values; that is no class label. Probe it as a number instead."
        )
    code_of = {text: code for code, text in enumerate(names)}
    items = np.array([i for i, text in enumerate(texts) if text in code_of], np.int64)
    return Classes(items, np.array([code_of[texts[i] or ""] for i in items], np.int64), names)


def item_numbers(
    run: Run, names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64], tuple[str, ...]]:
    """Return the items that have all of `names`, their numbers [n, c], and the names of the c columns.

    Args:
        run: The run.
        names: "state", "action" (all entries), "state.2", "action.0" (one), "answer.action" (what the model would
            do), "pose" (of the camera: position x, y, z, then the direction in which it looks, x, y, z; "pose.2" is
            one of the six), or labels that are numbers.

    Raises:
        InputError: a name is unknown or not a number, or no item has them all.
    """
    columns: list[NDArray[np.float64]] = []
    heads: list[str] = []
    for name in names:
        base, _, which = name.partition(".")
        if name == "answer.action":
            vectors: list[Any] = [
                None if (r := run.response(i)) is None else r.action for i in range(run.n_items)
            ]
            block = _stack(vectors, name)
            which = ""
        elif base in ("state", "action"):
            block = _stack([getattr(row, base) for row in run.items], base)
        elif base == "pose":
            block = _stack([_camera_pose(row.pose) for row in run.items], base)
        else:
            block = np.array([_number(value, name) for value in item_values(run, name)])[:, None]
            which = ""
        if which:
            if not which.isdigit() or int(which) >= block.shape[1]:
                raise InputError(
                    f"'{name}' does not exist; the {base} has entries {base}.0 to {base}.{block.shape[1] - 1}."
                )
            block = block[:, [int(which)]]
        heads += [name] if block.shape[1] == 1 else [f"{name}.{j}" for j in range(block.shape[1])]
        columns.append(block)
    values = np.concatenate(columns, axis=1)
    items = np.flatnonzero(np.isfinite(values).all(1))
    if not len(items):
        raise InputError(f"no item of this run has all of {', '.join(names)}.")
    return items, values[items], tuple(heads)


def _camera_pose(pose: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Return position and viewing direction, float64 [6]: a camera looks along -z of its own axes."""
    return None if pose is None else np.r_[pose[:3, 3], -pose[:3, 2]]


def _stack(vectors: Sequence[Any], name: str) -> NDArray[np.float64]:
    widths = {len(v) for v in vectors if v is not None}
    if len(widths) != 1:
        raise InputError(
            f"no item of this run has a {name}."
            if not widths
            else f"items have a {name} of different lengths {sorted(widths)}; probe one kind of robot at a time."
        )
    empty = np.full(widths.pop(), np.nan)
    return np.array([empty if v is None else np.asarray(v, np.float64) for v in vectors])


def _number(value: Any, name: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, str):
        raise InputError(f"label '{name}' holds text ({value[:40]!r}), not numbers; probe it as a class.")
    return float(value)


def _some(counts: Counter[str]) -> str:
    shown = ", ".join(f"{text[:30]!r}: {count}" for text, count in counts.most_common(4))
    return f"{shown}, ..." if len(counts) > 4 else shown or "no values"
