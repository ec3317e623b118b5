"""The saved numbers of the spectral benchmark as a page of the documentation."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parents[1] / "docs"
Rows = list[dict[str, Any]]

INTRO = """# The spectral core, measured

Written by `python -m benchmarks.spectral --docs` from `benchmarks/results/spectral.json`; the numbers come from
`python -m benchmarks.spectral`. Peers: [ncut_pytorch](https://pypi.org/project/ncut-pytorch/) 3.2.0 and scikit-learn,
in the same process, on the same rows, with the same scale. Times are medians on a small shared machine: read the
ratios, not the seconds. Errors are the rms sine of the principal angles to the exact space (0: the same, 1: at
right angles), against an eigendecomposition in float64; ncut_pytorch gets the better of its two possible scalings.

{machine}
"""


def write_page(results: Path) -> Path:
    """Write docs/spectral-benchmark.md and return its path."""
    sections = json.loads(results.read_text())["sections"]
    rows = {name: section["rows"] for name, section in sections.items()}
    colours = results.parent / results.name.replace("spectral", "palettes")
    if colours.exists():  # from `python -m benchmarks.palettes`, which may be run set by set
        rows["colours"] = json.loads(colours.read_text())["results"]["rows"]
    env = next(iter(sections.values()))["environment"]
    loads = ", ".join(
        f"{name} {section['environment']['load_at_start']}" for name, section in sections.items()
    )
    packages = ", ".join(f"{key} {value}" for key, value in env["packages"].items() if value)
    machine = (
        f"Machine: {env['processor']}, {env['cores']} cores, {packages}. Load when each part began: {loads}."
    )
    parts = [INTRO.format(machine=machine)]
    for name, write in WRITERS.items():
        if rows.get(name):
            parts.append(write(rows[name]))
    path = DOCS / "spectral-benchmark.md"
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return path


def _accuracy(rows: Rows) -> str:
    out = [
        "## Accuracy above 10,000 rows",
        "",
        "12,000 rows, median over seeds; worst ratio of all seeds. The bound is on the ratio of errors.",
        "",
        "| tokens | mean affinity | k | seeds | vlascope | ncut_pytorch | ratio | worst ratio | bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, density, k), group in _by(rows, "data", "density", "k").items():
        ratios = [row["ratio"] for row in group]
        out.append(
            f"| {data} | {density} | {k} | {len(group)} | {_median(group, 'vlascope'):.4f} | "
            f"{_median(group, 'ncut_pytorch'):.3f} | "
            f"{np.median(ratios):.3f} | {_bound(max(ratios), group[0]['bound'])} | {group[0]['bound']} |"
        )
    return "\n".join([*out, ""])


def _small(rows: Rows) -> str:
    out = [
        "## Up to 8,192 rows, all pairs in both",
        "",
        "| tokens | n | k | vlascope | ncut_pytorch | times faster | least |",
        "|---|---|---|---|---|---|---|",
    ]
    for (data, n, k), group in _by(rows, "data", "n", "k").items():
        faster = [row["times_faster"] for row in group]
        out.append(
            f"| {data} | {n} | {k} | {_median(group, 'vlascope'):.5f} | {_median(group, 'ncut_pytorch'):.4f} | "
            f"{np.median(faster):.2f} | {_least(min(faster), 1.5)} |"
        )
    return "\n".join([*out, ""])


def _speed(rows: Rows) -> str:
    out = [
        "## Time and memory, 768 dimensions, 20 eigenvectors",
        "",
        'Memory is the growth of a fresh process beyond the input, the result included. "128 MiB" is '
        "`memory_limit=128 * 2**20`.",
        "",
        "| rows | vlascope | 128 MiB | ncut_pytorch | times faster | bound | 128 MiB faster | GB | GB, 128 MiB | "
        "GB ncut_pytorch | reading X once |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        out.append(
            f"| {row['n']:,} | {row['seconds']:.2f} s | {row['bounded_seconds']:.2f} s | {row['peer_seconds']:.2f} s | "
            f"{_least(row['times_faster'], row['bound'])} | {row['bound']} | {row['bounded_times_faster']:.2f} | "
            f"{row['gigabytes']:.2f} | {row['bounded_gigabytes']:.2f} | {row['peer_gigabytes']:.2f} | "
            f"{row['seconds_to_read_x_once']:.3f} s |"
        )
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        growth = (last["bounded_seconds"] / first["bounded_seconds"]) / (last["n"] / first["n"])
        out += [
            "",
            f"From {first['n']:,} to {last['n']:,} rows the time per row in bounded memory changes by a factor of "
            f"{growth:.2f}, and the memory beyond the result from "
            f"{first['bounded_gigabytes'] - first['n'] * 80e-9:.2f} GB to "
            f"{last['bounded_gigabytes'] - last['n'] * 80e-9:.2f} GB.",
        ]
    return "\n".join([*out, ""])


def _large(rows: Rows) -> str:
    out = [
        "## Accuracy where exact vectors are out of reach",
        "",
        f"Sum of the 20 leading non-trivial eigenvalues that each space captures under the exact operator, "
        f"{rows[0]['n']:,} rows of the mixture (higher is nearer; no space exceeds the exact one).",
        "",
        "| method | captured |",
        "|---|---|",
    ]
    out += [f"| {row['method']} | {row['captured']:.4f} |" for row in rows]
    return "\n".join([*out, ""])


def _sklearn(rows: Rows) -> str:
    out = [
        "## scikit-learn's SpectralEmbedding",
        "",
        "Dense rbf graph, arpack, 20 vectors.",
        "",
        "| n | seed | vlascope exact | by landmarks | scikit-learn | exact faster | landmarks faster | error exact | "
        "error landmarks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        out.append(
            f"| {row['n']} | {row['seed']} | {row['seconds']:.2f} s | {row['landmark_seconds']:.2f} s | "
            f"{row['sklearn_seconds']:.2f} s | {row['times_faster']:.1f} | {row['landmark_times_faster']:.1f} | "
            f"{row['vlascope']:.4f} | {row['vlascope_landmarks']:.4f} |"
        )
    return "\n".join([*out, ""])


def _balance(rows: Rows) -> str:
    out = [
        "## Rare groups: adjusted Rand index",
        "",
        "Imbalanced mixture (three groups of 0.1 %, three of 0.5 %, four of "
        "2 %, ten of 9 %), 20 groups wanted, seeds that nothing was chosen on.",
        "",
        '| n | mean affinity | seed | `balance="density"` | `balance="uniform"` | ncut_pytorch |',
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        out.append(
            f"| {row['n']} | {row['density']} | {row['seed']} | {row['density rotation']:.3f} | "
            f"{_least(row['uniform rotation'], row['ncut_pytorch'], 3)} | {row['ncut_pytorch']:.3f} |"
        )
    return "\n".join([*out, "", "The groups of 0.1 % (6 to 12 tokens) are found by neither.", ""])


def _groups(rows: Rows) -> str:
    out = [
        "## k-way groups",
        "",
        "NCut objective over all pairs (lower is better; an empty group counts 1). Each method "
        "on its own library's eigenvectors.",
        "",
        "| tokens | n | k | method | objective | groups used | eigenvectors | groups | groups faster | both faster |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "skipped" in row:
            out += ["", f"{row['data']}: {row['skipped']}"]
            continue
        out.append(
            f"| {row['data']} | {row['n']:,} | {row['k']} | {row['method']} | {row['objective']:.3f} | "
            f"{row['groups_used']} | "
            f"{row['embed_seconds']:.2f} s | {row['kway_seconds']:.2f} s | {row['kway_times_faster']:.2f} | "
            f"{row['times_faster']:.2f} |"
        )
    return "\n".join([*out, ""])


def _clicks(rows: Rows) -> str:
    row = rows[0]
    return (
        f"## Clicks\n\n{row['clicks']} clicks on {row['n']:,} tokens of {row['n_eig']} eigenvectors become a mask in "
        f"{row['milliseconds']:.0f} ms.\n"
    )


def _colours(rows: Rows) -> str:
    out = [
        "## Colours of 50,000 tokens",
        "",
        "Fitting and colouring, by `python -m benchmarks.palettes`: seconds of the processor on one thread, and "
        "trustworthiness (1: the neighbours among the colours are those among the eigenvectors, by angle).",
        "",
        "| colours | tokens | seed | vlascope | ncut_pytorch | times faster | trustworthiness | of ncut_pytorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs = [row.get(key) for key in ("peer_cpu_seconds", "ratio", "peer_trust")]
        if theirs[0] is None:
            theirs = ["not installed", "", ""]
        else:
            theirs = [f"{theirs[0]:.1f} s", f"{theirs[1]:.1f}", f"{theirs[2]:.3f}"]
        what = f"| {row['method']} | {row['set']} | {row['seed']} | {row['cpu_seconds']:.1f} s "
        out.append(what + f"| {theirs[0]} | {theirs[1]} | {row['trust']:.3f} | {theirs[2]} |")
    return "\n".join([*out, ""])


WRITERS = {
    "accuracy": _accuracy,
    "small": _small,
    "speed": _speed,
    "large_accuracy": _large,
    "sklearn": _sklearn,
    "balance": _balance,
    "groups": _groups,
    "clicks": _clicks,
    "colours": _colours,
}


def _by(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def _median(rows: Rows, key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def _bound(value: float, bound: float) -> str:
    return f"{value:.3f}" if value <= bound else f"**{value:.3f}** (misses)"


def _least(value: float, bound: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value >= bound else f"**{value:.{digits}f}** (misses)"
