"""Writes docs/gpu-benchmark.md from saved results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
Row = dict[str, Any]

INTRO = """# On one GPU, measured

Written by `python -m benchmarks.gpu --docs` from `benchmarks/results/gpu.json`; the numbers come from
`python -m benchmarks.gpu`. {device}; {packages}; {date}. Weights are random. What is compared ran on the same device in
turns; medians.

`python -m pytest -m gpu` checks on such a machine that cuts, groups, captures, edits and dictionaries are those of the
CPU, that captures and cuts repeat bit for bit, and that a device which runs out of memory halves the batch and loses
nothing. {tests}
"""


def write_page(path: Path) -> Path:
    """Write the page from the saved sections; what was not measured is named."""
    saved = json.loads(path.read_text())
    facts = next(iter(saved.values()))["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    tests = saved.get("tests", {}).get("results", {}).get("note", "")
    parts = [INTRO.format(device=facts["device"], packages=packages, date=facts["date"], tests=tests)]
    for name, write in WRITERS.items():
        parts.append(write(saved[name]["results"]) if name in saved else f"\n`{name}` was not measured.\n")
    out = DOCS / "gpu-benchmark.md"
    out.write_text("".join(parts), encoding="utf-8")
    return out


def _cut(row: Row) -> str:
    secs = {name: statistics.median(values) for name, values in row["secs"].items()}
    text = f"""
## Cutting

{row["n"]:,} tokens of width {row["d"]}, {row["n_eig"]} eigenvectors, tokens on the device.

| | seconds |
|---|---|
| vlascope | {secs["vlascope"]:.3f} |
| ncut_pytorch 3.2.0 | {secs["ncut_pytorch"]:.3f} ({row["times_faster_than_peer"]:.1f}x) |
| reading the tokens once | {secs["reading once"]:.5f} |

The same rows twice give the same bits; the space of eigenvectors differs from that of the CPU by an rms sine of
{row["rms_sine_against_cpu"]:.4f} (12,000 rows).
"""
    if "secs_at_1_000_000" in row:
        text += f"One million tokens take {row['secs_at_1_000_000'][0]:.2f} s; the peer was not timed at that size.\n"
    return text


def _captures(title: str, row: Row) -> str:
    bare = row["n_items"] / statistics.median(row["secs"]["bare forward loop"])
    lines = [
        f"\n## {title}\n\n{row['n_items']} pictures in batches of {row['batch_size']}, stored in bfloat16, until "
        "everything is on the disk.\n\n| | sites | GB | items/s | GB/s |\n|---|---|---|---|---|\n",
        f"| forward pass alone | - | - | {bare:.0f} | - |\n",
    ]
    for name in ("few", "all"):
        one = row[name]
        lines.append(
            f"| capture | {one['n_sites']} | {one['stored_gb']} | {one['items_per_sec']} | {one['gb_per_sec']} |\n"
        )
    if "note" in row:
        lines.append(f"\nMeasured {row['note']}: what the machine around the GPU does sets the pace.\n")
    return "".join(lines)


def _capture(row: Row) -> str:
    return _captures(f"Capture from a ViT ({row['n_layers']} layers of {row['width']})", row)


def _llava(row: Row) -> str:
    text = _captures(f"Capture from LLaVA-1.5 ({row['parameters'] / 1e9:.1f} B parameters)", row)
    same = "changes a bit" if row["edit_that_returns_its_input_changes_a_bit"] else "changes no bit"
    return text + (
        f"\n{row['tokens_per_item']} tokens an item; at most {row['peak_gpu_gb']} GB of the device. An edit that "
        f"returns its input {same}; one of the patches moves the last layer by "
        f"{row['edit_of_patches_moves_the_last_layer']:.2f} of its norm. Answers of seven "
        f"tokens: {row['answers_of_7_tokens_per_sec']} a second.\n"
    )


def _sae(row: Row) -> str:
    lines = [
        f"\n## Dictionaries\n\n{row['d']:,} channels, {row['latents']:,} latents, k {row['k']}, batches of "
        f"{row['batch']:,}; {row['steps']} steps of planted tokens.\n\n"
        "| | tokens/s | FVU on held-out tokens | L0 |\n|---|---|---|---|\n"
    ]
    for name, one in row.items():
        if isinstance(one, dict):
            lines.append(
                f"| {name} | {one['tokens_per_sec']:,} | {one['held_out_fvu']:.4f} | {one['l0']:.0f} |\n"
            )
    lines.append(
        f"\n{row['times_faster_than_dense']}x the same mathematics by dense matrices; other libraries were not timed "
        "on a GPU.\n"
    )
    return "".join(lines)


def _monitor(row: Row) -> str:
    return (
        f"\n## A monitor's scores\n\n{row['tokens']:,} tokens of width {row['d']:,}, {row['latents']:,} latents: "
        f"{row['tokens_per_sec']:,} tokens/s, {100 * row['share_of_the_product_rate']:.0f} % of the rate of the "
        "encoder's product alone (float32).\n"
    )


WRITERS = {"cut": _cut, "capture": _capture, "llava": _llava, "sae": _sae, "monitor": _monitor}
