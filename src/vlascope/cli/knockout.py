"""`vlascope knockout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ._common import Flag, give, say, table
from ._items import OnItems, open_both
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(OnItems):
    """Cut attention or remove modules and heads; measure how far actions and answers move."""

    cut: Annotated[tuple[str, ...], arg(metavar="SOURCE:READER...", help_behavior_hint="")] = ()
    """who must not look at whom (default: text:action patch:action patch:text)"""
    blocks: str = "language.*"
    """blocks in which attention is cut"""
    heads: Annotated[tuple[int, ...], arg(metavar="N...", help_behavior_hint="")] = ()
    """heads in which it is cut (default: all)"""
    ablate: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """modules or heads to remove one by one, such as language.*.mlp or language.3.v.h*"""
    mean: Flag = False
    """put their mean over the items in place instead of zero"""


def run(args: Args) -> int:
    """Knock out, measure and print."""
    from ..act import Ablate, CutAttention, ModelEdit, baseline, knockouts, mean_values
    from ..errors import InputError
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of

    model, chosen = open_both(args)
    edits: list[ModelEdit] = []
    for text in args.cut or (() if args.ablate else ("text:action", "patch:action", "patch:text")):
        name, colon, reader = text.partition(":")
        if not colon:
            raise InputError(f"got --cut {text}; need SOURCE:READER, such as patch:action.")
        edits.append(CutAttention(source=name, reader=reader, blocks=args.blocks, heads=args.heads))
    sites = [site.name for site in model.resolve(list(args.ablate))] if args.ablate else []
    means = (
        mean_values(model, chosen, sites=sites, batch_size=args.batch_size) if args.mean and sites else None
    )
    edits += [Ablate(site=site, means=means) for site in sites]
    say(args, f"{len(edits)} knock-outs on {len(chosen)} items")
    base = baseline(model, chosen, batch_size=args.batch_size)
    found = knockouts(model, base, edits, seed=args.seed, quiet=args.quiet)
    facts = {
        "model": model.name,
        "data": args.data,
        "n_items": len(chosen),
        "edits": [edit.to_json() for edit in edits],
        "results": [one.to_json() for one in found],
    }
    give(args, facts, text=table(rows_of(found), head=TABLE_HEAD))
    return OK
