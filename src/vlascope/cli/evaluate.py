"""`vlascope eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, OptionalText, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Score methods of segmentation and localisation on the same patches against masks, boxes or human outlines."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    truth: OptionalText = None
    """dataset with boxes (coco:PATH, voc:PATH), folder of BSDS *.mat or DAVIS masks (default: the run's masks)"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers, as patterns (default: up to four with patches, spread over the depth)"""
    single: OptionalText = None
    """layer of the methods that take one (default: the last of the layers)"""
    method: Annotated[tuple[str, ...], arg(metavar="METHOD...", help_behavior_hint="")] = ()
    """ncut, ncut-uniform, joint, nave, kmeans, pca, lost, tokencut, slic, pixels, tiles (default: all)"""
    k: int = 5
    """segments per image, or in all with --scope joint"""
    scope: Literal["image", "joint"] = "image"
    """segment each image on its own, or all together"""
    random: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run of the same items by the model with random weights, as a control"""
    permutations: int = 199
    """shuffles of images behind each p-value"""
    starts: int = 1
    """seeds of each method, whose scores are averaged (k-means ends elsewhere with every seed)"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Score every method and print the table."""
    from ..files import write_json
    from ..measure import keep
    from ..measure.localise import evaluate
    from ..measure.patchmaps import spread_sites
    from ..measure.truth import read_truth
    from ..runs import Run

    captured = Run.open(args.run)
    sites = spread_sites(captured, args.site or None)
    truth = read_truth(captured, args.truth)
    say(args, f"scoring {len(truth.images)} images at {', '.join(sites)}")
    found = evaluate(
        captured,
        sites=sites,
        site=args.single,
        truth=truth,
        methods=args.method or None,
        k=args.k,
        scope=args.scope,
        random_run=Run.open(args.random) if args.random else None,
        n_permutations=args.permutations,
        n_starts=args.starts,
        seed=args.seed,
        quiet=args.quiet,
    )
    facts = {"run": str(captured.path), **found.to_json()}
    params = {
        "truth": args.truth,
        "sites": list(sites),
        "site": args.single,
        "methods": list(args.method),
        "k": args.k,
        "scope": args.scope,
        "starts": args.starts,
        "seed": args.seed,
    }
    folder = captured.derived_dir("eval", params)
    folder.mkdir(parents=True, exist_ok=True)
    facts["finding"] = str(keep(captured, found.finding()))
    facts["file"] = str(write_json(folder / "eval.json", facts))
    give(args, facts, text=f"{table(found.table(), head=found.head())}\n\n{found.summary()}")
    return OK
