"""The font of what this room draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont


def dejavu_sans(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans at `size` pixels, from inside matplotlib as for all our pictures: it has more than ASCII."""
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
