"""Do the measures find on mini-vla what is known to be there, and nothing where nothing is?

    python -m benchmarks.measure [--quick] [--episodes 48] [--seed 930000] [--only SECTION ...] [--docs]

Records expert episodes on seeds that no training used, captures mini-vla and the same network with random weights,
and asks, section by section: where the target's identity becomes separable (trace), whether concepts fit the objects
better than k-means and PCA on the same tokens (masks), what can be read off a layer (probes), where colour is
(colour), whether a planted
memoriser is exposed (memoriser), where the camera stands (camera), what a layer knows of the future (world_model),
and whether the actions depend on the text, for mini-vla and for a copy whose word embeddings are all made equal and
which therefore cannot read (sensitivity). `speed` times three measures on arrays of a stated size. Every section is
saved as soon as it is known; `--only` measures some sections anew and keeps the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlascope as vs
from benchmarks._measure_camera import read_poses
from benchmarks._measure_colour import read_colours
from benchmarks._measure_docs import write_results
from benchmarks._measure_future import foresee_slow_episodes
from benchmarks._record import RESULTS, environment, save
from vlascope.files import read_json
from vlascope.items import Item, open_items
from vlascope.measure import (
    evaluate,
    probe,
    probe_arrays,
    sensitivity,
    temporal,
    trace,
    units_of,
)
from vlascope.measure.pooling import TokenChoice
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


def both_models() -> dict[str, Model]:
    """Return mini-vla, and the same network with random weights."""
    return {"mini-vla": vs.load("mini-vla"), "random weights": randomized(vs.load("mini-vla"), seed=0)}


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


def with_poses(folder: Path, *, stride: int) -> list[Item]:
    """Return every stride-th frame, with where the target lies (target_x, target_y, target_z, metres) as labels."""
    source = vs.items(folder)
    poses: dict[int | None, dict[str, Any]] = {}
    out = []
    for i in range(len(source)):
        item = source[i]
        if (item.step or 0) % stride:
            continue
        if item.episode not in poses:
            poses[item.episode] = source.poses(item.episode)  # type: ignore[attr-defined]
        place = poses[item.episode][f"object_{item.labels['target']}"][item.step]
        where = {f"target_{axis}": float(value) for axis, value in zip("xyz", place[:3], strict=True)}
        out.append(replace(item, labels={**item.labels, **where}))
    return out


class Bench:
    """The episodes and captures that several sections share, made when first asked for."""

    def __init__(self, folder: Path, *, n_episodes: int, seed: int) -> None:
        self.folder, self.n_episodes, self.seed = folder, n_episodes, seed
        self._made: dict[str, Any] = {}

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` made the first time."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def items(self) -> list[Item]:
        """Every second frame of the pick episodes."""

        def make() -> list[Item]:
            place = self.folder / "pick"
            record_episodes(
                place, n_episodes=self.n_episodes, seed=self.seed, image_px=112, n_objects=2, quiet=True
            )
            return with_poses(place, stride=2)

        return self.made("items", make)

    def run(self, *, trained: bool) -> Any:
        """The run of mini-vla, or of the same network with random weights."""

        def make() -> Any:
            model = vs.load("mini-vla") if trained else randomized(vs.load("mini-vla"), seed=0)
            out = self.folder / ("run" if trained else "random")
            return vs.capture(model, open_items(self.items), out=out, sites=SITES, respond=False, quiet=True)

        return self.made(f"run {trained}", make)


def find_identity(bench: Bench) -> dict[str, Any]:
    """At which layer is the target's colour separable at the last token, and which object a patch belongs to?"""
    out = {}
    run, blank = bench.run(trained=True), bench.run(trained=False)
    for what, label in (("target colour", "target_colour"), ("object of a patch", None)):
        found = trace(
            run,
            sites=SITES,
            label=label,
            tokens="last" if label else "auto",
            random_run=blank,
            n_permutations=99,
            color="pca",
        )
        print(f"{what}: {found.verdict()}", flush=True)
        out[what] = found.to_json()
    return out


def fit_masks(bench: Bench) -> dict[str, Any]:
    """Do joint NCut concepts fit the simulator's objects better than k-means and PCA on the same tokens?

    Scores are means over five seeds of each method. The settings of both cuts were chosen on other episodes (seeds
    910000 and up).
    """
    run = bench.run(trained=True)
    out = {}
    for site in ("vision.5", "language.2"):
        found = evaluate(
            run, sites=[site], methods=["ncut", "ncut-uniform", "kmeans", "pca", "pixels", "tiles"], k=25,
            scope="joint", random_run=bench.run(trained=False), n_permutations=99, n_starts=5,
        )  # fmt: skip
        pairs = [
            found.difference(one, other, score="best overlap")
            for one in ("ncut", "ncut-uniform")
            for other in ("kmeans", "pca", "pixels")
        ]
        print(site, *(one.line() for one in pairs), sep="\n", flush=True)
        out[site] = {**found.to_json(), "differences": [one.to_json() for one in pairs]}
    return out


