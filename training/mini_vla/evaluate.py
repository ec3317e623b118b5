"""Evaluate saved weights: `python -m training.mini_vla.evaluate FOLDER [--out FILE] [--processes 2] [--quick]`.

Everything runs on weights read back from the file, in float32, on seeds that training never used: scenes of the
closed loop have seeds from 2000000 on, still pictures a generator seed of their own. Every share has a Wilson
95 % interval and stands beside its controls.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.mini_vla.batches import Frames, Segment, action_segment, answer_segment, make_batch
from training.mini_vla.network import encode_image, packed_forward
from training.mini_vla.settings import DEFAULT_PATH, Settings, read_settings
from training.mini_vla.vocabulary import BINS, PROMPT_TEMPLATE, prompt_ids
from vlascope.sim.language import VOCABULARY, instructions_from_arrays, questions_from_arrays

log = logging.getLogger("mini_vla")

PICK_SEED, PLACE_SEED, STILL_SEED = 2_000_000, 2_100_000, 987_654
# name: (task, episodes, quick episodes)
CLOSED_LOOP: dict[str, tuple[str, int, int]] = {
    "pick": ("pick", 200, 20),
    "place": ("place", 150, 10),
    "brightness_0.8": ("pick", 100, 0),
    "brightness_1.2": ("pick", 100, 0),
    "camera_1cm_side": ("pick", 100, 0),
    "camera_1cm_up": ("pick", 100, 0),
    "table_tiles": ("pick", 100, 0),
    "table_marble": ("pick", 100, 0),
    "control_grey": ("pick", 40, 0),
    "control_other_scene": ("pick", 40, 0),
    "control_random_words": ("pick", 60, 0),
    "word_order_shuffled": ("pick", 40, 0),
}


class HoldStill:
    """A policy that stands still, and counts, when the model's reply is no action (nothing is guessed)."""

    def __init__(self, policy: Callable[[np.ndarray, str], Any]) -> None:
        self.policy, self.malformed, self.calls = policy, 0, 0

    def __call__(self, rgb: np.ndarray, instruction: str) -> tuple[np.ndarray, dict[str, Any]]:
        action, info = self.policy(rgb, instruction)
        self.calls += 1
        if not np.isfinite(action).all():
            self.malformed += 1
            action = np.nan_to_num(np.asarray(action, dtype=np.float64), nan=0.0)
            action[:3] = 0.0
        return action, info


def perturbation(name: str) -> Any:
    """The change of scenes, pictures or words that a named condition makes."""
    from vlascope.sim import Perturbation, TableTop, draw_task

    if name.startswith("brightness_"):
        return Perturbation(brightness=float(name.split("_")[1]))
    if name == "camera_1cm_side":
        return Perturbation(camera_shift=(0.0, 0.01, 0.0))
    if name == "camera_1cm_up":
        return Perturbation(camera_shift=(0.0, 0.0, 0.01))
    if name.startswith("table_"):
        return Perturbation(table=name.split("_")[1])
    if name == "control_grey":
        return Perturbation(image=lambda rgb, _: np.full_like(rgb, 128))
    if name == "control_other_scene":
        with TableTop() as world:
            others = []
            for i in range(40):
                world.reset(draw_task(PLACE_SEED + 5000 + i, task="pick")[0])
                others.append(world.observe().rgb)
        return Perturbation(image=lambda rgb, i: others[i % len(others)])
    if name == "control_random_words":

        def other_words(text: str, episode: int) -> str:
            rng = np.random.default_rng(episode)
            return " ".join(VOCABULARY[int(rng.integers(2, len(VOCABULARY)))] for _ in text.split())

        return Perturbation(text=other_words)
    if name == "word_order_shuffled":

        def shuffled(text: str, episode: int) -> str:
            return " ".join(np.random.default_rng(episode).permutation(text.split()))

        return Perturbation(text=shuffled)
    return Perturbation()


def run_part(job: tuple[str, str, str, int, int]) -> tuple[str, dict[str, Any]]:
    """One share of a condition's episodes, in a process of its own: (folder, condition, task, n, seed)."""
    from vlascope.models import load
    from vlascope.models.policy import VLAPolicy
    from vlascope.sim import rollout

    folder, name, task, n, seed = job
    torch.set_num_threads(1)
    policy = HoldStill(VLAPolicy(load(folder, dtype="float32")))
    started = time.perf_counter()
    result = rollout(policy, task=task, n_episodes=n, seed=seed, perturbation=perturbation(name))  # type: ignore[arg-type]
    found = result.to_dict()
    found["chance_nearest"] = float(np.sum([1 / len(e.scene.objects) for e in result.episodes]))
    found["target_kinds"] = [
        f"{e.scene.objects[e.instruction.target].colour} {e.scene.objects[e.instruction.target].material}"
        for e in result.episodes
    ]
    found |= {"malformed": policy.malformed, "calls": policy.calls, "seconds": time.perf_counter() - started}
    return name, found


