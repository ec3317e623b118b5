"""How arrays travel: one binary message of a JSON header and the bytes of its parts."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> bytes:
    """Return a message: uint32 length of the header, the header (JSON, UTF-8), then the bytes of each array.

    The header gains `sizes`, the bytes of each array; it is padded with blanks so that arrays start at multiples of 4.
    """
    blobs = [np.ascontiguousarray(a) for a in arrays]
    text = json.dumps({**header, "sizes": [b.nbytes for b in blobs]}, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    views: list[Any] = [memoryview(blob.reshape(-1).view(np.uint8)) for blob in blobs]  # type: ignore[arg-type]
    return b"".join([struct.pack("<I", len(text)), text, *views])


def unpack(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header and the bytes of each array of a message made by `pack`."""
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    parts, at = [], 4 + length
    for size in header["sizes"]:
        parts.append(message[at : at + size])
        at += size
    return header, parts
