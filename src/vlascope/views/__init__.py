"""What is shown: summary grid, layer strip, coloured words, side-by-side video and the report."""

from .grid import grid, strip
from .picture import HtmlPiece, Picture, Video

__all__ = ["HtmlPiece", "Picture", "Video", "grid", "strip"]
