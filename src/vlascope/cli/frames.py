"""`vlascope frames`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..errors import InputError
from ._common import Common, Flag, give
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Write frames of a video as images, with a table of their times."""

    video: Positional[Annotated[str, arg(metavar="VIDEO")]]
    """a video file, a folder of them, or a pattern"""
    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")]
    """folder to make"""
    every: Annotated[str, arg(metavar="0.5s|250ms|10f")] = "0.5s"
    """time between frames, or their number (10f: every tenth)"""
    format: Literal["png", "jpg"] = "png"
    """png is exact, jpg about ten times smaller"""
    force: Flag = False
    """replace an existing folder"""


def run(args: Args) -> int:
    """Write the frames and print the folder."""
    from ..items import VideoSource, extract_frames, open_items

    source = open_items(args.video)
    if not isinstance(source, VideoSource):
        raise InputError(f"'{args.video}' is no video; need a video file, a folder of them, or a pattern.")
    paths = extract_frames(source, args.out, every=args.every, suffix=f".{args.format}", force=args.force)
    give(args, {"folder": str(args.out), "n_frames": len(paths)}, text=str(args.out))
    return OK
