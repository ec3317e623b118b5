"""How it is coloured: palettes that are fitted once and applied anywhere, and discrete colours for labels."""

from __future__ import annotations

from .discrete import discrete
from .palette import Palette

__all__ = ["Palette", "discrete"]
