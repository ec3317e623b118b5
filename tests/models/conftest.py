"""The loaded tiny models, built once per test session."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny.py"))
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
sys.modules["tiny_models"] = tiny
_spec.loader.exec_module(tiny)


@functools.cache
def _load(name):
    from vlascope.models import load

    makers = {
        "llava-siglip": lambda: load(tiny.llava(), processor=tiny.llava_processor()),
        "llava-clip": lambda: load(
            tiny.llava("clip", "default", -2), processor=tiny.llava_processor("clip", "default")
        ),
        "clip": lambda: load(tiny.clip(), processor=tiny.tokenizer()),
        "clip-vision": lambda: load(tiny.clip("clip", False)),
        "siglip": lambda: load(tiny.clip("siglip"), processor=tiny.tokenizer()),
        "siglip-vision": lambda: load(tiny.clip("siglip", False)),
        "dino": lambda: load(tiny.dino()),
        "dino-registers": lambda: load(tiny.dino(True)),
    }
    return makers[name]()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are slower on several threads, far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make():
    """Return the loaded tiny model of that name."""
    return _load


@pytest.fixture(scope="session")
def tiny_models():
    """Return the module that builds tiny models and items."""
    return tiny
