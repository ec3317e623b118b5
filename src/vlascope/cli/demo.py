"""`vlascope demo`: the whole pipeline on two embedded episodes, with nothing prepared in advance."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ._common import Common, Flag, OutPath, give, open_page, say
from ._main import OK

MODEL, DATA = "mini-vla", "demo"
SITES = ("vision.*", "projector", "language.*")
DEFAULT_OUT = Path("runs/demo")


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Show what a small robot model sees in two embedded episodes, one that succeeds and one that fails."""

    out: OutPath = None
    """run directory to make (default: runs/demo)"""
    open: Flag = False
    """open the report in the browser"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Capture, cut, draw and report, saying what is done."""
    from .. import api
    from ..items.outcome import succeeded
    from .cut import draw

    started = time.monotonic()
    out = args.out or DEFAULT_OUT
    model = api.load(MODEL)
    items = api.items(DATA)
    episodes = {item.episode: item for item in items}
    say(
        args,
        f"1/4  {MODEL}: {model.n_parameters / 1e6:.1f} M parameters; {len(items)} frames, {len(episodes)} episodes:",
    )
    for item in episodes.values():
        say(args, f'     "{item.prompt}": {"success" if succeeded(item.labels) else "failure"}')
    say(args, f"2/4  reading the tokens of {', '.join(SITES)} into {out}")
    captured = api.capture(
        model,
        items,
        sites=SITES,
        out=out,
        seed=args.seed,
        # The demo's own place is made anew each time; a place that the user names is never emptied.
        force=args.out is None,
        quiet=args.quiet,
        command=(
            "vlascope",
            "capture",
            MODEL,
            DATA,
            "--sites",
            *SITES,
            "--seed",
            str(args.seed),
            "-o",
            str(out),
        ),
    )
    say(args, f"3/4  cutting {len(captured.sites)} layers together, with one palette")
    cut = api.cut(captured, sites=tuple(captured.sites), seed=args.seed)
    paths = draw(args, captured, cut, n_items=8, with_video=True)
    say(args, "4/4  writing the report")
    page = api.report(captured).save(captured.path / "report.html")
    seconds = time.monotonic() - started
    files = [page, *paths]
    lines = [str(path) for path in files]
    give(
        args,
        {"run": str(captured.path), "report": str(page), "files": lines, "seconds": seconds},
        text="\n".join(lines),
    )
    say(args, f"done in {seconds:.0f} s. Open {page} in a browser.")
    if args.open:
        open_page(args, page)
    return OK
