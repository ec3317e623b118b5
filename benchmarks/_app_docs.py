"""Writes what benchmarks/app.py and benchmarks/report.py measured into docs/results.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import _record

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
BEGIN, END = "<!-- app: begin (python app.py --docs, in benchmarks) -->", "<!-- app: end -->"


def write_results(page: Path = PAGE) -> Path:
    """Write the tables between their marks, or at the end of the page where there are none."""
    saved = json.loads((_record.RESULTS / "app.json").read_text())
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = "\n".join(_lines(saved["results"], saved["environment"]))
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
    return page


def _lines(found: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    wide, many, start = found["wide"], found["four-million"], found["start"]
    rows = [
        ("click, similarity of the layer on screen, 150,000 x 768", _both(wide["features"]["click_to_shown_layer"]),
         "60 / 100 ms"),
        ("of which the server", _both(wide["features"]["of_which_server"]), "-"),
        *_reading(wide),
        ("click on eigenvectors, the layer on screen", _both(wide["concepts"]["click_to_shown_layer"]), "60 / 100 ms"),
        (f"click, all {many['run']['sites']} layers, {many['run']['tokens']:,} tokens, features (exact on the clicked "
         "layer, others by a sketch whose rank correlation the page shows)",
         _both(many["features"]["click_to_all_layers"]), "- / 250 ms"),
        ("lowest rank correlation of the sketch with the exact cosines at any of them, random activations",
         str(many["features"]["sketch_rank_correlation"]), "shown"),
        ("click on eigenvectors, all these layers", _both(many["concepts"]["click_to_all_layers"]), "- / 250 ms"),
        (f"first picture after the start of the process, {_shape(start)}",
         f"{start['first_picture_secs']['median']} s", "1.5 s"),
    ]  # fmt: skip
    for one in (start, wide, many):
        rows.append((f"layer slider, new picture, {_shape(one)}", _both(one["layer_slider"]), "- / 50 ms"))
        rows.append((f"time slider, {_shape(one)}", _both(one["time_slider"]), "- / 50 ms"))
    if report := found.get("report", {}).get("file"):
        rows.append(("report: open, until it answers", _both(report["open_ms"]), "1,000 ms"))
        rows.append(("report: click, answer computed", _both(report["click_ms"]), "30 ms"))
        rows.append(("report: click, answer on screen", _both(report["shown_ms"]), "-"))
    if memory := found.get("memory"):
        used = memory["server_anonymous_mb"]
        rows.append((f"memory of the server, {memory['run']['gb']} GB, {memory['run']['tokens']:,} tokens",
                     f"{used['now']} MB, at most {used['most']} MB", "500 MB"))  # fmt: skip
    if fuzz := found.get("fuzz", {}).get("fuzz"):
        for kind, name in (("odd", "raw, huge and concurrent"), ("described", "from the OpenAPI schema")):
            one = fuzz[kind]
            told = ", ".join(
                f"{key.replace('_', ' ')} {one[key]}" for key in ("server_errors", "leaks") if key in one
            )
            if "exit_codes" in one:
                told = f"schemathesis ends with {', '.join(map(str, one['exit_codes']))}: no server error"
                told = told if one["exit_codes"] == [0] else told.replace(": no server error", "")
            rows.append((f"odd requests, {name}", f"{one['requests']:,}; {told}", "5,000, none breaks it"))
    rows.append(("bundle, gzipped", f"{start['bundle_gzip_bytes'] / 1000:.1f} kB", "80 kB"))
    return [
        "## How quick is the page?",
        "",
        "`python app.py` and `python report.py` in `benchmarks/`, saved in `benchmarks/results/app.json`. A headless "
        "Chromium beside the server,",
        f"both on the {environment['cores']} cores of one machine ({environment['processor']}), without a GPU, so the "
        "browser draws with the processor. Median / 95th",
        "percentile. Memory is that of the process without file-backed pages. Each row was measured at the commit that "
        "the file says.",
        "",
        "| measure | measured | must reach |",
        "|---|---|---|",
        *(f"| {what} | {value} | {bound} |" for what, value, bound in rows),
    ]


def _reading(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of reading a matrix once: beside the browser at a click, and alone in one thread."""
    alone = ("reading that matrix once, alone, one thread", _both(row["layer_read_once"]), "-")
    if "layer_read_at_a_click" not in row:
        return [alone]
    beside, server = row["layer_read_at_a_click"], row["features"]["of_which_server"]
    share = [server[key] / beside[key] for key in ("median_ms", "p95_ms")]
    return [
        ("reading that matrix once at a click, by the same threads beside the same browser", _both(beside), "-"),
        ("the server's part, times that", f"{share[0]:.2f} / {share[1]:.2f}", "2"),
        alone,
    ]  # fmt: skip


def _both(times: dict[str, Any]) -> str:
    middle = times.get("median_ms", times.get("median"))
    return f"{middle} / {times.get('p95_ms', times.get('p95'))} ms"


def _shape(row: dict[str, Any]) -> str:
    run = row["run"]
    patches = run["tokens"] // run["sites"] // run["items"]
    return f"{run['items']} frames of {patches} patches, {run['sites']} layers"
