"""`vlascope break`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ._common import COMMAND, Common, Device, ModelName, OptionalInt, OptionalText, OutPath, give, say, table
from ._main import OK
from .rollout import chosen_edit


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Search the smallest change of scene or wording that makes a model fail, in scenes that it masters."""

    model: ModelName
    """mini-vla, or a folder with a model that acts"""
    scenes: int = 1
    """number of scenes"""
    seed: int = 0
    """seed of the first scene"""
    task: Literal["pick", "place"] = "pick"
    """what the instructions ask for"""
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND...", help_behavior_hint="")] = ()
    """changes: position colour distractor lighting camera table wording (default: all)"""
    halvings: int = 3
    """how often the gap between done and failed is halved, where sizes are continuous"""
    cut: OptionalText = None
    """search under cut attention, such as text:action"""
    blocks: str = "language.*"
    """blocks in which attention is cut"""
    ablate: OptionalText = None
    """search without the contribution of modules or heads, such as language.3.mlp"""
    out: OutPath = None
    """folder for break.json, the two pictures and a run with the episodes before and after the easiest break"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...")] = ("vision.*", "language.*")
    """what that run captures"""
    image_px: int = 112
    """side of the pictures"""
    batch: int = 4
    """episodes per forward pass"""
    processes: OptionalInt = None
    """processes to play in (default: one per core where there is enough to do)"""
    device: Device = "auto"
    """where to compute"""


def run(args: Args) -> int:
    """Search, save and print."""
    from .. import api
    from ..act import find_breaks
    from ..act.breaking import episodes_of
    from ..act.rollout import check_free
    from ..files import write_json
    from ..measure.result import TABLE_HEAD

    check_free(args.out)
    model = api.load(args.model, device=args.device)
    edit = chosen_edit(args, model)
    if args.out is not None:
        model.resolve(args.sites)  # unknown sites are refused before anything is played
    say(args, f"{model.name}: searching in {args.scenes} scenes of '{args.task}' from seed {args.seed}")
    found = find_breaks(
        model, task=args.task, n_scenes=args.scenes, seed=args.seed, kinds=args.kinds, n_halvings=args.halvings,
        edit=edit, image_px=args.image_px, batch=args.batch, processes=args.processes, quiet=args.quiet,
    )  # fmt: skip
    facts: dict[str, Any] = {
        "model": model.name,
        "edit": None if edit is None else edit.name,
        **found.to_json(),
    }
    lines = [table(found.table(), head=TABLE_HEAD), "", found.verdict()]
    easiest = found.easiest()
    if args.out is not None:
        path = write_json(args.out / "break.json", facts)  # whatever comes of the capture
        if easiest is not None:
            source = episodes_of(model, easiest, image_px=args.image_px, edit=edit)
            run_dir = api.capture(
                model, source, sites=args.sites, out=args.out / "run", quiet=args.quiet, command=COMMAND.get()
            )
            facts |= {"run": str(run_dir.path), "pictures": _pictures(args.out, source)}
            lines += [f"before and after: {run_dir.path} (see it with `vlascope cut {run_dir.path}`)"]
            write_json(path, facts)
        facts["file"] = str(path)
        lines += [facts["file"]]
    give(args, facts, text="\n".join(lines))
    return OK


def _pictures(folder: Path, source: Any) -> list[str]:
    """Write the first picture of both episodes."""
    from PIL import Image

    from ..files import storage_errors

    paths = []
    firsts = [next(i for i in range(len(source)) if source[i].episode == episode) for episode in (0, 1)]
    for name, index in zip(("before", "after"), firsts, strict=True):
        path = folder / f"{name}.png"
        with storage_errors(path):
            Image.fromarray(source[index].image).save(path)
        paths.append(str(path))
    return paths
