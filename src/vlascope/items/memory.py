"""Episodes in memory as items, and the simulator's episodes, played when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ..errors import InputError, ItemError, nearest_text
from ..files import content_hash
from .frames import EpisodicSource
from .item import Item, Scalar
from .lerobot_write import EpisodeData
from .rlds import choose_cameras

SIM_TASKS = ("pick", "place")
MAX_SIM_EPISODES = 200


class EpisodeSource(EpisodicSource):
    """Frames of recorded episodes that are held in memory; what `write_lerobot` takes, without a disk.

    Item ids are "ep0003/000012". Labels are those of the episode and of the frame, and "event.<name>" = step.

    Args:
        episodes: At least one; all with the same cameras.
        fps: Frames per second; None when unknown.
        camera: Name of one camera or several; all by default.
        prompt: Replaces the task.
        name: Name of the collection.

    Raises:
        ItemError: no episode.
        InputError: no such camera.
    """

    def __init__(
        self,
        episodes: Sequence[EpisodeData],
        *,
        fps: float | None = None,
        camera: str | Sequence[str] | None = None,
        prompt: str | None = None,
        name: str = "episodes",
        state_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
    ) -> None:
        if not episodes:
            raise ItemError("got an empty list of episodes; need at least one.")
        self.episode_data, self.fps, self.prompt, self.name = list(episodes), fps, prompt, name
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        self.cameras = choose_cameras(camera, self.episode_data[0].frames, name=name)
        self._set_episodes([f"ep{i:04d}" for i in range(len(episodes))], [e.n_frames for e in episodes])

    def read(self, index: int) -> Item:
        place, step = self.locate(index)
        episode = self.episode_data[place]
        labels: dict[str, Scalar] = dict(episode.labels)
        for name, values in episode.frame_labels.items():
            value = values[step]
            labels[name] = value.item() if isinstance(value, np.generic) else value
        labels |= {f"event.{name}": at for name, at in episode.events.items()}
        # Masks are in the pixels of the first recorded camera; they mean nothing when another one comes first.
        has_mask = episode.masks is not None and self.cameras[0] == next(iter(episode.frames))
        masks = {"segmentation": episode.masks[step]} if episode.masks is not None and has_mask else {}
        return Item(
            item_id=f"{self._names[place]}/{step:06d}",
            images=tuple(episode.frames[camera][step] for camera in self.cameras),
            cameras=self.cameras,
            prompt=self.prompt or episode.task,
            labels=labels,
            masks=masks,
            mask_names={"segmentation": episode.mask_names} if masks else {},
            episode=place,
            step=step,
            time_secs=None if self.fps is None else round(step / self.fps, 6),
            state=episode.state[step],
            action=episode.action[step],
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for episode in self.episode_data:
            for array in (*(episode.frames[c] for c in self.cameras), episode.state, episode.action):
                digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return content_hash([digest.hexdigest(), list(self.cameras), self.prompt])


def simulate(
    task: str,
    *,
    n: int = 4,
    seed: int = 0,
    image_px: int = 224,
    failure: str = "none",
    prompt: str | None = None,
) -> EpisodeSource:
    """Return `n` episodes of the simulator's scripted expert, played now and held in memory.

    Episode i depends on `seed + i` only. `vlascope sim record` writes the same to disk.

    Args:
        task: "pick" or "place".
        n: Number of episodes, 1..200.
        seed: Seed of scenes and instructions.
        image_px: Side of the images, pixels.
        failure: How the expert fails, see `vlascope.sim.FAILURES`; "none" succeeds.
        prompt: Replaces the instruction.

    Raises:
        MissingExtraError: the simulator is not installed (extra `sim`).
        InputError: unknown task or failure, or a number out of range.

    Cost: about 0.5 s of one core and 6 MB per episode at 224 px.
    """
    if task not in SIM_TASKS:
        raise InputError(
            f"there is no simulated task '{task}'; there are {', '.join(SIM_TASKS)}.{nearest_text(task, SIM_TASKS)}"
        )
    if not 1 <= n <= MAX_SIM_EPISODES:
        raise InputError(
            f"got n={n} simulated episodes; need 1..{MAX_SIM_EPISODES} (they are held in memory). For more: "
            "`vlascope sim record`."
        )
    from ..sim import FAILURES
    from ..sim.episode import run_episode
    from ..sim.failures import script_failure
    from ..sim.language import Task
    from ..sim.record import ACTION_NAMES, STATE_NAMES, check_image_px, episode_data
    from ..sim.rollout import draw_task
    from ..sim.world import STEPS_PER_SECOND, TableTop

    if failure not in FAILURES:
        raise InputError(f"there is no failure '{failure}'; there are {', '.join(FAILURES)}.")
    check_image_px(image_px)
    episodes: list[EpisodeData] = []
    with TableTop(image_px=image_px) as world:
        for number in range(seed, seed + n):
            scene, instruction = draw_task(number, task=cast(Task, task))
            scene, script = script_failure(
                scene,
                instruction=instruction,
                failure=cast(Any, failure),
                seed=np.random.default_rng([number, 1]),
            )
            facts = {"failure": failure, "seed": number}
            played = run_episode(
                world,
                scene=scene,
                instruction=instruction,
                act=script,
                linger=3,
                keep_frames=True,
                labels=facts,
            )
            episodes.append(episode_data(played))
    return EpisodeSource(
        episodes,
        fps=STEPS_PER_SECOND,
        prompt=prompt,
        name=f"sim-{task}",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
    )
