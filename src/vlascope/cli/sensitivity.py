"""`vlascope sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, Device, ModelName, OptionalText, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Change the image, the verb or the noun of the prompt and measure how far features and actions move."""

    model: ModelName
    """embedded model (mini-vla), Hugging Face name or folder"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """items with prompts, as for `vlascope capture`"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers to compare as well, as patterns (default: actions only)"""
    change: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="")] = ()
    """changes to make, by name (default: all)"""
    items: int = 40
    """items to change, spread evenly over the data"""
    prompt: OptionalText = None
    """prompt of every item, where the data has none"""
    device: Device = "auto"
    """where to compute"""
    batch_size: int = 16
    """items per forward pass"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Change, compare, and print the table."""
    from .. import api
    from ..measure.result import TABLE_HEAD
    from ..measure.sensitivity import sensitivity
    from .cut import spread

    model = api.load(args.model, device=args.device)
    source = api.items(args.data, prompt=args.prompt)
    chosen = [source[i] for i in spread(len(source), args.items)]
    say(args, f"changing {len(chosen)} items")
    found = sensitivity(
        model,
        chosen,
        sites=args.site,
        changes=args.change or None,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    text = f"{table(found.table(), head=TABLE_HEAD)}\n\n{found.verdict()}"
    give(args, {"model": args.model, "data": args.data, **found.to_json()}, text=text)
    return OK