def closed_loop(
    folder: Path, *, processes: int, quick: bool = False, only: list[str] | None = None
) -> dict[str, Any]:
    """All conditions of the closed loop, shared between processes in parts of 20 episodes."""
    from vlascope.sim import wilson_interval

    jobs = []
    for name, (task, n, n_quick) in CLOSED_LOOP.items():
        if only is not None and name not in only:
            continue
        n = n_quick if quick else n
        seed = PICK_SEED if task == "pick" else PLACE_SEED
        jobs += [(str(folder), name, task, min(20, n - start), seed + start) for start in range(0, n, 20)]
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if processes == 1:
        for job in jobs:
            parts[job[1]].append(run_part(job)[1])
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for name, found in pool.imap(run_part, jobs):
                parts[name].append(found)
    table = {}
    for name, found in parts.items():
        episodes = [e for part in found for e in part["episodes"]]
        kinds = [k for part in found for k in part["target_kinds"]]
        n, won = len(episodes), sum(e["outcome"] == "success" for e in episodes)
        by_kind, by_phrase = defaultdict(lambda: [0, 0]), defaultdict(lambda: [0, 0])
        for episode, kind in zip(episodes, kinds, strict=True):
            for group in (by_kind[kind], by_phrase[episode["phrase"]]):
                group[0] += episode["outcome"] == "success"
                group[1] += 1
        nearest = sum(part["target_nearest"] for part in found)
        table[name] = {
            "n": n,
            "successes": won,
            "share": won / n,
            "wilson_interval": wilson_interval(won, n),
            "wrong_lifted": sum(part["wrong_lifted"] for part in found),
            "target_nearest": nearest,
            "target_nearest_interval": wilson_interval(nearest, n),
            "chance_nearest": sum(part["chance_nearest"] for part in found) / n,
            "failures": dict(_count(e["outcome"] for e in episodes if e["outcome"] != "success")),
            "by_kind": dict(sorted(by_kind.items())),
            "by_phrase": dict(sorted(by_phrase.items())),
            "malformed_replies": sum(part["malformed"] for part in found),
            "calls": sum(part["calls"] for part in found),
            "seconds": sum(part["seconds"] for part in found),
            "failed_seeds": [e["seed"] for e in episodes if e["outcome"] != "success"],
            "close_error_cm_median": _median_cm([e["first_close_error_m"] for e in episodes]),
        }
    return table


def _count(outcomes: Any) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        counts[outcome] += 1
    return dict(sorted(counts.items()))


