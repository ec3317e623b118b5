"""The font of all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont


def font(size: int, *, bold: bool = False, mono: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans (shipped inside matplotlib, so no font need be installed) at `size` pixels."""
    import matplotlib
    from PIL import ImageFont

    name = ("DejaVuSansMono" if mono else "DejaVuSans") + ("-Bold" if bold else "")
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
