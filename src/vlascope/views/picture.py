"""What the drawing functions return: a picture, a piece of HTML or a video, each with its parameters."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import write_bytes, write_text

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that carries the parameters in JPEG and WebP files


def params_json(params: Mapping[str, Any]) -> str:
    """Return parameters as one line of JSON with sorted keys (what every saved file carries)."""
    return json.dumps(params, sort_keys=True, default=str, ensure_ascii=False)


@dataclass(frozen=True)
class Picture:
    """A finished picture; shows itself in a notebook.

    Attributes:
        image: RGB.
        params: What it shows and how that was computed; written into every saved file.
    """

    image: Image.Image
    params: Mapping[str, Any] = field(default_factory=dict)

    def to_png(self) -> bytes:
        """Return the bytes of a PNG file that carries `params` as JSON in its text chunk "vlascope"."""
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_text("Software", f"vlascope {self.params.get('vlascope', '')}".strip())
        chunks.add_itxt("vlascope", params_json(self.params))
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG", pnginfo=chunks, optimize=True)
        return buffer.getvalue()

    def save(self, path: Path | str) -> Path:
        """Write the picture to `path` (.png, .jpg, .jpeg or .webp) and return it.

        Raises:
            InputError: another file name extension.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".png":
            return write_bytes(path, self.to_png())
        formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
        if suffix not in formats:
            raise InputError(
                f"cannot save a picture as '{path.name}': the name must end in .png, .jpg or .webp."
            )
        from PIL import Image

        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = params_json(self.params).encode("ascii", "backslashreplace").decode()
        buffer = io.BytesIO()
        self.image.save(buffer, formats[suffix], quality=92, exif=exif)
        return write_bytes(path, buffer.getvalue())

    def show(self) -> None:
        """Open the picture in the system's viewer."""
        self.image.show()

    def _repr_png_(self) -> bytes:
        return self.to_png()

    def __repr__(self) -> str:
        return f"Picture({self.image.width} x {self.image.height}, {self.params.get('view', 'picture')})"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{generator}"><meta name="vlascope" content="{params}"><title>{title}</title>
<style>{style}</style></head><body class="vls vls-page"><main>{body}</main></body></html>
"""


@dataclass(frozen=True)
class HtmlPiece:
    """A piece of HTML that needs nothing from outside; shows itself in a notebook.

    Attributes:
        html: The fragment, all text escaped.
        style: The CSS that it needs.
        title: Plain text.
        params: What it shows and how that was computed; written into every saved file.
    """

    html: str
    style: str
    title: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def to_page(self) -> str:
        """Return a whole HTML page."""
        from markupsafe import escape

        return _PAGE.format(
            generator=escape(f"vlascope {self.params.get('vlascope', '')}".strip()),
            params=escape(params_json(self.params)),
            title=escape(self.title),
            style=self.style,
            body=self.html,
        )

    def save(self, path: Path | str) -> Path:
        """Write a whole HTML page to `path` (.html) and return it.

        Raises:
            InputError: another file name extension.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"cannot save a page as '{path.name}': the name must end in .html.")
        return write_text(path, self.to_page())

    def _repr_html_(self) -> str:
        return f"<style>{self.style}</style>{self.html}"

    def __repr__(self) -> str:
        return f"HtmlPiece({self.title!r}, {len(self.html)} characters)"


@dataclass(frozen=True)
class Video:
    """A finished H.264 video in an MP4 container, playable in browsers; shows itself in a notebook.

    Attributes:
        data: The bytes of the file.
        width: Pixels.
        height: Pixels.
        n_frames: Frames.
        fps: Frames per second of playback.
        poster: The first frame as a JPEG file, shown before the video plays.
        params: What it shows and how that was computed; also in the file's metadata ("comment").
    """

    data: bytes
    width: int
    height: int
    n_frames: int
    fps: float
    poster: bytes
    params: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path | str) -> Path:
        """Write the video to `path` (.mp4) and return it.

        Raises:
            InputError: another file name extension.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".mp4":
            raise InputError(f"cannot save a video as '{path.name}': the name must end in .mp4.")
        return write_bytes(path, self.data)

    def data_uri(self) -> str:
        """Return the video as a data: URI for an HTML page."""
        import base64

        return "data:video/mp4;base64," + base64.b64encode(self.data).decode()

    def poster_uri(self) -> str:
        """Return the first frame as a data: URI."""
        import base64

        return "data:image/jpeg;base64," + base64.b64encode(self.poster).decode()

    def _repr_html_(self) -> str:
        return (
            f'<video controls loop muted playsinline style="max-width:100%" src="{self.data_uri()}"></video>'
        )

    def __repr__(self) -> str:
        return f"Video({self.width} x {self.height}, {self.n_frames} frames, {self.fps:g} fps)"
