"""How far a capture is: one bar with items/s, GB and time left, or a report to whoever asked."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

REPORT_EVERY_SECS = 2.0
"""Least time between two reports, besides the first and the last."""


@dataclass(frozen=True, kw_only=True)
class CaptureProgress:
    """How far a capture is.

    Attributes:
        n_done: Items dealt with in this session.
        n_items: Items that this session has to deal with.
        n_bytes: Bytes of activations that they gave.
        secs: Time since the start of the session.
    """

    n_done: int
    n_items: int
    n_bytes: int
    secs: float

    @property
    def items_per_sec(self) -> float:
        """Mean rate of this session."""
        return self.n_done / max(self.secs, 1e-9)

    @property
    def eta_secs(self) -> float | None:
        """Seconds left at that rate; None before the first item."""
        return None if not self.n_done else (self.n_items - self.n_done) * self.secs / self.n_done

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values, rounded."""
        return {
            "n_done": self.n_done,
            "n_items": self.n_items,
            "n_bytes": self.n_bytes,
            "secs": round(self.secs, 2),
            "items_per_sec": round(self.items_per_sec, 3),
            "eta_secs": None if self.eta_secs is None else round(self.eta_secs, 1),
        }


class Meter:
    """Counts items and bytes; draws a bar on stderr unless `quiet`, or calls `on_progress` instead of it.

    Where stderr is no terminal a line is printed at most every 30 s. VLASCOPE_PROGRESS=0 silences the bar alone.
    """

    def __init__(
        self, n_items: int, *, quiet: bool, on_progress: Callable[[CaptureProgress], None] | None
    ) -> None:
        self._n_items, self._on_progress = n_items, on_progress
        self._n_done, self._n_bytes = 0, 0
        self._started, self._reported = time.monotonic(), -float("inf")
        self._bar: Any = None
        if not quiet and on_progress is None and os.environ.get("VLASCOPE_PROGRESS") != "0":
            from tqdm.auto import tqdm

            is_terminal = sys.stderr.isatty()
            self._bar = tqdm(
                desc="capture",
                total=n_items,
                unit=" item",
                mininterval=0.1 if is_terminal else 30.0,
                delay=0.0 if is_terminal else 2.0,
                dynamic_ncols=is_terminal,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def now(self) -> CaptureProgress:
        """Return how far it is now."""
        return CaptureProgress(
            n_done=self._n_done,
            n_items=self._n_items,
            n_bytes=self._n_bytes,
            secs=time.monotonic() - self._started,
        )

    def add(self, n_items: int, *, n_bytes: int) -> None:
        """Count items that are done."""
        self._n_done += n_items
        self._n_bytes += n_bytes
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._n_bytes / 1e9:.2f} GB", refresh=False)
            self._bar.update(n_items)
        if self._on_progress is not None:
            now = self.now
            if now.secs - self._reported >= REPORT_EVERY_SECS or self._n_done == self._n_items:
                self._reported = now.secs
                self._on_progress(now)
