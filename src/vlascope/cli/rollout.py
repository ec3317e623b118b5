"""`vlascope rollout`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from ..errors import InputError
from ._common import Common, Device, Flag, ModelName, OptionalInt, OptionalText, OutPath, give, say, table
from ._main import OK
from .monitor_score import Detector, RuleName

if TYPE_CHECKING:
    from ..act import ModelEdit
    from ..models import Model


FilePath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
# `-o` belongs to one option only.


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Let a model act in the simulator, with and without a change, on the same seeds; compare them in pairs."""

    model: ModelName
    """mini-vla, or a folder with a model that acts"""
    episodes: int = 20
    """number of episodes"""
    seed: int = 0
    """seed of the scenes"""
    task: Literal["pick", "place"] = "pick"
    """what the instructions ask for"""
    cut: OptionalText = None
    """cut attention, such as patch:action, text:action or patch:text"""
    blocks: str = "language.*"
    """blocks in which attention is cut"""
    ablate: OptionalText = None
    """modules or heads whose contribution is removed, such as language.3.mlp"""
    direction: FilePath = None
    """steer along a direction: the file that `vlascope steer --save` wrote"""
    strength: float = 1.0
    """strength of the direction, in its units"""
    brightness: float = 1.0
    """gain on the pictures"""
    camera_shift: Annotated[tuple[float, float, float], arg(metavar="X Y Z")] = (0.0, 0.0, 0.0)
    """metres by which the camera moves"""
    table: OptionalText = None
    """table texture, such as tiles or marble (seen in no training)"""
    monitor: FilePath = None
    """let this monitor (a folder, as printed by `vlascope monitor fit`) stop the changed episodes"""
    detector: Detector = "sae"
    """what scores the tokens for the monitor"""
    rule: RuleName = "frame"
    """the monitor's rule: frame, cusum, both, or sigma"""
    only: Flag = False
    """play the changed condition only, without the pair"""
    out: OutPath = None
    """save all episodes of the last condition, as a LeRobot v3 dataset with video"""
    failures: FilePath = None
    """save its failed episodes only"""
    image_px: int = 112
    """side of the pictures"""
    batch: int = 4
    """episodes per forward pass"""
    processes: OptionalInt = None
    """processes to play in (default: one per core where there is enough to do)"""
    device: Device = "auto"
    """where to compute"""


def run(args: Args) -> int:
    """Play, compare and print."""
    from .. import api
    from ..act import closed_loop, compare
    from ..act.paired import success_result
    from ..act.rollout import check_change, check_free
    from ..act.watching import WATCH_HEAD, saved_monitor, watch_report
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of
    from ..sim import Perturbation

    check_free(args.out, args.failures)  # before the unchanged episodes are played
    model = api.load(args.model, device=args.device)
    edit = chosen_edit(args, model)
    watched_by = None
    if args.monitor is not None:
        watched_by = saved_monitor(args.monitor, model=model, detector=args.detector, rule=args.rule)
    scene = Perturbation(brightness=args.brightness, camera_shift=args.camera_shift, table=args.table)
    check_change(scene)
    is_clean = edit is None and scene == Perturbation()
    changed = not is_clean or watched_by is not None
    if args.only and not changed:
        raise InputError(
            "--only plays the changed condition, and nothing is changed: name an edit, another scene or --monitor."
        )
    common: dict[str, Any] = {
        "task": args.task,
        "n_episodes": args.episodes,
        "seed": args.seed,
        "image_px": args.image_px,
        "batch": args.batch,
        "processes": args.processes,
        "quiet": args.quiet,
    }
    files: dict[str, Any] = {"out": args.out, "failures_out": args.failures}
    say(args, f"{model.name}: {args.episodes} episodes of '{args.task}', seed {args.seed}")
    loops = []
    if not args.only:
        loops.append(closed_loop(model, **common, **({} if changed else files)))
    if changed:
        loops.append(closed_loop(model, **common, **files, edit=edit, perturbation=scene, watcher=watched_by))
    results = [success_result(loop) for loop in loops]
    facts: dict[str, Any] = {"model": model.name, "conditions": [loop.to_dict() for loop in loops]}
    if len(loops) == 2:
        free = None
        if loops[1].n_vetoed and not is_clean:
            say(
                args,
                f"{loops[1].n_vetoed} stopped: playing the changed episodes unwatched, to see how those end",
            )
            free = closed_loop(model, **common, edit=edit, perturbation=scene)
            results.append(success_result(free))
            facts["unwatched"] = free.to_dict()
        pair = compare(*loops, unwatched=free)
        results += pair.results() if watched_by is not None else [pair.difference, pair.wrong_object]
        facts["comparison"] = pair.to_json()
    rate = loops[-1].steps_per_second
    lines = [table(rows_of(results), head=TABLE_HEAD), ""]
    for loop in loops:
        ends = ", ".join(f"{n} x {label}" for label, n in loop.failure_labels.items()) or "none"
        lines.append(f"failures  {loop.n - loop.successes} of {loop.n}: {ends}  ({loop.condition})")
    if watched_by is not None:
        report = watch_report(loops[-1], watched_by=watched_by, is_clean=is_clean)
        facts["watched"] = report.to_json()
        lines += [*report.lines(), *([table(list(report.rows), head=WATCH_HEAD)] if report.rows else [])]
    lines.append(f"{rate:.0f} control steps/s in {loops[-1].processes} processes")
    give(args, facts, text="\n".join(lines))
    return OK


def chosen_edit(args: Any, model: Model) -> ModelEdit | None:
    """Return the edit that the options `cut`, `ablate` and `direction` ask for; None for none."""
    from ..act import Ablate, CutAttention, Together
    from ..act.saved import load_direction

    edits: list[ModelEdit] = []
    if args.cut is not None:
        source, colon, reader = args.cut.partition(":")
        if not colon:
            raise InputError(f"got --cut {args.cut}; need SOURCE:READER, such as patch:action.")
        edits.append(CutAttention(source=source, reader=reader, blocks=args.blocks))
    if args.ablate is not None:
        model.resolve(args.ablate)  # an unknown site is refused before anything is played
        edits.append(Ablate(site=args.ablate))
    if getattr(args, "direction", None) is not None:
        edits.append(load_direction(args.direction, model=model).scaled(args.strength))
    if not edits:
        return None
    return edits[0] if len(edits) == 1 else Together(edits)
