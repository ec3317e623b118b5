"""`vlascope ls`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, give, size_text, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """List the runs in a folder, newest first, with their state, size and what they hold."""

    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]] = Path("runs")
    """folder that holds runs, also in subfolders"""


def run(args: Args) -> int:
    """Print the table."""
    from ..runs import list_runs

    entries = list_runs(args.folder)
    rows = []
    for entry in entries:
        state = entry.status
        if state not in ("complete", "newer"):
            state += f" {entry.n_done}/{entry.n_blocks}"
        what = ("?" if x is None else str(x) for x in (entry.model, entry.items, entry.n_items))
        rows.append(
            (
                str(entry.path),
                state,
                *what,
                str(entry.n_sites),
                size_text(entry.size_bytes),
                entry.created[:16],
            )
        )
    head = ("run", "state", "model", "data", "items", "sites", "size", "created")
    give(
        args,
        {"runs": [{**asdict(entry), "path": str(entry.path)} for entry in entries]},
        text=table(rows, head=head) if rows else f"no runs in {args.folder}",
    )
    return OK
