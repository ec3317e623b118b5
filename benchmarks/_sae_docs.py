"""Writes what `sae.py` and `monitor.py` saved into docs/results.md, between two marks.

python -m benchmarks._sae_docs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS
from vlascope.files import read_json, write_text

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
START, END = "<!-- sae and monitor: start -->", "<!-- sae and monitor: end -->"


def interval(value: Any, low: float, high: float, *, digits: int = 3) -> str:
    """Return "0.812 [0.740, 0.868]"."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def rate(one: dict[str, Any]) -> str:
    """Return "3 of 69 (4.3 % [1.5, 12.0])"."""
    if not one["n"]:
        return "-"
    low, high = one["wilson_95"]
    return f"{one['alarms']} of {one['n']} ({100 * one['share']:.1f} % [{100 * low:.1f}, {100 * high:.1f}])"


def dictionaries(sections: dict[str, Any]) -> list[str]:
    """Return the part on dictionaries."""
    out = ["## Dictionaries", "", "`python -m benchmarks.sae`, saved in `benchmarks/results/sae.json`.", ""]
    for name, one in sections.items():
        found = one["results"]
        if name == "planted":
            rows = [
                f"| {k} | {v['recovered_at_cosine_0.9']:.1%} | {v['mean_best_cosine']:.3f} |"
                for k, v in found.items()
            ]
            out += [
                "Planted directions: 512 in 128 channels, 8 active per token, 1,024 latents, 0.8 M tokens "
                "(`--only planted`).",
                "",
                "| choice of latents | found at cosine 0.9 | mean best cosine |",
                "|---|---|---|",
                *rows,
                "",
            ]
        elif name == "discovery":
            null = found["null"]
            out += [
                "Decorrelated discovery (`--only discovery`): 160 units, 512 latents, of which 16 follow the other "
                f"factor. Runs with a false discovery when nothing follows the target: "
                f"{null['runs_with_a_false_discovery']} of {null['runs']} "
                f"({100 * null['share']:.1f} % [{100 * null['interval'][0]:.1f}, {100 * null['interval'][1]:.1f}]).",
                "",
                "| planted effect | power | share of finds that are false |",
                "|---|---|---|",
                *(
                    f"| {k.removeprefix('planted, ')} | {interval(v['power'], *v['interval'], digits=2)} | "
                    f"{v['false_discovery_rate']:.1%} |"
                    for k, v in found.items()
                    if k != "null"
                ),
                "",
            ]
        elif name.startswith("dead"):
            out += [
                f"Dead latents ({name}): {found['dead_share']:.2%} of {found['latents']} after "
                f"{found['tokens'] / 1e6:.1f} M tokens, none active in {found['dead_over_tokens']:,} tokens; held-out "
                f"FVU {found['fvu']:.4f}.",
                "",
            ]
        elif name.startswith("memory"):
            texts = [f"{v['gigabytes']:.2f} GB for {k}" for k, v in found.items()]
            out += [f"Memory while training, beyond what was there before: {', '.join(texts)}.", ""]
        elif name.startswith("rates"):
            s = found["setting"]
            swept = {k: v for k, v in found.items() if isinstance(v, dict) and "rows" in v}
            factors = [row["rate"] for row in next(iter(swept.values()))["rows"]]
            out += [
                f"{name}: held-out FVU at step sizes from {factors[0]:g} to {factors[-1]:g} times the peers' "
                f"default ({s['lr']:.2g}; ours is three times that), each {s['steps']} steps of {s['batch']} tokens, "
                f"{s['latents']} latents, "
                f'{s["k"]} active per token. vlascope chooses per token and gives coarse levels more weight; "vlascope '
                'as peers" chooses over the batch and weighs all levels alike, as the others do.',
                "",
                "| system | " + " | ".join(f"x {factor:g}" for factor in factors) + " | best | L0 there |",
                "|---" * (len(factors) + 3) + "|",
                *(
                    f"| {system} | "
                    + " | ".join(f"{row['held_out_fvu']:.4f}" for row in v["rows"])
                    + f" | {v['best']['held_out_fvu']:.4f} | {v['best']['l0']:.1f} |"
                    for system, v in swept.items()
                ),
                "",
            ]
        elif name.startswith(("quality", "throughput")):
            timed = name.startswith("throughput")
            s = found["setting"]
            out += [
                f"{name}: {s['d']} channels, {s['latents']} latents, k {s['k']}, {s['steps']} steps of {s['batch']} "
                f"tokens, {s['threads']} threads, {s['held_out_tokens']:,} held-out tokens.",
                "",
                "| system | held-out FVU | L0 | silent |"
                + (" tokens/s, median | vlascope is faster by |" if timed else ""),
                "|---|---|---|---|" + ("---|---|" if timed else ""),
            ]
            for system, v in found.items():
                if isinstance(v, dict) and "held_out_fvu" in v:
                    row = f"| {system} | {v['held_out_fvu']:.4f} | {v['l0']:.1f} | {v['silent_on_held_out']:.1%} |"
                    if timed:
                        row += f" {v['tokens_per_sec_median']:,} | {v['vlascope_is_faster_by_median']:.2f} |"
                    out.append(row)
            out.append("")
    return out


