"""Scripted failures: the expert made to fail in a known way.

What a script intends is kept as the label `failure`; how the episode really ended is judged from its states
(`vlascope.sim.episode.judge`), and the two may differ: a slippery object is sometimes lifted all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vlascope.errors import InputError, nearest_text
from vlascope.sim.expert import CLOSE, LIFT_Z, OPEN, expert_action
from vlascope.sim.language import Instruction
from vlascope.sim.scene import Scene
from vlascope.sim.world import GRIP_FORCE_N, Observation, State, on_pad

FAILURES = ("none", "grasp_offset", "slip", "wrong_object", "drop")

Script = Callable[[Observation, State], "np.ndarray | None"]

# Friction of a slipping object, as a multiple of what Coulomb's law needs to carry it. Above 1 it should hold, but
# the solver's contacts creep: as measured, an object leaves the table at about 2, slides out in mid-air from about
# 2.5 and is lifted all the same from about 4.
SLIP_SHARES = (1.0, 3.4)

_GRAVITY = 9.81
_LAST_LOOKS = 3  # steps that a script stays once it has failed
_MAX_CLOSES = 2  # attempts on an object that slips


def script_failure(
    scene: Scene, *, instruction: Instruction, failure: str, seed: int | np.random.Generator
) -> tuple[Scene, Script]:
    """A scene and a script that (usually) fails in the given way.

    Args:
        scene: Scene to act in.
        instruction: What the episode claims to do.
        failure: "none"; "grasp_offset" (closes 5 to 6.5 cm beside the target's middle); "slip" (the target is too
            smooth for the grip); "wrong_object" (another object is taken); "drop" (opens on the way).
        seed: Draws how exactly.

    Returns:
        The scene, changed for "slip", and the script to use as `act` of `run_episode`; it returns None (gives up)
        a few steps after it failed.

    Raises:
        InputError: Unknown failure, or "wrong_object" with a single object on the table.
    """
    rng = np.random.default_rng(seed)
    task, target = instruction.task, instruction.target
    if failure == "none":
        return scene, lambda _, state: expert_action(scene, state, task=task, target=target)
    if failure == "grasp_offset":
        return scene, _grasp_offset(scene, instruction, rng)
    if failure == "slip":
        slippery = _make_slippery(scene, target, share=float(rng.uniform(*SLIP_SHARES)))
        return slippery, _slip(slippery, instruction)
    if failure == "wrong_object":
        others = [i for i in range(len(scene.objects)) if i != target]
        if not others:
            raise InputError("'wrong_object' needs at least two objects on the table; this scene has one.")
        wrong = int(rng.choice(others))
        return scene, _wrong_object(scene, instruction, wrong)
    if failure == "drop":
        return scene, _drop(scene, instruction, rng)
    known = ", ".join(FAILURES)
    raise InputError(f"got failure {failure!r}; known are {known}.{nearest_text(failure, FAILURES)}")


def _grasp_offset(scene: Scene, instruction: Instruction, rng: np.random.Generator) -> Script:
    """Approaches a place beside the target, closes there, and goes up without noticing."""
    spec = scene.objects[instruction.target]
    side = -1.0 if spec.x > 0.5 else 1.0  # along x, where the fingers have no wall; inside the reach
    shift = np.array([side * rng.uniform(0.050, 0.065), 0.0, 0.0])
    closed = False

    def act(_: Observation, state: State) -> np.ndarray | None:
        nonlocal closed
        if closed:
            return _rise(state, CLOSE)
        believed = state.object_xyz.copy()
        believed[instruction.target] += shift
        action = expert_action(
            scene, dataclasses.replace(state, object_xyz=believed), task="pick", target=instruction.target
        )
        closed = bool(action[3] == CLOSE)
        return action

    return act


def _make_slippery(scene: Scene, target: int, *, share: float) -> Scene:
    """The target with `share` times the friction that would just carry it (the fingers have friction 1)."""
    spec = scene.objects[target]
    smooth = dataclasses.replace(spec, friction=share * spec.mass * _GRAVITY / (2 * GRIP_FORCE_N))
    objects = (*scene.objects[:target], smooth, *scene.objects[target + 1 :])
    return scene.replace(objects=objects)


def _slip(scene: Scene, instruction: Instruction) -> Script:
    """The expert, giving up when the object slipped out of its grip for the last time."""
    closes, was_open = 0, True

    def act(_: Observation, state: State) -> np.ndarray | None:
        nonlocal closes, was_open
        closes += was_open and not state.gripper_open
        was_open = state.gripper_open
        if closes >= _MAX_CLOSES and state.gripper_open:
            return _rise(state, OPEN)
        return expert_action(scene, state, task=instruction.task, target=instruction.target)

    return act


def _wrong_object(scene: Scene, instruction: Instruction, wrong: int) -> Script:
    """The expert on another object, until that is lifted or on the pad."""
    finished = 0

    def act(_: Observation, state: State) -> np.ndarray | None:
        nonlocal finished
        if instruction.task == "pick":
            finished += state.holding == wrong and state.gripper_xyz[2] > LIFT_Z - 0.01
        else:
            height = scene.objects[wrong].height
            finished += state.gripper_open and on_pad(state, wrong, height=height)
        if finished > _LAST_LOOKS:
            return None
        return expert_action(scene, state, task=instruction.task, target=wrong)

    return act


def _drop(scene: Scene, instruction: Instruction, rng: np.random.Generator) -> Script:
    """Opens while the target is in the air: for "place" far from the pad, on its way up or across."""
    target = instruction.target
    rest = scene.objects[target].height / 2
    low, high = (0.04, 0.065) if instruction.task == "pick" else (0.05, 0.085)
    lift_at_drop = rng.uniform(low, high)
    dropped = False

    def act(_: Observation, state: State) -> np.ndarray | None:
        nonlocal dropped
        lift = state.object_xyz[target, 2] - rest
        dropped = dropped or (state.holding == target and lift > lift_at_drop)
        if dropped:
            return _rise(state, OPEN)
        return expert_action(scene, state, task=instruction.task, target=target)

    return act


def _rise(state: State, grip: float) -> np.ndarray | None:
    """Straight up with the fingers as they are; None once there."""
    up = LIFT_Z - state.gripper_xyz[2]
    return np.array([0.0, 0.0, up, grip]) if up > 0.005 else None
