"""`vlascope monitor watch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, Device, Flag, ModelName, OutPath, give, say, table
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
    device: Device = "auto"
    """where to compute"""


@dataclass(frozen=True)
class WatcherOf:
    """Makes a fresh watcher per episode; loads the monitor by its folder, so that other processes can too."""

    path: Path
    detector: Detector
    rule: RuleName

    def __call__(self, episode: int):
        """Return the watcher of an episode."""
        from ..act.monitor_store import load_monitor

        if self.path not in _LOADED:
            _LOADED[self.path] = load_monitor(self.path)
        return _LOADED[self.path].watcher(detector=self.detector, rule=self.rule)


_LOADED: dict = {}


def run(args: Args) -> int:
    """Play, and print what was stopped, when, where and why."""
    from .. import api
    from ..act import closed_loop
    from ..act.monitor_store import load_monitor
    from ..act.monitor_thresholds import Rate
    from ..sim.rollout import Perturbation

    monitor = load_monitor(args.monitor)
    model = api.load(args.model, device=args.device)
    monitor.check_model(model.name, model.fingerprint())
    say(
        args,
        f"{model.name}: {args.episodes} episodes of '{args.task}', seed {args.seed}, watched at {monitor.site}",
    )
    change = Perturbation(brightness=args.brightness, camera_shift=args.camera_shift)
    is_clean = change == Perturbation()

    def play(watched: bool):
        return closed_loop(
            model,
            task=args.task,
            n_episodes=args.episodes,
            seed=args.seed,
            n_objects=args.objects or None,
            perturbation=change,
            watcher=WatcherOf(Path(args.monitor).resolve(), args.detector, args.rule) if watched else None,
            failures_out=args.out if watched else None,
            processes=1,
            quiet=args.quiet,
        )

    found = play(True)
    stopped = [(i, veto) for i, veto in enumerate(found.vetoes) if veto is not None]
    rate = Rate(alarms=len(stopped), n=found.n)
    fitted = monitor.use(args.detector).rate(args.rule)
    facts = {
        "model": model.name,
        "monitor": str(args.monitor),
        "clean": is_clean,
        "stopped": rate.to_json(),
        "stated_false_alarms": monitor.alpha,
        "realised_false_alarms_when_fitted": fitted.to_json(),
        **found.to_dict(),
    }
    stated = f"stated for clean ones: {monitor.alpha:.1%}; realised when fitted: {fitted.text()}"
    lines = [
        *([table([(str(i), str(v.details["step"]), v.reason) for i, v in stopped], head=("episode", "step", "why"))]
          if stopped else []),
        f"stopped    {rate.text()} of the {'clean' if is_clean else 'changed'} episodes ({stated})",
        f"successes  {found.successes} of {found.n}",
    ]  # fmt: skip
    if is_clean and not rate.holds(monitor.alpha):
        lines.append(
            "that is more than stated: do not trust this monitor on these scenes before fitting it on them"
        )
    if args.paired:
        free = play(False)
        good = [i for i, e in enumerate(free.episodes) if e.success]
        bad = [i for i, e in enumerate(free.episodes) if not e.success]
        where = {i for i, _ in stopped}
        good_stopped = Rate(alarms=len(where & set(good)), n=len(good))
        bad_stopped = Rate(alarms=len(where & set(bad)), n=len(bad))
        facts |= {
            "without_monitor": free.to_dict(),
            "good_episodes_stopped": good_stopped.to_json(),
            "bad_episodes_stopped": bad_stopped.to_json(),
        }
        lines += [
            f"unwatched  {free.successes} of {free.n} succeed",
            f"good ones  {good_stopped.text()} stopped",
            f"bad ones   {bad_stopped.text()} stopped",
        ]
    give(args, facts, text="\n".join(lines))
    return OK
