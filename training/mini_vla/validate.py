"""Teacher-forced validation: cheap numbers that say whether the model follows the words and sees depth."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from training.mini_vla.batches import Frames, make_batch
from training.mini_vla.losses import bin_log_probs, run_batch
from training.mini_vla.network import AuxiliaryHeads
from training.mini_vla.settings import Settings
from training.mini_vla.vocabulary import REACH_M
from vlascope.sim.language import Instruction, Question


@torch.no_grad()
def collect(
    model: Any,
    heads: AuxiliaryHeads,
    frames: Frames,
    rows: np.ndarray,
    *,
    settings: Settings,
    bf16: bool = True,
) -> dict[str, np.ndarray]:
    """Predictions on the given frames, as flat arrays that can be joined over processes and summarised."""
    rng = np.random.default_rng(12345)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, len(rows), 32):
        chosen = rows[start : start + 32]
        batch = make_batch([frames.frame(i) for i in chosen], settings=settings.batch, rng=rng, train=False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            out = run_batch(model, heads, batch)
        orders = [(i, note) for i, note in batch.notes if isinstance(note, Instruction)]
        asked = [note for _, note in batch.notes if isinstance(note, Question)]
        log_probs = bin_log_probs(out["bins"])
        picked = log_probs.argmax(-1).numpy().reshape(-1, 4)
        found["predicted"].append(((picked + 0.5) / 255 * 2 - 1).astype(np.float32))
        found["true"].append(batch.bin_values.numpy().reshape(-1, 4))
        found["image"].append(chosen[[i for i, _ in orders]])
        held = np.array([int(frames.frame(chosen[i])["holding"]) for i, _ in orders])
        target = np.array([note.target for _, note in orders])
        found["is_place"].append(np.array([note.task == "place" for _, note in orders]))
        found["held"].append(held == target)
        found["delta"].append(out["delta"].numpy() * REACH_M)
        found["answer_right"].append((out["answers"].argmax(-1) == batch.answer_ids).numpy())
        found["question_kind"].append(np.array([q.kind for q in asked]))
        best = out["pointer"].argmax(-1)
        found["pointer_hit"].append((batch.point_shares.gather(1, best[:, None])[:, 0] > 0).numpy())
        debiased = out["classes"] - torch.tensor(settings.loss.class_weight).log()
        found["class_right"].append((debiased.argmax(-1) == batch.classes.argmax(-1)).numpy().mean(1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def summarise(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Errors in cm, swap slope, accuracies; all from `collect`."""
    true, predicted = found["true"], found["predicted"]
    error = np.abs(predicted - true)[:, :3] * REACH_M * 100
    result: dict[str, float] = {}
    groups = {
        "pick": ~found["is_place"],
        "place_before": found["is_place"] & ~found["held"],
        "place_held": found["is_place"] & found["held"],
    }
    for name, rows in groups.items():
        if rows.any():
            for j, axis in enumerate(("dx", "dy", "dz")):
                result[f"{name}_{axis}_cm"] = float(error[rows, j].mean())
            result[f"{name}_grip"] = float(((predicted[rows, 3] > 0) == (true[rows, 3] > 0)).mean())
    result["within4_dx"] = float((error[groups["pick"], 0] < 4.5 * 0.196).mean())
    slopes_x, slopes_y = [], []
    for image in np.unique(found["image"]):
        rows = np.flatnonzero((found["image"] == image) & groups["pick"])
        for a in range(len(rows)):
            for b in range(a + 1, len(rows)):
                slopes_x.append(true[rows[a], 1] - true[rows[b], 1])
                slopes_y.append(predicted[rows[a], 1] - predicted[rows[b], 1])
    x, y = np.array(slopes_x), np.array(slopes_y)
    moved = np.abs(x) > 0.02 / REACH_M
    result["swap_slope"] = float((x * y).sum() / max((x * x).sum(), 1e-9))
    result["swap_side"] = float((np.sign(x) == np.sign(y))[moved].mean()) if moved.any() else float("nan")
    result["answers"] = float(found["answer_right"].mean())
    for kind in np.unique(found["question_kind"]):
        result[f"answers_{kind}"] = float(found["answer_right"][found["question_kind"] == kind].mean())
    result["pointer_hit"] = float(found["pointer_hit"].mean())
    result["patch_class"] = float(found["class_right"].mean())
    return result
