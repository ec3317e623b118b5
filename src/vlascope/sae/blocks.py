"""Blocks of rows shared out over threads, each of which takes a block through all its operations by itself.

Between two operations that torch shares out, its threads wait for each other, and a block that one core wrote is read
by another. A thread that keeps a block to itself finds it in its own cache, and operations that torch does not share
out (NumPy's) run at the same time as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()
_inside = threading.local()


def share_blocks(work: Callable[[int, slice], None], n_rows: int, *, step: int, alone: bool = False) -> None:
    """Call `work(worker, rows)` for blocks of rows, on as many threads as torch may use.

    Torch's operations inside `work` use one thread, so what is worked out for a block does not depend on the number of
    threads; who works on which block does.

    Called by `work` itself, it goes on in the same thread.

    Args:
        work: Works on one block. `worker` counts from 0; no two calls run at once for the same one, so that each may
            have work space of its own. Gradients are not recorded.
        n_rows: Rows in all.
        step: Rows of a block; the last one may be smaller.
        alone: Stay in this thread, as what is worked on lies on a GPU.

    Raises:
        Exception: The first one that `work` raised; blocks that were not begun are left out then.
    """
    n_threads = 1 if alone or getattr(_inside, "pool", False) else torch.get_num_threads()
    n_workers = min(n_threads, -(-n_rows // step))
    starts = iter(range(0, n_rows, step))
    taking = threading.Lock()
    stopped = False

    def run(worker: int) -> None:
        nonlocal stopped
        with torch.no_grad():
            while not stopped:
                with taking:
                    start = next(starts, None)
                if start is None:
                    return
                try:
                    work(worker, slice(start, min(start + step, n_rows)))
                except BaseException:
                    stopped = True
                    raise

    if n_threads == 1:
        run(0)
        return
    tasks = [_pool(n_threads).submit(run, worker) for worker in range(n_workers)]
    try:
        wait(tasks)
    finally:
        stopped = True  # an interrupted caller leaves no work behind
    for task in tasks:
        task.result()


def _pool(n: int) -> ThreadPoolExecutor:
    """Return n threads in which torch uses one thread each."""
    with _making:
        if n not in _pools:
            pool = ThreadPoolExecutor(n, thread_name_prefix="vlascope-blocks")
            there = threading.Barrier(n)

            def settle() -> None:
                torch.get_num_threads()  # a thread takes on the common number when it first asks, then keeps its own
                torch.set_num_threads(1)
                _inside.pool = True
                there.wait()  # until all have begun: one thread must not take two of these tasks

            wait([pool.submit(settle) for _ in range(n)])
            # The number belongs to the thread that sets it, but threads that are yet to be started take on the last.
            torch.set_num_threads(n)
            _pools[n] = pool
        return _pools[n]


def _forget() -> None:
    """A forked process has none of the threads."""
    global _making
    _pools.clear()
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