def read_targets(bench: Bench) -> list[dict[str, Any]]:
    """Positions, state, colour, fragility, gripper: on held-out episodes, beside the controls."""
    out = []
    asked: tuple[tuple[Any, TokenChoice, str], ...] = (
        (("target_x", "target_y"), "patch", "vision.5"),
        (("target_x", "target_y"), "last", "language.5"),
        (("state.0", "state.1", "state.2"), "last", "language.5"),
        ("gripper_open", "last", "language.5"),
        ("target_colour", "last", "language.2"),
        ("target_material", "last", "language.2"),
    )
    for target, tokens, site in asked:
        one = probe(
            bench.run(trained=True), site=site, target=target, tokens=tokens, random_run=bench.run(trained=False)
        )  # fmt: skip
        print(one.test.line(), flush=True)
        out.append({"tokens": tokens, **one.to_json()})
    return out


def ask_colours(bench: Bench) -> list[dict[str, Any]]:
    """Where colour can be read, on twice as many episodes; five networks with random weights, each with its p."""
    models = {"mini-vla": vs.load("mini-vla")}
    models |= {f"random weights {seed}": randomized(vs.load("mini-vla"), seed=seed) for seed in range(5)}
    return read_colours(models, bench.folder, n_episodes=2 * bench.n_episodes, seed=bench.seed)


def expose_memoriser(bench: Bench) -> list[dict[str, Any]]:
    """A layer that names every episode and knows nothing else: right on episodes it has seen, worthless on others."""
    items = bench.items
    rng = np.random.default_rng(0)
    episode = np.unique([item.episode or 0 for item in items], return_inverse=True)[1]
    names = np.eye(int(episode.max()) + 1)[episode] + 0.01 * rng.normal(
        size=(len(items), int(episode.max()) + 1)
    )
    target = np.array([[i.labels["target_x"], i.labels["target_y"]] for i in items], np.float64)
    out = []
    for split, ids in (("episodes", episode), ("frames", np.arange(len(items)))):
        one = probe_arrays(
            names, target, units_of(ids.tolist(), over=split.removesuffix("s")), outputs=("x", "y"),
            site=f"memoriser, {split} held out", target="target_x + target_y", n_permutations=99,
        )  # fmt: skip
        print(one.verdict(), flush=True)
        out.append(one.to_json())
    return out


