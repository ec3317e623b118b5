"""Appending piece by piece, through the page cache or past it: the bytes are the same."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from vlascope.runs.appender import DIRECT_BYTES, Appender, Staging


def pieces(sizes, *, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, n, np.uint8) for n in sizes]


@pytest.mark.parametrize(
    "batches",
    [
        [[5], [7, 11]],
        [[DIRECT_BYTES, 13], [4096], [1], [], [100_003, 4095, 4097]],
        [[DIRECT_BYTES]],
        [[DIRECT_BYTES - 1], [2 * DIRECT_BYTES]],
        [[DIRECT_BYTES + 1], [4095], [4095]],
    ],
)
def test_the_file_holds_the_pieces_in_order(tmp_path, batches):
    staging = Staging()
    ours, other = Appender(tmp_path / "a", staging=staging), Appender(tmp_path / "b", staging=staging)
    wanted, wanted_other = b"", b""
    for number, sizes in enumerate(batches):
        some, some_other = pieces(sizes, seed=number), pieces(sizes, seed=100 + number)
        ours.append(some)
        other.append(some_other)  # two files grow in turns from one staging memory
        wanted += b"".join(x.tobytes() for x in some)
        wanted_other += b"".join(x.tobytes() for x in some_other)
    ours.close()
    other.close()
    assert (tmp_path / "a").read_bytes() == wanted
    assert (tmp_path / "b").read_bytes() == wanted_other


def test_where_direct_writing_is_refused_the_page_cache_serves(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    data = pieces([DIRECT_BYTES, 3], seed=0)
    file = Appender(tmp_path / "a", staging=Staging())
    file.append(data)
    file.close()
    assert (tmp_path / "a").read_bytes() == b"".join(x.tobytes() for x in data)


def test_short_writes_go_on_where_they_stopped(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda no, data, at: real(no, data[:8192], at))
    data = pieces([DIRECT_BYTES, 5000], seed=1)
    file = Appender(tmp_path / "a", staging=Staging())
    file.append(data)
    file.close()
    assert (tmp_path / "a").read_bytes() == b"".join(x.tobytes() for x in data)


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        Appender(tmp_path / "a", staging=Staging()).append(pieces([DIRECT_BYTES], seed=0))
