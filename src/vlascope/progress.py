"""One progress bar for everything that can take more than two seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

DELAY_SECS = 2.0
"""What takes no longer shows no bar."""

_watched: ContextVar[bool] = ContextVar("_watched", default=False)


def progress(
    things: Iterable[T], *, desc: str, total: int | None = None, unit: str = "item", quiet: bool = False
) -> Iterator[T]:
    """Yield `things` while a bar on stderr shows rate and time left.

    Silent when `quiet` or when the environment sets VLASCOPE_PROGRESS=0. Where stderr is no terminal (a log
    file, CI), a line is printed at most every 30 s instead of a moving bar.
    """
    if quiet or os.environ.get("VLASCOPE_PROGRESS") == "0":
        yield from things
        return
    from tqdm.auto import tqdm

    is_terminal = sys.stderr.isatty()
    bar = tqdm(
        things,
        desc=desc,
        total=total,
        unit=f" {unit}",
        mininterval=0.1 if is_terminal else 30.0,
        delay=0.0 if is_terminal else 2.0,
        dynamic_ncols=is_terminal,
        leave=True,
    )
    try:
        yield from bar
    finally:
        bar.close()


def watch(on: bool = True) -> None:
    """Let `watched` and `stepper` show their bars: the command line does so, from Python they are silent."""
    _watched.set(on)


def watched(things: Iterable[T], *, desc: str, unit: str = "item", total: int | None = None) -> Iterator[T]:
    """Yield `things`; where somebody watches (see `watch`) a bar shows rate and time left once two seconds are over.

    For loops of functions that take no `quiet`.
    """
    if not _is_watched():
        yield from things
        return
    known = total if total is not None else len(things) if hasattr(things, "__len__") else None  # type: ignore[arg-type]
    with _bar(desc, unit=unit, total=known) as bar:
        for one in things:
            yield one
            bar.update()


def stepper(desc: str, n: int) -> Callable[[str | None], None]:
    """Return what is called with the name of each of n steps when it begins, and with None after the last."""
    bar = _bar(desc, unit="step", total=n) if _is_watched() else None
    begun = 0

    def step(name: str | None) -> None:
        nonlocal begun
        if bar is None:
            return
        if begun:
            bar.update()
        begun += 1
        if name is None:
            bar.close()
        else:
            bar.set_postfix_str(name)

    return step


def _is_watched() -> bool:
    return _watched.get() and os.environ.get("VLASCOPE_PROGRESS") != "0"


def _bar(desc: str, *, unit: str, total: int | None) -> Any:
    from tqdm.auto import tqdm

    is_terminal = sys.stderr.isatty()
    return tqdm(desc=desc, total=total, unit=f" {unit}", mininterval=0.1 if is_terminal else 30.0, delay=DELAY_SECS,
                dynamic_ncols=is_terminal, leave=True)  # fmt: skip
