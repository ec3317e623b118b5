"""What we look into: models, their sites and token layouts, reading and editing them.

Importing this room is cheap; torch and transformers are loaded by the first use of `load` or `Model`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The folder `families/` and the verb `families()` share a name. Importing the (empty) folder first keeps a
# later import of it from replacing the verb.
from . import families as _folder  # noqa: F401
from .layout import KINDS, Grid, TokenLayout, concat, grid_tokens, plain_tokens, token_from_pixel
from .sites import Site, resolve

if TYPE_CHECKING:
    from .batch import Batch, Response
    from .checkpoint import embedded
    from .family import Family
    from .loading import load, wrap
    from .model import Model
    from .policy import VLAPolicy

_LAZY = {
    "Batch": "batch",
    "Response": "batch",
    "Family": "family",
    "Model": "model",
    "VLAPolicy": "policy",
    "embedded": "checkpoint",
    "load": "loading",
    "wrap": "loading",
}

__all__ = [
    "KINDS",
    "Batch",
    "Family",
    "Grid",
    "Model",
    "Response",
    "Site",
    "TokenLayout",
    "VLAPolicy",
    "concat",
    "embedded",
    "families",
    "grid_tokens",
    "load",
    "plain_tokens",
    "resolve",
    "token_from_pixel",
    "wrap",
]


def families() -> dict[str, type[Family]]:
    """Return all families of models by name."""
    from .family import families as all_families

    return all_families()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
