"""`vlascope capture`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from ..errors import InputError
from ..files import read_json
from ._common import (
    COMMAND,
    Common,
    Device,
    Flag,
    ModelName,
    OptionalFloat,
    OptionalInt,
    OptionalText,
    OutPath,
    give,
    say,
)
from ._main import OK, PARTIAL

if TYPE_CHECKING:
    from ..items import ItemSource
    from ..models import Model
    from ..runs import Engine


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Read a model's tokens for images, a video or robot episodes and keep them in a run directory."""

    model: ModelName
    """mini-vla, a Hugging Face name or a folder"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """images, a video, a dataset (LeRobot, RLDS, HDF5, COCO, ...), demo:pick or sim:pick"""
    out: OutPath = None
    """run directory to make (default: runs/MODEL-DATA)"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ("*",)
    """sites to read: names or patterns such as vision.* projector language.4 (default: * = after every block)"""
    prompt: OptionalText = None
    """instruction or question for every item, in place of the dataset's own"""
    limit: OptionalInt = None
    """use the first N items only"""
    stride: int = 1
    """use every N-th frame"""
    fps: OptionalFloat = None
    """thin a video to this many frames per second"""
    camera: OptionalText = None
    """use this camera of an episode only"""
    where: OptionalText = None
    """use the episodes (or images) of that label only: success, failure, drop, unlabelled, or 'not drop'"""
    labels: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """table of `vlascope label` (default: the one beside the data)"""
    device: Device = "auto"
    """where to compute"""
    dtype: Annotated[str, arg(metavar="auto|float32|bfloat16|...")] = "auto"
    """number type the model computes in"""
    store: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """number type of the tokens on disk (auto: the model's own)"""
    batch_size: int = 16
    """items per forward pass"""
    block_items: int = 32
    """items per block on disk, the unit of resuming"""
    max_new_tokens: int = 16
    """longest answer of the model"""
    with_answer: Flag = False
    """also read the tokens of the model's own answer"""
    respond: Literal["auto", "yes", "no"] = "auto"
    """keep the model's answers and actions (auto: when it gives any)"""
    seed: int = 0
    """seed of everything random"""
    on_error: Literal["raise", "skip"] = "raise"
    """what to do with an item that cannot be read; `skip` ends with exit code 3"""
    resume: Flag = False
    """go on with an interrupted run; mend a damaged one"""
    force: Flag = False
    """replace an existing run"""
    dry_run: Flag = False
    """print the plan, time two batches, and stop"""
    engine: Literal["local", "ray"] = "local"
    """who computes: this process, or the workers of a Ray cluster"""
    workers: OptionalInt = None
    """ray: number of workers (default: one per GPU or node)"""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """take the settings of another run, RUN/config.json; options given here win"""


def run(args: Args) -> int:
    """Capture and print the run's path."""
    if args.resume and args.force:
        raise InputError(
            "got --resume and --force; the one keeps what is there, the other deletes it. Give one of them."
        )
    from .. import api
    from ..runs import CaptureProgress, capture_config, make_plan, open_engine, sample_items, timed

    open_engine(args.engine, n_workers=args.workers).close()  # refuses bad numbers before the model is loaded
    load, open_items = _makers(args)
    items = open_items()
    sample_items(
        items, on_error=args.on_error
    )  # a model may take minutes to load: refuse what cannot be read first
    model = load()
    out = args.out or default_out(args.model, args.data)
    chosen = model.resolve(args.sites)
    respond: dict[str, str | bool] = {"auto": "auto", "yes": True, "no": False}
    settings = capture_config(
        model,
        items,
        sites=chosen,
        batch_size=args.batch_size,
        block_items=args.block_items,
        dtype=args.store,
        respond=respond[args.respond],
        max_new_tokens=args.max_new_tokens,
        with_answer=args.with_answer,
        seed=args.seed,
        on_error=args.on_error,
    )["capture"]
    plan = make_plan(
        model,
        items,
        sites=chosen,
        dtype=settings["dtype"],
        batch_size=args.batch_size,
        block_items=args.block_items,
        on_error=args.on_error,
        with_answer_tokens=args.max_new_tokens if args.with_answer else 0,
        out=out,
    )
    if args.dry_run:
        plan = timed(plan, model, items, settings=settings)
        give(args, {"run": str(out), **plan.as_dict()}, text=str(plan))
        plan.check_space(out)
        return OK
    say(args, f"{plan}\n-> {out}")

    def as_json(progress: CaptureProgress) -> None:
        print(json.dumps({"progress": progress.as_dict()}), file=sys.stderr, flush=True)

    captured = api.capture(
        model,
        items,
        sites=args.sites,
        out=out,
        batch_size=args.batch_size,
        block_items=args.block_items,
        dtype=args.store,
        respond=respond[args.respond],
        max_new_tokens=args.max_new_tokens,
        with_answer=args.with_answer,
        seed=args.seed,
        on_error=args.on_error,
        resume=args.resume,
        force=args.force,
        quiet=args.quiet,
        command=COMMAND.get(),
        engine=_ray_engine(args) if args.engine == "ray" else "local",
        on_progress=as_json if args.json and not args.quiet else None,
    )
    give(
        args,
        {
            "run": str(captured.path),
            "n_items": captured.n_items,
            "n_failed": captured.n_failed,
            "skipped": [{"name": one.name, "reason": one.reason} for one in items.skipped],
            "sites": {
                name: {"layout": site.layout, "width": site.width} for name, site in captured.sites.items()
            },
        },
        text=str(captured.path),
    )
    if captured.n_failed:
        say(
            args,
            f"{captured.n_failed} of {len(items)} items could not be read; see {captured.path / 'failures.jsonl'}",
        )
        return PARTIAL
    for one in items.skipped:
        say(args, f"left out {one.name}: {one.reason}")
    return PARTIAL if items.skipped else OK


