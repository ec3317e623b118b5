"""The images of a run as the page gets them: small, and never a file from outside the run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, RunIncompleteError

if TYPE_CHECKING:
    from ..runs import Run

MAX_SIDE = 768
"""Longest side of an image on the page, pixels."""

_WHOLE_BYTES = 300_000
_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


def image_file(run: Run, item: int, camera: int) -> Path:
    """Return the file of an image of a run.

    Raises:
        InputError: no such item or camera; or the file lies outside the run, which a symbolic link or a forged
            table of items could make it do.
        RunIncompleteError: the file is missing.
    """
    row = run.items[item] if 0 <= item < run.n_items else None
    if row is None or not 0 <= camera < len(row.cameras):
        raise InputError("there is no such image in this run.")
    root = (run.path / "media").resolve()
    path = run.media_path(item, camera)
    inside = path.resolve().is_relative_to(root) and not any(
        part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(run.path / "media")
    )
    if not inside:
        raise InputError("an image of this run lies outside its folder; it is not served.")
    if not path.is_file():
        raise RunIncompleteError(
            "an image of this run is missing; mend it with `vlascope verify RUN --repair`."
        )
    return path


def image_bytes(run: Run, item: int, camera: int, *, max_side: int = MAX_SIDE) -> tuple[bytes, str]:
    """Return an image, no side above `max_side` pixels, and its media type.

    A small stored file is passed on as it is; a larger one becomes a JPEG without colour subsampling.

    Raises:
        InputError: no such image, or it lies outside the run.
        RunIncompleteError: its file is missing or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    path = image_file(run, item, camera)
    height, width = run.items[item].image_sizes[camera]
    kind = _TYPES.get(path.suffix.lower())
    if kind and max(width, height) <= max_side and path.stat().st_size <= _WHOLE_BYTES:
        return path.read_bytes(), kind
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (max_side, max_side))
            small = picture.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise RunIncompleteError(
            "an image of this run is damaged; mend it with `vlascope verify RUN --repair`."
        ) from error
    small.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue(), "image/jpeg"
