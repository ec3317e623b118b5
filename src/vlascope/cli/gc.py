"""`vlascope gc`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, Flag, give, size_text
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Remove what runs do not need: leftovers of crashes and, if asked, results that can be computed again.

    Captured tokens, images and tables are never touched."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """run directories"""
    derived: Flag = False
    """also remove cuts and other derived results"""
    dry_run: Flag = False
    """say what would be removed and stop"""


def run(args: Args) -> int:
    """Clean up and print what was freed."""
    from ..runs import clean_run

    freed = {path: clean_run(path, derived=args.derived, dry_run=args.dry_run) for path in args.runs}
    total = sum(each.size_bytes for each in freed.values())
    lines = [f"{path / name}" for path, each in freed.items() for name in each.paths]
    verb = "would free" if args.dry_run else "freed"
    give(
        args,
        {
            "dry_run": args.dry_run,
            "size_bytes": total,
            "removed": {str(path): list(each.paths) for path, each in freed.items()},
        },
        text="\n".join([*lines, f"{verb} {size_text(total)}"]),
    )
    return OK