def read_camera(bench: Bench) -> list[dict[str, Any]]:
    """Where the camera stands, from renderings of scenes from many places (NeRF layout), whole scenes held out."""
    n_scenes = max(6, bench.n_episodes // 2)
    return read_poses(both_models(), bench.folder, n_scenes=n_scenes, seed=bench.seed + 500)


def foresee(bench: Bench) -> dict[str, Any]:
    """What a layer knows of the state 1, 3, 10 and 30 steps later, beyond the present: slow place episodes."""
    return foresee_slow_episodes(
        vs.load("mini-vla"), bench.folder, n_episodes=max(8, bench.n_episodes // 2), seed=bench.seed + 1000
    )


def depend_on_text(bench: Bench) -> dict[str, Any]:
    """The verdict for mini-vla, which was trained to follow words, and for a copy that cannot read."""
    items = [item for item in bench.items if item.step == 4][:40]
    out = {}
    for what, model in (("mini-vla", vs.load("mini-vla")), ("deaf copy", deafened(vs.load("mini-vla")))):
        moved = sensitivity(
            model, items, changes=["other scene", "other verb", "other noun", "paraphrase"],
            action_unit={"": "m", "grip": "share"},
        )  # fmt: skip
        print(f"{what}: {moved.verdict()}", flush=True)
        out[what] = moved.to_json()
    return out


def speed(bench: Bench) -> dict[str, Any]:
    """Seconds of a trace of 12 layers x 64 images, of 300 frames in time, of concept ranking of 5,000 images."""
    from vlascope.measure.captions import Vocabulary
    from vlascope.measure.concepts import rank_words

    out: dict[str, Any] = {"trace": _trace_speed(bench.folder), "temporal": _temporal_speed(bench)}
    rng = np.random.default_rng(0)
    has = rng.random((5_000, 200)) < 0.03
    features = rng.normal(size=(5_000, 384)).astype(np.float32)
    features[:, :200] += has * 3.0
    words = Vocabulary(tuple(f"w{i}" for i in range(200)), ("noun", "verb") * 100, has)
    start = time.perf_counter()
    found = rank_words(features, words, units_of(range(5_000)))
    secs = time.perf_counter() - start
    n_found = sum(word.found for word in found.words)
    print(f"concept ranking of 5,000 images x 200 words: {secs:.1f} s ({n_found} words found)", flush=True)
    out["concepts"] = {"images": 5_000, "words": 200, "width": 384, "secs": round(secs, 2), "found": n_found}
    return out


def _temporal_speed(bench: Bench) -> dict[str, Any]:
    """The cut of 300 frames of mini-vla, their time lines, change points and everything that is asked of them."""
    frames = bench.items[:300]
    run = vs.capture(
        vs.load("mini-vla"), open_items(frames), out=bench.folder / "run-300", sites=["vision.5"], respond=False,
        quiet=True,
    )  # fmt: skip
    start = time.perf_counter()
    found = temporal(run, site="vision.5")
    secs = time.perf_counter() - start
    print(f"temporal of {run.n_items} frames: {secs:.1f} s; {found.verdict()}", flush=True)
    return {"n_frames": run.n_items, "n_episodes": len(found.lines), "secs": round(secs, 2)}


def _trace_speed(folder: Path) -> dict[str, Any]:
    """A vision transformer of 12 blocks and 192 channels with random weights, 16 x 16 patches, 64 images."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=224,
        patch_size=14,
    )  # fmt: skip
    ViTModel(config).save_pretrained(folder / "vit")
    write = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    from vlascope.files import write_json

    write_json(folder / "vit" / "preprocessor_config.json", write)
    rng = np.random.default_rng(0)
    items = []
    for i in range(64):
        image = rng.integers(0, 120, (224, 224, 3)).astype(np.uint8)
        mask = np.zeros((224, 224), np.uint8)
        row, col = rng.integers(0, 140, 2)
        mask[row : row + 70, col : col + 70] = 1 + i % 2
        image[mask == 1, 0] = 230
        image[mask == 2, 2] = 230
        names = {0: "background", 1: "red", 2: "blue"}
        items.append(
            Item(
                item_id=f"{i}", images=(image,), labels={"colour": ("red", "blue")[i % 2]},
                masks={"segmentation": mask}, mask_names={"segmentation": names},
            )
        )  # fmt: skip
    model = randomized(vs.load(str(folder / "vit")), seed=0)
    sites = [f"vision.{i}" for i in range(12)]
    run = vs.capture(model, open_items(items), out=folder / "run-vit", sites=sites, respond=False, quiet=True)
    start = time.perf_counter()
    found = trace(run, sites=sites, label="colour")
    secs = time.perf_counter() - start
    print(f"trace of 12 layers x 64 images x 256 tokens: {secs:.1f} s; {found.verdict()}", flush=True)
    return {"layers": 12, "images": 64, "patches": 256, "width": 192, "secs": round(secs, 2)}


SECTIONS: dict[str, Callable[[Bench], Any]] = {
    "sensitivity": depend_on_text,
    "memoriser": expose_memoriser,
    "probes": read_targets,
    "colour": ask_colours,
    "camera": read_camera,
    "world_model": foresee,
    "trace": find_identity,
    "masks": fit_masks,
    "speed": speed,
}


def main() -> None:
    """Run the sections, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 episodes; nothing is saved")
    parser.add_argument("--episodes", type=int, default=48)
    parser.add_argument("--seed", type=int, default=930_000)
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument(
        "--docs", action="store_true", help="write the saved numbers into docs/results.md and stop"
    )
    args = parser.parse_args()
    if args.docs:
        print(f"wrote {write_results()}")
        return
    n_episodes = 8 if args.quick else args.episodes
    env = environment()
    kept = RESULTS / "measure.json"
    results = {} if args.quick or not kept.exists() else read_json(kept)["results"]
    with tempfile.TemporaryDirectory(prefix="vlascope-measure-") as name:
        bench = Bench(Path(name), n_episodes=n_episodes, seed=args.seed)
        for section in args.only:
            start = time.perf_counter()
            found = SECTIONS[section](bench)
            results[section] = {
                "n_episodes": n_episodes,
                "seed": args.seed,
                "commit": env["commit"],
                "secs": round(time.perf_counter() - start, 1),
                "found": found,
            }
            if not args.quick:
                print(f"saved {section}: {save('measure', environment=env, results=results)}", flush=True)


if __name__ == "__main__":
    main()
