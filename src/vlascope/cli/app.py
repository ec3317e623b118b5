"""`vlascope app`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ._common import Common, Flag, OptionalInt, give, say
from ._main import OK

if TYPE_CHECKING:
    from ..app import Address


PATIENCE_SECS = 2.0
"""How long Ctrl-C waits for what is being computed."""


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Explore a run in the browser, or compare two runs of the same items with one palette."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN2]")]]
    """one run, or two to compare, as made by `vlascope capture`"""
    host: str = "127.0.0.1"
    """address to bind; any but this machine's own is protected by a token in the URL"""
    port: OptionalInt = None
    """port to bind (default: the first free one from 8899 on)"""
    table: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CSV file that success / failure labels go to (default: RUN/labels.csv)"""
    open: Flag = False
    """open the page in the browser"""
    seed: int = 0
    """seed of a cut that is made here when a run has none"""


def run(args: Args) -> int:
    """Open the runs (cutting them where needed), serve the page, print its address; ends with Ctrl-C."""
    from ..app import open_books, serve
    from ..runs import Run
    from ..views.report import cut_folder

    opened = [Run.open(path) for path in args.runs]
    for one in opened:
        if cut_folder(one) is None:
            say(args, f"{one.path} has no cut yet; cutting {len(one.sites)} sites (this is done once)")
    if len(opened) == 2:
        say(args, "cutting both runs together, with one palette (this is done once)")
    books = open_books(opened, seed=args.seed)

    def ready(address: Address) -> None:
        give(args, {"url": address.url, "ssh": address.ssh, "token": address.token}, text=address.url)
        say(args, f"from another machine: {address.ssh}    then open {address.url}\nCtrl-C ends it")
        if args.open:
            import webbrowser

            if not webbrowser.open(address.url):
                say(args, "no browser could be opened here; open the address yourself")

    serve(books, host=args.host, port=args.port, table=args.table, ready=ready, patience_secs=PATIENCE_SECS)
    return OK
