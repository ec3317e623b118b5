"""One episode in the world: run it step by step, keep what happened, and judge how it ended.

The judge looks at states only, never at what a script or a model intended, so that a label is true whatever
made the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlascope.sim.language import Instruction
from vlascope.sim.scene import Scene
from vlascope.sim.world import Observation, State, TableTop, on_pad

LIFT_M = 0.08  # a pick succeeds when the target is held this far above where it stood
TOUCHED_LIFT_M = 0.03  # an object that rose by this much was lifted, if only for a moment
RESTING_SPEED = 0.02  # m/s
MAX_STEPS: Mapping[str, int] = {"pick": 40, "place": 70}

# Every outcome that `judge` can give, by task.
OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "pick": ("success", "wrong_object", "dropped", "unfinished", "never_lifted"),
    "place": ("success", "wrong_object", "dropped", "not_on_pad", "not_released", "never_lifted"),
}

Act = Callable[[Observation, State], "np.ndarray | tuple[np.ndarray, Mapping[str, Any]] | None"]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What happened in one episode of T steps.

    Attributes:
        scene: What stood on the table.
        instruction: What was asked for.
        outcome: One of `OUTCOMES[instruction.task]`, from the states.
        states: T + 1 states, before each step and at the end.
        actions: float32 [T, 4].
        infos: What the policy reported with each action.
        events: Step of the first "close", of the target's "grasp" (between closed fingers), "lift" and "release".
        rgb: uint8 [T, h, w, 3], what the camera saw before each step; None unless kept.
        segmentation: uint8 [T, h, w]; None unless kept.
    """

    scene: Scene
    instruction: Instruction
    outcome: str
    states: tuple[State, ...]
    actions: np.ndarray
    infos: tuple[Mapping[str, Any], ...]
    events: Mapping[str, int]
    rgb: np.ndarray | None = None
    segmentation: np.ndarray | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        """Whether the instruction was carried out."""
        return self.outcome == "success"

    @property
    def n_steps(self) -> int:
        """Number of actions T."""
        return len(self.actions)

    @property
    def lifted(self) -> tuple[int, ...]:
        """Objects that were held above the table at any time."""
        peaks = _peak_lifts(self.states)
        return tuple(int(i) for i in np.flatnonzero(peaks > TOUCHED_LIFT_M))

    @property
    def first_close_error_m(self) -> float | None:
        """Horizontal distance of the hand from the target at the first close, or None if it never closed."""
        state = self._state_at_close()
        if state is None:
            return None
        return float(np.linalg.norm(state.object_xyz[self.instruction.target, :2] - state.gripper_xyz[:2]))

    @property
    def nearest_at_close(self) -> int:
        """The object nearest to the hand when it first closed, or at the end if it never closed."""
        state = self._state_at_close() or self.states[-1]
        distances = np.linalg.norm(state.object_xyz[:, :2] - state.gripper_xyz[:2], axis=1)
        return int(np.argmin(distances))

    def _state_at_close(self) -> State | None:
        return self.states[self.events["close"]] if "close" in self.events else None


def run_episode(
    world: TableTop,
    *,
    scene: Scene,
    instruction: Instruction,
    act: Act,
    max_steps: int | None = None,
    linger: int = 0,
    keep_frames: bool = False,
    see: Callable[[Observation], Observation] | None = None,
    labels: Mapping[str, Any] | None = None,
    render: bool = True,
) -> Episode:
    """Run one episode until its instruction is carried out or time is up.

    Args:
        world: Table to use; it is reset.
        scene: What to put on it.
        instruction: What is asked for.
        act: Chooses the action from the observation and the state (a model must look at the former only); may
            return (action, info), or None to give up.
        max_steps: Longest episode; default 40 for "pick", 70 for "place".
        linger: Steps to go on after success.
        keep_frames: Keep pictures and segmentation.
        see: Changes what `act` (and the kept pictures) see.
        labels: Facts to store with the episode.
        render: False saves the time of rendering when `act` looks at the state only; the observation then has
            empty pictures.

    Returns:
        The episode with its judged outcome.
    """
    play = Play(
        world,
        scene=scene,
        instruction=instruction,
        max_steps=max_steps,
        linger=linger,
        keep_frames=keep_frames,
        see=see,
        labels=labels,
        render=render,
    )
    while (seen := play.look()) is not None:
        answer = act(seen, play.state)
        if answer is None:
            play.stop()
            break
        action, info = answer if isinstance(answer, tuple) else (answer, {})
        play.act(action, info)
    return play.episode()