def monitors(sections: dict[str, Any]) -> list[str]:
    """Return the part on the monitor."""
    out = [
        "## The safety monitor",
        "",
        "`python -m benchmarks.monitor`, saved in `benchmarks/results/monitor.json`.",
        "",
    ]
    for name, one in sections.items():
        found = one["results"]
        if name == "speed":
            out += [
                "Scoring tokens, as a share of the rate of the encoder's matrix product alone (`--only speed`): "
                + "; ".join(f"{k}: {v['share_of_the_product_rate_best']:.0%}" for k, v in found.items())
                + ".",
                "",
            ]
            continue
        fit = found["fit"]
        n = fit["n_episodes"]
        out += [
            f"Site {fit['site']} of mini-vla; {n['reference']} reference, {n['calibration']} calibration and "
            f"{n['test']} test episodes that the model played; stated rate {fit['alpha']:.0%}. "
            "Alarms in clean test episodes:",
            "",
            "| detector | frame | cusum | both | mean + 2 deviations | the same, of frames |",
            "|---|---|---|---|---|---|",
        ]
        for detector, groups in fit["realised_false_alarms"].items():
            (rules,) = groups.values()
            cells = [
                rate(rules[r]) if r in rules else "-"
                for r in ("frame", "cusum", "both", "sigma", "sigma per frame")
            ]
            out.append(f"| {detector} | {' | '.join(cells)} |")
        out += [
            "",
            f"{found['test_episodes']} fresh episodes, attacked from step {found['onset']} on; "
            f"{found['frames_after_onset']} frames after the onset are judged, by the rule `frame`. Intervals: 95 %, "
            "over episodes.",
            "",
            "| attack | detector | AUROC of frames | detected | delay, steps | IoU of patches |",
            "|---|---|---|---|---|---|",
        ]
        for row in found["attacks"]:
            if row["rule"] != "frame":
                continue
            cells = []
            for key, digits in (("auroc", 3), ("delay", 1), ("iou", 2)):
                value, ends = row[key]["value"], row[key]["interval_95"]
                cells.append(
                    "-" if value is None else interval(value, *(ends or (value, value)), digits=digits)
                )
            out.append(
                f"| {row['attack']} | {row['detector']} | {cells[0]} | {rate(row['detected'])} | {cells[1]} | "
                f"{cells[2]} |"
            )
        out.append("")
    return out


def main() -> None:
    """Replace what stands between the marks, or add it at the end."""
    parts: list[str] = []
    for name, write in (("sae", dictionaries), ("monitor", monitors)):
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts += write(read_json(path))
    text = PAGE.read_text(encoding="utf-8")
    body = "\n".join([START, "", *parts, END])
    if START in text:
        text = text[: text.index(START)] + body + text[text.index(END) + len(END) :]
    else:
        text = text.rstrip("\n") + "\n\n" + body + "\n"
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
