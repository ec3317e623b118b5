"""How it is coloured: palettes that are fitted once and applied anywhere, discrete colours for labels, saved cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .discrete import discrete
from .saved import CutPart, SavedCut, read_cut

if TYPE_CHECKING:
    from .palette import Palette

METHODS = ("tsne", "umap", "mspace", "pca")
"""How eigenvectors become colours, see `Palette.fit`."""

__all__ = ["METHODS", "CutPart", "Palette", "SavedCut", "discrete", "read_cut"]


def __getattr__(name: str) -> Any:
    # A palette needs torch, which takes a second to import; to read a cut and to show it does not.
    if name == "Palette":
        from .palette import Palette

        return Palette
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
