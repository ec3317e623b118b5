"""Changes of a scene or of its wording that leave the task the same, by kind and size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measure.prompts import paraphrase
from ..sim.language import COLOURS, MATERIALS, Instruction, instructions
from ..sim.scene import MAX_OBJECTS, TEST_TABLES, X_RANGE, Y_RANGE, ObjectSpec, Scene, far_enough
from .player import Trial


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One change of a scene or of its wording.

    Attributes:
        kind: One of `KINDS_OF_CHANGE`.
        size: How large it is, in `unit`.
        unit: Unit of the size.
        says: The change in words.
        trial: What is played.
        again: Makes the same change at another size; None where sizes are not continuous, or impossible.
    """

    kind: str
    size: float
    unit: str
    says: str
    trial: Trial
    again: Callable[[float], Variant | None] | None = None


def _variant(
    start: Trial,
    kind: str,
    size: float,
    says: str,
    *,
    again: Callable[[float], Variant | None] | None = None,
    **changes: Any,
) -> Variant:
    """Return a change of a trial's scene or of what is told."""
    trial = dataclasses.replace(start, **changes)
    return Variant(kind=kind, size=size, unit=UNITS[kind], says=says, trial=trial, again=again)


_PURE = {"red": (1, 0.1, 0.1), "blue": (0.1, 0.2, 1), "green": (0.1, 0.8, 0.2), "yellow": (1, 0.9, 0.1)}


def _position(start: Trial) -> Iterator[Variant]:
    """The target moves along or across the table, where there is room."""
    for axis, sign in (("x", 1), ("x", -1), ("y", 1), ("y", -1)):
        yield from filter(None, (_moved(start, axis, sign, cm) for cm in (1.0, 2.0, 4.0, 8.0)))


def _moved(start: Trial, axis: str, sign: int, cm: float) -> Variant | None:
    target = start.instruction.target
    spec = start.scene.objects[target]
    new = dataclasses.replace(spec, **{axis: getattr(spec, axis) + sign * cm / 100})
    scene = _with_object(start.scene, target, new)
    inside = X_RANGE[0] <= new.x <= X_RANGE[1] and Y_RANGE[0] <= new.y <= Y_RANGE[1]
    if not (inside and _has_room(scene)):
        return None
    says = f"target {cm:.2g} cm along {'+' if sign > 0 else '-'}{axis}"
    return _variant(start, "position", cm, says, scene=scene, again=partial(_moved, start, axis, sign))


def _colour(start: Trial) -> Iterator[Variant]:
    """The table takes on the target's colour."""
    yield from (_tinted(start, amount) for amount in (0.125, 0.25, 0.5, 0.75, 1.0))


def _tinted(start: Trial, amount: float) -> Variant:
    goal = np.array(_PURE[start.scene.objects[start.instruction.target].colour])
    tint = (1 - amount) * np.array(start.scene.table_tint) + amount * goal
    scene = start.scene.replace(table_tint=tuple(float(v) for v in tint))
    says = f"table {amount:.0%} of the way to the target's colour"
    return _variant(start, "colour", amount, says, scene=scene, again=partial(_tinted, start))


def _distractor(start: Trial) -> Iterator[Variant]:
    """One more object stands where there is room; the instruction still names one object only."""
    scene, target = start.scene, start.instruction.target
    if len(scene.objects) >= MAX_OBJECTS:
        return
    places = [(x, y) for x in np.linspace(*X_RANGE, 11) for y in np.linspace(*Y_RANGE, 15)]
    spec = scene.objects[target]
    n = 0
    for colour in COLOURS:
        for material in MATERIALS:
            for x, y in sorted(places, key=lambda p: math.hypot(p[0] - spec.x, p[1] - spec.y)):
                extra = ObjectSpec(colour=colour, material=material, x=float(x), y=float(y))
                kinds = [(o.colour, o.material) for o in scene.objects]
                if (colour, material) in kinds:
                    break
                new = scene.replace(objects=(*scene.objects, extra))
                if not _has_room(new):
                    continue
                if _names_one(new, start.instruction):
                    n += 1
                    says = f"a {colour} {material} object at ({x:.2f}, {y:.2f}) m"
                    yield _variant(start, "distractor", 1.0, says, scene=new)
                break
            if n >= 6:
                return


