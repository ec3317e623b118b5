"""`vlascope concepts`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Which nouns and verbs a layer knows: rank images by likeness to the mean of those whose caption has the word."""

    run: RunPath
    """run directory of items with captions, as made by `vlascope capture MODEL coco:PATH`"""
    label: str = "caption"
    """name of the labels with the captions (NAME, NAME.1, ...)"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers, as patterns (default: after every block)"""
    tokens: Literal["auto", "patch", "text", "last", "action", "state", "class", "all"] = "auto"
    """which tokens stand for an image (auto: patches where there are any)"""
    min_images: int = 5
    """leave out words of fewer images"""
    max_words: int = 200
    """the commonest so many words"""
    show: int = 15
    """words to print for the best layer"""
    random: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run of the same items by the model with random weights, as a control"""
    permutations: int = 199
    """shuffles of the captions; words that stand out get as many more as it takes to tell them from so many others"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Rank at every layer and print the table of layers and of the best layer's words."""
    from dataclasses import replace

    from .. import api
    from ..measure import keep
    from ..measure.concepts import CONCEPT_HEAD, adjusted_concepts, concepts, concepts_finding
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of
    from ..progress import watched
    from ..runs import Run

    captured = Run.open(args.run)
    sites = api.run_sites(captured, args.site or None)
    random_run = Run.open(args.random) if args.random else None
    say(args, f"ranking {captured.n_items} images at {len(sites)} layers")
    found = adjusted_concepts(
        concepts(
            captured,
            site=site,
            label=args.label,
            tokens=args.tokens,
            min_items=args.min_images,
            max_words=args.max_words,
            random_run=random_run,
            n_permutations=args.permutations,
            seed=args.seed,
        )
        for site in watched(sites, desc="layers", unit="layer")
    )
    means = [
        replace(one, name=f"{layer.site} / {one.name}") for layer in found for one in layer.means.values()
    ]
    best = max(found, key=lambda layer: layer.means["all"].value or 0.0)
    text = (
        f"{table(rows_of(means), head=TABLE_HEAD)}\n\n{best.site}\n"
        f"{table(best.table(n=args.show), head=CONCEPT_HEAD)}\n\n{best.verdict()}"
    )
    kept = str(keep(captured, concepts_finding(found, label=args.label)))
    facts = {"run": str(captured.path), "layers": [one.to_json() for one in found], "finding": kept}
    give(args, facts, text=text)
    return OK
