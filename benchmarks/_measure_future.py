"""What a layer knows of the future: place episodes of an expert that is slow and not quite sure of hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vlascope as vs
from vlascope.measure import world_model
from vlascope.models import Model
from vlascope.sim import TableTop, run_episode
from vlascope.sim.episode import Episode
from vlascope.sim.expert import expert_action
from vlascope.sim.record import write_episodes
from vlascope.sim.rollout import draw_task
from vlascope.sim.world import MAX_STEP_M

HORIZONS = (1, 3, 10, 30)
SPEED = 0.4
"""Share of the expert's speed: an episode of the expert is over after 28 steps, before there is a state 30 later."""
NOISE_M = 0.003
MAX_STEPS = 160


def foresee_slow_episodes(model: Model, folder: Path, *, n_episodes: int, seed: int) -> dict[str, Any]:
    """Ask language.5 about vision.5 at all horizons, on the same episodes."""
    place = write_episodes(folder / "slow", _slow_episodes(n_episodes, seed=seed))
    run = vs.capture(
        model,
        vs.items(place),
        out=folder / "run-slow",
        sites=["vision.5", "language.5"],
        respond=False,
        quiet=True,
    )
    ahead = world_model(
        run, site="language.5", state_site="vision.5", horizons=HORIZONS, tokens="last", n_permutations=99
    )
    print(*(one.line() for one in ahead.results), ahead.verdict(), sep="\n", flush=True)
    return {"n_frames": run.n_items, "speed": SPEED, "noise_m": NOISE_M, **ahead.to_json()}


def _slow_episodes(n: int, *, seed: int) -> Iterator[Episode]:
    with TableTop(image_px=112) as world:
        for number in range(seed, seed + n):
            scene, instruction = draw_task(number, task="place", n_objects=2)
            act = _slow(scene, instruction, np.random.default_rng([number, 2]))
            yield run_episode(
                world,
                scene=scene,
                instruction=instruction,
                act=act,
                max_steps=MAX_STEPS,
                linger=3,
                keep_frames=True,
            )


def _slow(scene: Any, instruction: Any, rng: np.random.Generator) -> Callable[[Any, Any], np.ndarray]:
    """Return the expert with shorter steps that miss a little."""

    def act(_: Any, state: Any) -> np.ndarray:
        action = expert_action(scene, state, task=instruction.task, target=instruction.target)
        length = np.linalg.norm(action[:3])
        if length > SPEED * MAX_STEP_M:
            action[:3] *= SPEED * MAX_STEP_M / length
        action[:3] += NOISE_M * rng.normal(size=3)
        return action

    return act
