"""`vlascope report`."""

from __future__ import annotations

from dataclasses import dataclass

from ._common import Common, Flag, OutPath, RunPath, give, open_page, say
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Write one offline HTML page about a run: what was run, pictures, videos, words, measures and warnings."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    out: OutPath = None
    """page to write (default: RUN/report.html); above 25 MB a folder of that name"""
    open: Flag = False
    """open the page in the browser"""


def run(args: Args) -> int:
    """Write the page and print its path."""
    from .. import api
    from ..runs import Run

    captured = Run.open(args.run)
    report = api.report(captured)
    path = report.save(args.out or captured.path / "report.html")
    if report.files:
        say(
            args,
            f"the page has {report.size_bytes / 1e6:.0f} MB, too much for one file: it is the folder {path.parent} "
            "(open index.html in it; to share it, copy the whole folder)",
        )
    give(args, {"run": str(captured.path), "report": str(path)}, text=str(path))
    if args.open:
        open_page(args, path)
    return OK
