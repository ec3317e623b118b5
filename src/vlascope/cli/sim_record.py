"""`vlascope sim record`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, Flag, OptionalInt, give
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Record labelled episodes as a LeRobot v3 dataset, or with --factorial a decorrelated image set."""

    out: Annotated[Path, arg(aliases=["-o"], metavar="PATH")]
    """folder to make"""
    episodes: int = 20
    """number of episodes"""
    task: Literal["pick", "place"] = "pick"
    """what the scripted expert does"""
    failures: Annotated[tuple[str, ...], arg(metavar="NAME...")] = ("none",)
    """how it fails, in turn: none grasp_offset slip wrong_object drop"""
    image_px: OptionalInt = None
    """side of the images, 32 to 1024 px (default: 224; with --factorial 384)"""
    factorial: Flag = False
    """write equal counts of every colour x material combination instead of episodes"""
    images: int = 1200
    """number of images with --factorial, a multiple of 8, up to 12000; the same command again goes on"""
    processes: int = 2
    """processes with --factorial"""
    seed: int = 0
    """seed of everything random"""
    force: Flag = False
    """replace an existing folder of episodes"""


def run(args: Args) -> int:
    """Record and print the folder."""
    if args.factorial:
        from ..sim import record_factorial

        path = record_factorial(
            args.out,
            n_images=args.images,
            image_px=args.image_px or 384,
            processes=args.processes,
            seed=args.seed,
        )
        count = {"n_images": args.images}
    else:
        from ..sim import record_episodes

        path = record_episodes(
            args.out,
            n_episodes=args.episodes,
            seed=args.seed,
            task=args.task,
            failures=args.failures,
            image_px=args.image_px or 224,
            force=args.force,
            quiet=args.quiet,
        )
        count = {"n_episodes": args.episodes}
    give(args, {"dataset": str(path), **count}, text=str(path))
    return OK
