"""`vlascope sim preview`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ._common import Common, Flag, give, open_page
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Draw a contact sheet of random scenes of the simulator."""

    out: Annotated[Path, arg(aliases=["-o"], metavar="PATH")] = Path("preview.png")
    """picture to write"""
    scenes: int = 12
    """number of scenes"""
    image_px: int = 224
    """side of each picture"""
    seed: int = 0
    """seed of the scenes"""
    open: Flag = False
    """open the picture"""


def run(args: Args) -> int:
    """Draw and print the path."""
    from PIL import Image

    from ..act.saved import check_file
    from ..files import write_atomic
    from ..sim import preview

    check_file(args.out)
    sheet = Image.fromarray(preview(seed=args.seed, n_scenes=args.scenes, image_px=args.image_px))
    path = write_atomic(args.out, lambda handle: sheet.save(handle, format="PNG"))
    give(args, {"picture": str(path), "width": sheet.width, "height": sheet.height}, text=str(path))
    if args.open:
        open_page(args, path)
    return OK
