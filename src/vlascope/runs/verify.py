"""Looking for damage in a complete run: every byte against the checksums taken when it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunIncompleteError
from ..files import file_hash, read_json
from . import paths
from .block import block_problems, read_marker


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify_run` found.

    Attributes:
        n_blocks: Blocks that were read.
        problems: One line per missing, cut or changed file; empty when all is well.
        bad_blocks: Blocks that have to be captured again.
        bad_tables: Damaged tables of the whole run; mending one takes all blocks.
    """

    n_blocks: int
    problems: tuple[str, ...]
    bad_blocks: tuple[int, ...] = ()
    bad_tables: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was when the run was written."""
        return not self.problems


def verify_run(path: Path, info: Mapping[str, Any]) -> VerifyReport:
    """Return what is damaged in a complete run, also when it can no longer be opened.

    Args:
        path: The run.
        info: Its run.json.

    Cost: reads the whole run; about 0.5 to 1 GB/s.
    """
    problems: list[str] = []
    bad_blocks, bad_tables = [], []
    n_items: list[int] = []
    rows: dict[str, list[int]] = {}
    for block in range(info["n_blocks"]):
        try:
            marker = read_marker(path, block)
        except RunIncompleteError as error:
            found = [f"block {block}: {error}"]
        else:
            if marker is None:
                found = [f"block {block}: its commit marker is missing"]
            else:
                found = block_problems(path, marker, checksums=True, with_parts=False)
                n_items.append(marker["n_items"])
                for layout, count in marker["rows"].items():
                    rows.setdefault(layout, []).append(count)
        if found:
            problems += found
            bad_blocks.append(block)
    for name, sha256 in info["tables"].items():
        table = path / name
        if not table.exists():
            problems.append(f"{name} is missing")
        elif file_hash(table) != sha256:
            problems.append(f"{name} has changed (checksum differs)")
        else:
            continue
        bad_tables.append(name)
    for place, sha256 in info.get("facts", {}).items():  # not in runs of older versions
        if not (path / place).is_file():
            problems.append(f"{place} is missing")
        elif file_hash(path / place) != sha256:
            problems.append(f"{place} has changed (checksum differs)")
    if len(n_items) == info["n_blocks"] and read_index(path) != {"n_items": n_items, "rows": rows}:
        problems.append(f"blocks/{paths.INDEX_NAME} is missing or differs from the commit markers")
    return VerifyReport(
        n_blocks=info["n_blocks"],
        problems=tuple(problems),
        bad_blocks=tuple(bad_blocks),
        bad_tables=tuple(bad_tables),
    )


def read_index(path: Path) -> dict[str, Any] | None:
    """Return the index of a complete run; None when it is missing or damaged."""
    try:
        return read_json(path / "blocks" / paths.INDEX_NAME)
    except (OSError, ValueError):
        return None
