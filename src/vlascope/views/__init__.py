"""What is shown: summary grid, layer strip, coloured words, side-by-side video and the report."""

from .grid import grid, strip
from .picture import HtmlPiece, Picture, Video
from .recording import save_recording
from .report import Report, report
from .video import video
from .words import words

__all__ = [
    "HtmlPiece",
    "Picture",
    "Report",
    "Video",
    "grid",
    "report",
    "save_recording",
    "strip",
    "video",
    "words",
]
