"""`vlascope export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..errors import InputError
from ._common import Common, Flag, OptionalInt, OutPath, RunPath, give
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Write a run in another format: its tokens as safetensors, or its episodes as a LeRobot v3 dataset."""

    format: Positional[Annotated[Literal["safetensors", "lerobot"], arg(metavar="safetensors|lerobot")]]
    """what to write"""
    run: RunPath
    """run directory, as made by `vlascope capture`"""
    out: OutPath = None
    """folder to make (default: RUN-safetensors or RUN-lerobot)"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """safetensors: sites to write, names or patterns (default: all)"""
    fps: OptionalInt = None
    """lerobot: frames per second (default: that of the data)"""
    force: Flag = False
    """replace an existing folder"""


def run(args: Args) -> int:
    """Export and print the folder."""
    from .. import api
    from ..runs import Run, export_lerobot, export_safetensors

    captured = Run.open(args.run)
    path = Path(args.run)
    out = args.out or path.with_name(f"{path.resolve().name}-{args.format}")
    if args.format == "lerobot":
        if args.sites:
            raise InputError("got --sites for a LeRobot dataset, which holds frames and no tokens.")
        export_lerobot(captured, out, fps=args.fps, force=args.force)
    else:
        if args.fps is not None:
            raise InputError("got --fps for safetensors files, which have no frame rate.")
        sites = api.run_sites(captured, args.sites) if args.sites else None
        export_safetensors(captured, out, sites=sites, force=args.force)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    give(args, {"out": str(out), "size_bytes": size}, text=str(out))
    return OK
