"""Make the frames that mini-vla is trained on: teleported states and noisy physics episodes.

    python training/mini_vla/data.py --out DIR --frames 80000 --kind teleport --processes 2 --seed 1
    python training/mini_vla/data.py --out DIR --frames 20000 --kind physics --processes 2 --seed 2

Layout: DIR/{kind}-{seed}-{shard:05d}/{name}.npy, one plain NumPy array per name, to be memory-mapped. A shard
folder appears under its name only when it is complete, so a killed run is resumed by running it again, and a
reader may list DIR at any time. Every shard depends only on (kind, seed, shard number).

| array | type, shape | meaning |
|---|---|---|
| images | u8 [n, 112, 112, 3] | camera |
| seg | u8 [n, 112, 112] | 0 background, 1 arm, 2 gripper, 3 pad, 4 + i object i |
| n_objects | u8 [n] | 2 to 4 |
| colour, material | i8 [n, 4] | index into COLOURS, MATERIALS; -1 where absent |
| object_xyz | f32 [n, 4, 3] | metres; NaN where absent |
| gripper_xyz | f32 [n, 3] | grasp point, metres |
| gripper_open | u8 [n] | commanded open |
| holding | i8 [n] | object in the hand or -1 |
| pad_xy | f32 [n, 2] | metres |
| act_pick, act_place | f32 [n, 4, 4] | expert's (dx, dy, dz, grip) for each object as target; NaN where absent |
| camera_shift | f32 [n, 3] | metres |
| table | u8 [n] | index into TRAIN_TABLES |
| source | u8 [n] | 0 teleport, 1 physics |
| episode, step | i32 [n] | physics: episode number within the shard and step; teleport: -1 |
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlascope.sim.expert import CARRY_Z, HOVER_Z, LIFT_Z, expert_action, grasp_z
from vlascope.sim.language import COLOURS, MATERIALS
from vlascope.sim.scene import MAX_OBJECTS, PAD_SIZE, TRAIN_TABLES, Scene, sample_scene
from vlascope.sim.world import OPEN_M, State, TableTop

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_PX = 112
SHARD_FRAMES = 4000
KINDS = ("teleport", "physics")
CAMERA_JITTER_M = 0.015
CAMERA_JITTER_SHARE = 0.5

# What a teleported frame shows, and how often.
SITUATIONS: dict[str, float] = {
    "approach": 0.38,
    "descend": 0.22,
    "at_grasp": 0.10,
    "lifting": 0.08,
    "carrying": 0.06,
    "lowering": 0.07,
    "released": 0.03,
    "closed_on_nothing": 0.06,
}
HELD_GAP_M = {"rigid": (0.0765, 0.0800), "fragile": (0.0721, 0.0761)}  # as measured in physics
NOISE_SHARE = 0.30  # share of physics steps whose action is disturbed
FINGERTIPS_CLEAR_Z = 0.097  # above this the fingers pass over every object


def main() -> int:
    """Parse the command line and write the shards that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--kind", choices=KINDS, default="teleport")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-frames", type=int, default=SHARD_FRAMES)
    parser.add_argument(
        "--situations", nargs="*", metavar="NAME=SHARE", help="teleport: another mixture than SITUATIONS"
    )
    args = parser.parse_args()
    mixture = {name: float(share) for name, share in (text.split("=") for text in args.situations or [])}
    unknown = set(mixture) - set(SITUATIONS)
    if unknown:
        parser.error(f"unknown situations {sorted(unknown)}; known are {', '.join(SITUATIONS)}")
    start = time.time()
    n = generate(
        args.out,
        kind=args.kind,
        n_frames=args.frames,
        seed=args.seed,
        processes=args.processes,
        shard_frames=args.shard_frames,
        situations=mixture or None,
    )
    seconds = time.time() - start
    sys.stdout.write(f"{n} new frames in {seconds:.0f} s ({n / max(seconds, 1e-9):.0f} frames/s)\n")
    return 0


def generate(
    out: Path,
    *,
    kind: str,
    n_frames: int,
    seed: int,
    processes: int = 2,
    shard_frames: int = SHARD_FRAMES,
    situations: dict[str, float] | None = None,
) -> int:
    """Write all missing shards of a set; returns how many frames are new."""
    out.mkdir(parents=True, exist_ok=True)
    counts = [min(shard_frames, n_frames - s) for s in range(0, n_frames, shard_frames)]
    jobs = [
        (out, kind, seed, i, n, situations)
        for i, n in enumerate(counts)
        if not _shard_dir(out, kind, seed, i).exists()
    ]
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            write_shard(job)
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for _ in pool.imap_unordered(write_shard, jobs):
                pass
    return sum(job[4] for job in jobs)


