"""The templates and styles of everything that is HTML; all text that comes from data is escaped."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import jinja2


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Return the Jinja environment of this package's templates, with autoescape on and undefined names refused."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("vlascope.views", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Return a template filled with `values`."""
    return environment().get_template(template).render(**values)


def asset(name: str) -> str:
    """Return the text of a file beside the templates (a style sheet or a script)."""
    return (files("vlascope.views") / "templates" / name).read_text(encoding="utf-8")


def png_uri(
    rgb_hw3: NDArray[np.uint8], *, alpha_hw: NDArray[np.bool_] | NDArray[np.uint8] | None = None
) -> str:
    """Return a small image as a data: URI (PNG); False (or 0, of 255) in `alpha_hw` is transparent."""
    pixels: NDArray[Any] = rgb_hw3
    if alpha_hw is not None and not (alpha_hw.dtype == np.bool_ and alpha_hw.all()):
        alpha = alpha_hw if alpha_hw.dtype == np.uint8 else np.where(alpha_hw, 255, 0).astype(np.uint8)
        pixels = np.dstack([rgb_hw3, alpha])
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 [h, w, 3 or 4] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def jpeg_uri(image_hw3: NDArray[np.uint8], *, max_side: int, quality: int = 88) -> str:
    """Return a photograph as a data: URI (JPEG), reduced so that no side exceeds `max_side` pixels."""
    from PIL import Image

    picture = Image.fromarray(image_hw3)
    scale = max_side / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    data = jpeg_bytes(np.asarray(picture), quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def jpeg_bytes(image_hw3: NDArray[np.uint8], *, quality: int = 88) -> bytes:
    """Return an image as a JPEG file without colour subsampling (small images keep their coloured edges)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_hw3).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def array_base64(values: NDArray[Any]) -> str:
    """Return the little-endian bytes of an array as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
