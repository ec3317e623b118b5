"""Looking through a folder for files: in natural order, without what is no data."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import ItemError, ItemNotFoundError
from ..files import read_json

RUN_FORMAT = "vlascope-run"  # what run.json of a run calls itself; runs stand above this room
_NO_DATA = frozenset({"__MACOSX"})  # where macOS keeps the other half of the files of a zip


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts 'img2' before 'img10'."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text.lower()) if p]


def find_files(
    folder: Path, suffixes: Sequence[str], *, report: Callable[[str, ItemError], object]
) -> tuple[list[Path], Counter[str]]:
    """Return the files below `folder` with those endings in natural order, and a count of all endings.

    Links to folders are followed, but a folder that can be reached in several ways is read once. Passed over are
    hidden files and folders, __MACOSX, and runs of vlascope, whose pictures are copies.

    Args:
        folder: Where to look.
        suffixes: Endings in lower case, such as ".png".
        report: Is told of a folder below that cannot be listed: its name and the error, which it may raise.

    Raises:
        ItemNotFoundError: there is no such folder.
        ItemError: `folder` itself cannot be listed.
    """
    found: list[str] = []
    endings: Counter[str] = Counter()
    for path in _walk(folder, report):
        ending = os.path.splitext(path)[1].lower()
        endings[ending or "(no ending)"] += 1
        if ending in suffixes:
            found.append(os.path.relpath(path, folder))
    return [folder / name for name in sorted(found, key=lambda n: (natural_key(n), n))], endings


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder` that may hold data, in natural order; [] when it cannot be listed."""
    try:
        entries = _entries(folder)
    except ItemError:
        return []
    return [Path(entry.path) for entry in entries if _is_data_folder(entry)]


def _walk(folder: Path, report: Callable[[str, ItemError], object]) -> Iterator[str]:
    """Give every file once. Folders come before links to folders, so that files keep their plainest name."""
    waiting, links, seen = [str(folder)], [], set()
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = _entries(Path(here))
        except ItemError as error:
            if here == str(folder):
                raise
            report(os.path.relpath(here, folder), error)
            continue
        for entry in entries:
            if _is_data_folder(entry):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif not entry.name.startswith(".") and not _is_folder(entry):
                yield entry.path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: (natural_key(entry.name), entry.name))
    except FileNotFoundError as error:
        raise ItemNotFoundError(f"there is no folder '{folder}' any more; check the path.") from error
    except PermissionError as error:
        raise ItemError(
            f"the folder '{folder}' cannot be read: permission denied. Change its permissions, or leave it out."
        ) from error
    except OSError as error:
        raise ItemError(f"the folder '{folder}' cannot be read ({error}).") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place that may not be looked at: whoever opens it says so
        return False


def _is_data_folder(entry: os.DirEntry[str]) -> bool:
    is_hidden = entry.name.startswith(".") or entry.name in _NO_DATA
    return not is_hidden and _is_folder(entry) and not _is_run(Path(entry.path))


def _is_run(folder: Path) -> bool:
    try:
        return read_json(folder / "run.json").get("format") == RUN_FORMAT
    except (OSError, ValueError, AttributeError):  # no such file, or somebody else's
        return False
