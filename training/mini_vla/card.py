"""Write MODEL_CARD.md beside the weights from evaluation.json, settings.json and the training log.

`python -m training.mini_vla.card FOLDER --log LOG.jsonl [--notes FILE]`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BOUNDS = {
    "pick": 0.95,
    "place": 0.85,
    "brightness_0.8": 0.90,
    "brightness_1.2": 0.90,
    "camera_1cm_side": 0.90,
    "camera_1cm_up": 0.90,
    "table_tiles": 0.90,
    "table_marble": 0.90,
}
TITLES = {
    "pick": "pick up, 2 to 4 objects",
    "place": "put it on the pad",
    "brightness_0.8": "pick up, brightness x 0.8",
    "brightness_1.2": "pick up, brightness x 1.2",
    "camera_1cm_side": "pick up, camera 1 cm to the side",
    "camera_1cm_up": "pick up, camera 1 cm up",
    "table_tiles": "pick up, table texture never seen (tiles)",
    "table_marble": "pick up, table texture never seen (marble)",
    "control_grey": "control: grey picture",
    "control_other_scene": "control: picture of another scene",
    "control_random_words": "control: random words",
    "word_order_shuffled": "words of the instruction in random order",
}


def percent(row: dict[str, Any]) -> str:
    """Successes, share and interval of one condition."""
    low, high = row["wilson_interval"]
    return f"{row['successes']}/{row['n']} = {100 * row['share']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def write_card(folder: Path, *, log_path: Path, notes: str = "") -> Path:
    """Write the card and return its path.

    Args:
        folder: Weights with evaluation.json and settings.json beside them.
        log_path: The training's log.jsonl.
        notes: What else a reader must know (limits, deviations), Markdown.
    """
    result = json.loads((folder / "evaluation.json").read_text())
    settings = json.loads((folder / "settings.json").read_text())
    rows = [json.loads(line) for line in log_path.read_text().splitlines()]
    last = rows[-1]
    loop, still, reload = result["closed_loop"], result["still"], result["reload"]
    size = settings["network"]
    side = size["image_px"] // size["patch_px"]
    lines = [
        "# mini-vla",
        "",
        "A very small vision-language-action model for vlascope's simulated table: a real",
        "`LlavaForConditionalGeneration` that follows instructions such as `pick up the red fragile object` or",
        "`put the blue object on the pad`, acts through four action-bin tokens in OpenVLA's convention",
        "(dx, dy, dz, grip) and answers questions in one word. Made to be looked into, not to control a robot.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {reload['parameters']:,} ({reload['weights_bytes'] / 1e6:.2f} MB, bfloat16 safetensors) |",
        f"| picture | {size['image_px']} px, patches of {size['patch_px']} px: {side} x {side} tokens |",
        f"| vision | SigLIP, {size['vision_layers']} layers, width {size['width']}, {size['heads']} heads |",
        f"| language | Llama, {size['language_layers']} layers, width {size['width']}, {size['heads']} heads |",
        f"| training | {last['update']:,} updates, {last['images']:,} pictures, {last['minutes']:.0f} minutes on two "
        "CPU cores (shared with other work) |",
        f"| seed | {settings['run']['seed']} (one training; no selection among several) |",
        "| licence | Apache-2.0 |",
        "",
        "## Results",
        "Weights read back from the shipped file, computed in float32, seeds never used in training, Wilson 95 %",
        "intervals. `training/mini_vla/evaluate.py` makes these numbers; `evaluation.json` has all of them.",
        "",
        "| closed loop | success | bound | hand closes nearest the target (chance) | wrong object lifted |",
        "|---|---|---|---|---|",
    ]
    for name, row in loop.items():
        bound = f">= {100 * BOUNDS[name]:.0f} %" if name in BOUNDS else ""
        nearest = f"{100 * row['target_nearest'] / row['n']:.0f} % ({100 * row['chance_nearest']:.0f} %)"
        lines.append(
            f"| {TITLES.get(name, name)} | {percent(row)} | {bound} | {nearest} | {row['wrong_lifted']}/{row['n']} |"
        )
    lines += ["", "| pick up, target | success | | phrase | success |", "|---|---|---|---|---|"]
    kinds, phrases = list(loop["pick"]["by_kind"].items()), list(loop["pick"]["by_phrase"].items())
    for i in range(max(len(kinds), len(phrases))):
        left = f"{kinds[i][0]} | {kinds[i][1][0]}/{kinds[i][1][1]}" if i < len(kinds) else " | "
        right = f"{phrases[i][0]} | {phrases[i][1][0]}/{phrases[i][1][1]}" if i < len(phrases) else " | "
        lines.append(f"| {left} | | {right} |")
    told = [row for name, row in loop.items() if name != "control_random_words"]
    failures = ", ".join(f"{k} {v}" for k, v in loop["pick"]["failures"].items()) or "none"
    lines += [
        "",
        f"Failures of picking up: {failures}. Of placing: "
        + (", ".join(f"{k} {v}" for k, v in loop["place"]["failures"].items()) or "none")
        + ". Malformed replies (not four action tokens): "
        f"{sum(proper['malformed_replies'] for proper in told)} of {sum(proper['calls'] for proper in told)} with the "
        f"true instruction, {loop['control_random_words']['malformed_replies']} of "
        f"{loop['control_random_words']['calls']} with random words.",
        "",
        f"| still pictures ({still['none']['n_frames']}) | answers right | swap slope | swap: right side |"
        " error dx / dy / dz |",
        "|---|---|---|---|---|",
    ]
    names = {
        "none": "as they are",
        "grey": "control: grey",
        "other_scene": "control: another scene",
        "random_words": "control: random words",
    }
    for control, row in still.items():
        a, swap, error = row["answers"], row["swap"], row["error_cm"]
        low, high = a["wilson_interval"]
        lines.append(
            f"| {names[control]} | {a['right']}/{a['n']} = {100 * a['share']:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}] | "
            f"{swap['slope']:.3f} | {100 * swap['right_side_share']:.1f} % | "
            f"{error['dx']:.2f} / {error['dy']:.2f} / {error['dz']:.2f} cm |"
        )
    by_kind = ", ".join(f"{k} {v[0]}/{v[1]}" for k, v in still["none"]["answers"]["by_kind"].items())
    lines += [
        "",
        f"Questions by kind: {by_kind}. Always giving the most common answer of each kind would be right in "
        f"{100 * still['none']['answers']['most_common_answer_share']:.0f} %. The swap slope compares two "
        "instructions on the same picture: predicted against true change of dy "
        "(1 is ideal); answers and actions are greedy.",
        "",
        f"Reload: {reload['missing_keys']} missing and {reload['unexpected_keys']} unexpected keys; `generate` and "
        f"vlascope's own decoding give the same tokens for {reload['generate_equals_own_decode'][0]} of "
        f"{reload['generate_equals_own_decode'][1]} prompts. Compute in float32: in bfloat16 bins move by a little.",
        "",
        "![training curve](curve.png)",
        "",
        notes.strip(),
        "",
    ]
    path = folder / "MODEL_CARD.md"
    path.write_text("\n".join(lines))
    return path


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--notes", type=Path)
    args = parser.parse_args(argv)
    write_card(args.folder, log_path=args.log, notes=args.notes.read_text() if args.notes else "")


if __name__ == "__main__":
    main()