def _makers(args: Args) -> tuple[Callable[[], Model], Callable[[], ItemSource]]:
    """Return functions that load the model and open the items, here or on a worker."""
    from .. import api

    load = partial(api.load, args.model, device=args.device, dtype=args.dtype)
    open_items = partial(
        api.items,
        args.data,
        prompt=args.prompt,
        limit=args.limit,
        stride=args.stride,
        fps=args.fps,
        camera=args.camera,
        on_error=args.on_error,
        labels=args.labels,
        where=args.where,
    )
    return load, open_items


def _ray_engine(args: Args) -> Engine:
    """Return the engine "ray", whose workers load the model and open the data themselves."""
    from ..runs import RayEngine

    here = {
        name: str(Path(text).absolute())
        for name, text in (("model", args.model), ("data", args.data))
        if Path(text).exists()
    }
    load, open_items = _makers(replace(args, **here))  # a worker starts in a folder of its own
    return RayEngine(n_workers=args.workers, make_model=load, make_items=open_items)


def default_out(model: str, data: str) -> Path:
    """Return runs/MODEL-DATA, with the last part of each name; "." and ".." by the name of the folder."""
    parts = [Path(text.rstrip("/")).name for text in (model, data)]
    names = [
        Path(text).resolve().name if part in ("", "..") else part
        for part, text in zip(parts, (model, data), strict=True)
    ]
    words = [re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") for name in names]
    return Path("runs") / "-".join(word for word in words if word)


def preset(words: Sequence[str]) -> Args | None:
    """Return the settings of `--config FILE` as defaults; None when it is not given."""
    path = next((b for a, b in zip(words, words[1:], strict=False) if a == "--config"), None)
    path = path or next(
        (word.removeprefix("--config=") for word in words if word.startswith("--config=")), None
    )
    if path is None:
        return None
    if not Path(path).is_file():
        raise InputError(f"--config: there is no file '{path}'; give the config.json of a run.")
    try:
        settings = read_json(path)["capture"]
        return _from_settings(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--config: '{path}' is not the config.json of a run ({type(error).__name__}: {error})."
        ) from error


def _from_settings(settings: Mapping[str, Any]) -> Args:
    """Return the settings of a run's config.json as arguments."""
    for name in ("batch_size", "block_items", "max_new_tokens", "seed"):
        if not isinstance(settings[name], int):
            raise TypeError(f"{name} is {settings[name]!r}, not a whole number")
    respond: dict[object, Literal["auto", "yes", "no"]] = {"auto": "auto", True: "yes", False: "no"}
    return Args(
        model=tyro.MISSING,
        data=tyro.MISSING,
        sites=tuple(settings["sites"]),
        store=settings["dtype"],
        batch_size=settings["batch_size"],
        block_items=settings["block_items"],
        respond=respond[settings["respond"]],
        max_new_tokens=settings["max_new_tokens"],
        with_answer=settings["with_answer"],
        seed=settings["seed"],
        on_error=settings["on_error"],
    )
