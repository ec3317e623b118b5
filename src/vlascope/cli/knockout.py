"""`vlascope knockout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, Device, Flag, ModelName, OptionalText, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Cut attention or remove modules and heads; measure how far actions and answers move."""

    model: ModelName
    """embedded model (mini-vla), Hugging Face name or folder"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """items with prompts, as for `vlascope capture`"""
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
    items: int = 24
    """items to try, spread evenly over the data"""
    prompt: OptionalText = None
    """prompt of every item, where the data has none"""
    device: Device = "auto"
    """where to compute"""
    batch_size: int = 16
    """items per forward pass"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Knock out, measure and print."""
    from .. import api
    from ..act import Ablate, CutAttention, ModelEdit, baseline, knockouts, mean_values
    from ..errors import InputError
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of
    from .cut import spread

    model = api.load(args.model, device=args.device)
    source = api.items(args.data, prompt=args.prompt)
    chosen = [source[i] for i in spread(len(source), args.items)]
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
