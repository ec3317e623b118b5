"""Blocks of rows shared out over threads, each of which takes a block through all its operations by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import wait

import torch

from ..threads import is_one_core_thread, one_core_threads


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
    n_threads = 1 if alone or is_one_core_thread() else torch.get_num_threads()
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
    tasks = [one_core_threads(n_threads).submit(run, worker) for worker in range(n_workers)]
    try:
        wait(tasks)
    finally:
        stopped = True  # an interrupted caller leaves no work behind
    for task in tasks:
        task.result()
