"""Where everything lies in a run directory, and what it means that a directory is one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RunNotFoundError, RunVersionError
from ..files import read_json
from .arrays import site_folder

FORMAT = "vlascope-run"
SCHEMA_VERSION = 2
"""1: SHA-256 of every file. 2: CRC-32C of activations; boxes, pose and intrinsics of items. Both are read."""

INFO_NAME = "run.json"
CONFIG_NAME = "config.json"
WORK_NAME = ".work"  # blocks in the making; its content never counts
INDEX_NAME = "index.json"
FAILURES_NAME = "failures.jsonl"


def block_name(block: int) -> str:
    """Return the name of a block in files and folders, e.g. "000017"."""
    return f"{block:06d}"


def marker_path(run_dir: Path, block: int) -> Path:
    """Return the commit marker: the block exists if and only if this file does."""
    return run_dir / "blocks" / f"{block_name(block)}.ok"


def array_dir(run_dir: Path, site_name: str, block: int) -> Path:
    """Return the folder of the Zarr array of one site and block."""
    return run_dir / "acts.zarr" / site_folder(site_name) / block_name(block)


def parts_dir(run_dir: Path, block: int) -> Path:
    """Return the folder of a block's own table rows, which are merged and removed when the run is complete."""
    return run_dir / "blocks" / block_name(block)


def media_dir(run_dir: Path, block: int) -> Path:
    """Return the folder of the images and masks of a block's items."""
    return run_dir / "media" / block_name(block)


def work_dir(run_dir: Path, block: int) -> Path:
    """Return the folder in which a block is put together."""
    return run_dir / WORK_NAME / block_name(block)


def is_run(path: Path) -> bool:
    """Return whether `path` is a run directory, complete or not."""
    try:
        return read_json(path / INFO_NAME).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_info(path: Path | str) -> dict[str, Any]:
    """Return run.json of a run, also of one that is unfinished.

    Raises:
        RunNotFoundError: there is no run at `path`.
        RunVersionError: the run was written by a newer vlascope.
    """
    path = Path(path)
    if not is_run(path):
        what = "does not exist" if not path.exists() else "is not a run directory (it has no valid run.json)"
        raise RunNotFoundError(
            f"'{path}' {what}. Make a run with `vlascope capture MODEL DATA -o {path}`, or give the path of one."
        )
    info = read_json(path / INFO_NAME)
    version = info["schema_version"]
    if version > SCHEMA_VERSION:
        raise RunVersionError(
            f"'{path}' was written in run format {version} (vlascope {info['versions'].get('vlascope', '?')}); this "
            f"vlascope reads formats up to {SCHEMA_VERSION}. Update with: pip install -U vlascope"
        )
    return info


def resume_command(command: Sequence[str] | None, out: Path | str) -> str:
    """Return what to type to go on with an unfinished capture."""
    if not command:
        return f"vlascope.capture(..., out={str(out)!r}, resume=True)"
    kept = [word for word in command if word not in ("--force", "--resume")]
    return shlex.join([*kept, "--resume"])
