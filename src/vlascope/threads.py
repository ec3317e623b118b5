"""Threads that compute side by side, with torch using one core in each of them.

Between two operations that torch shares out, its own threads wait for each other, and what one core wrote is read by
another. A thread that does all the operations of its share by itself does neither.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()
_inside = threading.local()


def one_core_threads(n: int) -> ThreadPoolExecutor:
    """Return n threads in which torch uses one core each; the same ones whenever asked for as many."""
    import torch

    with _making:
        if n not in _pools:
            pool = ThreadPoolExecutor(n, thread_name_prefix="vlascope-one-core")
            there = threading.Barrier(n)
            usual = torch.get_num_threads()

            def settle() -> None:
                torch.get_num_threads()  # a thread takes on the common number when it first asks, then keeps its own
                torch.set_num_threads(1)
                _inside.pool = True
                there.wait()  # until all have begun: one thread must not take two of these tasks

            wait([pool.submit(settle) for _ in range(n)])
            # The number belongs to the thread that sets it, but threads that are yet to be started take on the last.
            torch.set_num_threads(usual)
            _pools[n] = pool
        return _pools[n]


def is_one_core_thread() -> bool:
    """Return whether the caller runs in such a thread, where more of them would wait for each other."""
    return getattr(_inside, "pool", False)


def _forget() -> None:
    """A forked process has none of the threads."""
    global _making
    _pools.clear()
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
