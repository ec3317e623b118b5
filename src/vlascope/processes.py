"""Processes of our own that are started anew (spawned), as simulators and models with threads need."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def script_left_alone() -> Iterator[None]:
    """Let processes that are started inside the context not run the script that is under way.

    A new process imports it first, in case that it defines what is sent there; a script without
    `if __name__ == "__main__":` would then begin all over again.
    """
    main = sys.modules["__main__"]
    kept = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(kept)
