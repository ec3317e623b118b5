"""A contact sheet: some frames of every episode (or every image) with its name and review, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError
from .curate import Unit
from .fonts import font
from .item import ItemSource

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAX_UNITS = 400
_GAP_PX, _LINE_PX = 4, 14
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_COLOURS = {"success": (0, 110, 60), "failure": (170, 40, 0), "drop": (110, 110, 110)}


def sheet_format(path: Path) -> str:
    """Return the format that a sheet is written in, by the ending of its name. Raises `InputError` for others."""
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"got '{path}' for the sheet; its name must end in {', '.join(_FORMATS)}.")
    return _FORMATS[path.suffix.lower()]


def contact_sheet(
    source: ItemSource,
    units: Sequence[Unit],
    *,
    captions: Sequence[str],
    reviews: Sequence[str] = (),
    n_thumbs: int = 5,
    thumb_px: int = 112,
) -> NDArray[np.uint8]:
    """Return one picture with the first camera's view of every unit and its instruction, uint8 [h, w, 3].

    An episode shows `n_thumbs` frames from its first to its last, one episode per row; images stand five to a row.
    What cannot be read is a grey field that says so.

    Args:
        source: Where the units come from.
        units: Episodes or images, at most 400.
        captions: One line per unit.
        reviews: success, failure, drop or "" per unit: the colour of its caption (the word stands there as well).
        n_thumbs: Frames per episode.
        thumb_px: Longer side of a thumbnail, pixels.

    Raises:
        InputError: no unit or too many of them, or not one caption each.

    Cost: decodes `n_thumbs` frames per episode.
    """
    from PIL import Image, ImageDraw

    if not 1 <= len(units) <= MAX_UNITS or len(captions) != len(units) or n_thumbs < 1:
        raise InputError(
            f"got {len(units)} episodes or images and {len(captions)} captions for one sheet; need 1..{MAX_UNITS}, a "
            "caption each. Choose fewer: --where or --limit."
        )
    is_single = all(unit.n_items == 1 for unit in units)
    per_row = 5 if is_single else 1
    shown = 1 if is_single else n_thumbs
    cell = thumb_px + _GAP_PX
    block_w, block_h = shown * cell, cell + 2 * _LINE_PX
    n_rows = -(-len(units) // per_row)
    sheet = Image.new("RGB", (per_row * block_w + _GAP_PX, n_rows * block_h + _GAP_PX), "white")
    draw, face = ImageDraw.Draw(sheet), font(11)
    for place, (unit, caption) in enumerate(zip(units, captions, strict=True)):
        left = _GAP_PX + place % per_row * block_w
        top = _GAP_PX + place // per_row * block_h
        colour = _COLOURS.get(reviews[place] if place < len(reviews) else "", (0, 0, 0))
        room = block_w - _GAP_PX
        steps = np.unique(np.linspace(0, unit.n_items - 1, shown).round().astype(int)).tolist()
        prompt = None
        for column, step in enumerate(steps):
            thumb, prompt_here = _thumb(source, unit.first + step, thumb_px)
            prompt = prompt or prompt_here
            sheet.paste(thumb, (left + column * cell, top + 2 * _LINE_PX))
        full = f"{caption} | {prompt}" if prompt else caption
        for line, text in enumerate(_fold(full, face, room)):
            draw.text((left, top + line * _LINE_PX), text, fill=colour, font=face)
    return np.asarray(sheet)


def _thumb(source: ItemSource, index: int, size_px: int) -> tuple[PILImage, str | None]:
    """Return a small picture of an item, and its instruction."""
    from PIL import Image, ImageDraw

    try:
        item = source[index]
    except (ItemError, ItemNotFoundError):
        thumb = Image.new("RGB", (size_px, size_px), (160, 160, 160))
        ImageDraw.Draw(thumb).text((6, size_px // 2), "cannot be read", fill=(0, 0, 0))
        return thumb, None
    thumb = Image.fromarray(item.image)
    scale = size_px / max(thumb.size)
    size = max(1, round(thumb.width * scale)), max(1, round(thumb.height * scale))
    return thumb.resize(size), item.prompt


def _fold(text: str, font: object, room_px: int) -> list[str]:
    """Return at most two lines that fit; what is cut off is marked."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room_px or not lines[-1]:  # type: ignore[attr-defined]
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 2 else [lines[0], lines[1] + " ..."]
