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