def _lighting(start: Trial) -> Iterator[Variant]:
    """Darker or brighter pictures."""
    yield from (_lit(start, sign, stops) for sign in (-1, 1) for stops in (0.25, 0.5, 1.0, 2.0))


def _lit(start: Trial, sign: int, stops: float) -> Variant:
    scene = start.scene.replace(brightness=start.scene.brightness * 2 ** (sign * stops))
    says = f"{stops:.2g} stops {'brighter' if sign > 0 else 'darker'}"
    return _variant(start, "lighting", stops, says, scene=scene, again=partial(_lit, start, sign))


def _camera(start: Trial) -> Iterator[Variant]:
    """The camera moves sideways or up."""
    yield from (_shifted(start, axis, cm) for axis in (1, 2) for cm in (2.0, 5.0, 10.0, 20.0))


def _shifted(start: Trial, axis: int, cm: float) -> Variant:
    shift = list(start.scene.camera_shift)
    shift[axis] += cm / 100
    scene = start.scene.replace(camera_shift=tuple(shift))
    says = f"camera {cm:.2g} cm {'sideways' if axis == 1 else 'up'}"
    return _variant(start, "camera", cm, says, scene=scene, again=partial(_shifted, start, axis))


def _table(start: Trial) -> Iterator[Variant]:
    """A table that no training scene had."""
    for name in TEST_TABLES:
        yield _variant(start, "table", 1.0, f"table '{name}'", scene=start.scene.replace(table=name))


def _wording(start: Trial) -> Iterator[Variant]:
    """The same order in other words."""
    for text in rewordings(start.instruction.text):
        size = float(word_distance(start.instruction.text, text))
        yield _variant(start, "wording", size, f"told '{text}'", told=text)


KINDS_OF_CHANGE: dict[str, Callable[[Trial], Iterator[Variant]]] = {
    "position": _position,
    "colour": _colour,
    "distractor": _distractor,
    "lighting": _lighting,
    "camera": _camera,
    "table": _table,
    "wording": _wording,
}
"""Kinds of change, by name."""

UNITS = {
    "position": "cm",
    "colour": "share of the way",
    "distractor": "objects",
    "lighting": "stops",
    "camera": "cm",
    "table": "textures",
    "wording": "words",
}
LARGEST = {
    "position": 8.0, "colour": 1.0, "distractor": 4.0, "lighting": 2.0, "camera": 20.0, "table": 2.0, "wording": 6.0,
}  # fmt: skip
"""Sizes against which the kinds are compared with one another (those of textures and objects are a matter of taste)."""


def rewordings(text: str) -> list[str]:
    """Return other ways to say the same, nearest first; each once."""
    same = [
        ("object", "thing"),
        ("object", "item"),
        ("the ", ""),
        ("the ", "a "),
        ("up ", ""),
        ("on ", "onto "),
    ]
    found = [text.replace(a, b, 1) for a, b in same if a in text]
    other = paraphrase(text)
    found += [other] if other else []
    found += [f"please {text}", f"{text} now", f"now {text} please", f"can you {text} ?"]
    unique = [one for one in dict.fromkeys(found) if one != text]
    return sorted(unique, key=lambda one: word_distance(text, one))


def word_distance(a: str, b: str) -> int:
    """Return how many words must be put in, taken out or exchanged to turn one text into the other."""
    one, two = a.split(), b.split()
    row = list(range(len(two) + 1))
    for i, word in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(two, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1]


def _with_object(scene: Scene, index: int, spec: ObjectSpec) -> Scene:
    return scene.replace(objects=(*scene.objects[:index], spec, *scene.objects[index + 1 :]))


def _has_room(scene: Scene) -> bool:
    places: NDArray[np.float64] = np.array([*((o.x, o.y) for o in scene.objects), scene.pad_xy])
    return far_enough(places)


def _names_one(scene: Scene, instruction: Instruction) -> bool:
    return any(
        one.text == instruction.text and one.target == instruction.target
        for one in instructions(scene, tasks=(instruction.task,))
    )
