"""`vlascope capture`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..errors import InputError
from ._common import (
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
    size_text,
)
from ._main import OK, PARTIAL

if TYPE_CHECKING:
    from ..models import Model


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Read a model's tokens for images, a video or robot episodes and keep them in a run directory."""

    model: ModelName
    """mini-vla, a Hugging Face name or a folder"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """a folder of images, an image, a video, a LeRobot dataset, or demo:pick"""
    out: OutPath = None
    """run directory to make (default: runs/MODEL-DATA)"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """sites to read: names or patterns such as vision.* projector language.4 (default: after every block)"""
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
    device: Device = "auto"
    """where to compute"""
    dtype: Annotated[str, arg(metavar="auto|float32|bfloat16|...")] = "auto"
    """number type the model computes in"""
    store: Literal["float32", "float16", "bfloat16"] = "float32"
    """number type of the tokens on disk"""
    batch_size: int = 16
    """items per forward pass"""
    block_items: int = 32
    """items per block on disk, the unit of resuming"""
    with_answer: Flag = False
    """also read the tokens of the model's own answer"""
    respond: Literal["auto", "yes", "no"] = "auto"
    """keep the model's answers and actions (auto: when it gives any)"""
    seed: int = 0
    """seed of everything random"""
    on_error: Literal["raise", "skip"] = "raise"
    """what to do with an item that cannot be read; `skip` ends with exit code 3"""
    resume: Flag = False
    """go on with an interrupted run"""
    force: Flag = False
    """replace an existing run"""
    dry_run: Flag = False
    """print the plan and stop"""


def run(args: Args) -> int:
    """Capture and print the run's path."""
    if args.resume and args.force:
        raise InputError(
            "got --resume and --force; the one keeps what is there, the other deletes it. Give one of them."
        )
    from .. import api

    model = api.load(args.model, device=args.device, dtype=args.dtype)
    items = api.items(
        args.data, prompt=args.prompt, limit=args.limit, stride=args.stride, fps=args.fps, camera=args.camera
    )
    sites = args.sites or residual_sites(model)
    out = args.out or default_out(args.model, args.data)
    if args.dry_run:
        return _print_plan(args, model, items, sites, out)
    say(
        args,
        f"{model.name} ({model.n_parameters / 1e6:.1f} M parameters, {model.device}), {len(items)} items -> {out}",
    )
    captured = api.capture(
        model,
        items,
        sites=sites,
        out=out,
        batch_size=args.batch_size,
        block_items=args.block_items,
        dtype=args.store,
        respond={"auto": "auto", "yes": True, "no": False}[args.respond],
        with_answer=args.with_answer,
        seed=args.seed,
        on_error=args.on_error,
        resume=args.resume,
        force=args.force,
        quiet=args.quiet,
    )
    n_failed = len(items) - captured.n_items
    give(
        args,
        {
            "run": str(captured.path),
            "n_items": captured.n_items,
            "n_failed": n_failed,
            "sites": {
                name: {"layout": site.layout, "width": site.width} for name, site in captured.sites.items()
            },
        },
        text=str(captured.path),
    )
    if n_failed:
        say(
            args,
            f"{n_failed} of {len(items)} items could not be read; see {captured.path / 'failures.jsonl'}",
        )
        return PARTIAL
    return OK


def residual_sites(model: Model) -> tuple[str, ...]:
    """Return the names of the sites after every block: what is read when no `--sites` is given."""
    return tuple(site.name for site in model.sites if site.tensor == "out")


def default_out(model: str, data: str) -> Path:
    """Return runs/MODEL-DATA, with the last part of each name."""
    words = (
        re.sub(r"[^A-Za-z0-9._]+", "-", Path(text.rstrip("/")).name).strip("-.") for text in (model, data)
    )
    return Path("runs") / "-".join(words)


def _print_plan(args: Args, model, items, sites, out: Path) -> int:
    from ..runs.plan import plan

    planned = plan(model, items, sites=sites, dtype=args.store, with_answer=args.with_answer)
    lines = [
        f"model     {model.name} ({model.n_parameters / 1e6:.1f} M parameters)",
        f"items     {planned.n_items}",
        *(
            f"site      {site.name}  {site.n_tokens} x {site.width}  {size_text(site.size_bytes)}"
            for site in planned.sites
        ),
        f"on disk   {size_text(planned.size_bytes)}",
        f"out       {out}",
    ]
    give(args, {"out": str(out), **planned.to_dict()}, text="\n".join(lines))
    return OK
