"""Where mini-vla carries colour: of the object that it is asked about, of its target, and of what a patch shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vlascope as vs
from vlascope.items import Item, open_items
from vlascope.measure import ProbeResult, probe, probe_regions
from vlascope.models import Model
from vlascope.sim import COLOURS, record_episodes
from vlascope.sim.language import SIDE_MARGIN_M

STEPS = (0, 4)
QUESTIONS: Mapping[str, Mapping[str, Any]] = {
    "the object asked about": {"of": "asked", "label": "asked_colour"},
    "the object asked about, of the picture's two": {
        "of": "asked",
        "label": "asked_colour",
        "options": {"scheme": "names", "choices": "unit"},
    },
    "the target of the instruction": {"of": "frames", "label": "target_colour"},
    "the object that patches show": {"of": "frames"},
}
SITES = ("vision.5", "language.1", "language.3", "language.5")


def read_colours(
    models: Mapping[str, Model], folder: Path, *, n_episodes: int, seed: int
) -> list[dict[str, Any]]:
    """Probe questions of colour in each of the models.

    The object asked about: "what colour is the left object?" over frames of two objects of different colours, at the
    last token of the question; once among all colours, once among the two of the picture. The target of an
    instruction (which mostly names the colour), at its last token; the object that patches show. The layers and
    tokens were chosen on other episodes (seeds 910000 and up).
    """
    place = folder / "colours"
    record_episodes(place, n_episodes=n_episodes, seed=seed, image_px=112, n_objects=2, quiet=True)
    source = vs.items(place)
    frames = [item for i in range(len(source)) if (item := source[i]).step in STEPS]
    asked = [question for item in frames for question in questions_of(item)]
    out = []
    for number, (name, model) in enumerate(models.items()):
        runs = {
            what: vs.capture(
                model,
                open_items(items),
                out=folder / f"colours-{what}-{number}",
                sites=SITES,
                respond=False,
                quiet=True,
            )
            for what, items in (("frames", frames), ("asked", asked))
        }
        for what, ask in QUESTIONS.items():
            for site in SITES[1:] if ask["of"] == "asked" else SITES:
                one = _read(runs[ask["of"]], site, ask)
                print(f"{what}, {name}: {one.test.line()}", flush=True)
                out.append({"what": what, "network": name, **one.to_json()})
    return out


def _read(run: Any, site: str, ask: Mapping[str, Any]) -> ProbeResult:
    if "label" not in ask:
        return probe_regions(run, site=site, words=COLOURS)
    return probe(run, site=site, target=ask["label"], tokens="last", **ask.get("options", {}))


def questions_of(item: Item) -> Sequence[Item]:
    """Return the frame with the question after its left and its right object, where it is clear which they are.

    Objects of one colour are left out: which of them is asked about makes no difference.
    """
    objects = sorted(json.loads(str(item.labels["scene"]))["objects"], key=lambda one: one["y"])
    if objects[1]["y"] - objects[0]["y"] <= SIDE_MARGIN_M or objects[0]["colour"] == objects[1]["colour"]:
        return ()
    return [
        replace(
            item,
            item_id=f"{item.item_id}/{side}",
            prompt=f"what colour is the {side} object?",
            labels={**item.labels, "asked_colour": one["colour"]},
        )
        for side, one in zip(("left", "right"), objects, strict=True)
    ]
