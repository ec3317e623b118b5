"""The embedded model and a few of its items, for every test of this room."""

from __future__ import annotations

import dataclasses

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are slower on several threads, far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mini():
    """Return mini-vla on the CPU."""
    from vlascope.models import load

    return load("mini-vla", device="cpu")


@pytest.fixture(scope="session")
def picks():
    """Return seven frames with instructions, each an item of its own (prompts differ in length)."""
    from vlascope.items import open_items

    source = open_items("demo:pick")
    prompts = ("pick up the red object", "pick up the blue rigid object", "put the green object on the pad")
    step = max(1, len(source) // 7)
    return [dataclasses.replace(source[i * step], prompt=prompts[i % 3], episode=None) for i in range(7)]
