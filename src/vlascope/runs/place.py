"""The place of a run before a capture: empty, ours to go on with, or not to be touched."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunExistsError, RunIncompleteError, StorageError
from ..files import json_text, read_json, storage_errors
from . import paths
from .config import differing_fields
from .lock import LOCK_NAME


def check_out(
    out: Path, config: Mapping[str, Any], *, resume: bool, force: bool, command: Sequence[str] | None
) -> str:
    """Return what to do with the place: "new", "resume", "clear" or "complete"; raise if it must not be touched."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"'{out}' is a file; a run is a directory. Choose another place with -o.")
    if not out.exists() or all(p.name == LOCK_NAME or p.name.startswith(".") for p in out.iterdir()):
        return "new"
    if not paths.is_run(out):
        raise RunExistsError(
            f"'{out}' holds other files and is not a run, so nothing there is touched (not even with --force). "
            "Choose another place with -o."
        )
    if (
        force or not (out / paths.CONFIG_NAME).exists()
    ):  # the latter: killed while it was being made or cleared
        return "clear"
    ways_out = "Three ways out: {resume}--force to delete it and capture again, or another place with -o."
    info = paths.read_info(out)
    try:
        known = read_json(out / paths.CONFIG_NAME)
    except ValueError as error:
        known = config if resume and _was_config(config, info) else None
        if known is None:
            raise RunIncompleteError(
                f"'{out / paths.CONFIG_NAME}' is damaged ({error}), so nobody can tell whether this is the same "
                "capture. Use --force to delete the run and capture again, or another place with -o."
            ) from error
    differences = differing_fields(known, config)
    if differences:
        raise RunExistsError(
            f"'{out}' holds a run with another configuration:\n  "
            + "\n  ".join(differences)
            + "\n"
            + ways_out.format(resume="the run's own settings with --resume, ")
        )
    edits = config["model"].get("edits")
    if edits and not resume:
        raise RunExistsError(
            f"'{out}' holds a run with edits of the same sites ({', '.join(edits)}), and edits cannot be compared. "
            + ways_out.format(resume="the very same edits with --resume, ")
        )
    if info["status"] == "complete":
        return "complete"
    if resume:
        return "resume"
    raise RunExistsError(
        f"'{out}' holds an unfinished run of this very configuration. "
        + ways_out.format(resume=f"go on with `{paths.resume_command(command, out)}`, ")
    )


def _was_config(config: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Return whether a configuration is the one that a complete run noted the checksum of."""
    noted = info.get("facts", {}).get(paths.CONFIG_NAME)
    return noted is not None and hashlib.sha256(json_text(config).encode()).hexdigest() == noted


def remove_if_empty(out: Path) -> None:
    """Remove the directory that we made when an error came before the first file."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()


def clear(out: Path) -> None:
    """Delete a run's files but keep its lock. run.json goes last: a crash leaves what is still seen as a run."""
    assert paths.is_run(out), "checked by check_out"
    with storage_errors(out):
        for path in sorted(out.iterdir(), key=lambda p: p.name == paths.INFO_NAME):
            if path.name == LOCK_NAME:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
