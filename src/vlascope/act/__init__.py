"""Testing by doing: steering, knock-outs, patching, closed-loop rollouts, and watchers that may stop them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .watcher import Veto, Watcher

_LAZY = {
    "Veto": "watcher",
    "Watcher": "watcher",
}

__all__ = ["Veto", "Watcher"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
