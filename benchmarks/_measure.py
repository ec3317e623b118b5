"""Time and peak memory of one call in this process, for benchmarks that compare by ratio."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Cost:
    """What a call returned, its seconds, and the largest growth of resident memory while it ran, in GB."""

    value: Any
    seconds: float
    gigabytes: float


def cost(call: Callable[[], Any]) -> Cost:
    """Run `call` once; memory is sampled every 5 ms, so shorter peaks are missed."""
    release()
    before = resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        value = call()
    finally:
        seconds = time.perf_counter() - start
        peak[0] = max(peak[0], resident())
        done.set()
        watcher.join()
    return Cost(value, seconds, (peak[0] - before) / 1e9)


def fresh_gigabytes(task: Callable[[], Callable[[], Any]]) -> float:
    """Return the memory that a call takes in a process of its own, in GB.

    In a process that has done other things the heap's leftovers blur the number. `task` (a function of a module, or
    a `functools.partial` of one) is called in the new process, prepares and warms up, and returns what to measure.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_fresh, (task,))


def _fresh(task: Callable[[], Callable[[], Any]]) -> float:
    return cost(task()).gigabytes


def release() -> None:
    """Give freed memory back to the system, so that one call's leftovers do not hide the next one's needs."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc: the numbers are then upper bounds of reuse, see the docs
        return


def resident() -> int:
    """Return this process's resident bytes, without file-backed pages (memory maps count as page cache)."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * PAGE
