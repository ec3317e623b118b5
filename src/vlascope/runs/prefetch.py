"""Overlap: items are decoded ahead of the forward pass, and blocks are written behind it, by several threads."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ..files import storage_errors
from ..items.item import Item, ItemSource

T = TypeVar("T")
R = TypeVar("R")


class Prefetch:
    """Iterates over (index, item or the exception that reading it raised), decoding up to `depth` items ahead.

    The indices come by `feed`, at any time; their order is kept. A context manager: leaving it stops the thread.
    Only this thread reads the source.
    """

    def __init__(self, items: ItemSource, *, depth: int) -> None:
        self._items = items
        self._wanted: queue.SimpleQueue[Sequence[int] | None] = queue.SimpleQueue()
        self._queue: queue.Queue[tuple[int, Item | BaseException]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="vlascope-decode", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._wanted.put(None)
        self._thread.join()

    def feed(self, indices: Sequence[int]) -> None:
        """Ask for more items."""
        self._wanted.put(indices)

    def __iter__(self) -> Iterator[tuple[int, Item | BaseException]]:
        return self

    def __next__(self) -> tuple[int, Item | BaseException]:
        """Return the next item that was fed; waits for ever when nothing was."""
        return self._queue.get()

    def _read(self) -> None:
        while (indices := self._wanted.get()) is not None:
            for index in indices:
                try:
                    result: Item | BaseException = self._items[index]
                except BaseException as error:  # handed to the consumer, which raises or records it
                    result = error
                while not self._stopped.is_set():
                    try:
                        self._queue.put((index, result), timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if self._stopped.is_set():
                    return


MAX_HELPERS = 8


class Helpers:
    """Threads that share the parts of one writing job: pictures to encode, arrays to append to.

    A PNG of 640 x 480 takes 17 ms of one core, which is the time of several forward passes on a GPU.

    Args:
        n_threads: Default: one per core, at most `MAX_HELPERS`.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(
            max_workers=n_threads or min(MAX_HELPERS, os.cpu_count() or 1),
            thread_name_prefix="vlascope-encode",
        )

    def each(self, fn: Callable[[T], R], parts: Iterable[T]) -> list[R]:
        """Return fn(part) for each part, in their order, once all are done; raises what the first failed one raised."""
        futures = [self._pool.submit(fn, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class WriteBehind:
    """Runs writing jobs one after the other in a thread, at most one of them ahead of the caller.

    A job's exception is raised by the next `submit` or by `wait`.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vlascope-write")
        self._last: Future[Any] | None = None

    def submit(self, job: Callable[[], Any]) -> None:
        """Start a job after the one before it has ended."""
        self.wait()
        self._last = self._pool.submit(self._run, job)

    def wait(self) -> None:
        """Wait for the last job."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for the thread to end, whatever became of its last job."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Callable[[], Any]) -> Any:
        with storage_errors(self._run_dir):
            return job()
