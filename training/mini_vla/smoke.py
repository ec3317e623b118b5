"""A training of less than a minute that shows the whole path works: data, batches, loss, update, export."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch

log = logging.getLogger("mini_vla")


def fake_frames(folder: Path, *, n: int, seed: int, image_px: int = 112) -> Path:
    """A shard of drawn rectangles in the format of `data.py`, for tests that have no simulator.

    Objects are coloured squares (rigid) or squares with a bright band (fragile) on a grey table; the gripper is
    a dark square. The expert's action points from the gripper to the target.
    """
    rng = np.random.default_rng(seed)
    shard = folder / f"shard-{seed:05d}"
    shard.mkdir(parents=True, exist_ok=True)
    rgb = np.array([[200, 40, 40], [40, 60, 200], [40, 170, 60], [220, 200, 50]], dtype=np.uint8)
    images = np.full((n, image_px, image_px, 3), 150, dtype=np.uint8)
    seg = np.zeros((n, image_px, image_px), dtype=np.uint8)
    colour, material = np.full((n, 4), -1, dtype=np.int8), np.full((n, 4), -1, dtype=np.int8)
    xyz = np.zeros((n, 4, 3), dtype=np.float32)
    hand, pad = np.zeros((n, 3), dtype=np.float32), np.zeros((n, 2), dtype=np.float32)
    pick = np.full((n, 4, 4), np.nan, dtype=np.float32)
    count = rng.integers(2, 5, size=n).astype(np.uint8)
    half = image_px // 10

    def draw(i: int, x: float, y: float, which: int, ink: np.ndarray, size: int) -> tuple[slice, slice]:
        r = int((x - 0.38) / 0.26 * (image_px - 2 * half)) + half
        c = int((y + 0.16) / 0.32 * (image_px - 2 * half)) + half
        box = slice(max(r - size, 0), r + size), slice(max(c - size, 0), c + size)
        images[i][box], seg[i][box] = ink, which
        return box

    for i in range(n):
        places = rng.permutation(6)[: count[i] + 1]
        xs, ys = 0.43 + 0.13 * (places % 2), -0.12 + 0.12 * (places // 2)
        kinds = rng.permutation(8)[: count[i]]
        for k, kind in enumerate(kinds):
            colour[i, k], material[i, k] = kind // 2, kind % 2
            xyz[i, k] = xs[k], ys[k], 0.04
            box = draw(i, xs[k], ys[k], 4 + k, rgb[kind // 2], half)
            if kind % 2 == 0:
                images[i, box[0].start + half - 2 : box[0].start + half + 2, box[1]] = 245
        pad[i] = xs[-1], ys[-1]
        draw(i, xs[-1], ys[-1], 3, np.array([235, 235, 235], dtype=np.uint8), half)
        hand[i] = rng.uniform([0.4, -0.14, 0.1], [0.6, 0.14, 0.2])
        draw(i, hand[i, 0], hand[i, 1], 2, np.array([20, 20, 20], dtype=np.uint8), half // 2)
        pick[i, : count[i], :3] = xyz[i, : count[i]] - hand[i]
        pick[i, : count[i], 3] = 0
    arrays = {
        "images": images,
        "seg": seg,
        "n_objects": count,
        "colour": colour,
        "material": material,
        "object_xyz": xyz,
        "gripper_xyz": hand,
        "gripper_open": np.ones(n, dtype=np.uint8),
        "holding": np.full(n, -1, dtype=np.int8),
        "pad_xy": pad,
        "act_pick": pick,
        "act_place": pick.copy(),
        "source": np.zeros(n, dtype=np.uint8),
    }
    for name, array in arrays.items():
        np.save(shard / f"{name}.npy", array)
    return folder


def smoke(out: Path, *, settings_path: Path, n_frames: int = 256, n_updates: int = 30) -> dict[str, float]:
    """Train a few updates on drawn pictures and check that the loss falls and the export loads.

    Returns:
        Mean loss of the first and last five updates.

    Raises:
        RuntimeError: The loss did not fall by at least 15 %, or the export has missing keys.
    """
    from transformers import LlavaForConditionalGeneration

    from training.mini_vla.settings import read_settings
    from training.mini_vla.train import Trainer

    torch.set_num_threads(1)
    changes = {"run.processes": 1, "run.batch": 8, "optimizer.warmup_updates": 5, "batch.keep_patches": 96}
    settings = read_settings(settings_path, changes=changes)
    data = fake_frames(out / "data", n=n_frames, seed=1)
    trainer = Trainer(settings, data=[data], held_out=None, out=out, rank=0, world=1)
    losses = [trainer.one_update()["loss"] for _ in range(n_updates)]
    trainer.save_checkpoint()
    trainer.export(out / "final")
    first, last = float(np.mean(losses[:5])), float(np.mean(losses[-5:]))
    _, info = LlavaForConditionalGeneration.from_pretrained(out / "final", output_loading_info=True)
    report = {"first": first, "last": last, "updates": n_updates}
    (out / "smoke.json").write_text(json.dumps(report))
    if info["missing_keys"] or info["unexpected_keys"]:
        raise RuntimeError(
            f"the export lacks {info['missing_keys']} and has extra {info['unexpected_keys']}."
        )
    if not last < 0.85 * first:
        raise RuntimeError(f"the loss went from {first:.3f} to {last:.3f}; it must fall by at least 15 %.")
    return report