def write_shard(job: tuple[Path, str, int, int, int, dict[str, float] | None]) -> None:
    """Make one shard and move it to its name when complete."""
    out, kind, seed, index, n, situations = job
    final = _shard_dir(out, kind, seed, index)
    partial = out.with_name(f".{out.name}.partial") / f"{final.name}.{os.getpid()}"  # readers never list it
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = np.random.default_rng([seed, KINDS.index(kind), index])
    arrays = _empty(n)
    start = time.time()
    with TableTop(image_px=IMAGE_PX) as world:
        frames = teleported(world, rng, situations=situations) if kind == "teleport" else episodes(world, rng)
        for row in range(n):
            scene, state, episode, step = next(frames)
            _record(arrays, row, world, scene, state, episode=episode, step=step)
    arrays["source"][:] = KINDS.index(kind)
    for name, array in arrays.items():
        np.save(partial / f"{name}.npy", array)
    partial.rename(final)
    seconds = time.time() - start
    sys.stdout.write(f"{final.name}: {n} frames in {seconds:.0f} s ({n / seconds:.0f}/s)\n")
    sys.stdout.flush()


def teleported(
    world: TableTop, rng: np.random.Generator, *, situations: dict[str, float] | None = None
) -> Iterator[tuple[Scene, State, int, int]]:
    """Endless states without physics, each in a new scene (see `SITUATIONS`)."""
    mixture = situations or SITUATIONS
    names, weights = list(mixture), np.array(list(mixture.values()))
    while True:
        scene = _new_scene(rng)
        world.reset(scene, move_hand=False)
        situation = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        error = _pose(world, scene, rng, situation)
        if error < 0.004:  # else out of the arm's reach: draw again
            yield scene, world.state(), -1, -1


def episodes(world: TableTop, rng: np.random.Generator) -> Iterator[tuple[Scene, State, int, int]]:
    """Endless states of physical episodes: the expert with disturbed actions, and recoveries from them."""
    episode = 0
    while True:
        scene = _new_scene(rng)
        state = world.reset(scene)
        target = int(rng.integers(len(scene.objects)))
        place = rng.random() < 0.5
        after = 0
        for step in range(60 if place else 32):
            yield scene, state, episode, step
            action = expert_action(scene, state, task="place" if place else "pick", target=target)
            world.step(_disturb(action, rng))
            state = world.state()
            lifted = state.holding == target and state.gripper_xyz[2] > LIFT_Z - 0.02
            placed = state.gripper_open and bool(
                np.all(np.abs(state.object_xyz[target, :2] - state.pad_xy) < PAD_SIZE / 2)
            )
            after += (lifted and not place) or (placed and place)
            off_table = np.any(np.abs(state.object_xyz[:, 1]) > 0.2) or np.any(state.object_xyz[:, 0] > 0.68)
            if after > 2 or off_table:
                break
        episode += 1


