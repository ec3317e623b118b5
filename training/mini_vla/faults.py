"""Measure the checkpoints with known faults: `python -m training.mini_vla.faults FOLDER [--episodes 40]`.

Three sets of scenes: any colours and materials; scenes that obey the planted correlation (red and yellow fragile,
blue and green rigid); scenes that break it with every object (red and yellow rigid, blue and green fragile). Saved
as evaluation.json in the folder. A sound model does equally well on all three.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 2_200_000
WARM, COLD = ("red", "yellow"), ("blue", "green")


def kinds_of(condition: str, rng: np.random.Generator) -> tuple[tuple[str, str], ...] | None:
    """Objects of a scene, target first: two warm and cold ones that obey or break the correlation."""
    if condition == "any":
        return None
    warm_is = "fragile" if condition == "obeys" else "rigid"
    cold_is = "rigid" if condition == "obeys" else "fragile"
    pair = [(str(rng.choice(WARM)), warm_is), (str(rng.choice(COLD)), cold_is)]
    return tuple(pair[i] for i in rng.permutation(2))


def run_condition(job: tuple[str, str, int]) -> tuple[str, dict[str, Any]]:
    """All episodes of one condition: (folder, condition, episodes)."""
    from training.mini_vla.evaluate import HoldStill
    from vlascope.models import load
    from vlascope.models.policy import VLAPolicy
    from vlascope.sim import rollout, wilson_interval

    folder, condition, n = job
    torch.set_num_threads(1)
    policy = HoldStill(VLAPolicy(load(folder, dtype="float32")))
    by_phrase: dict[str, dict[str, int]] = defaultdict(lambda: {"n": 0, "successes": 0, "target_nearest": 0})
    total = {"n": 0, "successes": 0, "target_nearest": 0, "wrong_lifted": 0}
    for i in range(n):
        kinds = kinds_of(condition, np.random.default_rng([SEED, i]))
        result = rollout(policy, task="pick", n_episodes=1, seed=SEED + i, kinds=kinds)  # type: ignore[arg-type]
        won = {"n": 1, "successes": result.successes, "target_nearest": result.target_nearest}
        for key, value in won.items():
            total[key] += value
            by_phrase[result.episodes[0].instruction.phrase][key] += value
        total["wrong_lifted"] += result.wrong_lifted
    return condition, {
        **total,
        "success_interval": wilson_interval(total["successes"], n),
        "nearest_interval": wilson_interval(total["target_nearest"], n),
        "by_phrase": dict(sorted(by_phrase.items())),
    }


def main() -> None:
    """Parse the command line, measure, write evaluation.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    jobs = [(str(args.folder), condition, args.episodes) for condition in ("any", "obeys", "breaks")]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        found = dict(pool.imap(run_condition, jobs, chunksize=1))
    (args.folder / "evaluation.json").write_text(
        json.dumps({"task": "pick", "seed": SEED, **found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
