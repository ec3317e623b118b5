"""The saved numbers of the measures as sections of docs/results.md, between two marks.

Written by `python -m benchmarks.measure --docs` from measure.json, temporal.json and evaluate.json in
benchmarks/results; files and sections that are absent are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS
from vlascope.files import read_json, write_text
from vlascope.measure.changes import OTHER_EVENTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- measures: begin (python -m benchmarks.measure --docs) -->", "<!-- measures: end -->"
Facts = Mapping[str, Any]


def write_results(page: Path = PAGE) -> Path:
    """Replace what stands between the marks of the page (or add it at its end) and return the page."""
    found = {
        name: read_json(path)
        for name in ("measure", "temporal", "evaluate")
        if (path := RESULTS / f"{name}.json").exists()
    }
    parts = [BEGIN, ""]
    if "measure" in found:
        parts += _measure(found["measure"])
    if "temporal" in found:
        parts += _temporal(found["temporal"])
    if "evaluate" in found:
        parts += _evaluate(found["evaluate"])
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return write_text(page, f"{before.rstrip()}\n\n" + "\n".join([*parts, END]) + after.rstrip() + "\n")


def _measure(saved: Facts) -> list[str]:
    out = [
        "## Do the measures find what is there?",
        "",
        "`python -m benchmarks.measure`, saved in `benchmarks/results/measure.json`. Expert episodes of the",
        "simulator on seeds that no training and no choice of a default used; mini-vla, and the same network with",
        "random weights. Intervals: 95 %, bootstrap over whole episodes (scenes for the camera).",
        "",
    ]
    sections = saved["results"]
    for name, write in SECTIONS.items():
        if name in sections:
            one = sections[name]
            source = f"`--episodes {one['n_episodes']} --seed {one['seed']}`, commit {one['commit']}."
            out += [*write(one["found"]), "", source, ""]
    return out


def _trace(found: Facts) -> list[str]:
    out = ["### Trace: where does identity become separable?", ""]
    for what, one in found.items():
        out += [
            f"**{what}**: {one['verdict']}.",
            "",
            "| layer | balanced accuracy | shuffled | random weights | p (BH) | best-cluster IoU (pixels) | CKA |",
            "|---|---|---|---|---|---|---|",
        ]
        for layer in one["layers"]:
            r, o, a = layer.get("separable"), layer.get("overlap"), layer.get("agreement")
            controls = {} if r is None else r["controls"]
            iou = "" if o is None else f"{_number(o['iou'])} ({_number(o['raw_pixels_iou'])})"
            out.append(
                f"| {layer['site']} | {_cell(r)} | {_number(controls.get('shuffled labels'))} | "
                f"{_number(controls.get('random weights'))} | {_number(None if r is None else r['p_adjusted'])} | "
                f"{iou} | {_number(None if a is None else a['cka'])} |"
            )
        out.append("")
    return out[:-1]


def _masks(found: Facts) -> list[str]:
    out = [
        "### Concepts and masks, on the same tokens",
        "",
        "Mean IoU of each object with the segment that fits it best; 25 segments over all frames (PCA makes two).",
        "Means over five seeds of each method, because k-means ends elsewhere with every seed. `ncut` is the default",
        "cut of one layer; that its k-means weighs eigenvectors by their eigenvalues was chosen on 16 other episodes",
        "(seeds 910000 and up). `ncut-uniform`: sparse regions of feature space count as much as dense ones, k-means",
        "on twice as many eigenvectors as groups, two diffusion steps; chosen on 32 of those episodes. `kmeans`: the",
        "mini-batch kind, there being more than 50,000 patches.",
        "",
        "| layer | method | IoU | random weights | - k-means | - PCA | - raw pixels |",
        "|---|---|---|---|---|---|---|",
    ]
    for site, one in found.items():
        pairs = {d["name"].removeprefix("best overlap: "): _cell(d, signed=True) for d in one["differences"]}
        for name, row in one["methods"].items():
            score = row["best overlap"]
            against = [pairs.get(f"{name} - {other}", "") for other in ("kmeans", "pca", "pixels")]
            random = _number(score["controls"].get("random weights"))
            out.append(f"| {site} | {name} | {_cell(score)} | {random} | {' | '.join(against)} |")
    return out


def _probes(found: Sequence[Facts]) -> list[str]:
    return ["### Probes, on held-out episodes", "", *_probe_table(found)]


def _colour(found: Sequence[Facts]) -> list[str]:
    out = [
        "### Colour, on held-out episodes",
        "",
        'Balanced accuracy over four colours. The object asked about: "what colour is the left object?" over frames',
        "of two objects of different colours, at the last token of the question; every frame is asked about both. A",
        "network that tells which colours are in the picture, and not which object is meant, can guess one of two:",
        "this is what random weights do, a little (guessing among four: 0.250). Among the picture's two colours that",
        "guess is worth 0.500, whatever else it knows; the control exchanges the two answers of a picture. The target",
        "of the instruction (most name its colour), at the last token. The object that patches show: the mean of its",
        "patches; raw pixels tell it as well, so random weights keep it too. Layers and tokens were chosen on 96 other",
        "episodes (seeds 910000 and up). Random weights: five networks; mean, lowest and highest, and how many have p",
        "of at most 0.05.",
        "",
        "| colour of | network | layer | held out | rows fitted | shuffled | raw pixels | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[Facts]] = {}
    for one in found:
        network = "random weights" if one["network"].startswith("random") else one["network"]
        groups.setdefault((one["what"], network, one["site"]), []).append(one)
    for (what, network, site), some in groups.items():
        tests = [one["test"] for one in some]
        mean = {key: sum(one["controls"][key] for one in tests) / len(tests) for key in tests[0]["controls"]}
        beside = [
            _number(mean.get("shuffled labels", mean.get("exchanged labels"))),
            _number(mean.get("raw pixels")),
        ]
        fitted = _number(sum(one["train"] for one in some) / len(some))
        value, p = _cell(tests[0]), _number(tests[0]["p"])
        if len(tests) > 1:
            values = [one["value"] for one in tests]
            value = f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            p = f"{sum(one['p'] <= 0.05 for one in tests)} of {len(tests)}"
        out.append(f"| {what} | {network} | {site} | {value} | {fitted} | {' | '.join(beside)} | {p} |")
    first = found[0]["test"]
    return [*out, "", f"{first['n']} questions in {first['n_units']} episodes."]


def _camera(found: Sequence[Facts]) -> list[str]:
    return [
        "### Camera pose, on held-out scenes",
        "",
        "Scenes rendered from twelve places each (NeRF layout); position and viewing direction of the camera.",
        "",
        *_probe_table(found),
    ]


def _memoriser(found: Sequence[Facts]) -> list[str]:
    return [
        "### A planted memoriser",
        "",
        "Features that name the episode and know nothing else; asked where the target lies. Frames held out at random",
        "would have hidden it; the probes above never split an episode.",
        "",
        *_probe_table(found),
    ]


def _probe_table(found: Sequence[Facts]) -> list[str]:
    out = [
        "| target | layer | score | held out | rows fitted | rows at random | controls | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        test = one["test"]
        apart = _number(one.get("rows_held_out_at_random"))
        controls = ", ".join(f"{name} {_number(value)}" for name, value in test["controls"].items())
        out.append(
            f"| {one['target']} | {one['site']} | {test['unit']} | {_cell(test)} | {_number(one['train'])} | "
            f"{apart} | {controls} | {_number(test['p'])} |"
        )
    return out


def _world_model(found: Facts) -> list[str]:
    out = [
        f"### World model: {found['site']} about {found['state_site']}, some steps later",
        "",
        "R² over the present state alone and over the action alone; the last three columns are R² over standing still.",
        "Place episodes at 0.4 of the expert's speed with noise in every step, so that they last long enough for 30;",
        f"{found['n_frames']:,} frames.",
        "",
        "| steps | over e(t) | shuffled time | over action | over persistence | e(t) alone | action alone | p (BH) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found["horizons"]:
        c = one["controls"]
        out.append(
            f"| {one['name'].split()[0]} | {_cell(one)} | {_number(c.get('shuffled time'))} | "
            f"{_number(c.get('over action alone'))} | {_number(c.get('over persistence'))} | "
            f"{_number(c.get('e(t) alone over persistence'))} | "
            f"{_number(c.get('action alone over persistence'))} | {_number(one['p_adjusted'])} |"
        )
    return [*out, "", f"Verdict: {found['verdict']}."]


def _sensitivity(found: Facts) -> list[str]:
    out = [
        "### Sensitivity: a model that reads, and a copy that cannot",
        "",
        "Movement of the whole action, relative to what another scene does.",
        "",
        "| model | verb : image | noun : image | text : image | verdict |",
        "|---|---|---|---|---|",
    ]
    for what, one in found.items():
        ratios = {r["name"]: r for r in one["ratios"]}
        cells = [_cell(ratios[name]) for name in ("verb : image", "noun : image", "text : image")]
        out.append(f"| {what} | {' | '.join(cells)} | {one['verdict']} |")
    return out


def _speed(found: Facts) -> list[str]:
    a, b = found["trace"], found["concepts"]
    return [
        "### Speed",
        "",
        "On a small shared machine.",
        "",
        "| what | seconds |",
        "|---|---|",
        f"| trace, {a['layers']} layers x {a['images']} images x {a['patches']} patches | {a['secs']} |",
        f"| concept ranking, {b['images']:,} images x {b['words']} words | {b['secs']} |",
        *(
            [f"| temporal, {c['n_frames']} frames with their cut | {c['secs']} |"]
            if (c := found.get("temporal"))
            else []
        ),
    ]


SECTIONS = {
    "trace": _trace,
    "masks": _masks,
    "probes": _probes,
    "colour": _colour,
    "memoriser": _memoriser,
    "camera": _camera,
    "world_model": _world_model,
    "sensitivity": _sensitivity,
    "speed": _speed,
}


def _temporal(saved: Facts) -> list[str]:
    results = saved["results"]
    out = [
        "### Change points, grasp and release",
        "",
        "`python -m benchmarks.temporal`, saved in `benchmarks/results/temporal.json`. Share of held-out place",
        "episodes whose grasp and release both have a change point within 2 frames. The control asks the same change",
        "points for the events of other episodes, at the same share of the episode: where all episodes take their time",
        "alike, and changes are many, these are hit as well, and hits then say little.",
        "",
        "| network | layer | changes per episode | hit | events of other episodes | p (BH) |",
        "|---|---|---|---|---|---|",
    ]
    for one in results["events"]:
        both = next(r for r in one["events"] if r["name"] == "grasp + release")
        out.append(
            f"| {one['model']} | {one['site']} | {_number(both['details'].get('changes_per_episode'))} | "
            f"{_cell(both)} | {_number(both['controls'].get(OTHER_EVENTS))} | "
            f"{_number(both['p_adjusted'])} |"
        )
    return [
        *out,
        "",
        f"{results['n_episodes']} episodes from seed {results['seed']}; commit {saved['environment']['commit']}. "
        f"Scripted failures: {results['failures']['verdict']}.",
        "",
    ]


def _evaluate(saved: Facts) -> list[str]:
    out = [
        "## Methods side by side on real images",
        "",
        "`python -m benchmarks.evaluate`, saved in `benchmarks/results/evaluate.json`. The same patches for all;",
        "EfficientNet-Lite0 with its ImageNet weights (stages of 28, 14 and 7 patches a side) and mini-vla, which has",
        "seen nothing but its simulator. Intervals: 95 %, over images (videos for DAVIS, whose J weighs them alike);",
        "none where there are fewer than five of them. A star: above the same segments on other images, p at most 0.05",
        "after Benjamini-Hochberg over the table.",
        "",
    ]
    for row in saved["results"]["rows"]:
        if row["data"] == "captions":
            out += _captions(row)
            continue
        methods = row["methods"]
        scores = list(next(iter(methods.values())))
        first = next(iter(next(iter(methods.values())).values()))
        out += [
            f"**{row['network']}, {row['data']}** ({first['n']} images; K={row['k']}; commit {row['commit']})",
            "",
            f"| method | {' | '.join(scores)} |",
            "|---" * (len(scores) + 1) + "|",
        ]
        for name, one in methods.items():
            cells = [_cell(one[score]) + (" *" if one[score]["found"] else "") for score in scores]
            out.append(f"| {name} | {' | '.join(cells)} |")
        random = [one["controls"].get("random weights") for one in methods["ncut"].values()]
        out += [f"| ncut, random weights | {' | '.join(_number(v) for v in random)} |", ""]
        best = [d for d in row["differences"] if d["name"].startswith(scores[0] + ":")]
        if best:
            out += [f"Paired: {'; '.join(d['name'] + ' ' + _cell(d, signed=True) for d in best)}.", ""]
    return out


def _captions(row: Facts) -> list[str]:
    means = row["concepts"]["means"]
    out = [
        f"**{row['network']}, captions** ({row['concepts']['n_items']} images; commit {row['commit']}): "
        f"{row['concepts']['verdict']}.",
        "",
        "| words | mAP | chance | shuffled captions | raw pixels | random weights | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, one in means.items():
        names = ("chance", "shuffled captions", "raw pixels", "random weights")
        cells = [_number(one["controls"].get(name)) for name in names]
        out.append(f"| {kind} | {_cell(one)} | {' | '.join(cells)} | {_number(one['p'])} |")
    return [*out, ""]


def _cell(result: Facts | None, *, signed: bool = False) -> str:
    """Return value and interval."""
    if result is None:
        return ""
    if result["value"] is None:
        return f"cannot say: {result['reason']}"
    text = f"{result['value']:+.3f}" if signed else _number(result["value"])
    ends = result["interval_95"]
    return text if ends is None else f"{text} [{', '.join(f'{x:.3f}' for x in ends)}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
