"""Threads in which torch uses one core, and all others as before."""

from __future__ import annotations

import threading

import pytest
import torch

from vlascope.threads import is_one_core_thread, one_core_threads


@pytest.fixture
def three_threads():
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(usual)


def test_only_these_threads_use_one_core(three_threads):
    pool = one_core_threads(5)  # a number that nothing else asks for: made here
    inside = [pool.submit(lambda: (torch.get_num_threads(), is_one_core_thread())) for _ in range(20)]
    assert {one.result() for one in inside} == {(1, True)}
    assert torch.get_num_threads() == 3 and not is_one_core_thread()
    found: list[tuple[int, bool]] = []
    later = threading.Thread(target=lambda: found.append((torch.get_num_threads(), is_one_core_thread())))
    later.start()
    later.join()
    assert found == [(3, False)]
    assert one_core_threads(5) is pool
