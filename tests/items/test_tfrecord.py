from __future__ import annotations

import pickle

import numpy as np
import pytest
from items_helpers import example, tfrecord

from vlascope.errors import ItemError, ItemNotFoundError
from vlascope.items._tfrecord import (
    RecordFile,
    crc32c,
    crc32c_slow,
    decode_feature,
    feature_length,
    masked,
    raw_features,
)


def test_checksum_of_the_standard_and_of_the_formula():
    assert crc32c_slow(b"123456789") == 0xE3069283  # the check value of CRC-32C
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 1000):
        data = rng.bytes(n)
        assert crc32c(data) == crc32c_slow(data)
    assert masked(0) == 0xA282EAD8 and masked(0xFFFFFFFF) == 0xA282EAD7


@pytest.mark.parametrize("packed", [True, False])
def test_values_come_back(packed):
    numbers = np.array([0, 1, 127, 128, 300, -1, -(2**40), 2**62])
    raw = raw_features(example({"f": np.array([0.5, -3, 7]), "i": numbers, "b": [b"ab", b""]}, packed=packed))
    np.testing.assert_array_equal(decode_feature(raw["f"]), np.float32([0.5, -3, 7]))
    np.testing.assert_array_equal(decode_feature(raw["i"]), numbers)
    assert decode_feature(raw["b"]) == [b"ab", b""]
    assert [feature_length(raw[k]) for k in "fib"] == [3, 8, 2]


def test_records_and_their_damage(tmp_path):
    records = [b"first", b"", b"third record"]
    data = tfrecord(records)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(data)
    file = RecordFile(path)
    assert [file.read(i) for i in range(3)] == records and file.broken is None
    assert pickle.loads(pickle.dumps(file)).read(2) == records[2]

    path.write_bytes(data[:-6])
    cut = RecordFile(path)
    assert len(cut) == 2 and "ends 6 bytes early" in str(cut.broken) and "record 2" in str(cut.broken)
    path.write_bytes(data + b"12345")
    assert len(RecordFile(path)) == 3 and "ends in its header" in str(RecordFile(path).broken)

    damaged = bytearray(data)
    damaged[14] ^= 1  # in the bytes of record 0
    path.write_bytes(damaged)
    with pytest.raises(ItemError, match="record 0: its bytes do not match"):
        RecordFile(path).read(0)
    assert RecordFile(path).read(2) == records[2]
    damaged = bytearray(data)
    damaged[21 + 3] ^= 1  # in the length of record 1
    path.write_bytes(damaged)
    assert len(RecordFile(path)) == 1 and "record 1 at byte 21" in str(RecordFile(path).broken)

    path.write_bytes(b"this is some other file, no records")
    assert "no TFRecord file" in str(RecordFile(path).broken)
    path.write_bytes(b"")
    assert len(RecordFile(path)) == 0 and RecordFile(path).broken is None
    with pytest.raises(ItemNotFoundError, match="nothing"):
        RecordFile(tmp_path / "nothing")


@pytest.mark.parametrize("record", [b"\x0a\xff\x01short", b"\x0b", b"\x0a\x03\x0a\x7fx", b"\xff" * 12])
def test_what_is_no_example_is_said(record):
    with pytest.raises(ItemError, match="that one is not a tf.train.Example"):
        raw_features(record, name="that one")
