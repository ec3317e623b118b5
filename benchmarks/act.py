"""Does acting on mini-vla do what it should, and not what controls of the same length do; how fast are closed loops?

    python -m benchmarks.act [--quick] [--sections steer latents knockout loop speed break] [--scenes 32] [--docs]

Scenes hold one red and one blue object; the instruction asks for the red one. Site and tokens of the steering are
chosen on scenes of their own; all numbers come from other scenes. Sections that are not asked for keep the numbers
that were saved before.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import vlascope as vs
from benchmarks._act_docs import write_results
from benchmarks._record import RESULTS, environment, save
from vlascope.act import (
    Ablate,
    CutAttention,
    Effect,
    SteerDirection,
    SteerLatents,
    baseline,
    closed_loop,
    compare,
    dose_response,
    effect,
    find_breaks,
    knockouts,
    latent_units,
    make_pairs,
    patching,
    random_directions,
    random_latents,
    word_direction,
)
from vlascope.act.effects import mean_result
from vlascope.act.paired import detectable_difference, success_result
from vlascope.files import read_json
from vlascope.items.item import Item
from vlascope.items.perturb import swap_prompt
from vlascope.models import Model
from vlascope.sim import TableTop, draw_task

SECTIONS = ("steer", "latents", "knockout", "loop", "speed", "break")
CHOOSE_SEED, TEST_SEED = 930_000, 940_000
KINDS = (("red", "rigid"), ("blue", "rigid"))
PROMPT, OTHER = "pick up the red object", "pick up the blue object"
CANDIDATES = [(f"language.{block}", tokens) for block in (0, 1, 2, 3) for tokens in ("text", "readout")]


def scenes(n: int, *, seed: int) -> tuple[list[Item], np.ndarray]:
    """Return first pictures of scenes with a red target and a blue object, and the way between them, [n, 2] metres."""
    items, ways = [], []
    with TableTop(image_px=112) as world:
        for i in range(n):
            scene, _ = draw_task(seed + i, task="pick", kinds=list(KINDS))
            world.reset(scene)
            image = world.observe().rgb
            items.append(Item(item_id=f"scene{seed + i}", images=(image,), cameras=("front",), prompt=PROMPT))
            red, blue = scene.objects
            ways.append((blue.x - red.x, blue.y - red.y))
    return items, np.array(ways)


def towards(ways: np.ndarray) -> Any:
    """Return an aim: how far the expected waypoint moves from the red object to the blue one, 1 being all the way."""

    def aim(found: Effect) -> np.ndarray:
        return (found.shifted[:, :2] * ways).sum(1) / (ways**2).sum(1)

    return aim


AIM = "share of the way from the red to the blue object"


def chosen_steering(model: Model, n: int, results: dict[str, Any]) -> SteerDirection:
    """Return the steering of red to blue, site and tokens chosen on scenes of their own."""
    items, ways = scenes(n, seed=CHOOSE_SEED)
    base, best = baseline(model, items), None
    tried = []
    for site, tokens in CANDIDATES:
        steer = word_direction(model, items, site=site, away_from="red", to="blue", tokens=tokens)
        value = float(np.nanmean(towards(ways)(effect(model, steer, base))))
        tried.append({"site": site, "tokens": tokens, "moved": value})
        if best is None or value > best[0]:
            best = (value, steer)
    assert best is not None
    results["chosen_among"] = tried
    print(f"chosen on {n} scenes: {best[1].site}, {best[1].tokens} tokens ({best[0]:.2f} of the way)")
    return best[1]


def section_steer(model: Model, args: argparse.Namespace, steer: SteerDirection) -> dict[str, Any]:
    """Dose and response of the direction, beside random directions and what another prompt does."""
    items, ways = scenes(args.scenes, seed=TEST_SEED)
    base = baseline(model, items)
    asked = [swap_prompt(item, prompt="is the gripper open?") for item in items]
    found = dose_response(
        model, steer, base, strengths=(0.5, 1.0, 1.5), controls=random_directions(steer, n=args.controls),
        aim=towards(ways), aim_name=AIM, unrelated=baseline(model, asked),
    )  # fmt: skip
    told = baseline(model, [swap_prompt(item, prompt=OTHER) for item in items])
    moved = ((told.expected - base.expected)[:, :2] * ways).sum(1) / (ways**2).sum(1)
    reference = mean_result("told to pick the blue object", moved, base.units, unit=AIM)
    print(found.verdict())
    print(reference.line())
    return {"direction": found.to_json(), "reference": reference.to_json(), "n_scenes": args.scenes}


def section_latents(model: Model, args: argparse.Namespace, site: str) -> dict[str, Any]:
    """The same with latents of a dictionary trained on the words' tokens."""
    from vlascope.items.memory import EpisodeSource
    from vlascope.sae import load_sae, train_sae
    from vlascope.sae.config import TrainConfig
    from vlascope.sim import run_episode
    from vlascope.sim.record import episode_data
    from vlascope.sim.rollout import expert_policy

    data = []
    with TableTop(image_px=112) as world:
        for i in range(args.dictionary_episodes):
            scene, order = draw_task(CHOOSE_SEED + 5_000 + i, task="pick" if i % 2 else "place")
            played = run_episode(
                world, scene=scene, instruction=order, keep_frames=True, max_steps=6,
                act=expert_policy(scene, order),
            )  # fmt: skip
            data.append(episode_data(played))
    with tempfile.TemporaryDirectory(prefix="vlascope-act-") as folder:
        run = vs.capture(
            model, EpisodeSource(data), sites=[site], out=Path(folder) / "run", respond=False, quiet=True
        )
        trained = train_sae(
            run, sites=site, tokens="text", quiet=True, out=Path(folder) / "sae",
            config={"n_latents": 512, "k": 8, "levels": (64, 256)},
            train=TrainConfig(batch=512, tokens=args.dictionary_tokens, lr=2e-3, eval_every=200),
        )  # fmt: skip
        sae = load_sae(trained[0].path).sae
    items, _ = scenes(args.scenes // 2, seed=CHOOSE_SEED)
    groups = []
    for prompt in (PROMPT, OTHER):
        batch = model.prepare([swap_prompt(item, prompt=prompt) for item in items])
        captured = model.capture(batch, site)[site]
        rows = [
            v.numpy()[layout.is_kind("text")]
            for v, layout in zip(captured, batch.layouts["language"], strict=True)
        ]
        groups.append(np.concatenate(rows))
    import torch

    active = [sae.encode(torch.from_numpy(group)).dense().mean(0).numpy() for group in groups]
    units = latent_units(sae, np.concatenate(groups))
    order = np.argsort(active[0] - active[1])[:4]
    latents = tuple(int(i) for i in order if active[1][i] > active[0][i])
    steer = SteerLatents(
        site=site, sae=sae, latents=latents, units=tuple(float(units[i]) for i in latents), tokens="text"
    )
    tests, ways = scenes(args.scenes, seed=TEST_SEED)
    alive = np.flatnonzero(np.isfinite(units)).tolist()
    controls = [
        *random_directions(steer, n=args.controls // 2),
        *random_latents(steer, sae, among=alive, n=args.controls // 2),
    ]
    found = dose_response(
        model,
        steer,
        baseline(model, tests),
        strengths=(1.0, 2.0),
        controls=controls,
        aim=towards(ways),
        aim_name=AIM,
    )
    print(f"latents {latents}: {found.verdict()}")
    evaluation = trained[0].evaluation
    return {
        "site": site,
        "fvu": None if evaluation is None else evaluation.levels[-1].fvu,
        "dose_response": found.to_json(),
    }


def section_knockout(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Cuts and ablations on the test scenes; where the noun passes, by patching."""
    items, _ = scenes(args.scenes, seed=TEST_SEED)
    cuts = [
        CutAttention(source=a, reader=b)
        for a, b in (("text", "action"), ("patch", "action"), ("patch", "text"))
    ]
    blocks = [Ablate(site=f"language.{i}.{part}") for i in (0, 3, 5) for part in ("attn", "mlp")]
    found = knockouts(model, baseline(model, items), [*cuts, *blocks])
    pairs = make_pairs(items[: args.scenes // 2], change="noun")
    patched = patching(model, pairs, sites="language.*", kinds=("patch", "text", "last"))
    for one in found[:6]:
        print(one.line())
    print(patched.verdict())
    return {"knockouts": [one.to_json() for one in found], "patching": patched.to_json()}


def section_loop(model: Model, args: argparse.Namespace, steer: SteerDirection) -> dict[str, Any]:
    """Closed loop on one set of seeds: nothing, the steering, a random direction as long, the text cut off."""
    n = args.episodes
    common: dict[str, Any] = {"n_episodes": n, "seed": TEST_SEED, "kinds": KINDS}
    base = closed_loop(model, **common)
    conditions = {
        "steered": steer,
        "random direction": random_directions(steer, n=1, seed=5)[0],
        "text -> action cut": CutAttention(source="text"),
    }
    out: dict[str, Any] = {
        "base": success_result(base).to_json(), "smallest_detectable_change": detectable_difference(n), "n": n
    }  # fmt: skip
    print(success_result(base).line())
    for name, edit in conditions.items():
        loop = closed_loop(model, **common, edit=edit)
        pair = compare(base, loop)
        blue_first = float(np.mean([e.nearest_at_close != e.instruction.target for e in loop.episodes]))
        print(
            f"{name}: {pair.difference.line()}; {pair.wrong_object.line()}; nearest is blue: {blue_first:.2f}"
        )
        out[name] = pair.to_json() | {
            "success": success_result(loop).to_json(),
            "hand_closes_nearer_to_blue": blue_first,
        }
    return out


def section_speed(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Control steps per second with rendering at 96 px."""
    out: dict[str, Any] = {"image_px": 96, "load": os.getloadavg()[0]}
    for batch, processes in ((1, 1), (4, 1), (4, 2), (8, 2)):
        n = 4 if args.quick else 16 * processes
        cpu, started = time.process_time(), time.perf_counter()
        loop = closed_loop(
            model, n_episodes=n, seed=TEST_SEED + 500, image_px=96, batch=batch, processes=processes
        )
        row = {
            "batch": batch,
            "processes": processes,
            "steps": loop.n_steps,
            "steps_per_second": loop.steps_per_second,
            "seconds_with_loading": time.perf_counter() - started,
            "successes": loop.successes,
            "episodes": n,
        }
        if processes == 1:
            row["cpu_ms_per_step"] = 1e3 * (time.process_time() - cpu) / loop.n_steps
        out[f"batch {batch}, {processes} processes"] = row
        print(f"batch {batch}, {processes} processes: {loop.steps_per_second:.1f} control steps/s")
    return out


def section_break(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """The smallest changes that make the model fail."""
    found = find_breaks(model, n_scenes=args.break_scenes, seed=TEST_SEED + 900, n_halvings=2)
    print(found.verdict())
    for one in (*found.broken, *found.smallest):
        print(one.line())
    return found.to_json()


def main() -> None:
    """Run the sections, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--controls", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--break-scenes", type=int, default=5)
    parser.add_argument("--dictionary-episodes", type=int, default=80)
    parser.add_argument("--dictionary-tokens", type=int, default=150_000)
    parser.add_argument(
        "--docs", action="store_true", help="write the saved numbers into docs/results.md and stop"
    )
    args = parser.parse_args()
    if args.docs:
        print(f"wrote {write_results().name}")
        return
    if args.quick:
        args.scenes, args.controls, args.episodes, args.break_scenes = 8, 4, 6, 1
        args.dictionary_episodes, args.dictionary_tokens = 10, 5_000
    env, model = environment(), vs.load("mini-vla", device="cpu")
    path = RESULTS / "act.json"
    results: dict[str, Any] = read_json(path)["results"] if path.exists() else {}
    needs_steering = {"steer", "loop", "latents"} & set(args.sections)
    chosen: dict[str, Any] = {}
    steer = chosen_steering(model, args.scenes // 2, chosen) if needs_steering else None
    for name in args.sections:
        started = time.perf_counter()
        if name == "steer" and steer is not None:
            results[name] = chosen | section_steer(model, args, steer)
        elif name == "latents" and steer is not None:
            results[name] = section_latents(model, args, steer.site)
        elif name == "loop" and steer is not None:
            results[name] = section_loop(model, args, steer)
        elif name == "knockout":
            results[name] = section_knockout(model, args)
        elif name == "speed":
            results[name] = section_speed(model, args)
        elif name == "break":
            results[name] = section_break(model, args)
        results[name]["seconds"] = time.perf_counter() - started
        if not args.quick:
            print(f"saved {save('act', environment=env, results=results).name} after '{name}'", flush=True)


if __name__ == "__main__":
    main()
