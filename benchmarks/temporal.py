"""Do change points of concepts hit grasp and release, and do failures announce themselves? On held-out episodes.

    python -m benchmarks.temporal [--quick] [--episodes 40] [--seed 940000]

Records expert and failing episodes of the simulator on seeds that neither training nor the choice of the penalty
used, captures mini-vla and the same network with random weights, and measures. Also times an episode of 300 frames.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import vlascope as vs
from benchmarks._record import environment, save
from benchmarks.measure import randomized
from vlascope.measure.changes import change_points
from vlascope.measure.temporal import temporal
from vlascope.sim import record_episodes

SITES = ("vision.5", "language.2", "language.5")


def change_points_hit_events(folder: Path, *, n_episodes: int, seed: int) -> list[dict[str, Any]]:
    """Grasp and release of "place" episodes, by layer, for mini-vla and random weights."""
    record_episodes(
        folder / "place",
        n_episodes=n_episodes,
        seed=seed,
        task="place",
        image_px=112,
        n_objects=2,
        quiet=True,
    )
    out = []
    for what in ("mini-vla", "random weights"):
        model = vs.load("mini-vla") if what == "mini-vla" else randomized(vs.load("mini-vla"), seed=0)
        run = vs.capture(
            model,
            vs.items(folder / "place"),
            out=folder / f"run-{what[0]}",
            sites=SITES,
            respond=False,
            quiet=True,
        )
        for site in SITES:
            started = time.perf_counter()
            found = temporal(run, site=site, color="pca", words_site=site if site == "language.5" else None)
            both = next(r for r in found.events if r.name == "grasp + release")
            print(f"{what}, {site}: {both.line()}", flush=True)
            facts = {k: v for k, v in found.to_json().items() if k != "episodes"}
            out.append(
                {
                    "model": what,
                    "n_frames": run.n_items,
                    "secs": round(time.perf_counter() - started, 1),
                    **facts,
                }
            )
    return out


def failures_announce_themselves(folder: Path, *, n_episodes: int, seed: int) -> dict[str, Any]:
    """Early warning of scripted failures: half of the episodes succeed."""
    kinds = ("none", "drop", "none", "slip", "none", "grasp_offset")
    record_episodes(
        folder / "fail", n_episodes=n_episodes, seed=seed, task="place", failures=kinds, image_px=112, n_objects=2,
        quiet=True,
    )  # fmt: skip
    run = vs.capture(
        vs.load("mini-vla"), vs.items(folder / "fail"), out=folder / "run-fail", sites=["language.2"],
        respond=False, quiet=True,
    )  # fmt: skip
    found = temporal(run, site="language.2", color="pca")
    print(found.verdict(), flush=True)
    return {k: v for k, v in found.to_json().items() if k != "episodes"}


def speed(*, n_frames: int = 300, n_concepts: int = 10) -> dict[str, Any]:
    """Seconds of the change points of one long episode that never rests (the slow case)."""
    walk = np.random.default_rng(0).normal(size=(n_frames, n_concepts)).cumsum(0)
    started = time.perf_counter()
    change_points(walk)
    secs = time.perf_counter() - started
    print(f"change points of {n_frames} frames x {n_concepts} concepts: {secs:.2f} s")
    return {"n_frames": n_frames, "n_concepts": n_concepts, "secs": round(secs, 2)}


def main() -> None:
    """Run the experiments, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=940_000)
    args = parser.parse_args()
    n_episodes = 8 if args.quick else args.episodes
    env = environment()
    with tempfile.TemporaryDirectory(prefix="vlascope-temporal-") as name:
        results = {
            "n_episodes": n_episodes,
            "seed": args.seed,
            "events": change_points_hit_events(Path(name), n_episodes=n_episodes, seed=args.seed),
            "failures": failures_announce_themselves(
                Path(name), n_episodes=n_episodes, seed=args.seed + 1000
            ),
            "speed": speed(),
        }
    if not args.quick:
        print(f"saved {save('temporal', environment=env, results=results)}")


if __name__ == "__main__":
    main()
