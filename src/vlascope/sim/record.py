"""Recording episodes as LeRobot v3 datasets, with a sidecar of masks, poses, events and facts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlascope.errors import InputError, nearest_text
from vlascope.progress import progress
from vlascope.sim.episode import Episode, run_episode
from vlascope.sim.failures import FAILURES, script_failure
from vlascope.sim.language import TASKS, Task
from vlascope.sim.scene import Scene
from vlascope.sim.world import (
    SEG_ARM,
    SEG_BACKGROUND,
    SEG_GRIPPER,
    SEG_OBJECT,
    SEG_PAD,
    STEPS_PER_SECOND,
    State,
    TableTop,
)

if TYPE_CHECKING:
    from vlascope.items.lerobot_write import EpisodeData

STATE_NAMES = ("x", "y", "z", "gripper_gap", *(f"joint_{i}" for i in range(1, 8)))
ACTION_NAMES = ("dx", "dy", "dz", "grip")
CAMERA = "front"

MIN_IMAGE_PX, MAX_IMAGE_PX = 32, 1024


def record_episodes(
    out: Path | str,
    *,
    n_episodes: int = 20,
    seed: int = 0,
    task: Task = "pick",
    failures: Sequence[str] = ("none",),
    image_px: int = 224,
    n_objects: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Path:
    """Record the scripted expert, failing as asked, and return the dataset's folder.

    Args:
        out: Folder to make (LeRobot v3: Parquet and mp4, plus the sidecar `vlascope/`).
        n_episodes: How many.
        seed: Episode i depends on `seed + i` only.
        task: "pick" or "place".
        failures: Names of `FAILURES`, used in turn; "none" is a success.
        image_px: Side of the pictures, even for video.
        n_objects: 2 to 4, or None to draw it per scene.
        force: Replace a folder that vlascope wrote.
        quiet: No progress bar.

    Raises:
        InputError: Unknown task or failure, or a size or count out of range.
        StorageError: `out` exists (and not `force`), or cannot be written.
        MissingExtraError: PyBullet is not installed.

    Cost: 0.3 s of one core's time per episode at 112 px, 1.3 s at 384 px.
    """
    _check(n_episodes, task=task, failures=failures, image_px=image_px)
    numbers = progress(range(n_episodes), desc=f"record {task}", unit="episode", quiet=quiet)
    found = _scripted(
        numbers, seed=seed, task=task, failures=failures, image_px=image_px, n_objects=n_objects
    )
    return write_episodes(out, found, force=force)


def write_episodes(
    out: Path | str, episodes: Iterable[Episode], *, video: bool = True, force: bool = False
) -> Path:
    """Write episodes (with pictures) as a LeRobot v3 dataset and return its folder.

    Args:
        out: The folder to make.
        episodes: Run with `keep_frames`.
        video: True writes mp4 (lossy, small); False writes every picture exactly, as PNG.
        force: Replace a folder that vlascope wrote.

    Raises:
        InputError: An episode was run without `keep_frames`.
        StorageError: `out` exists (and not `force`), or cannot be written.
    """
    from vlascope.items.lerobot_write import write_lerobot

    return write_lerobot(
        out,
        (episode_data(e) for e in episodes),
        fps=STEPS_PER_SECOND,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        robot_type="franka_panda",
        video=video,
        force=force,
    )


def episode_data(episode: Episode) -> EpisodeData:
    """An episode in the form that the LeRobot writer takes.

    Raises:
        InputError: The episode was run without `keep_frames`.
    """
    from vlascope.items.lerobot_write import EpisodeData

    if episode.rgb is None or episode.segmentation is None:
        raise InputError("the episode has no pictures; run it with keep_frames=True.")
    before = episode.states[:-1]
    scene, instruction = episode.scene, episode.instruction
    target = scene.objects[instruction.target]
    labels = {
        "success": episode.success,
        "outcome": episode.outcome,
        "target": instruction.target,
        "target_colour": target.colour,
        "target_material": target.material,
        "target_mass": target.mass,
        "target_friction": target.friction,
        "target_stiffness": target.stiffness,
        "sim_task": instruction.task,
        "phrase": instruction.phrase,
        "n_objects": len(scene.objects),
        "table": scene.table,
        "brightness": scene.brightness,
        "scene": json.dumps(scene.to_dict()),
        **episode.labels,
    }
    poses = {"gripper": np.array([s.gripper_xyz for s in before], dtype=np.float32)}
    for i in range(len(scene.objects)):
        rows = [np.concatenate([s.object_xyz[i], s.object_quat[i]]) for s in before]
        poses[f"object_{i}"] = np.array(rows, dtype=np.float32)
    return EpisodeData(
        frames={CAMERA: episode.rgb},
        state=np.array([state_vector(s) for s in before], dtype=np.float32),
        action=episode.actions,
        task=instruction.text,
        masks=episode.segmentation,
        mask_names=mask_names(scene),
        labels=labels,
        frame_labels={
            "holding": np.array([s.holding for s in before]),
            "gripper_open": np.array([s.gripper_open for s in before]),
        },
        poses=poses,
        events=dict(episode.events),
    )


def state_vector(state: State) -> np.ndarray:
    """The robot's own state in the order of `STATE_NAMES`, float32 [11]."""
    return np.array([*state.gripper_xyz, state.finger_gap, *state.joints], dtype=np.float32)


def mask_names(scene: Scene) -> dict[int, str]:
    """What each id of a segmentation means in this scene."""
    names = {SEG_BACKGROUND: "table", SEG_ARM: "arm", SEG_GRIPPER: "gripper", SEG_PAD: "pad"}
    for i, spec in enumerate(scene.objects):
        names[SEG_OBJECT + i] = f"{spec.colour} {spec.material} object"
    return names


def _scripted(
    numbers: Iterable[int],
    *,
    seed: int,
    task: Task,
    failures: Sequence[str],
    image_px: int,
    n_objects: int | None,
) -> Iterator[Episode]:
    from vlascope.sim.rollout import draw_task

    with TableTop(image_px=image_px) as world:
        for i in numbers:
            failure = failures[i % len(failures)]
            scene, instruction = draw_task(seed + i, task=task, n_objects=n_objects)
            scene, script = script_failure(
                scene, instruction=instruction, failure=failure, seed=np.random.default_rng([seed + i, 1])
            )
            yield run_episode(
                world,
                scene=scene,
                instruction=instruction,
                act=script,
                linger=3,
                keep_frames=True,
                labels={"failure": failure, "seed": seed + i},
            )


def _check(n_episodes: int, *, task: str, failures: Sequence[str], image_px: int) -> None:
    if n_episodes < 1:
        raise InputError(f"got n_episodes = {n_episodes}; need at least 1.")
    if task not in TASKS:
        raise InputError(f"got task {task!r}; tasks are {' and '.join(TASKS)}.{nearest_text(task, TASKS)}")
    if not failures:
        raise InputError(f"got no failures; name at least one of {', '.join(FAILURES)} ('none' succeeds).")
    for name in failures:
        if name not in FAILURES:
            known = ", ".join(FAILURES)
            raise InputError(f"got failure {name!r}; known are {known}.{nearest_text(name, FAILURES)}")
    check_image_px(image_px)


def check_image_px(image_px: int) -> None:
    """Raise `InputError` when pictures of this size cannot be rendered."""
    if not MIN_IMAGE_PX <= image_px <= MAX_IMAGE_PX:
        raise InputError(f"got image_px = {image_px}; need {MIN_IMAGE_PX} to {MAX_IMAGE_PX}.")
