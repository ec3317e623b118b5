"""The scripted expert: what a perfect robot would do now, from the present state alone.

It has no memory, so every state can be labelled, also one that no expert would reach. Its waypoints are whole
(the world limits the step): the model learns where to go, not how fast.
"""

from __future__ import annotations

import numpy as np

from vlascope.errors import InputError
from vlascope.sim.language import Task
from vlascope.sim.scene import CYLINDER_HEIGHT, Scene
from vlascope.sim.world import State, on_pad

HOVER_Z = 0.140  # metres; the grasp point's height while travelling with empty hands
CARRY_Z = 0.170
LIFT_Z = 0.185
SAFE_EMPTY_Z = 0.100  # below this, rise first if the target is not right here
SAFE_CARRY_Z = 0.145
NEAR_M = 0.04
GRASP_TOLERANCE_M = 0.015

OPEN, CLOSE = 0.0, 1.0


def grasp_z(height: float) -> float:
    """Height of the grasp point for an object of this height, metres; the palm then clears its neighbours."""
    return 0.054 if height >= CYLINDER_HEIGHT else 0.050


def expert_action(scene: Scene, state: State, *, task: Task, target: int) -> np.ndarray:
    """The expert's action for a task in the present state.

    Args:
        scene: What is on the table.
        state: Where everything is now.
        task: "pick" (lift the target) or "place" (put it on the pad).
        target: Index of the object.

    Returns:
        (dx, dy, dz, grip): metres from the gripper to its waypoint, and 0 = open or 1 = close; float64 [4].

    Raises:
        InputError: Unknown task or no such object.
    """
    if not 0 <= target < len(scene.objects):
        raise InputError(f"got target {target}; the scene has objects 0 to {len(scene.objects) - 1}.")
    if task == "pick":
        if state.holding == target:
            return _go(0.0, 0.0, LIFT_Z - state.gripper_xyz[2], CLOSE)
        return _approach(scene, state, target)
    if task == "place":
        return _place(scene, state, target)
    raise InputError(f"got task {task!r}; tasks are 'pick' and 'place'.")


def _approach(scene: Scene, state: State, target: int) -> np.ndarray:
    """Above the target, down around it as the error shrinks, then close."""
    hand = state.gripper_xyz
    low = grasp_z(scene.objects[target].height)
    low += state.object_xyz[target, 2] - scene.objects[target].height / 2  # it may not stand on the table
    dx, dy = state.object_xyz[target, :2] - hand[:2]
    error = float(np.hypot(dx, dy))
    if error > NEAR_M and hand[2] < SAFE_EMPTY_Z:
        return _go(0.0, 0.0, HOVER_Z - hand[2], OPEN)
    dz = _descent(error, low=low, high=max(HOVER_Z, low)) - hand[2]
    aligned = error < GRASP_TOLERANCE_M and abs(low - hand[2]) < GRASP_TOLERANCE_M
    # Closed fingers that hold nothing, or the wrong object, are opened first.
    return _go(dx, dy, dz, CLOSE if aligned and state.gripper_open else OPEN)


def _place(scene: Scene, state: State, target: int) -> np.ndarray:
    hand = state.gripper_xyz
    height = scene.objects[target].height
    placed = on_pad(state, target, height=height, margin=0.02)
    if state.holding != target:
        if placed:  # done: leave it and go up
            return _go(0.0, 0.0, LIFT_Z - hand[2], OPEN)
        return _approach(scene, state, target)
    dx, dy = state.pad_xy - hand[:2]
    error = float(np.hypot(dx, dy))
    if error > NEAR_M and hand[2] < SAFE_CARRY_Z:
        return _go(0.0, 0.0, CARRY_Z - hand[2], CLOSE)
    # The hand's height when the object it holds stands on the table.
    down = height / 2 + hand[2] - state.object_xyz[target, 2]
    dz = _descent(error, low=down, high=CARRY_Z) - hand[2]
    release = error < GRASP_TOLERANCE_M and dz > -0.010
    return _go(dx, dy, dz, OPEN if release else CLOSE)


def _descent(error: float, *, low: float, high: float) -> float:
    """Height of the waypoint: `high` far away, falling to `low` as the horizontal error goes to zero."""
    return low + (high - low) * float(np.clip((error - 0.012) / 0.03, 0.0, 1.0))


def _go(dx: float, dy: float, dz: float, grip: float) -> np.ndarray:
    return np.array([dx, dy, dz, grip], dtype=np.float64)
