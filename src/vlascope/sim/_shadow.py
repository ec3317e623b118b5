"""The hand's shadow under a lamp straight above: it shows how far from the camera the hand is.

The camera stands far away, so a hand that moves along its line of sight hardly changes in the picture. The
renderer's own shadows cost several times the picture; this one is drawn from the depth image: a visible point
of the table, the pad or an object is darker when the hand is right above it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

HALF_LENGTH_M = 0.100  # the hand's outline from above, along y (the way the fingers open) ...
HALF_WIDTH_M = 0.030  # ... and along x
EDGE_M = 0.008
DARKNESS = 0.5


def points_from_depth(
    depth: np.ndarray, *, eye: np.ndarray, target: np.ndarray, fov_deg: float
) -> np.ndarray:
    """World coordinates of every pixel; float32 [h, w, 3] from metres along the camera's axis [h, w]."""
    rays = _rays(tuple(eye.tolist()), tuple(target.tolist()), fov_deg, *depth.shape)
    return (eye + depth[..., None] * rays).astype(np.float32)


@lru_cache(maxsize=16)
def _rays(
    eye_xyz: tuple[float, ...], target_xyz: tuple[float, ...], fov_deg: float, h: int, w: int
) -> np.ndarray:
    """Where each pixel looks, per metre along the camera's axis; [h, w, 3], the same for every picture of a scene."""
    eye, target = np.array(eye_xyz), np.array(target_xyz)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    reach = np.tan(np.radians(fov_deg) / 2)
    x = ((np.arange(w) + 0.5) / w * 2 - 1) * reach * w / h
    y = (1 - (np.arange(h) + 0.5) / h * 2) * reach
    rays = forward + x[None, :, None] * right + y[:, None, None] * up
    rays.flags.writeable = False  # shared
    return rays


def shadow_of_hand(points: np.ndarray, *, hand_xyz: np.ndarray) -> np.ndarray:
    """How much light each point keeps; float32 [h, w] between 1 - `DARKNESS` and 1."""
    inside_x = (HALF_WIDTH_M - np.abs(points[..., 0] - hand_xyz[0])) / EDGE_M + 0.5
    inside_y = (HALF_LENGTH_M - np.abs(points[..., 1] - hand_xyz[1])) / EDGE_M + 0.5
    covered = np.clip(inside_x, 0, 1) * np.clip(inside_y, 0, 1)
    return (1.0 - DARKNESS * covered).astype(np.float32)
