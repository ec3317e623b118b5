"""`vlascope nave`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, Flag, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Cluster patches by their activations at several depths (NAVE); sweep K, compare layers, look for a watermark."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers, as patterns (default: up to four with patches, spread over the depth)"""
    k: Annotated[tuple[int, ...], arg(metavar="K...")] = (5,)
    """number of clusters; several make a sweep"""
    scope: Literal["image", "joint"] = "image"
    """cluster each image on its own, or all together"""
    layers: Flag = False
    """compare each layer alone with all of them together"""
    outliers: Flag = False
    """share of patches of very large norm (what registers are for)"""
    plain: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run of the same items without watermark (RUN being captured with it)"""
    random: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run of the same items by the model with random weights, as a control"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Cluster, save labels and boxes in the run, and print what was found."""
    from ..files import write_json
    from ..measure import Finding, Row, keep
    from ..measure.nave import nave
    from ..measure.nave_checks import nave_layers, nave_sweep, outlier_patches, watermark_saturation
    from ..measure.patchmaps import spread_sites
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of
    from ..runs import Run

    captured = Run.open(args.run)
    sites = spread_sites(captured, args.site or None)
    random_run = Run.open(args.random) if args.random else None
    say(args, f"clustering {captured.n_items} images by {', '.join(sites)}")
    results = nave_sweep(captured, sites=sites, ks=args.k, random_run=random_run, seed=args.seed)
    if args.layers:
        results += nave_layers(captured, sites=sites, k=args.k[0], seed=args.seed)
    if args.outliers:
        results += outlier_patches(captured, sites=sites, random_run=random_run, seed=args.seed)
    if args.plain:
        plain = Run.open(args.plain)
        results.append(watermark_saturation(captured, plain, sites=sites, k=args.k[0], seed=args.seed))
    found = nave(captured, sites=sites, k=args.k[0], scope=args.scope, seed=args.seed)
    facts = {"run": str(captured.path), **found.to_json(), "measures": [one.to_json() for one in results]}
    folder = captured.derived_dir(
        "nave", {"sites": list(sites), "k": args.k[0], "scope": args.scope, "seed": args.seed}
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = write_json(folder / "nave.json", facts)
    kept = Finding(
        measure="nave",
        title=", ".join(sites),
        verdict=found.summary(),
        rows=tuple(Row(site=one.name if one.name in sites else "", result=one) for one in results),
        settings={"sites": list(sites), "k": list(args.k), "scope": args.scope, "seed": args.seed},
    )
    keep(captured, kept)
    shown = {key: value for key, value in facts.items() if key not in ("labels", "boxes", "items")}
    give(
        args,
        {**shown, "file": str(path)},
        text=f"{found.summary()}\n\n{table(rows_of(results), head=TABLE_HEAD)}\n\n{path}",
    )
    return OK
