"""Frames that a half-trained model reaches by itself, labelled by the expert (DAgger, Ross and others 2011).

    python -m training.mini_vla.own_states WEIGHTS --out DIR --frames 5000 --processes 2 --seed 21

The expert brings the hand to the hard part (around the target, or lifting it); from there the model acts, now and
then disturbed, and every state is stored with the expert's actions. Shards have the format of `data.py` and
source 2. The expert has no memory, so it can label any state.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from training.mini_vla.data import IMAGE_PX, _disturb, _empty, _new_scene, _record
from vlascope.sim import TableTop, expert_action, instructions
from vlascope.sim.episode import judge
from vlascope.sim.scene import Scene
from vlascope.sim.world import State

SOURCE = 2
SHARD_FRAMES = 500
PLACE_SHARE = 0.6
N_STEPS = {"pick": 14, "place": 22}  # steps that the model acts


def model_episodes(
    policy: object, world: TableTop, rng: np.random.Generator
) -> Iterator[tuple[Scene, State, int, int]]:
    """Endless states that the model reaches; yields (scene, state, episode, step)."""
    episode = 0
    while True:
        scene = _new_scene(rng)
        state = world.reset(scene)
        task = "place" if rng.random() < PLACE_SHARE else "pick"
        target = int(rng.integers(len(scene.objects)))
        choices = [x for x in instructions(scene, tasks=(task,)) if x.target == target]
        order = choices[int(rng.integers(len(choices)))]
        start_z = rng.uniform(0.05, 0.16)
        for _ in range(30):
            near = np.linalg.norm(state.object_xyz[target, :2] - state.gripper_xyz[:2]) < 0.045
            ready = near if task == "pick" else state.holding == target and state.gripper_xyz[2] > start_z
            if ready:
                break
            action = expert_action(scene, state, task=task, target=target)
            state = world.step(_disturb(action, rng) if rng.random() < 0.3 else action)
        states = [world.state()]
        for step in range(N_STEPS[task]):
            yield scene, states[-1], episode, step
            seen = world.observe().rgb
            action, _ = policy(seen, order.text)  # type: ignore[operator]
            if not np.isfinite(action).all() or rng.random() < 0.15:
                action = expert_action(scene, states[-1], task=task, target=target)
            states.append(
                world.step(
                    _disturb(np.asarray(action, dtype=np.float64), rng) if rng.random() < 0.3 else action
                )
            )
            if judge(states, scene=scene, instruction=order) == "success":
                break
        episode += 1


def write_shard(job: tuple[str, Path, int, int, int]) -> None:
    """Make one shard: (weights, folder, seed, shard number, frames)."""
    from vlascope.models import load
    from vlascope.models.policy import VLAPolicy

    weights, out, seed, index, n = job
    torch.set_num_threads(1)
    name = f"own-{seed}-{index:05d}"
    if (out / name).exists():
        return
    partial = out.with_name(f".{out.name}.partial") / f"{name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays = _empty(n)
    rng = np.random.default_rng([seed, 7, index])
    policy = VLAPolicy(load(weights, dtype="float32"))
    with TableTop(image_px=IMAGE_PX) as world:
        found = model_episodes(policy, world, rng)
        for row in range(n):
            scene, state, episode, step = next(found)
            _record(arrays, row, world, scene, state, episode=episode, step=step)
    arrays["source"][:] = SOURCE
    for key, array in arrays.items():
        np.save(partial / f"{key}.npy", array)
    partial.rename(out / name)


def main() -> None:
    """Parse the command line and write the shards that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    counts = [min(SHARD_FRAMES, args.frames - s) for s in range(0, args.frames, SHARD_FRAMES)]
    jobs = [(args.weights, args.out, args.seed, i, n) for i, n in enumerate(counts)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for _ in pool.imap_unordered(write_shard, jobs):
            pass


if __name__ == "__main__":
    main()
