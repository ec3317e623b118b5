"""`vlascope patch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import give, say, table
from ._items import OnItems, open_both
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(OnItems):
    """Change a word or the picture, restore one layer and kind of token, and see what of the answer comes back."""

    change: Literal["noun", "verb", "image"] = "noun"
    """what is changed"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...")] = ("language.*",)
    """where to restore"""
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND...")] = ("patch", "text", "last")
    """which tokens at a time"""
    items: int = 16
    """items to use, spread evenly over the data"""
    batch_size: int = 8
    """pairs per forward pass"""


def run(args: Args) -> int:
    """Patch, measure and print."""
    from ..act import make_pairs, patching
    from ..measure.result import TABLE_HEAD

    model, chosen = open_both(args)
    pairs = make_pairs(chosen, change=args.change)
    say(args, f"patching {len(pairs)} pairs")
    found = patching(
        model, pairs, sites=args.sites, kinds=args.kinds, batch_size=args.batch_size, seed=args.seed,
        quiet=args.quiet,
    )  # fmt: skip
    text = f"{table(found.table(), head=TABLE_HEAD)}\n\n{found.verdict()}"
    give(args, {"model": model.name, "data": args.data, "change": args.change, **found.to_json()}, text=text)
    return OK