def _median_cm(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return 100 * float(np.median(known)) if known else None


# -- still pictures ---------------------------------------------------------------------------------------


@torch.no_grad()
def reply_ids(
    model: Any, frames: list[dict[str, np.ndarray]], texts: list[list[Segment]], settings: Settings
) -> list[np.ndarray]:
    """Greedy reply tokens of every segment (4 for instructions, 1 for questions), in float32."""
    rng = np.random.default_rng(0)
    batch = make_batch(frames, settings=settings.batch, rng=rng, train=False, texts=texts)
    features = encode_image(model, batch.pixels)
    ids = batch.ids
    replies: list[list[int]] = [[] for row in texts for _ in row]
    for step in range(4):
        states, _ = packed_forward(model, features, ids, batch.positions, batch.segments)
        best = model.lm_head(states).argmax(-1)
        which = 0
        for i, row in enumerate(texts):
            at = 0
            for segment in row:
                here = at + segment.n_prompt - 1 + step
                if step < (4 if segment.action is not None else 1):
                    replies[which].append(int(best[i, here]))
                    ids[i, here + 1] = best[i, here]
                at += len(segment.ids)
                which += 1
    return [np.array(r) for r in replies]


def still_pictures(
    model: Any, frames: Frames, *, settings: Settings, control: str = "none"
) -> dict[str, Any]:
    """Questions, action errors and the prompt swap on held-out pictures; `control` spoils the picture or words.

    Args:
        model: Weights read back from the file.
        frames: Fresh teleported frames.
        settings: Text budget.
        control: "none", "grey", "other_scene" or "random_words".
    """
    rng = np.random.default_rng(7)
    answers: dict[str, list[bool]] = defaultdict(list)
    majority: dict[str, list[str]] = defaultdict(list)
    swaps: list[tuple[float, float]] = []
    errors: list[np.ndarray] = []
    for start in range(0, len(frames), 16):
        group = [frames.frame(i) for i in range(start, min(start + 16, len(frames)))]
        texts: list[list[Segment]] = []
        for frame in group:
            orders = instructions_from_arrays(frame["colour"], frame["material"], tasks=("pick",))
            two = [
                rng.permutation([o for o in orders if o.target == t])[0]
                for t in sorted({o.target for o in orders})
            ]
            asked = questions_from_arrays(
                frame["colour"],
                frame["material"],
                frame["object_xyz"],
                gripper_open=bool(frame["gripper_open"]),
            )
            chosen = {}
            for kind in ("colour", "fragile", "where", "gripper"):
                options = [q for q in asked if q.kind == kind]
                if options:
                    chosen[kind] = options[int(rng.integers(len(options)))]
            row = [s for s in (action_segment(frame, o) for o in two[:3]) if s is not None]
            row += [answer_segment(frame, q) for q in chosen.values()]
            if control == "random_words":
                for segment in row:
                    words_ids = prompt_ids(" ".join(VOCABULARY[2:]))[1:-1]
                    segment.ids[1 : segment.n_prompt - 1] = rng.choice(words_ids, segment.n_prompt - 2)
            texts.append(row)
        seen = group
        if control == "grey":
            seen = [{**f, "images": np.full_like(f["images"], 128)} for f in group]
        elif control == "other_scene":
            seen = [{**f, "images": group[(i + 1) % len(group)]["images"]} for i, f in enumerate(group)]
        replies = iter(reply_ids(model, seen, texts, settings))
        for frame, row in zip(group, texts, strict=True):
            del frame
            moves = []
            for segment in row:
                reply = next(replies)
                if segment.action is None:
                    kind = segment.note.kind  # type: ignore[union-attr]
                    answers[kind].append(bool(reply[0] == segment.answer))
                    majority[kind].append(str(segment.answer))
                else:
                    said = BINS.decode(reply).values
                    if np.isfinite(said).all():
                        errors.append(np.abs(said - segment.action))
                        moves.append((segment.action[1], float(said[1])))
            swaps += [
                (float(a[0] - b[0]), float(a[1] - b[1])) for j, a in enumerate(moves) for b in moves[j + 1 :]
            ]
    from vlascope.sim import wilson_interval

    x, y = (np.array([s[k] for s in swaps]) for k in (0, 1))
    clear = np.abs(x) > 0.02
    flat = [v for kind in answers.values() for v in kind]
    common = sum(max(np.unique(v, return_counts=True)[1]) for v in majority.values())
    return {
        "answers": {
            "n": len(flat),
            "right": sum(flat),
            "share": float(np.mean(flat)),
            "wilson_interval": wilson_interval(sum(flat), len(flat)),
            "most_common_answer_share": common / len(flat),
            "by_kind": {k: [sum(v), len(v)] for k, v in answers.items()},
        },
        "swap": {
            "n_pairs": len(x),
            "slope": float((x * y).sum() / (x * x).sum()),
            "right_side_share": float((np.sign(x) == np.sign(y))[clear].mean()),
        },
        "error_cm": dict(
            zip(("dx", "dy", "dz"), (100 * np.mean(errors, 0)[:3]).round(3).tolist(), strict=True)
        ),
        "n_frames": len(frames),
    }


def reload_check(folder: Path, frames: Frames, *, n: int = 40) -> dict[str, Any]:
    """Keys, size, and whether `generate` and vlascope's own decoding give the same action tokens."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from vlascope.models import load
    from vlascope.models.policy import VLAPolicy

    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    processor = AutoProcessor.from_pretrained(folder)
    policy = VLAPolicy(load(str(folder), dtype="float32"))
    model.eval()
    same = 0
    for i in range(n):
        frame = frames.frame(i)
        orders = instructions_from_arrays(frame["colour"], frame["material"])
        text = orders[i % len(orders)].text
        inputs = processor(
            images=frame["images"], text=PROMPT_TEMPLATE.format(prompt=text), return_tensors="pt"
        )
        with torch.no_grad():
            full = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        theirs = full[0, inputs["input_ids"].shape[1] :].tolist()
        ours = list(policy(frame["images"], text)[1]["token_ids"])[:4]
        same += theirs == ours
    return {
        "missing_keys": len(info["missing_keys"]),
        "unexpected_keys": len(info["unexpected_keys"]),
        "generate_equals_own_decode": [same, n],
        "weights_bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def fresh_frames(folder: Path, *, n: int, settings: Settings) -> Frames:
    """Held-out teleported frames made now, from a seed of their own."""
    from training.mini_vla.data import generate

    generate(folder, kind="teleport", n_frames=n, seed=STILL_SEED, processes=1)
    return Frames([folder], patch_px=settings.network.patch_px)


def evaluate(
    folder: Path, *, processes: int = 2, quick: bool = False, settings_path: Path = DEFAULT_PATH
) -> dict:
    """Everything that the model card reports, as one dictionary."""
    from transformers import LlavaForConditionalGeneration

    settings = read_settings(settings_path, changes={"batch.text_tokens": 110})
    started = time.time()
    result: dict[str, Any] = {"folder": folder.name, "quick": quick}
    with tempfile.TemporaryDirectory() as temporary:
        frames = fresh_frames(Path(temporary) / "frames", n=60 if quick else 600, settings=settings)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        result["reload"] = reload_check(folder, frames, n=10 if quick else 40)
        result["still"] = {
            control: still_pictures(model, frames, settings=settings, control=control)
            for control in ("none", "grey", "other_scene", "random_words")
        }
    result["closed_loop"] = closed_loop(folder, processes=processes, quick=quick)
    result["seconds"] = time.time() - started
    return result


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="default: evaluation.json in the folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a minute instead of twenty")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    result = evaluate(args.folder, processes=args.processes, quick=args.quick)
    out = args.out or args.folder / "evaluation.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    log.info("wrote %s", out)


if __name__ == "__main__":
    main()
