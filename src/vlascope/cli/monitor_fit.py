"""`vlascope monitor fit`."""

from __future__ import annotations

from dataclasses import dataclass

from ._common import Common, Device, OptionalText, OutPath, RunPath, give, table
from ._main import OK
from .sae_eval import SaePath


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Learn from clean episodes what tokens usually look like; print how often clean episodes raise an alarm."""

    run: RunPath
    """run directory of clean episodes, of the same model as the dictionary"""
    sae: SaePath
    """folder of the dictionary, as printed by `vlascope sae train`"""
    out: OutPath = None
    """folder for the monitor (default: in the run)"""
    alpha: float = 0.05
    """share of clean episodes that may raise an alarm"""
    by: str = "auto"
    """label that names the task, with thresholds of its own (auto: sim_task where there is one; none: all alike)"""
    site: OptionalText = None
    """site to read (default: where the dictionary was trained)"""
    top: float = 0.05
    """share of the patches, the highest, whose mean is a frame's score"""
    device: Device = "cpu"
    """where to compute"""
    seed: int = 0
    """seed of which episodes calibrate and which test"""


def run(args: Args) -> int:
    """Fit, save and print the realised rates."""
    from ..act.monitor import RATE_HEAD
    from ..act.monitor_fit import fit_facts, fit_monitor
    from ..act.monitor_store import save_monitor
    from ..files import file_hash
    from ..runs import Run
    from ..sae import load_sae
    from ..sae.checkpoint import WEIGHTS_NAME

    captured = Run.open(args.run)
    found = load_sae(args.sae, run=captured, site=args.site, device=args.device)
    monitor = fit_monitor(
        captured,
        found,
        alpha=args.alpha,
        by=None if args.by == "none" else args.by,
        site=args.site,
        top=args.top,
        seed=args.seed,
        quiet=args.quiet,
    )
    key = {"site": monitor.site, "alpha": args.alpha, "by": args.by, "top": args.top, "seed": args.seed}
    out = args.out or captured.derived_dir("monitor", key | {"sae": file_hash(found.path / WEIGHTS_NAME)})
    save_monitor(monitor, out, checkpoint=found)
    counts = monitor.facts["n_episodes"]
    text = (
        f"{monitor.site}: {counts['reference']} episodes tell what is usual, {counts['calibration']} set the limits, "
        f"{counts['test']} test them\n{table(monitor.summary(), head=RATE_HEAD)}\n{out}"
    )
    give(args, {"path": str(out), **fit_facts(monitor)}, text=text)
    return OK
