"""`vlascope temporal`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, OptionalText, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Follow concepts through episodes: change points, events that they hit, early warning, success and failure."""

    run: RunPath
    """run of episodes, as made by `vlascope capture`"""
    site: OptionalText = None
    """layer (default: the last one with patches)"""
    k: int = 10
    """number of concepts"""
    words: Annotated[str | None, arg(metavar="SITE", help_behavior_hint="")] = None
    """layer with words: follow the phrases of the prompt as well"""
    align: Annotated[str | None, arg(metavar="EVENT", help_behavior_hint="")] = None
    """event at which successes and failures are aligned (default: episodes are stretched to one length)"""
    failure: Annotated[str | None, arg(metavar="EVENT", help_behavior_hint="")] = None
    """event at which failures happen (default: their last frame)"""
    false_alarms: float = 0.1
    """share of successes that may raise an alarm"""
    tolerance: int = 2
    """frames between a change and an event that count as a hit"""
    change: Literal["trend", "level"] = "trend"
    """changes of course, or steps"""
    penalty: float = 3.0
    """cost of a change point: higher finds fewer"""
    color: Literal["tsne", "umap", "mspace", "pca"] = "tsne"
    """how the eigenvectors of the cut become colours"""
    permutations: int = 199
    """shuffles behind each p-value"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Follow, keep the numbers beside the cut, and print the table."""
    from ..files import write_json
    from ..measure import keep
    from ..measure.result import TABLE_HEAD
    from ..measure.temporal import temporal
    from ..runs import Run

    captured = Run.open(args.run)
    site = args.site or _last_with_patches(captured)
    say(args, f"following {site} through {captured.n_items} frames of {args.run}")
    found = temporal(
        captured,
        site=site,
        k=args.k,
        color=args.color,
        align_at=args.align,
        failure_event=args.failure,
        false_alarms=args.false_alarms,
        words_site=args.words,
        tolerance=args.tolerance,
        kind=args.change,
        penalty=args.penalty,
        n_permutations=args.permutations,
        seed=args.seed,
    )
    facts = {"run": str(captured.path), **found.to_json()}
    facts["finding"] = str(keep(captured, found.finding()))
    facts["file"] = str(write_json(found.cut.path / "temporal.json", facts))
    give(args, facts, text=f"{table(found.table(), head=TABLE_HEAD)}\n\n{found.verdict()}")
    return OK


def _last_with_patches(captured) -> str:
    from ..errors import InputError

    layouts = {name: len(captured.tokens(name).select("patch")) > 0 for name in captured.layouts}
    sites = [site.name for site in captured.sites.values() if layouts[site.layout]]
    if not sites:
        raise InputError("no site of this run has patches; capture one that has, such as 'vision.*'.")
    return sites[-1]