class Play:
    """An episode under way, for callers that play several side by side: `look`, then `act` or `stop`, then `episode`.

    Arguments are those of `run_episode`.
    """

    def __init__(
        self,
        world: TableTop,
        *,
        scene: Scene,
        instruction: Instruction,
        max_steps: int | None = None,
        linger: int = 0,
        keep_frames: bool = False,
        see: Callable[[Observation], Observation] | None = None,
        labels: Mapping[str, Any] | None = None,
        render: bool = True,
    ) -> None:
        self.world, self.scene, self.instruction = world, scene, instruction
        self.linger, self.keep_frames, self.see, self.render = linger, keep_frames, see, render
        self.labels = dict(labels or {})
        self._limit = MAX_STEPS[instruction.task] if max_steps is None else max_steps
        self._states = [world.reset(scene)]
        self._actions: list[np.ndarray] = []
        self._infos: list[Mapping[str, Any]] = []
        self._rgb: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._left: int | None = None
        self._ended = False

    @property
    def state(self) -> State:
        """Where everything is now."""
        return self._states[-1]

    @property
    def step(self) -> int:
        """Actions so far."""
        return len(self._actions)

    def look(self) -> Observation | None:
        """Return what the camera sees before the next action; None when the episode is over."""
        over = self._left is not None and self._left <= 0
        if self._ended or over or len(self._actions) >= self._limit:
            return None
        seen = self.world.observe() if self.render else self.world.observe_state()
        if self.see is not None:
            seen = self.see(seen)
        if self.keep_frames:
            self._rgb.append(seen.rgb)
            self._masks.append(seen.segmentation)
        return seen

    def act(self, action: np.ndarray, info: Mapping[str, Any] | None = None) -> None:
        """Carry out one action; `info` is kept beside it."""
        state = self.world.step(action)
        self._states.append(state)
        self._actions.append(np.asarray(action, dtype=np.float32))
        self._infos.append({} if info is None else info)
        if self._left is None and _done(self._states, scene=self.scene, instruction=self.instruction):
            self._left = self.linger
        elif self._left is not None:
            self._left -= 1

    def stop(self) -> None:
        """End the episode before the action that the last `look` was for."""
        self._ended = True
        del self._rgb[len(self._actions) :], self._masks[len(self._actions) :]

    def episode(self) -> Episode:
        """Return what happened so far, judged."""
        states = self._states
        return Episode(
            scene=self.scene,
            instruction=self.instruction,
            outcome=judge(states, scene=self.scene, instruction=self.instruction),
            states=tuple(states),
            actions=np.array(self._actions, dtype=np.float32).reshape(-1, 4),
            infos=tuple(self._infos),
            events=find_events(states, target=self.instruction.target),
            rgb=np.stack(self._rgb) if self._rgb else None,
            segmentation=np.stack(self._masks) if self._masks else None,
            labels=dict(self.labels),
        )


def judge(states: list[State] | tuple[State, ...], *, scene: Scene, instruction: Instruction) -> str:
    """How an episode ended, one of `OUTCOMES`, from its final state and how high each object was lifted."""
    target = instruction.target
    if _done(states, scene=scene, instruction=instruction):
        return "success"
    final = states[-1]
    peaks = _peak_lifts(states)
    others = np.delete(peaks, target)
    if len(others) and others.max() > TOUCHED_LIFT_M and others.max() > peaks[target]:
        return "wrong_object"
    if peaks[target] <= TOUCHED_LIFT_M:
        return "never_lifted"
    if final.holding == target:
        return "unfinished" if instruction.task == "pick" else "not_released"
    if instruction.task == "pick":
        return "dropped"
    return "dropped" if _fall_height(states, target) > TOUCHED_LIFT_M else "not_on_pad"


def find_events(states: list[State] | tuple[State, ...], *, target: int) -> dict[str, int]:
    """Steps of the first close, and of the target's first grasp, lift and release (those that happened).

    A step's number is that of the action that brought it about.
    """
    events: dict[str, int] = {}
    rest = states[0].object_xyz[target, 2]
    for step in range(len(states) - 1):
        before, after = states[step], states[step + 1]
        if before.gripper_open and not after.gripper_open:
            events.setdefault("close", step)
        if before.holding != target and after.holding == target:
            events.setdefault("grasp", step)
        if after.holding == target and after.object_xyz[target, 2] - rest > 0.01:
            events.setdefault("lift", step)
        if "grasp" in events and before.holding == target and after.holding != target:
            events.setdefault("release", step)
    return events


def _done(states: list[State] | tuple[State, ...], *, scene: Scene, instruction: Instruction) -> bool:
    target, final = instruction.target, states[-1]
    if instruction.task == "pick":
        lift = final.object_xyz[target, 2] - states[0].object_xyz[target, 2]
        return final.holding == target and bool(lift >= LIFT_M)
    resting = bool(final.object_speed[target] < RESTING_SPEED)
    return final.gripper_open and resting and on_pad(final, target, height=scene.objects[target].height)


def _peak_lifts(states: list[State] | tuple[State, ...]) -> np.ndarray:
    """How far above its start each object was at most, [n]."""
    heights = np.array([s.object_xyz[:, 2] for s in states])
    return heights.max(axis=0) - heights[0]


def _fall_height(states: list[State] | tuple[State, ...], target: int) -> float:
    """Height above its start from which the target was last released, 0 if it never was."""
    fall = 0.0
    for before, after in zip(states[:-1], states[1:], strict=True):
        if before.holding == target and after.holding != target:
            fall = float(before.object_xyz[target, 2] - states[0].object_xyz[target, 2])
    return fall
