"""Do the measures find on mini-vla what is known to be there, and nothing where nothing is?

    python -m benchmarks.measure [--quick] [--episodes 24] [--seed 910000]

Records expert episodes on seeds that no training used, captures mini-vla and the same network with random weights,
and asks: where the target's colour becomes separable, which probes succeed, and whether the actions depend on the
text, for mini-vla and for a copy whose word embeddings are all made equal (which therefore cannot read).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import vlascope as vs
from benchmarks._record import environment, save
from vlascope.measure import probe, sensitivity, trace, world_model
from vlascope.models import Model
from vlascope.sim import record_episodes

SITES = ("vision.0", "vision.2", "vision.5", "projector", "language.0", "language.2", "language.5")


def randomized(model: Model, *, seed: int) -> Model:
    """Give every weight matrix new normal values of its own mean and spread, in place, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim >= 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * weight.std().cpu() + weight.mean().cpu())
    return model


def deafened(model: Model) -> Model:
    """Make all word embeddings equal, in place, so that prompts of one length are one prompt; return the model."""
    with torch.no_grad():
        words: Any = model.module.get_input_embeddings()  # type: ignore[operator]
        rows = [
            3,
            *range(7, 48),
        ]  # unknown and all words, but not the frame "In: ... Out:" and the action tokens
        words.weight[rows] = words.weight[rows].mean(0, keepdim=True)
    return model


def main() -> None:
    """Run the experiments, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=910_000)
    args = parser.parse_args()
    n_episodes = 8 if args.quick else args.episodes
    env, results = environment(), {}
    with tempfile.TemporaryDirectory(prefix="vlascope-measure-") as name:
        folder = Path(name)
        record_episodes(
            folder / "episodes", n_episodes=n_episodes, seed=args.seed, image_px=112, n_objects=2, quiet=True
        )
        source = vs.items(folder / "episodes", stride=2)
        options: dict[str, Any] = {"sites": SITES, "respond": False, "quiet": True}
        run = vs.capture(vs.load("mini-vla"), source, out=folder / "run", **options)
        blank = vs.capture(randomized(vs.load("mini-vla"), seed=0), source, out=folder / "random", **options)
        started = time.perf_counter()
        found = trace(run, sites=SITES, label="target_colour", tokens="last", random_run=blank)
        print(f"trace of {run.n_items} frames: {found.verdict()} ({time.perf_counter() - started:.0f} s)")
        results["trace"] = found.to_json()
        results["probes"] = []
        for target in (("state.0", "state.1", "state.2"), "gripper_open", "target_colour", "target_material"):
            one = probe(run, site="language.5", target=target, tokens="last", random_run=blank)
            print(one.test.line())
            results["probes"].append(one.to_json())
        ahead = world_model(run, site="language.5", state_site="vision.5", horizons=(2, 6, 10), tokens="last")
        print(ahead.verdict())
        results["world_model"] = ahead.to_json()
        first = [i for i in range(run.n_items) if run.items[i].step == 4][: n_episodes if args.quick else 40]
        items = [source[i] for i in first]
        results["sensitivity"] = {}
        for what, model in (("mini-vla", vs.load("mini-vla")), ("deaf copy", deafened(vs.load("mini-vla")))):
            moved = sensitivity(model, items, changes=["other scene", "other verb", "other noun"])
            print(f"{what}: {moved.verdict()}")
            results["sensitivity"][what] = moved.to_json()
    results["n_episodes"], results["seed"] = n_episodes, args.seed
    if not args.quick:
        print(f"saved {save('measure', environment=env, results=results)}")


if __name__ == "__main__":
    main()
