"""One type scale, one spacing system and one colour theme for every picture, and how text is set in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

SPACE = 8
"""The unit of all distances, layout pixels; gaps are multiples or halves of it."""

TITLE, BODY, SMALL, TINY = 19, 13, 11, 10
"""The type scale, layout pixels."""

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Theme:
    """Colours of everything that is not data."""

    background: RGB
    surface: RGB  # panels without data, bands
    line: RGB
    text: RGB
    muted: RGB
    accent: RGB
    good: RGB
    bad: RGB


LIGHT = Theme(
    background=(255, 255, 255),
    surface=(243, 244, 246),
    line=(214, 218, 224),
    text=(24, 28, 35),
    muted=(94, 102, 115),
    accent=(38, 84, 199),
    good=(17, 122, 72),
    bad=(186, 46, 36),
)
DARK = Theme(
    background=(18, 20, 24),
    surface=(29, 32, 38),
    line=(56, 61, 70),
    text=(236, 238, 242),
    muted=(155, 163, 176),
    accent=(126, 163, 255),
    good=(94, 201, 143),
    bad=(255, 132, 118),
)


@lru_cache(maxsize=64)
def wrap(
    text: str,
    *,
    face: ImageFont.FreeTypeFont,
    width: int,
    max_lines: int | None = None,
    middle: bool = False,
) -> list[str]:
    """Return `text` broken into lines no wider than `width` pixels; a word that is too long is broken too.

    Args:
        text: Any text; runs of white space count as one space.
        face: The font that it is set in.
        width: Pixels.
        max_lines: Further lines are cut and the last kept one ends with an ellipsis.
        middle: Cut in the middle instead: names of files differ most at their ends.
    """
    if middle and max_lines is not None:
        return _wrap_ends(text, face=face, width=width, max_lines=max_lines)
    lines: list[str] = []
    current = ""
    for word in text.split():
        joined = f"{current} {word}" if current else word
        if face.getlength(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        while face.getlength(word) > width and len(word) > 1:
            n_fit = len(word) - 1
            while n_fit > 1 and face.getlength(word[:n_fit]) > width:
                n_fit -= 1
            lines.append(word[:n_fit])
            word = word[n_fit:]
        current = word
    if current:
        lines.append(current)
    if max_lines is not None and len(lines) > max_lines:
        lines = lines[:max_lines]
        last = lines[-1]
        while last and face.getlength(last + "…") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "…"
    return lines


def _wrap_ends(text: str, *, face: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Return the text in at most `max_lines` lines; of a longer one a third of what fits is its beginning."""
    lines = wrap(text, face=face, width=width)
    for kept in range(len(text) - 1, 1, -1):
        if len(lines) <= max_lines:
            break
        head = kept // 3
        lines = wrap(f"{text[:head]}…{text[len(text) - kept + head :]}", face=face, width=width)
    return lines[:max_lines]


def line_height(face: ImageFont.FreeTypeFont) -> int:
    """Return the distance between two base lines, pixels."""
    return round(face.size * 1.4)


def draw_lines(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    lines: list[str],
    *,
    face: ImageFont.FreeTypeFont,
    fill: RGB,
    center_width: int | None = None,
) -> int:
    """Draw lines of text downward from `xy` (top left); return the height they take, pixels."""
    x, y = xy
    step = line_height(face)
    for i, line in enumerate(lines):
        offset = (center_width - face.getlength(line)) / 2 if center_width is not None else 0.0
        ascent_gap = (step - face.size) / 2
        draw.text((x + offset, y + i * step + ascent_gap - face.size * 0.08), line, font=face, fill=fill)
    return step * len(lines)


def ink_on(rgb: RGB) -> RGB:
    """Return black or white, whichever contrasts more with `rgb` (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Contrast with white is 1.05 / (L + .05), with black (L + .05) / .05; they are equal at L = 0.179, both
    # 4.58: enough to be read. A black that is softer would fall short of 4.5 there.
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def css_color(rgb: RGB) -> str:
    """Return `rgb` as CSS, e.g. "#1a2b3c"."""
    return "#{:02x}{:02x}{:02x}".format(*(int(v) for v in rgb))
