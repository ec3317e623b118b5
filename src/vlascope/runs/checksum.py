"""Checksums of the files of a run: CRC-32C for activations, SHA-256 for the small rest.

Activations are most of a run, and their checksum is taken while the model computes: CRC-32C costs a fifteenth of
SHA-256 (27 against 1.8 GB/s on a core with SHA instructions) and finds every burst error of up to 32 bits. It tells
damage, not forgery. Runs of the first format have SHA-256 throughout; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..files import file_hash

CHUNK_BYTES = 1 << 20


class Crc32c:
    """The CRC-32C (Castagnoli) of bytes that come piece by piece.

    References: RFC 3720, appendix B.4.
    """

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: NDArray[np.uint8] | bytes) -> None:
        """Go on with more bytes; a contiguous array is not copied."""
        self._value = google_crc32c.extend(self._value, data)  # type: ignore[arg-type]  # any plain buffer will do

    def hexdigest(self) -> str:
        """Return the checksum so far, eight hexadecimal digits."""
        return f"{self._value:08x}"


def file_crc32c(path: Path) -> str:
    """Return the CRC-32C of a file's bytes, eight hexadecimal digits."""
    digest = Crc32c()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_intact(path: Path, entry: Mapping[str, Any]) -> bool:
    """Return whether a file still has the checksum of its entry in a commit marker, whichever kind that is.

    Cost: reads the file once.
    """
    if "crc32c" in entry:
        return file_crc32c(path) == entry["crc32c"]
    return file_hash(path) == entry["sha256"]
