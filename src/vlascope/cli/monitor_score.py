"""`vlascope monitor score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ._common import Common, Device, OptionalText, RunPath, give, table
from ._main import OK

MonitorPath = Positional[Annotated[Path, arg(metavar="MONITOR")]]
Detector = Literal["sae", "sae-fall", "mahalanobis", "pca"]
RuleName = Literal["frame", "cusum", "both", "sigma"]


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Say which episodes of a run no longer look like clean ones: when, where in the image and at which level."""

    run: RunPath
    """run directory, of the same model as the monitor"""
    monitor: MonitorPath
    """folder of the monitor, as printed by `vlascope monitor fit`"""
    detector: Detector = "sae"
    """what scores the tokens: the dictionary's error (sae: its rise, sae-fall: its fall), or raw activations"""
    rule: RuleName = "frame"
    """frame: a frame's score; cusum: lasting rises; both: either; sigma: mean + 2 deviations, which states no rate"""
    label: OptionalText = None
    """label that is true in frames where something is wrong: also says how well these are detected"""
    device: Device = "cpu"
    """where to compute"""


def run(args: Args) -> int:
    """Score and print episodes with alarms, the stated and the realised rate."""
    from ..act.monitor_report import EPISODE_HEAD, score_run
    from ..act.monitor_store import load_monitor
    from ..runs import Run

    monitor = load_monitor(args.monitor, device=args.device)
    found = score_run(
        monitor,
        Run.open(args.run),
        detector=args.detector,
        rule=args.rule,
        label=args.label,
        quiet=args.quiet,
    )
    rows = [one.row() for one in found.episodes if one.step is not None]
    text = "\n".join([*([table(rows, head=EPISODE_HEAD)] if rows else []), *found.lines()])
    give(
        args,
        {"run": str(args.run), "monitor": str(args.monitor), "site": monitor.site, **found.to_json()},
        text=text,
    )
    return OK
