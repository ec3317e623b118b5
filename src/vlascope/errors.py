"""Every error that vlascope raises on purpose.

Each class is a `VlascopeError` *and* the built-in that a caller would catch anyway. A message says what we
got, what we need and what to do about it. `docs/errors.md` has a paragraph per class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VlascopeError(Exception):
    """Base of all errors that vlascope raises on purpose."""

    def __str__(self) -> str:  # KeyError would otherwise show its message in quotes
        return " ".join(str(arg) for arg in self.args)


class InputError(VlascopeError, ValueError):
    """An argument or array cannot be used (NaN, empty, wrong shape, out of range)."""


class ItemError(VlascopeError, ValueError):
    """A dataset, folder or file cannot be read as items (empty, corrupt, wrong type)."""


class ItemNotFoundError(VlascopeError, FileNotFoundError):
    """A dataset, folder or file does not exist."""


class ModelNotFoundError(VlascopeError, LookupError):
    """A model name or path is not known, not there, or of no family that we support."""


class SiteNotFoundError(VlascopeError, KeyError):
    """A model or a run has no site of that name."""


class HookNotFiredError(VlascopeError, RuntimeError):
    """A requested site was not reached by the forward pass, or the vision tower was not called."""


class RunNotFoundError(VlascopeError, FileNotFoundError):
    """A path is not a run directory."""


class RunExistsError(VlascopeError, FileExistsError):
    """The run directory exists and was made with another configuration."""


class RunIncompleteError(VlascopeError, RuntimeError):
    """The run's capture has not finished, or one of its blocks is damaged."""


class RunVersionError(VlascopeError, RuntimeError):
    """The run was written by a newer vlascope than this one."""


class StorageError(VlascopeError, OSError):
    """A file could not be written: no permission, read-only or full disk."""


class WorkerError(VlascopeError, RuntimeError):
    """The workers of a cluster died again and again, or none could be started."""


class MissingExtraError(VlascopeError, ImportError):
    """An optional package is not installed."""


def missing_extra(package: str, *, extra: str, needed_for: str) -> MissingExtraError:
    """Return the error for an optional package that is not installed."""
    return MissingExtraError(
        f"{needed_for} needs the package '{package}', which is not installed. "
        f"Install it with: pip install 'vlascope[{extra}]'"
    )


def nearest(name: str, choices: Iterable[str], *, n: int = 3) -> list[str]:
    """Return up to `n` of `choices` that look most like `name`, best first (for error messages)."""
    return difflib.get_close_matches(name, list(choices), n=n, cutoff=0.3)


def nearest_text(name: str, choices: Iterable[str], *, n: int = 3) -> str:
    """Return "Nearest: 'a', 'b'." for an error message, or an empty string when nothing is close."""
    found = nearest(name, choices, n=n)
    return f" Nearest: {', '.join(repr(c) for c in found)}." if found else ""
