"""`vlascope semantics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ._common import Common, OptionalText, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Words beside patches at each layer: do nouns of the prompt point at what they name?"""

    run: RunPath
    """run with prompts and masks, as made by `vlascope capture`"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers with words and patches, as patterns (default: all blocks that have both)"""
    word: Annotated[tuple[str, ...], arg(metavar="WORD...", help_behavior_hint="")] = ()
    """words to look for (default: those that the masks can tell)"""
    k: int = 10
    """number of groups of the cut of words and patches together"""
    mask: OptionalText = None
    """name of the masks (default: segmentation)"""
    permutations: int = 199
    """shuffles behind each p-value"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Score each layer and print the table."""
    from .. import api
    from ..errors import InputError
    from ..measure import keep
    from ..measure.result import TABLE_HEAD
    from ..measure.semantics import adjusted_semantics, semantic_cut, semantics, semantics_finding
    from ..progress import watched
    from ..runs import Run

    captured = Run.open(args.run)
    sites = api.run_sites(captured, args.site or None)
    if not args.site:
        kinds = {name: captured.tokens(name) for name in captured.layouts}
        both = [name for name, t in kinds.items() if len(t.select("text")) and len(t.select("patch"))]
        sites = tuple(name for name in sites if captured.site(name).layout in both)
    if not sites:
        raise InputError("no layer of this run holds words and patches; capture 'language.*'.")
    found = []
    for name in watched(sites, desc="layers", unit="layer"):
        say(args, f"reading words and patches at {name}")
        found.append(
            semantics(
                captured,
                name,
                words=args.word or None,
                mask=args.mask or "segmentation",
                cut=semantic_cut(captured, name, k=args.k, seed=args.seed, color="pca"),
                n_permutations=args.permutations,
                seed=args.seed,
            )
        )
    found = adjusted_semantics(found)
    rows = [(one.site, *row) for one in found for row in one.table()]
    text = f"{table(rows, head=('site', *TABLE_HEAD))}\n\n" + "\n".join(one.verdict() for one in found)
    kept = str(keep(captured, semantics_finding(found)))
    facts = {"run": str(captured.path), "layers": [one.to_json() for one in found], "finding": kept}
    give(args, facts, text=text)
    return OK
