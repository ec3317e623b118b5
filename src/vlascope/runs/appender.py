"""Appending to a file, past the system's page cache where that saves the processor work."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIRECT_BYTES = 1 << 20
"""A file whose first piece is smaller is written through the page cache: each direct write waits for the disk."""

_ALIGN = 4096  # of memory, place in the file and length; a multiple of every disk's sector
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class Staging:
    """Aligned memory that direct writes start from; one serves many files, one after the other."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def at_least(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return aligned memory of at least so many bytes; what it held before may be lost."""
        if len(self._memory) < n_bytes:
            self._memory = np.frombuffer(mmap.mmap(-1, -(-n_bytes // _ALIGN) * _ALIGN), np.uint8)
        return self._memory


class Appender:
    """Appends to one file that is open only while a piece is written, so that hundreds may grow at once.

    A page cache takes a core's time for every byte (2 ns on a virtual machine that must be given fresh memory for it),
    which a model on the same cores then lacks; and activations are rarely read again at once. Large pieces therefore
    go to the disk directly (O_DIRECT) where the system and the file system can do that. The bytes are the same.
    """

    def __init__(self, path: Path, *, staging: Staging) -> None:
        self.path, self._staging = path, staging
        self._is_direct: bool | None = None
        self._n_written = 0
        self._tail = b""  # shorter than one aligned piece; written by `close`

    def append(self, pieces: Sequence[NDArray[np.uint8]]) -> None:
        """Append contiguous uint8 arrays [n_i], in order.

        Raises:
            OSError: the disk is full, read-only, ...
        """
        n_bytes = sum(len(piece) for piece in pieces)
        if self._is_direct is None:
            self._is_direct = n_bytes >= DIRECT_BYTES and self._can_be_direct()
        if not self._is_direct:
            with self.path.open("ab") as handle:
                for piece in pieces:
                    handle.write(piece.data)
            return
        memory = self._staging.at_least(len(self._tail) + n_bytes)
        end = len(self._tail)
        memory[:end] = np.frombuffer(self._tail, np.uint8)
        for piece in pieces:
            memory[end : end + len(piece)] = piece
            end += len(piece)
        whole = end // _ALIGN * _ALIGN
        self._tail = memory[whole:end].tobytes()
        self._write(memory[:whole].data, os.O_WRONLY | os.O_DIRECT)

    def close(self) -> None:
        """Write what is left."""
        if self._tail:
            self._write(memoryview(self._tail), os.O_WRONLY)
            self._tail = b""

    def _can_be_direct(self) -> bool:
        if not hasattr(os, "O_DIRECT"):  # not Linux
            return False
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o666))
        except OSError as error:
            if error.errno in _UNSUPPORTED:  # a file system in memory, or on a network
                return False
            raise
        return True

    def _write(self, data: memoryview, flags: int) -> None:
        handle_no = os.open(self.path, flags)
        try:
            while len(data):
                n_bytes = os.pwrite(handle_no, data, self._n_written)
                self._n_written += n_bytes
                data = data[n_bytes:]
        finally:
            os.close(handle_no)
