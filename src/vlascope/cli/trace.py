"""`vlascope trace`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, OptionalText, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Follow a concept through the layers: agreement of layers, separability, where it appears and is lost."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    label: OptionalText = None
    """label of the items to follow, or `answer` (default: the regions of the masks, where there are any)"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers, as patterns (default: after every block)"""
    tokens: Literal["auto", "patch", "text", "last", "action", "state", "class", "all"] = "auto"
    """which tokens stand for an item (auto: patches where there are any)"""
    k: int = 10
    """number of concepts of the cut"""
    random: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run of the same items by the model with random weights, as a control"""
    compare: Annotated[tuple[Path, ...], arg(metavar="RUN...", help_behavior_hint="")] = ()
    """runs of the same items by other models or checkpoints, side by side"""
    color: Literal["tsne", "umap", "mspace", "pca"] = "tsne"
    """how the eigenvectors become the colours of the strip"""
    permutations: int = 499
    """shuffles behind each p-value"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Trace, keep the numbers and the strip beside the cut, and print the table."""
    from .. import api
    from ..files import write_json
    from ..measure import keep
    from ..measure.controls import same_items
    from ..measure.trace import LAYER_HEAD, compare_traces, trace
    from ..runs import Run
    from ..views import strip

    captured = Run.open(args.run)
    found = {}
    for number, path in enumerate((args.run, *args.compare)):
        one = captured if number == 0 else Run.open(path)
        same_items(captured, one)
        sites = api.run_sites(one, args.site or None)
        say(args, f"tracing {len(sites)} layers of {one.n_items} items of {path}")
        name = path.name if path.name not in found else f"{path.name}-{number}"
        found[name] = trace(
            one,
            sites=sites,
            label=args.label,
            tokens=args.tokens,
            k=args.k,
            color=args.color,
            random_run=Run.open(args.random) if args.random and number == 0 else None,
            n_permutations=args.permutations,
            seed=args.seed,
        )
    first = next(iter(found.values()))
    facts = {"run": str(captured.path), **first.to_json()}
    text = f"{table(first.table(), head=LAYER_HEAD)}\n\n{first.verdict()}"
    if len(found) > 1:
        rows = compare_traces(found)
        facts["compared"] = {name: one.to_json() for name, one in found.items()}
        text += f"\n\n{table(rows[1:], head=rows[0])}"
    concept = re.sub(r"\W+", "-", first.concept or "layers")
    facts["pictures"] = [str(strip(one.cut).save(one.cut.path / "strip.png")) for one in found.values()]
    facts["finding"] = str(keep(captured, first.finding()))
    facts["file"] = str(write_json(first.cut.path / f"trace-{concept}.json", facts))
    give(args, facts, text="\n".join([text, "", *facts["pictures"]]))
    return OK
