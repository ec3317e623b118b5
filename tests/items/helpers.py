"""Small made-up episodes and pictures for the tests of the items room."""

from __future__ import annotations

import numpy as np

from vlascope.items import EpisodeData

FPS = 10
STATE_NAMES = ["x", "y", "z", "roll", "open"]
ACTION_NAMES = ["dx", "dy", "dz"]


def picture(height: int, width: int, step: int = 0, *, seed: int = 0) -> np.ndarray:
    """A smooth picture that differs for every step, so that a wrong frame is seen."""
    row, col = np.mgrid[0:height, 0:width]
    planes = [row * 3 + seed * 31, col * 2 + step * 9, np.full_like(row, 20 + step * 11 + seed * 17)]
    return np.stack([np.abs(plane % 400 - 200) + 20 for plane in planes], -1).astype(np.uint8)


def episode(n_frames: int, index: int, *, height: int = 26, width: int = 38, **changes) -> EpisodeData:
    rng = np.random.default_rng(index)
    fields = {
        "frames": {
            "main": np.stack([picture(height, width, t, seed=index) for t in range(n_frames)]),
            "wrist": np.stack([picture(22, 18, t, seed=index + 5) for t in range(n_frames)]),
        },
        "state": rng.normal(size=(n_frames, 5)).astype(np.float32),
        "action": rng.normal(size=(n_frames, 3)).astype(np.float32),
        "task": ["pick up the red object", "put the blue object on the pad"][index % 2],
        "masks": rng.integers(0, 5, (n_frames, height, width)).astype(np.uint8),
        "mask_names": {1: "arm", 4: f"object {index}"},
        "labels": {"success": index % 2 == 0, "target": "red", "n_objects": 2 + index, "note": None},
        "frame_labels": {"holding": np.arange(n_frames) >= 3, "force": np.linspace(0, 1, n_frames)},
        "poses": {"gripper": rng.normal(size=(n_frames, 7)).astype(np.float32)},
        "events": {"grasp": 3} if n_frames > 3 else {},
    }
    return EpisodeData(**(fields | changes))


LENGTHS = (13, 5, 17)


def episodes() -> list[EpisodeData]:
    return [episode(n, index) for index, n in enumerate(LENGTHS)]


# ---- TFRecord, written by hand ----


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def example(features: dict[str, object], *, packed: bool = True) -> bytes:
    """A tf.train.Example of lists of bytes, of float32 arrays or of int arrays."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            feature = _field(1, b"".join(_field(1, v) for v in values))
        elif np.asarray(values).dtype.kind == "f":
            feature = _field(2, _field(1, np.asarray(values, "<f4").tobytes()))
        elif packed:
            feature = _field(3, _field(1, b"".join(_varint(int(v)) for v in np.asarray(values))))
        else:
            feature = _field(3, b"".join(_varint(8) + _varint(int(v)) for v in np.asarray(values)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def tfrecord(records: list[bytes]) -> bytes:
    import struct

    from vlascope.items._tfrecord import crc32c_slow, masked

    out = b""
    for record in records:
        head = struct.pack("<Q", len(record))
        out += head + struct.pack("<I", masked(crc32c_slow(head)))
        out += record + struct.pack("<I", masked(crc32c_slow(record)))
    return out


def png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def rlds_episode(n_steps: int, index: int) -> bytes:
    """One record: two cameras, state of 5, action of 3, a reward, an instruction, two facts of the episode."""
    rng = np.random.default_rng(index)
    return example(
        {
            "steps/observation/front": [png(picture(11, 13, t, seed=index)) for t in range(n_steps)],
            "steps/observation/wrist": [png(picture(7, 5, t, seed=index)) for t in range(n_steps)],
            "steps/observation/state": rng.normal(size=n_steps * 5),
            "steps/action": np.arange(n_steps * 3) + 100.0 * index,
            "steps/is_first": np.arange(n_steps) == 0,
            "steps/reward": np.arange(n_steps) / 10,
            "steps/language_instruction": [f"task {index}".encode()] * n_steps,
            "episode_metadata/robot": [b"arm"],
            "episode_metadata/offset": np.array([-7 - index]),
        }
    )


def write_rlds(folder, lengths=(5, 3, 7), *, split: str = "train", shard=(0, 1)):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"toy-{split}.tfrecord-{shard[0]:05d}-of-{shard[1]:05d}"
    path.write_bytes(tfrecord([rlds_episode(n, i) for i, n in enumerate(lengths)]))
    return path
