"""Freeing space in a run: what crashes left behind, and results that can be computed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import storage_errors
from . import paths
from .finish import TEMP_PATTERN
from .listing import size_bytes
from .lock import write_lock


@dataclass(frozen=True, kw_only=True)
class Freed:
    """What a clean-up removed, or would remove.

    Attributes:
        paths: Files and folders, relative to the run.
        size_bytes: Their bytes.
    """

    paths: tuple[str, ...]
    size_bytes: int


def clean_run(run_dir: Path | str, *, derived: bool = False, dry_run: bool = False) -> Freed:
    """Remove what a run does not need, and return it. Captured tokens, images and tables are never touched.

    Args:
        run_dir: A run, complete or not.
        derived: Also remove cuts and other results in `derived/`, which can be computed again.
        dry_run: Remove nothing.

    Raises:
        RunNotFoundError: no run there.
        RunExistsError: another process is writing it.
        StorageError: it cannot be written.
    """
    run_dir = Path(run_dir)
    info = paths.read_info(run_dir)

    def found() -> list[Path]:
        return sorted(set(_leftovers(run_dir, info["status"], info["n_blocks"], derived=derived)))

    if dry_run:
        return _freed(run_dir, found())
    with write_lock(run_dir), storage_errors(run_dir):
        targets = found()
        freed = _freed(run_dir, targets)
        for path in targets:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


def _leftovers(run_dir: Path, status: str, n_blocks: int, *, derived: bool) -> Iterator[Path]:
    work = run_dir / paths.WORK_NAME
    if work.exists():
        yield work
    for folder in (run_dir, run_dir / "blocks"):
        yield from folder.glob(TEMP_PATTERN)
    if status == "complete":
        for block in range(n_blocks):
            if (parts := paths.parts_dir(run_dir, block)).exists():
                yield parts
    home = run_dir / "derived"
    if home.is_dir():
        # A name that begins with a dot is a result in the making, or what a crash left of one.
        yield from (path for path in home.iterdir() if derived or path.name.startswith("."))


def _freed(run_dir: Path, targets: list[Path]) -> Freed:
    total = sum(size_bytes(p) if p.is_dir() else p.lstat().st_size for p in targets)
    return Freed(paths=tuple(str(p.relative_to(run_dir)) for p in targets), size_bytes=total)
