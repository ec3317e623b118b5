"""`vlascope sae discover`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ._common import Common, OptionalText, RunPath, give, table
from ._main import OK
from .sae_eval import SaePath


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Find latents that follow one factor and no other, in a factorial design; validate them on a held-out cell."""

    run: RunPath
    """run directory whose items carry the factors as labels, in all combinations"""
    sae: SaePath
    """folder of the dictionary, as printed by `vlascope sae train`"""
    factors: Annotated[tuple[str, ...], arg(metavar="LABEL...")]
    """labels, the one that is looked for first, such as: target_material target_colour"""
    held_out: Annotated[tuple[str, ...], arg(metavar="VALUE...", help_behavior_hint="")] = ()
    """value of each factor in the cell kept for validation (default: the last of each)"""
    site: OptionalText = None
    """site to read (default: where it was trained)"""
    permutations: int = 499
    """shuffles behind each p-value"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Search, keep the result in the run, and print it."""
    from ..files import write_json
    from ..runs import Run
    from ..sae import discover, load_sae
    from ..sae.checkpoint import weights_hash
    from ..sae.discovery import FOUND_HEAD

    captured = Run.open(args.run)
    found = load_sae(args.sae, run=captured, site=args.site)
    key = found.origin.get("key") or {}
    result = discover(
        captured,
        found,
        factors=args.factors,
        held_out=args.held_out,
        site=args.site,
        tokens=key.get("tokens", "auto"),
        n_permutations=args.permutations,
        seed=args.seed,
        quiet=args.quiet,
    )
    facts = {"run": str(captured.path), "dictionary": str(args.sae), **result.to_json()}
    asked = {
        "sae": {"config": found.sae.config.to_json(), "weights": weights_hash(found.sae)},
        "factors": list(args.factors),
        "held_out": list(args.held_out),
        "site": args.site,
        "permutations": args.permutations,
        "seed": args.seed,
    }
    path = write_json(captured.derived_dir("sae-discover", asked) / "discovery.json", facts)
    lines = [table(result.table(), head=FOUND_HEAD), ""] if result.found else []
    lines += [result.verdict()]
    lines += [f"control: {name}: {value:g}" for name, value in result.controls.items()]
    give(args, facts | {"file": str(path)}, text="\n".join([*lines, str(path)]))
    return OK
