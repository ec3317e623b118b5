"""The saved numbers of the capture benchmark as a page of the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"

INTRO = """# Capturing, measured

Written by `python -m benchmarks.capture --docs` from `benchmarks/results/capture.json`; the numbers come from
`python -m benchmarks.capture`. Times are end to end, from opening the first image to the last byte handed to the
system, on files of one temporary folder; the ways that are compared take turns and a ratio is the median over the
rounds. Weights are random: the time of a forward pass does not depend on them.

Machine: {machine}.

| measure | measured | must reach |
|---|---|---|
"""


def write_page(results: Path, table: list[tuple[str, str, str]]) -> Path:
    """Write docs/capture-benchmark.md from the saved results and the rows (measure, value, bound) made of them."""
    rows = json.loads(results.read_text())["results"]
    env = next(iter(rows.values()))["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in env["packages"].items() if version)
    parts = [INTRO.format(machine=f"{env['processor']}, {env['cores']} cores, {packages}")]
    parts += [f"| {measure} | {value} | {bound} |\n" for measure, value, bound in table]
    parts += [_overhead(rows[name]) for name in ("overhead", "overhead_wide") if name in rows]
    if "memory" in rows:
        peaks = rows["memory"]["peak_mb"]
        parts.append(
            f"\nPeak memory of the process (MB): {', '.join(f'{mb} for {n} items' for n, mb in peaks.items())}.\n"
        )
    if "reading" in rows:
        one = rows["reading"]
        times = ", ".join(f"{name} {ms} ms" for name, ms in one["ms"].items())
        parts.append(
            f"\nReading {one['size_mb']} MB in {one['n_blocks']} blocks, cached by the system: {times}.\n"
        )
    if "secs" in rows.get("ray", {}):
        one = rows["ray"]
        times = ", ".join(f"{name} {secs} s" for name, secs in one["secs"].items())
        parts.append(
            f"\nRay {one['ray']}, {one['n_items']} items that take {one['io_secs_per_item']} s each to read: {times}; "
            "starting and stopping the cluster counts.\n"
        )
    path = DOCS / "capture-benchmark.md"
    path.write_text("".join(parts), encoding="utf-8")
    return path


def _overhead(found: dict[str, Any]) -> str:
    lines = [
        f"\nA transformer of {found['n_layers']} layers and {found['width']} channels, {found['image_px']} px, "
        f"{found['n_items']} images in batches of {found['batch_size']}, all residual sites, "
        f"{found['stored_mb']} MB stored in float32. Every way reads the same images; the bare loop stores nothing, so "
        "no way of capturing can be faster than it.\n\n",
        "| way | items/s | seconds of the rounds | processor seconds |\n|---|---|---|---|\n",
    ]
    for name, per_sec in found["items_per_sec"].items():
        secs, cpu = found["secs"][name], found["cpu_secs"][name]
        lines.append(f"| {name} | {per_sec:.2f} | {_list(secs)} | {_list(cpu)} |\n")
    lines += [f"\nNot compared: {name}, which {reason}.\n" for name, reason in found["not_compared"].items()]
    return "".join(lines)


def _list(values: list[float]) -> str:
    return ", ".join(f"{x:.1f}" for x in values)