def _disturb(action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The expert's action, in `NOISE_SHARE` of the steps with a push, now and then with the wrong grip."""
    if rng.random() >= NOISE_SHARE:
        return action
    noisy = action.copy()
    noisy[:3] += rng.normal(0.0, 0.02, size=3)
    if rng.random() < 0.12:
        noisy[3] = 1.0 - noisy[3]
    return noisy


def _new_scene(rng: np.random.Generator) -> Scene:
    scene = sample_scene(rng)
    if rng.random() < CAMERA_JITTER_SHARE:
        shift = rng.uniform(-CAMERA_JITTER_M, CAMERA_JITTER_M, size=3)
        scene = scene.replace(camera_shift=(float(shift[0]), float(shift[1]), float(shift[2])))
    return scene


def _pose(world: TableTop, scene: Scene, rng: np.random.Generator, situation: str) -> float:
    """Put the hand (and what it holds) where the situation wants it; returns the arm's error in metres."""
    index = int(rng.integers(len(scene.objects)))
    spec = scene.objects[index]
    low = grasp_z(spec.height)
    xy = np.array([spec.x, spec.y])
    pad = np.array(scene.pad_xy)
    open_gap = 2 * OPEN_M

    def anywhere(z_low: float, z_high: float) -> np.ndarray:
        return np.array([rng.uniform(0.38, 0.64), rng.uniform(-0.15, 0.15), rng.uniform(z_low, z_high)])

    if situation == "approach":
        return world.place_hand(anywhere(0.105, 0.205), finger_gap=open_gap, is_open=True)
    if situation == "descend":
        z = rng.uniform(low - 0.005, HOVER_Z + 0.01)
        return world.place_hand(np.array([*(xy + _offset(rng, z)), z]), finger_gap=open_gap, is_open=True)
    if situation == "at_grasp":
        offset = rng.uniform(-0.018, 0.018, size=2) * np.array([1.0, 0.75])
        z = low + rng.uniform(-0.006, 0.022)
        return world.place_hand(np.array([*(xy + offset), z]), finger_gap=open_gap, is_open=True)
    if situation == "closed_on_nothing":
        hand = anywhere(0.105, 0.205)
        if rng.random() < 0.5:  # just above the object that it missed
            z = rng.uniform(spec.height + 0.012, 0.14)
            hand = np.array([*(xy + rng.normal(0.0, 0.015, size=2)), z])
        gap = 0.0 if rng.random() < 0.8 else rng.uniform(0.0, 0.02)
        return world.place_hand(hand, finger_gap=float(gap), is_open=False)
    if situation == "released":
        world.place_object(
            index, (*(pad + rng.normal(0.0, 0.008, size=2)), spec.height / 2), yaw=_small_yaw(rng)
        )
        here = world.state().object_xyz[index, :2]
        z = low + (0.0 if rng.random() < 0.4 else rng.uniform(0.0, LIFT_Z - low))
        offset = rng.uniform(-0.012, 0.012, size=2) * np.array([1.0, 0.3])
        return world.place_hand(np.array([*(here + offset), z]), finger_gap=open_gap, is_open=True)

    # The hand holds the object.
    if situation == "lifting":
        z = low if rng.random() < 0.3 else rng.uniform(low, LIFT_Z)
        hand = np.array([*xy, z])
    elif situation == "carrying":
        hand = anywhere(0.135, 0.205)
    else:  # lowering onto the pad
        z = rng.uniform(low - 0.004, CARRY_Z + 0.01)
        reach = 0.018 if z < FINGERTIPS_CLEAR_Z else 0.05
        hand = np.array([*(pad + rng.uniform(-reach, reach, size=2)), z])
        if rng.random() < 0.3:  # at the moment of release
            hand = np.array([*(pad + rng.uniform(-0.012, 0.012, size=2)), low + rng.uniform(-0.004, 0.014)])
    error = world.place_hand(hand, finger_gap=float(rng.uniform(*HELD_GAP_M[spec.material])), is_open=False)
    in_hand = np.array([rng.uniform(-0.013, 0.013), rng.normal(0.0, 0.001), spec.height / 2 - low])
    in_hand[2] -= rng.uniform(-0.004, 0.013)  # it may be gripped above its middle
    centre = world.state().gripper_xyz + in_hand
    centre[2] = max(centre[2], spec.height / 2)
    world.place_object(index, centre, yaw=float(rng.normal(0.0, 0.02)))
    return error


def _offset(rng: np.random.Generator, z: float) -> np.ndarray:
    """Horizontal offset from the object below the hand; the fingers do not cut into it."""
    if z > FINGERTIPS_CLEAR_Z:
        return rng.normal(0.0, 0.022, size=2)
    return np.array([float(np.clip(rng.normal(0.0, 0.015), -0.04, 0.04)), rng.uniform(-0.014, 0.014)])


def _small_yaw(rng: np.random.Generator) -> float:
    return float(rng.normal(0.0, 0.05))


def _empty(n: int) -> dict[str, np.ndarray]:
    k = MAX_OBJECTS
    return {
        "images": np.zeros((n, IMAGE_PX, IMAGE_PX, 3), np.uint8),
        "seg": np.zeros((n, IMAGE_PX, IMAGE_PX), np.uint8),
        "n_objects": np.zeros(n, np.uint8),
        "colour": np.full((n, k), -1, np.int8),
        "material": np.full((n, k), -1, np.int8),
        "object_xyz": np.full((n, k, 3), np.nan, np.float32),
        "gripper_xyz": np.zeros((n, 3), np.float32),
        "gripper_open": np.zeros(n, np.uint8),
        "holding": np.full(n, -1, np.int8),
        "pad_xy": np.zeros((n, 2), np.float32),
        "act_pick": np.full((n, k, 4), np.nan, np.float32),
        "act_place": np.full((n, k, 4), np.nan, np.float32),
        "camera_shift": np.zeros((n, 3), np.float32),
        "table": np.zeros(n, np.uint8),
        "source": np.zeros(n, np.uint8),
        "episode": np.full(n, -1, np.int32),
        "step": np.full(n, -1, np.int32),
    }


def _record(
    arrays: dict[str, np.ndarray],
    row: int,
    world: TableTop,
    scene: Scene,
    state: State,
    *,
    episode: int,
    step: int,
) -> None:
    seen = world.observe()
    n = len(scene.objects)
    arrays["images"][row] = seen.rgb
    arrays["seg"][row] = seen.segmentation
    arrays["n_objects"][row] = n
    for i, spec in enumerate(scene.objects):
        arrays["colour"][row, i] = COLOURS.index(spec.colour)
        arrays["material"][row, i] = MATERIALS.index(spec.material)
        arrays["act_pick"][row, i] = expert_action(scene, state, task="pick", target=i)
        arrays["act_place"][row, i] = expert_action(scene, state, task="place", target=i)
    arrays["object_xyz"][row, :n] = state.object_xyz
    arrays["gripper_xyz"][row] = state.gripper_xyz
    arrays["gripper_open"][row] = state.gripper_open
    arrays["holding"][row] = state.holding
    arrays["pad_xy"][row] = state.pad_xy
    arrays["camera_shift"][row] = scene.camera_shift
    arrays["table"][row] = TRAIN_TABLES.index(scene.table)
    arrays["episode"][row] = episode
    arrays["step"][row] = step


def _shard_dir(out: Path, kind: str, seed: int, index: int) -> Path:
    return out / f"{kind}-{seed}-{index:05d}"


if __name__ == "__main__":
    sys.exit(main())
