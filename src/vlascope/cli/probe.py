"""`vlascope probe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ._common import Common, Flag, OptionalInt, OptionalText, RunPath, give, say, table
from ._main import OK

WHOLE_NAME = "name"


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Read a target off each layer on held-out episodes, what a region shows, or the state some steps later."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    target: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="")] = ()
    """what to read: labels (several numbers form one target), `state`, `state.2`, `action`, `answer.action`"""
    region: Annotated[tuple[str, ...], arg(metavar="WORD...", help_behavior_hint="")] = ()
    """instead: which of these words the name of each region of the masks holds, off its patches (`name`: its name)"""
    ahead: Annotated[tuple[int, ...], arg(metavar="STEPS...", help_behavior_hint="")] = ()
    """world model instead: how many steps ahead, such as 1 3 10 30"""
    state_site: OptionalText = None
    """layer whose pooled tokens are the state for --ahead (default: the first of the sites); it is not asked itself"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers, as patterns (default: after every block)"""
    model: Literal["ridge", "mlp"] = "ridge"
    """ridge in closed form, or a small multi-layer perceptron"""
    kind: Literal["auto", "number", "class"] = "auto"
    """what the target is (auto: text and yes/no are classes)"""
    tokens: Literal["auto", "patch", "text", "last", "action", "state", "class", "all"] = "auto"
    """which tokens stand for an item (auto: patches where there are any)"""
    split: str = "auto"
    """what is held out as a whole: auto (episodes), item, or a label such as scene"""
    within: Flag = False
    """choose among the classes of the same episode (or item of --split), and exchange them there as a control: what
    is asked of one picture in several ways cannot be guessed from the picture then"""
    random: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """run of the same items by the model with random weights, as a control"""
    permutations: OptionalInt = None
    """shuffles behind each p-value (default: 299; with mlp 19; with --ahead 99)"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Probe every layer and print the table."""
    from .. import api
    from ..errors import InputError
    from ..measure import keep
    from ..measure.probes import PROBE_HEAD, adjusted_probes, probe, probe_finding
    from ..measure.region_probe import probe_regions
    from ..measure.result import TABLE_HEAD
    from ..measure.world_model import adjusted_world_models, world_model
    from ..progress import watched
    from ..runs import Run

    if sum(map(bool, (args.target, args.region, args.ahead))) != 1:
        raise InputError(
            "give one of --target (what to read), --region (words that tell regions apart) and --ahead (how many "
            "steps)."
        )
    if args.within and not args.target:
        raise InputError("--within needs --target, a label that differs between the items of one episode.")
    if args.random and args.ahead:
        raise InputError("--ahead has no control of random weights; leave --random out.")
    captured = Run.open(args.run)
    sites = api.run_sites(captured, args.site or None)
    if args.ahead:
        state_site = args.state_site or sites[0]
        # Beside itself a layer can add nothing.
        sites = tuple(site for site in sites if site != state_site)
        if not sites:
            raise InputError(
                f"'{state_site}' is the only layer, and the state that it is compared with; name another by --site, or "
                "the state by --state-site."
            )
        say(args, f"the state is '{state_site}': every other layer is asked what it adds")
    say(args, f"probing {len(sites)} layers of {captured.n_items} items")
    if args.ahead:
        found = [
            world_model(
                captured,
                site=site,
                state_site=state_site,
                horizons=args.ahead,
                tokens=args.tokens,
                n_permutations=args.permutations or 99,
                seed=args.seed,
            )
            for site in watched(sites, desc="layers", unit="layer")
        ]
        found = adjusted_world_models(found)
        text = "\n\n".join(
            f"{one.site}\n{table(one.table(), head=TABLE_HEAD)}\n{one.verdict()}" for one in found
        )
        kept = [str(keep(captured, one.finding())) for one in found]
        facts = {
            "run": str(captured.path),
            "state_site": state_site,
            "layers": [one.to_json() for one in found],
            "findings": kept,
        }
        give(args, facts, text=text)
        return OK
    random_run = Run.open(args.random) if args.random else None
    shared: dict[str, Any] = {
        "model": args.model,
        "split": args.split,
        "random_run": random_run,
        "n_permutations": args.permutations,
        "seed": args.seed,
    }
    if args.region:
        words = () if args.region == (WHOLE_NAME,) else args.region
        probes = [
            probe_regions(captured, site=site, words=words, **shared)
            for site in watched(sites, desc="layers", unit="layer")
        ]
    else:
        among: dict[str, Any] = {"scheme": "names", "choices": "unit"} if args.within else {}
        probes = [
            probe(
                captured, site=site, target=args.target, kind=args.kind, tokens=args.tokens, **among, **shared
            )
            for site in watched(sites, desc="layers", unit="layer")
        ]
    probes = adjusted_probes(probes)
    text = table([one.row() for one in probes], head=PROBE_HEAD)
    text += "\n\n" + "\n".join(one.verdict() for one in probes)
    settings = {
        "tokens": "region" if args.region else args.tokens,
        "split": args.split,
        "within": args.within,
        "seed": args.seed,
    }
    kept = str(keep(captured, probe_finding(probes, settings=settings)))
    facts = {"run": str(captured.path), "layers": [one.to_json() for one in probes], "finding": kept}
    give(args, facts, text=text)
    return OK
