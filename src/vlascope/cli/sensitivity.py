"""`vlascope sensitivity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ._common import give, say, table
from ._items import OnItems, open_both
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(OnItems):
    """Change the image, the verb or the noun of the prompt and measure how far features and actions move."""

    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers to compare as well, as patterns (default: actions only)"""
    change: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="")] = ()
    """changes to make, by name (default: all)"""
    items: int = 40
    """items to use, spread evenly over the data"""
    action_unit: Annotated[tuple[str, ...], arg(metavar="UNIT...", help_behavior_hint="")] = ()
    """unit of the actions, for the table, such as m/s; others by name after it: `m grip=share`"""
    keep: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run in whose report the numbers shall appear"""


def run(args: Args) -> int:
    """Change, compare, and print the table."""
    from ..measure import keep
    from ..measure.result import TABLE_HEAD
    from ..measure.sensitivity import sensitivity
    from ..runs import Run

    kept_in = Run.open(args.keep) if args.keep else None
    model, chosen = open_both(args)
    say(args, f"changing {len(chosen)} items")
    found = sensitivity(
        model,
        chosen,
        sites=args.site,
        changes=args.change or None,
        action_unit=_units(args.action_unit),
        batch_size=args.batch_size,
        seed=args.seed,
    )
    text = f"{table(found.table(), head=TABLE_HEAD)}\n\n{found.verdict()}"
    facts = {"model": args.model, "data": args.data, **found.to_json()}
    if kept_in is not None:
        facts["finding"] = str(keep(kept_in, found.finding(model=args.model, data=args.data)))
    give(args, facts, text=text)
    return OK


def _units(words: Sequence[str]) -> str | dict[str, str]:
    from ..errors import InputError
    from ..measure.sensitivity import ACTION_UNIT

    named = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise InputError(f"got the units {', '.join(plain)}; give one for all, and others as NAME=UNIT.")
    return {"": plain[0] if plain else ACTION_UNIT, **named} if named else (plain or [ACTION_UNIT])[0]
