"""Threads that compute side by side: each on one core, so that none waits for another between two steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from ..threads import one_core_threads

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Return `work` of each thing, on all cores; for work that lets go of the interpreter while it computes."""
    things = list(things)
    return [work(one) for one in things] if len(things) < 2 else list(_pool().map(work, things))


def each_with_torch(work: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Return `work` of each thing, on all cores, with torch using one core in each of them.

    Torch's own threads wait for one another after every product: beside a browser that is busy drawing, that took
    three times as much processor time (75 instead of 27 ms for 150,000 x 768 in bfloat16, both cores busy).
    """
    return list(one_core_threads(_n_cores()).map(work, things))


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_n_cores(), thread_name_prefix="vlascope-site")
