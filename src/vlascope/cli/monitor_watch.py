"""`vlascope monitor watch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ._common import Common, Device, Flag, ModelName, OptionalInt, OutPath, give, say, table
from ._main import OK
from .monitor_score import Detector, MonitorPath, RuleName


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Let a model act in the simulator under a monitor, which stops an episode before the action that it vetoes."""

    model: ModelName
    """a model that acts, the one that the monitor was fitted on"""
    monitor: MonitorPath
    """folder of the monitor, as printed by `vlascope monitor fit`"""
    episodes: int = 20
    """how many"""
    seed: int = 0
    """seed of the scenes"""
    task: Literal["pick", "place"] = "pick"
    """what the instructions ask for"""
    detector: Detector = "sae"
    """what scores the tokens"""
    rule: RuleName = "frame"
    """frame: a frame's score; cusum: lasting rises; both: either; sigma: mean + 2 deviations, which states no rate"""
    paired: Flag = False
    """play the same scenes without the monitor too: how many good and how many bad episodes it stops"""
    objects: int = 0
    """objects on the table, 2 to 4 (0: drawn per scene)"""
    brightness: float = 1.0
    """change the light by this factor"""
    camera_shift: Annotated[tuple[float, float, float], arg(metavar="X Y Z")] = (0.0, 0.0, 0.0)
    """move the camera, metres"""
    out: OutPath = None
    """also save the episodes that failed or were stopped, as a LeRobot v3 dataset with video"""
    processes: OptionalInt = None
    """processes to play in (default: one per core where there is enough to do)"""
    device: Device = "auto"
    """where to compute"""


def run(args: Args) -> int:
    """Play, and print what was stopped, when, where and why."""
    from .. import api
    from ..act import closed_loop, compare
    from ..act.watching import WATCH_HEAD, saved_monitor, watch_report
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of
    from ..sim.rollout import Perturbation

    model = api.load(args.model, device=args.device)
    watched_by = saved_monitor(args.monitor, model=model, detector=args.detector, rule=args.rule)
    say(
        args,
        f"{model.name}: {args.episodes} episodes of '{args.task}', seed {args.seed}, watched at "
        f"{watched_by.monitor.site}",
    )
    change = Perturbation(brightness=args.brightness, camera_shift=args.camera_shift)
    common: dict[str, Any] = {
        "task": args.task,
        "n_episodes": args.episodes,
        "seed": args.seed,
        "n_objects": args.objects or None,
        "perturbation": change,
        "processes": args.processes,
        "quiet": args.quiet,
    }
    found = closed_loop(model, **common, watcher=watched_by, failures_out=args.out)
    report = watch_report(found, watched_by=watched_by, is_clean=change == Perturbation())
    facts = {
        "model": model.name,
        "monitor": str(args.monitor),
        **report.to_json(),
        **found.to_dict(),
    }
    lines = [table(list(report.rows), head=WATCH_HEAD)] if report.rows else []
    lines += [*report.lines(), f"successes  {found.successes} of {found.n}"]
    if args.paired:
        free = closed_loop(model, **common)
        pair = compare(free, found)
        facts |= {"without_monitor": free.to_dict(), "comparison": pair.to_json()}
        lines += [
            f"unwatched  {free.successes} of {free.n}",
            "",
            table(rows_of([pair.stopped_good, pair.stopped_bad, pair.difference]), head=TABLE_HEAD),
        ]
    give(args, facts, text="\n".join(lines))
    return OK
