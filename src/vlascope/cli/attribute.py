"""`vlascope attribute`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ._common import Common, Device, ModelName, OptionalText, give, say, table
from ._main import OK

if TYPE_CHECKING:
    from ..measure import Finding, Result


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Which patches move the action (insertion, deletion), and which channels make the groups of a layer."""

    model: ModelName
    """model with action tokens, such as mini-vla; any model with --site alone"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """items, as for `vlascope capture`"""
    dof: OptionalText = None
    """degree of freedom of the action, by name (default: no actions where --site is given, else the first)"""
    method: Literal["gradient", "occlusion"] = "gradient"
    """how patches are judged"""
    site: OptionalText = None
    """layer whose groups are taken apart, channel by channel"""
    k: int = 6
    """number of groups"""
    remove: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """channels to remove (default: a tenth)"""
    items: int = 6
    """items to use, spread evenly over the data"""
    prompt: OptionalText = None
    """prompt of every item, where the data has none"""
    device: Device = "auto"
    """where to compute"""
    keep: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run in whose report the numbers shall appear"""
    steps: int = 5
    """shares of patches at which the action is asked (insertion, deletion)"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Attribute, and print the table."""
    from .. import api
    from ..measure import keep
    from ..measure.action_patches import insertion_deletion
    from ..measure.result import TABLE_HEAD, adjusted
    from ..measure.result import table as rows_of
    from ..runs import Run
    from .cut import spread

    kept_in = Run.open(args.keep) if args.keep else None
    model = api.load(args.model, device=args.device)
    source = api.items(args.data, prompt=args.prompt)
    chosen = [source[i] for i in spread(len(source), args.items)]
    results = []
    if args.site is not None:
        say(args, f"taking the groups of {args.site} apart")
        results += _groups(args, model, chosen)
    if args.dof is not None or args.site is None:
        say(args, f"asking which patches of {len(chosen)} items move the action")
        results += insertion_deletion(
            model, chosen, dof=args.dof or 0, method=args.method, n_steps=args.steps, seed=args.seed
        )
    results = adjusted(results)
    facts = {"model": args.model, "data": args.data, "results": [r.to_json() for r in results]}
    if kept_in is not None:
        facts["finding"] = str(keep(kept_in, _finding(args, results)))
    give(args, facts, text=table(rows_of(results), head=TABLE_HEAD))
    return OK


def _finding(args: Args, results: Sequence[Result]) -> Finding:
    from ..measure import Finding, Row
    from ..measure.result import undecided

    asked = [f"groups of {args.site}"] if args.site is not None else []
    asked += [f"action {args.dof or 'of the first degree of freedom'}"] if args.dof or not args.site else []
    told = [one.name for one in results if one.found]
    unclear = undecided(results)
    verdict = f"cannot say: {unclear}" if unclear else "nothing stands out from chance"
    return Finding(
        measure="attribute",
        title=", ".join(asked),
        verdict=f"beyond chance: {', '.join(told)}" if told else verdict,
        rows=tuple(
            Row(site=args.site or "" if one.name.startswith("group ") else "projector", result=one)
            for one in results
        ),
        settings={
            "model": args.model,
            "data": args.data,
            "dof": args.dof,
            "method": args.method,
            "site": args.site,
            "k": args.k,
            "remove": args.remove,
            "items": args.items,
            "steps": args.steps,
            "seed": args.seed,
        },
    )


def _groups(args: Args, model, chosen):
    import numpy as np

    from ..measure.attribution import cluster_channels
    from ..measure.resample import units_of
    from ..models.layout import KINDS
    from ..spectral.gradients import MAX_TOKENS
    from ..spectral.kway import kway
    from ..spectral.nystrom import NystromNCut

    batch = model.prepare(chosen)
    (site,) = model.resolve(args.site)[:1]
    parts, owners = [], []
    captured = model.capture(batch, [site])[site.name]
    for item, layout, values in zip(chosen, batch.layouts[site.layout], captured, strict=True):
        parts.append(values.detach().cpu().float().numpy()[layout.kind == KINDS.index("patch")])
        owners += [item.item_id if item.episode is None else f"episode {item.episode}"] * len(parts[-1])
    x = np.concatenate(parts)[:MAX_TOKENS]
    over = "item" if any(item.episode is None for item in chosen) else "episode"
    units = units_of(owners[: len(x)], over=over)
    eigvecs = NystromNCut(max(args.k, 2), seed=args.seed).fit_transform(x)
    labels = kway(eigvecs, [args.k], seed=args.seed).labels[args.k]
    return cluster_channels(x, labels, n_remove=args.remove, units=units, seed=args.seed)[1]
