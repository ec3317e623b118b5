"""`vlascope export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..errors import InputError
from ._common import Common, Flag, OptionalInt, OutPath, RunPath, give, say
from ._main import OK

if TYPE_CHECKING:
    from ..runs import Run


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Write a run in another format: tokens as safetensors, episodes as a LeRobot v3 dataset, or all for Rerun."""

    format: Positional[
        Annotated[Literal["safetensors", "lerobot", "rerun"], arg(metavar="safetensors|lerobot|rerun")]
    ]
    """what to write"""
    run: RunPath
    """run directory, as made by `vlascope capture`"""
    out: OutPath = None
    """folder to make (default: RUN-safetensors or RUN-lerobot); rerun: file (default: RUN.rrd)"""
    sites: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """safetensors: sites to write, names or patterns (default: all); rerun: sites whose colours are shown"""
    fps: OptionalInt = None
    """lerobot: frames per second (default: that of the data)"""
    force: Flag = False
    """replace what is there"""


def run(args: Args) -> int:
    """Export and print the folder."""
    from .. import api
    from ..runs import Run, export_lerobot, export_safetensors

    captured = Run.open(args.run)
    path = Path(args.run)
    if args.format == "rerun":
        return _rerun(args, captured)
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


def _rerun(args: Args, captured: Run) -> int:
    """Write the recording and print its path."""
    from .. import api
    from ..spectral.words import cut_words
    from ..views import save_recording
    from ..views.report import find_cut

    if args.fps is not None:
        raise InputError("got --fps for a Rerun recording, which keeps the times of the data.")
    path = Path(args.run)
    out = args.out or path.with_name(f"{path.resolve().name}.rrd")
    if out.exists() and not args.force:
        raise InputError(f"'{out}' exists; replace it with --force, or name another with -o.")
    found = find_cut(captured)
    if found is None:
        say(args, f"{path} has no cut yet; cutting {len(captured.sites)} sites (this is done once)")
        found = api.cut(captured).result
    sites = None
    if args.sites:
        named = api.run_sites(captured, args.sites)
        sites = [site for site in found.sites if site in named]
        if not sites:
            raise InputError(
                f"the cut of this run holds {', '.join(found.sites)}; none of them is asked for."
            )
    written = save_recording(found, out, word_cut=cut_words(found), sites=sites)
    give(args, {"out": str(written), "size_bytes": written.stat().st_size}, text=str(written))
    say(args, f"look at it with: rerun {written}")
    return OK
