"""`vlascope patch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ._common import Common, Device, ModelName, OptionalText, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Change a word or the picture, restore one layer and kind of token, and see what of the answer comes back."""

    model: ModelName
    """embedded model (mini-vla), Hugging Face name or folder"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """items with prompts, as for `vlascope capture`"""
    change: Literal["noun", "verb", "image"] = "noun"
    """what is changed"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...")] = ("language.*",)
    """where to restore"""
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND...")] = ("patch", "text", "last")
    """which tokens at a time"""
    items: int = 16
    """items, spread evenly over the data"""
    prompt: OptionalText = None
    """prompt of every item, where the data has none"""
    device: Device = "auto"
    """where to compute"""
    batch_size: int = 8
    """pairs per forward pass"""
    seed: int = 0
    """seed of the bootstrap"""


def run(args: Args) -> int:
    """Patch, measure and print."""
    from .. import api
    from ..act import make_pairs, patching
    from ..measure.result import TABLE_HEAD
    from .cut import spread

    model = api.load(args.model, device=args.device)
    source = api.items(args.data, prompt=args.prompt)
    chosen = [source[i] for i in spread(len(source), args.items)]
    pairs = make_pairs(chosen, change=args.change)
    say(args, f"patching {len(pairs)} pairs")
    found = patching(
        model, pairs, sites=args.sites, kinds=args.kinds, batch_size=args.batch_size, seed=args.seed,
        quiet=args.quiet,
    )  # fmt: skip
    text = f"{table(found.table(), head=TABLE_HEAD)}\n\n{found.verdict()}"
    give(args, {"model": model.name, "data": args.data, "change": args.change, **found.to_json()}, text=text)
    return OK
