"""What every verb shares: the options `--json --quiet --traceback`, the types of arguments, and printing."""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

RunPath = Positional[Annotated[Path, arg(metavar="RUN")]]
"""A run directory, as the first word after the verb."""

ModelName = Positional[Annotated[str, arg(metavar="MODEL")]]
"""An embedded model (mini-vla), a Hugging Face name or a folder."""

# The empty hint keeps "(default: False)" and "(default: None)" off the help pages.
Flag = Annotated[bool, arg(help_behavior_hint="")]
"""An option without a value, off unless given."""

OutPath = Annotated[Path | None, arg(aliases=["-o"], metavar="PATH", help_behavior_hint="")]
OptionalInt = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
OptionalText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="auto|cpu|cuda|...")]


COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())
"""The words that the user typed: runs keep them, and an interrupted one repeats them with --resume."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every verb."""

    json: Flag = False
    """print one JSON object on stdout instead of text"""
    quiet: Annotated[bool, arg(aliases=["-q"], help_behavior_hint="")] = False
    """no progress and no remarks on stderr"""
    traceback: Flag = False
    """show the stack of an error (as VLASCOPE_DEBUG=1 does)"""


def say(args: Common, text: str) -> None:
    """Write a remark for people on stderr; silent with `--quiet`."""
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def give(args: Common, result: Mapping[str, Any], *, text: str) -> None:
    """Write the result on stdout: `result` as JSON with `--json`, else `text`."""
    print(json.dumps(result, indent=2, ensure_ascii=False, default=str) if args.json else text, flush=True)


def open_page(args: Common, path: Path) -> None:
    """Open a page in the browser; where there is none, say so (the page itself is written)."""
    if not webbrowser.open(path.resolve().as_uri()):
        say(args, f"no browser could be opened here; open {path} yourself")


def table(rows: list[tuple[str, ...]], *, head: tuple[str, ...]) -> str:
    """Return rows as aligned plain text (plain so that it can be piped on)."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines)


def size_text(n_bytes: float) -> str:
    """Return a size for people: "3.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
