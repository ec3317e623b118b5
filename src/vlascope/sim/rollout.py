"""Closed loop: a policy acts in the world, episode after episode, and its successes are counted."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlascope.errors import InputError
from vlascope.progress import progress
from vlascope.sim.episode import Episode, run_episode
from vlascope.sim.expert import expert_action
from vlascope.sim.language import COLOURS, MATERIALS, Instruction, Task, instructions
from vlascope.sim.scene import Scene, sample_scene
from vlascope.sim.world import Observation, State, TableTop

# (rgb uint8 [h, w, 3], instruction) -> action [4], or (action, info)
Policy = Callable[[np.ndarray, str], "np.ndarray | tuple[np.ndarray, Mapping[str, Any]]"]


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What is changed about the scenes or about what the policy is told.

    Attributes:
        brightness: Gain on the pictures.
        camera_shift: Metres added to the camera's position.
        table: Table texture for all scenes, such as one of `TEST_TABLES`.
        image: (rgb, episode) -> rgb that the policy sees instead, such as a grey picture.
        text: (instruction, episode) -> text that the policy reads instead, such as shuffled words.
    """

    brightness: float = 1.0
    camera_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    table: str | None = None
    image: Callable[[np.ndarray, int], np.ndarray] | None = None
    text: Callable[[str, int], str] | None = None

    @property
    def name(self) -> str:
        """What is changed, in words; empty where nothing is."""
        parts = []
        if self.brightness != 1:
            parts.append(f"brightness x {self.brightness:g}")
        if any(self.camera_shift):
            parts.append("camera moved by (" + ", ".join(f"{x:g}" for x in self.camera_shift) + ") m")
        if self.table is not None:
            parts.append(f"table {self.table}")
        if self.image is not None:
            parts.append("other pictures")
        if self.text is not None:
            parts.append("other words")
        return ", ".join(parts)

    def scene(self, scene: Scene) -> Scene:
        """The scene as perturbed."""
        return scene.replace(
            brightness=scene.brightness * self.brightness,
            camera_shift=tuple(a + b for a, b in zip(scene.camera_shift, self.camera_shift, strict=True)),
            table=scene.table if self.table is None else self.table,
        )


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """Episodes of one policy on one task, and the counts.

    Attributes:
        task: "pick" or "place".
        seed: Seed of the scenes and instructions.
        episodes: One per scene, in order; pictures only when kept.
    """

    task: Task
    seed: int
    episodes: tuple[Episode, ...]

    @property
    def n(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def successes(self) -> int:
        """Number of episodes that carried out their instruction."""
        return sum(e.success for e in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of successes."""
        return self.successes / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the success rate."""
        return wilson_interval(self.successes, self.n)

    @property
    def failure_labels(self) -> dict[str, int]:
        """How often each way to fail occurred."""
        counts = Counter(e.outcome for e in self.episodes if not e.success)
        return dict(sorted(counts.items()))

    @property
    def wrong_lifted(self) -> int:
        """Episodes in which an object that was not asked for was lifted."""
        return sum(any(i != e.instruction.target for i in e.lifted) for e in self.episodes)

    @property
    def target_nearest(self) -> int:
        """Episodes in which the hand first closed (or ended) nearer to the target than to any other object."""
        return sum(e.nearest_at_close == e.instruction.target for e in self.episodes)

    def by(self, key: Callable[[Episode], str]) -> dict[str, tuple[int, int]]:
        """(successes, episodes) in each group that `key` names, sorted by name."""
        groups: dict[str, tuple[int, int]] = {}
        for episode in self.episodes:
            won, n = groups.get(key(episode), (0, 0))
            groups[key(episode)] = (won + episode.success, n + 1)
        return dict(sorted(groups.items()))

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """(successes, episodes) for each colour and material of the target."""
        return self.by(lambda e: f"{_target(e).colour} {_target(e).material}")

    def by_phrase(self) -> dict[str, tuple[int, int]]:
        """(successes, episodes) for each way to name the target."""
        return self.by(lambda e: e.instruction.phrase)

    def to_dict(self) -> dict[str, Any]:
        """Counts and one short row per episode, ready for JSON."""
        return {
            "task": self.task,
            "seed": self.seed,
            "n": self.n,
            "successes": self.successes,
            "wilson_interval": list(self.interval),
            "failure_labels": self.failure_labels,
            "wrong_lifted": self.wrong_lifted,
            "target_nearest": self.target_nearest,
            "by_kind": {k: list(v) for k, v in self.by_kind().items()},
            "by_phrase": {k: list(v) for k, v in self.by_phrase().items()},
            "episodes": [
                {
                    "instruction": e.instruction.text,
                    "phrase": e.instruction.phrase,
                    "target": e.instruction.target,
                    "outcome": e.outcome,
                    "steps": e.n_steps,
                    "events": dict(e.events),
                    "first_close_error_m": e.first_close_error_m,
                    "seed": e.scene.seed,
                }
                for e in self.episodes
            ],
        }


def rollout(
    policy: Policy,
    *,
    task: Task = "pick",
    n_episodes: int = 20,
    seed: int = 0,
    n_objects: int | None = None,
    kinds: tuple[tuple[str, str], ...] | None = None,
    perturbation: Perturbation | None = None,
    image_px: int = 112,
    max_steps: int | None = None,
    keep_frames: bool = False,
    out: Path | str | None = None,
    on_step: Callable[[int, Observation, np.ndarray, Mapping[str, Any]], None] | None = None,
    quiet: bool = True,
) -> RolloutResult:
    """Let a policy act in fresh scenes and count how often it does what it is told.

    Episode i depends on `seed + i` only: the same scenes come back for every policy and perturbation.

    Args:
        policy: Called with the picture (uint8 [h, w, 3]) and the instruction; returns the action
            (dx, dy, dz, grip), or (action, info).
        task: "pick" or "place".
        n_episodes: How many.
        seed: First scene's seed.
        n_objects: 2 to 4, or None to draw it per scene.
        kinds: (colour, material) of the objects in every scene, the first being the target's; None to draw.
        perturbation: What to change about scenes, pictures or instructions.
        image_px: Side of the pictures.
        max_steps: Longest episode; default 40 for "pick", 70 for "place".
        keep_frames: Keep pictures and masks in the result (37 kB per step at 112 px).
        out: Also write the episodes there as a LeRobot v3 dataset.
        on_step: Called with (episode, observation, action, info) at every step.
        quiet: No progress bar.

    Returns:
        The episodes and their counts.

    Raises:
        InputError: No episodes asked for, an unknown task, or an action that is not four finite numbers.
        MissingExtraError: PyBullet is not installed.
        StorageError: `out` exists or cannot be written.

    Cost: about 8 ms of one core's time per step at 112 px, plus the policy.
    """
    change = perturbation if perturbation is not None else Perturbation()
    tasks = draw_tasks(n_episodes, seed=seed, task=task, n_objects=n_objects, kinds=kinds)
    done: list[Episode] = []

    def play() -> Iterator[Episode]:
        with TableTop(image_px=image_px) as world:
            bar = progress(tasks, desc=f"rollout {task}", unit="episode", quiet=quiet)
            for i, (scene, instruction) in enumerate(bar):
                episode = run_episode(
                    world,
                    scene=change.scene(scene),
                    instruction=instruction,
                    act=_actor(policy, change, instruction.text, episode=i, on_step=on_step),
                    max_steps=max_steps,
                    keep_frames=keep_frames or out is not None,
                    labels={"seed": seed + i},
                )
                kept = episode if keep_frames else dataclasses.replace(episode, rgb=None, segmentation=None)
                done.append(kept)
                yield episode

    if out is None:
        for _ in play():
            pass
    else:
        from vlascope.sim.record import write_episodes

        write_episodes(out, play())
    return RolloutResult(task=task, seed=seed, episodes=tuple(done))


def draw_task(
    seed: int,
    *,
    task: Task,
    n_objects: int | None = None,
    kinds: list[tuple[str, str]] | None = None,
) -> tuple[Scene, Instruction]:
    """A random scene and a random unambiguous instruction for it: target first, then one of its phrases."""
    rng = np.random.default_rng(seed)
    scene = dataclasses.replace(sample_scene(rng, n_objects=n_objects, kinds=kinds), seed=seed)
    target = 0 if kinds is not None else int(rng.integers(len(scene.objects)))
    choices = [x for x in instructions(scene, tasks=(task,)) if x.target == target]
    return scene, choices[int(rng.integers(len(choices)))]


def draw_tasks(
    n: int,
    *,
    seed: int,
    task: Task,
    n_objects: int | None = None,
    kinds: tuple[tuple[str, str], ...] | None = None,
) -> list[tuple[Scene, Instruction]]:
    """The scenes and instructions of n episodes; that of episode i depends on `seed + i` only.

    Raises:
        InputError: n < 1.
    """
    if n < 1:
        raise InputError(f"got n_episodes = {n}; need at least 1.")
    chosen = list(kinds) if kinds else None
    return [draw_task(seed + i, task=task, n_objects=n_objects, kinds=chosen) for i in range(n)]


def expert_policy(scene: Scene, instruction: Instruction) -> Callable[[Observation, State], np.ndarray]:
    """The scripted expert as an `act` of `run_episode`."""
    return lambda _, state: expert_action(scene, state, task=instruction.task, target=instruction.target)


def wilson_interval(successes: float, n: float, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default.

    Args:
        successes: How many; a fraction where `n` is an effective sample size.
        n: Of how many.
        z: Quantile: how many standard errors it reaches.

    Raises:
        InputError: n < 1 or successes not in 0..n.

    References: Wilson (1927), J. Am. Stat. Assoc. 22, 209.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"got {successes} successes of {n}; need 0 <= successes <= n and n >= 1.")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 at the ends, where rounding would leave 3e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def kinds_of_objects() -> tuple[tuple[str, str], ...]:
    """All (colour, material) combinations, in a fixed order."""
    return tuple((c, m) for c in COLOURS for m in MATERIALS)


def _actor(
    policy: Policy,
    change: Perturbation,
    text: str,
    *,
    episode: int,
    on_step: Callable[[int, Observation, np.ndarray, Mapping[str, Any]], None] | None,
) -> Callable[[Observation, State], tuple[np.ndarray, Mapping[str, Any]]]:
    told = text if change.text is None else change.text(text, episode)

    def act(seen: Observation, _: State) -> tuple[np.ndarray, Mapping[str, Any]]:
        rgb = seen.rgb if change.image is None else change.image(seen.rgb, episode)
        answer = policy(rgb, told)
        action, info = answer if isinstance(answer, tuple) else (answer, {})
        action = np.asarray(action)
        if on_step is not None:
            on_step(episode, seen, action, info)
        return action, info

    return act


def _target(episode: Episode) -> Any:
    return episode.scene.objects[episode.instruction.target]
