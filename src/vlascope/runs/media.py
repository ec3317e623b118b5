"""The pixels that the model saw, kept with the run, so that reading never needs the original dataset."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunIncompleteError
from ..items.item import Item

_ORIGINAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MAX_ORIGINAL_BYTES = 32 << 20  # larger files are scans and the like: their PNG is stored


def encode_image(image: NDArray[np.uint8], *, source: str | None = None) -> tuple[bytes, str]:
    """Return a lossless file of an image and its suffix.

    The bytes of the source file are kept when they decode to exactly these pixels (a JPEG stays a JPEG, five to
    ten times smaller and quicker than its PNG); otherwise a PNG is made.

    Args:
        image: uint8 [h, w, 3].
        source: File that the image may have come from.
    """
    if source is not None:
        original = _original_bytes(image, Path(source))
        if original is not None:
            return original, Path(source).suffix.lower()
    return _png(image), ".png"


def _original_bytes(image: NDArray[np.uint8], path: Path) -> bytes | None:
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() not in _ORIGINAL_SUFFIXES or not path.is_file():
        return None
    if path.stat().st_size > _MAX_ORIGINAL_BYTES:
        return None
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.size != (image.shape[1], image.shape[0]):
                return None
            same = np.array_equal(np.asarray(picture.convert("RGB")), image)
    except (UnidentifiedImageError, OSError):  # e.g. a video frame whose source is no image: not our question
        return None
    return data if same else None


def _png(array: NDArray[Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    # Level 1 takes a third of the time of the default level and makes files about a tenth larger.
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def encode_mask(mask: NDArray[np.integer]) -> tuple[bytes, str]:
    """Return a lossless file of an integer map [h, w] and its suffix: PNG up to 16 bits, else .npy."""
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low >= 0 and high <= 255:
        return _png(mask.astype(np.uint8)), ".png"
    if low >= 0 and high <= 65535:
        return _png(mask.astype(np.uint16)), ".png"
    buffer = io.BytesIO()
    np.save(buffer, mask, allow_pickle=False)
    return buffer.getvalue(), ".npy"


def encode_item(item: Item, *, stem: str) -> tuple[dict[str, bytes], list[str], dict[str, str]]:
    """Return the media files of an item.

    Args:
        item: Its images and masks are encoded.
        stem: Start of the file names, e.g. "0000041".

    Returns:
        files: Bytes by file name.
        media: File name per camera.
        mask_media: File name per mask.
    """
    files: dict[str, bytes] = {}
    media: list[str] = []
    mask_media: dict[str, str] = {}
    for camera, image in enumerate(item.images):
        data, suffix = encode_image(image, source=item.source if camera == 0 else None)
        media.append(f"{stem}.{camera}{suffix}")
        files[media[-1]] = data
    for number, (name, mask) in enumerate(sorted(item.masks.items())):
        data, suffix = encode_mask(mask)
        mask_media[name] = f"{stem}.mask{number}{suffix}"
        files[mask_media[name]] = data
    return files, media, mask_media


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return a stored image, uint8 [h, w, 3]."""
    from PIL import Image

    _check(path)
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def read_mask(path: Path) -> NDArray[np.integer]:
    """Return a stored mask, integer [h, w]."""
    from PIL import Image

    _check(path)
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    with Image.open(path) as picture:
        return np.array(picture)


def _check(path: Path) -> None:
    if not path.is_file():
        raise RunIncompleteError(
            f"'{path}' is missing; the run is damaged. Mend it with `vlascope verify RUN --repair`."
        )
