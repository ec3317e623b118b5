"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

A file is a row of records: uint64 length, uint32 masked CRC-32C of the length, the bytes, uint32 masked CRC-32C of
the bytes, all little-endian (TensorFlow, `core/lib/io/record_writer.h`). A record holds one protocol buffer
`Example{features: Features{feature: map<string, Feature>}}`, a `Feature` being a list of bytes, floats or int64s
(`core/example/feature.proto`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, ItemNotFoundError

_HEADER, _FOOTER = 12, 4
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C (Castagnoli) of `data`.

    Cost: 1 GB/s and more; zarr brings the compiled routine along. `crc32c_slow` is the formula.
    """
    import google_crc32c

    return google_crc32c.value(bytes(data))


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def crc32c_slow(data: bytes) -> int:
    """Return the CRC-32C of `data`, byte by byte: what `crc32c` computes."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """Return a CRC as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


class RecordFile:
    """One TFRecord file: where its records are, and their bytes on demand. The file is mapped, not read.

    Only the lengths (with their checksums) are looked at on opening.

    Attributes:
        spans: (start, length) of each record's bytes.
        broken: Why the rest of the file cannot be read; None when the file is whole.

    Raises:
        ItemNotFoundError: no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: Any = None
        self.spans: list[tuple[int, int]] = []
        self.broken: str | None = None
        self._index()

    def _data(self) -> Any:
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    # An empty file cannot be mapped.
                    empty = self.path.stat().st_size == 0
                    self._map = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError as error:
                raise ItemNotFoundError(
                    f"there is no file '{self.path}'; is the download complete?"
                ) from error
        return self._map

    def _index(self) -> None:
        data, start = self._data(), 0
        while start < len(data):
            number, name = len(self.spans), f"'{self.path}', record {len(self.spans)} at byte {start}"
            if start + _HEADER > len(data):
                self.broken = f"{name}: the file ends in its header; it is cut short. Fetch it again."
                return
            length, crc = struct.unpack_from("<QI", data, start)
            if masked(crc32c(data[start : start + 8])) != crc:
                what = "it is no TFRecord file" if number == 0 else "the file is damaged there"
                self.broken = f"{name}: the checksum of its length is wrong; {what}. Fetch it again."
                return
            end = start + _HEADER + length + _FOOTER
            if end > len(data):
                self.broken = (
                    f"{name}: the file ends {end - len(data)} bytes early; it is cut short. Fetch it again."
                )
                return
            self.spans.append((start + _HEADER, length))
            start = end

    def __len__(self) -> int:
        return len(self.spans)

    def view(self, number: int) -> memoryview:
        """Return the bytes of a record as they are, without checking them."""
        start, length = self.spans[number]
        return memoryview(self._data())[start : start + length]

    def read(self, number: int) -> bytes:
        """Return the bytes of a record. Raises `ItemError` when they do not match their checksum."""
        start, length = self.spans[number]
        data = self._data()
        record = bytes(data[start : start + length])
        (crc,) = struct.unpack_from("<I", data, start + length)
        if masked(crc32c(record)) != crc:
            raise ItemError(
                f"'{self.path}', record {number}: its bytes do not match their checksum; the file is damaged. "
                "Fetch it again."
            )
        return record

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # a map does not travel to another process


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield (field number, wire type, value) of a message; bytes fields as views."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire} is not part of an Example")
        if at > end:
            raise ValueError("a field reaches beyond its message")
        yield number, wire, value


def raw_features(record: bytes | memoryview, *, name: str = "record") -> dict[str, memoryview]:
    """Return the features of an Example by name, not decoded; no image byte is touched.

    Raises:
        ItemError: not an Example.
    """
    found: dict[str, memoryview] = {}
    try:
        for number, wire, features in _fields(memoryview(record)):
            if number != 1 or wire != _BYTES:
                continue
            for entry_number, _, entry in _fields(features):
                if entry_number != 1:
                    continue
                key, value = "", memoryview(b"")
                for part, _, content in _fields(entry):
                    if part == 1:
                        key = bytes(content).decode()
                    elif part == 2:
                        value = content
                found[key] = value
    except (ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ItemError(f"{name} is not a tf.train.Example ({error}); need RLDS or TFDS records.") from error
    return found


def decode_feature(raw: memoryview, *, name: str = "feature") -> Feature:
    """Return a Feature: a list of bytes, float32 [n] or int64 [n]; an empty one is an empty list of bytes.

    Raises:
        ItemError: not a Feature.
    """
    try:
        for number, _, content in _fields(raw):
            if number == 1:
                return [bytes(value) for part, _, value in _fields(content) if part == 1]
            if number == 2:
                parts = [np.frombuffer(value, "<f4") for part, _, value in _fields(content) if part == 1]
                return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)
            if number == 3:
                return _int64s(content)
    except (ValueError, IndexError, TypeError) as error:
        raise ItemError(f"{name} is not a tf.train.Feature ({error}); the file is damaged.") from error
    return []


def _int64s(content: memoryview) -> NDArray[np.int64]:
    values: list[int] = []
    for part, wire, value in _fields(content):
        if part != 1:
            continue
        if wire == _VARINT:
            values.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            values.append(number)
    # Negative numbers travel as their two's complement in 64 bits.
    return np.array(values, np.uint64).astype(np.int64)


def feature_length(raw: memoryview, *, name: str = "feature") -> int:
    """Return how many values a Feature holds, without copying them."""
    try:
        for number, _, content in _fields(raw):
            if number == 1:
                return sum(1 for part, _, _ in _fields(content) if part == 1)
            if number == 2:
                return sum(len(value) // 4 for part, _, value in _fields(content) if part == 1)
            if number == 3:
                return len(_int64s(content))
    except (ValueError, IndexError, TypeError) as error:
        raise ItemError(f"{name} is not a tf.train.Feature ({error}); the file is damaged.") from error
    return 0
