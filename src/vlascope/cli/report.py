"""`vlascope report`."""

from __future__ import annotations

from dataclasses import dataclass

from ._common import Common, Flag, OutPath, RunPath, give, open_page
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Write one offline HTML page about a run: what was run, pictures, videos, words, measures and warnings."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    out: OutPath = None
    """page to write (default: RUN/report.html)"""
    open: Flag = False
    """open the page in the browser"""


def run(args: Args) -> int:
    """Write the page and print its path."""
    from .. import api
    from ..runs import Run

    captured = Run.open(args.run)
    path = api.report(captured).save(args.out or captured.path / "report.html")
    give(args, {"run": str(captured.path), "report": str(path)}, text=str(path))
    if args.open:
        open_page(args, path)
    return OK
