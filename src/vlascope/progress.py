"""One progress bar for everything that can take more than two seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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
