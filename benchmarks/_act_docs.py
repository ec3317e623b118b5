"""The saved numbers of acting on the model as a section of docs/results.md, between two marks.

Written by `python -m benchmarks.act --docs` from benchmarks/results/act.json; sections that are absent are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS
from vlascope.files import read_json, write_atomic

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- act: begin (python -m benchmarks.act --docs) -->", "<!-- act: end -->"


def write_results(page: Path = PAGE) -> Path:
    """Put the section into the page, in place of the one that is there, and return its path."""
    saved = read_json(RESULTS / "act.json")
    results, env = saved["results"], saved["environment"]
    parts = [
        "## Acting on the model",
        f"`python -m benchmarks.act` ({env['date']}, {env['processor']}, {env['cores']} cores), saved in "
        '`benchmarks/results/act.json`. mini-vla; scenes with one red and one blue rigid object, instruction "pick up '
        'the red object"; site and tokens of the steering were chosen on other scenes than those below. Intervals: '
        "95 %, bootstrap over scenes or episodes; success rates: Wilson.",
    ]
    for name, text in (
        ("steer", _steer), ("latents", _latents), ("loop", _loop), ("knockout", _knockout), ("speed", _speed),
        ("break", _break),
    ):  # fmt: skip
        if name in results:
            parts.append(text(results[name]))
    block = "\n\n".join([BEGIN, *parts, END])
    old = page.read_text(encoding="utf-8")
    if BEGIN in old:
        new = old[: old.index(BEGIN)] + block + old[old.index(END) + len(END) :]
    else:
        new = old.rstrip("\n") + "\n\n" + block + "\n"
    return write_atomic(page, lambda handle: handle.write(new.encode()))


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(one: dict[str, Any], digits: int = 3) -> str:
    if one["value"] is None:
        return f"cannot say ({one['reason']})"
    ends = one["interval_95"]
    text = _number(one["value"], digits)
    return text if ends is None else f"{text} [{_number(ends[0], digits)}, {_number(ends[1], digits)}]"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ("---",) * len(head), *rows])


def _doses(found: dict[str, Any]) -> str:
    rows = []
    for dose in found["doses"]:
        controls = dose["aim"]["controls"]
        strongest = max(
            (v for k, v in controls.items() if k.endswith("strongest") and v is not None), default=None
        )
        kl = next((r for r in dose["unrelated"] if r["name"].endswith("KL")), None)
        rows.append(
            (
                f"{dose['strength']:g}",
                _with_interval(dose["aim"]),
                _number(strongest),
                _with_interval(dose["beyond"]),
                _number(dose["aim"]["p"]),
                "–" if kl is None else _with_interval(kl),
            )
        )
    head = (
        "strength",
        "moved (share of the way)",
        "strongest control",
        "beyond it",
        "p",
        "KL on an unrelated question",
    )
    return _table(head, rows)


def _steer(found: dict[str, Any]) -> str:
    one = found["direction"]
    edit = one["edit"]
    return (
        f"**Steering from red to blue.** The difference of means of the two prompts at {edit['site']} "
        f"({edit['tokens']} tokens) is added; the number is how far the expected first waypoint moves from the red "
        f"object to the blue one (1: all the way). {found['n_scenes']} scenes, {one['n_controls']} random "
        "directions of the same length as controls. Telling the model to pick the blue object instead moves it "
        f"{_with_interval(found['reference'])}.\n\n{_doses(one)}\n\n"
        f"{'The effect lies' if one['works'] else 'No effect lies'} beyond all controls."
    )


def _latents(found: dict[str, Any]) -> str:
    one = found["dose_response"]
    latents = ", ".join(str(i) for i in one["edit"]["latents"])
    return (
        f"**The same with latents of a dictionary** (512 latents, k 8, trained on words at {found['site']}; "
        f"latents {latents}, those that prompts naming blue activate most beyond prompts naming red, added; controls: "
        f"other latents and random directions, {one['n_controls']} in all).\n\n{_doses(one)}\n\n"
        f"{'The effect lies' if one['works'] else 'No effect lies'} beyond all controls."
    )


def _loop(found: dict[str, Any]) -> str:
    rows = [("no edit", _with_interval(found["base"], 2), "", "", "")]
    for name, one in found.items():
        if isinstance(one, dict) and "difference" in one:
            rows.append(
                (
                    name,
                    _with_interval(one["success"], 2),
                    f"{_with_interval(one['difference'], 2)}, p = {_number(one['difference']['p'], 4)}",
                    _with_interval(one["wrong_object"], 2),
                    _number(one["hand_closes_nearer_to_blue"], 2),
                )
            )
    head = (
        "edit",
        "success",
        "difference (paired)",
        "wrong object lifted, difference",
        "hand closes nearer to blue",
    )
    return (
        f"**In closed loop**, {found['n']} episodes on the same seeds; with so many pairs a change of "
        f"{_number(found['smallest_detectable_change'], 2)} or more is seen with power 0.8 "
        f"(McNemar).\n\n{_table(head, rows)}"
    )


def _knockout(found: dict[str, Any]) -> str:
    by_edit: dict[str, dict[str, Any]] = {}
    for one in found["knockouts"]:
        edit, _, what = one["name"].rpartition(" / ")
        by_edit.setdefault(edit, {})[what] = one
    rows = [
        (edit, _with_interval(each["other answer"], 2), _with_interval(each["KL"], 2))
        for edit, each in by_edit.items()
    ]
    patched = [r for r in found["patching"]["restored"] if r["value"] is not None]
    best = [(r["name"], _with_interval(r, 2)) for r in sorted(patched, key=lambda r: -r["value"])[:5]]
    return (
        f"**Knock-outs.**\n\n{_table(('edit', 'other answer (share of scenes)', 'KL, nats per token'), rows)}\n\n"
        f"**Patching another noun** ({found['patching']['n_pairs']} pairs): what brings back most of the clean "
        f"answer.\n\n{_table(('place', 'restored'), best)}"
    )


def _speed(found: dict[str, Any]) -> str:
    rows = [
        (name, _number(one["steps_per_second"], 1), str(one["steps"]))
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    return (
        f"**Speed of closed loops**, pictures of {found['image_px']} px, loading left out (load of the machine at the "
        f"start: {found['load']:.1f}).\n\n{_table(('setting', 'control steps/s', 'steps'), rows)}"
    )


def _break(found: dict[str, Any]) -> str:
    smallest = {one["name"].split(" / ")[0]: one for one in found["smallest"]}
    rows = []
    for one in found["broken"]:
        kind = one["name"].split(" / ")[0]
        size = smallest[kind]
        rows.append((kind, _with_interval(one, 2), _with_interval(size, 2), size["unit"].split(" (")[0]))
    head = ("change", "share of scenes broken", "smallest change, median", "unit")
    return (
        f"**What makes it fail** ({found['n_scenes']} scenes, {found['n_failed_unchanged']} failed unchanged and were "
        f"left out): {found['verdict']}.\n\n{_table(head, rows)}"
    )
