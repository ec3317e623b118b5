"""Engines by their names."""

from __future__ import annotations

from ...errors import InputError, nearest_text
from .engine import Engine
from .local import LocalEngine
from .ray import RayEngine

ENGINES = ("local", "ray")


def open_engine(engine: str | Engine = "local", *, n_workers: int | None = None) -> Engine:
    """Return an engine by name, "local" or "ray"; an engine is returned as it is.

    Args:
        engine: Name or engine.
        n_workers: Ray only: workers that hold a model each; None takes one per GPU or node.

    Raises:
        InputError: no such engine, or workers for an engine that has none.
        MissingExtraError: Ray is not installed.
    """
    if isinstance(engine, Engine):
        return engine
    if engine == "ray":
        return RayEngine(n_workers=n_workers)
    if engine != "local":
        raise InputError(
            f"there is no engine '{engine}'; choose one of {', '.join(ENGINES)}.{nearest_text(engine, ENGINES)}"
        )
    if n_workers not in (None, 1):
        raise InputError(
            f"got {n_workers} workers for the engine 'local', which is this one process; choose the engine 'ray'."
        )
    return LocalEngine()
