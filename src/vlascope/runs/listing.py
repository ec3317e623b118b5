"""The runs below a folder, complete or not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunNotFoundError, RunVersionError
from ..files import read_json
from . import paths

MAX_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run of a listing.

    Attributes:
        path: Its directory.
        status: "complete", "running", "interrupted", "failed", or "newer" when a newer vlascope wrote it. A run
            whose process was killed still says "running".
        model: Name of the model; None when the run has no configuration yet.
        items: Name of the source.
        n_items: Items captured, or to be captured.
        n_sites: Sites.
        n_done, n_blocks: Blocks on disk, and in all.
        size_bytes: Everything in the directory.
        created: Time of the first start, ISO 8601.
    """

    path: Path
    status: str
    model: str | None
    items: str | None
    n_items: int | None
    n_sites: int
    n_done: int
    n_blocks: int
    size_bytes: int
    created: str


def list_runs(folder: Path | str = "runs") -> list[RunEntry]:
    """Return the runs in a folder and its subfolders (to a depth of four), newest first; runs hold no runs.

    Raises:
        RunNotFoundError: there is no such folder.

    Cost: reads two small files per run and the sizes of all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunNotFoundError(f"there is no folder '{folder}'; give the folder that holds your runs.")
    found = []

    def look(path: Path, depth: int) -> None:
        if paths.is_run(path):
            found.append(_entry(path))
            return
        if depth < MAX_DEPTH:
            with os.scandir(path) as entries:
                below = sorted(
                    e.path for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != "."
                )
            for each in below:
                if os.access(each, os.R_OK | os.X_OK):
                    look(Path(each), depth + 1)

    look(folder, 0)
    return sorted(found, key=lambda entry: (entry.created, str(entry.path)), reverse=True)


def size_bytes(path: Path) -> int:
    """Return the bytes of all files in a folder; files that vanish meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _entry(path: Path) -> RunEntry:
    config: dict[str, Any] = {}
    if (path / paths.CONFIG_NAME).exists():
        try:
            config = read_json(path / paths.CONFIG_NAME)
        except ValueError:  # damaged: the rest is still worth listing
            config = {}
    try:
        info = paths.read_info(path)
    except RunVersionError:
        info = {**read_json(path / paths.INFO_NAME), "status": "newer"}
    wanted = config.get("items", {})
    return RunEntry(
        path=path,
        status=info["status"],
        model=config.get("model", {}).get("name"),
        items=wanted.get("name"),
        n_items=info.get("n_items", wanted.get("n_items")),
        n_sites=len(info.get("sites", {})),
        n_done=len(list((path / "blocks").glob("*.ok"))),
        n_blocks=info.get("n_blocks", 0),
        size_bytes=size_bytes(path),
        created=info.get("created", ""),
    )
