"""The language of the table-top world: instructions, questions, answers and their words.

This is the only place that defines them; the simulator, the data generator and the training of the
embedded model all import it. Every phrase that leaves this module is unambiguous in its scene.

Left and right are meant as seen in the camera image: the camera looks back at the robot, so the image's
left is the world's -y and its right is +y.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from vlascope.sim.scene import Scene
    from vlascope.sim.world import State

COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow")
MATERIALS: tuple[str, ...] = ("fragile", "rigid")
TASKS: tuple[str, ...] = ("pick", "place")
PHRASES: tuple[str, ...] = ("colour", "material", "both")

SIDE_MARGIN_M = 0.03  # "the left object" must be leftmost by at least this much
CENTRE_MARGIN_M = 0.02  # "where is ...?" is not asked of an object closer than this to the image's middle

PROMPT = "In: {text} Out:"

Phrase = Literal["colour", "material", "both"]
Task = Literal["pick", "place"]

_NEEDED_WORDS = (
    "In: Out: pick up put the object on pad what colour is where gripper open ? yes no left right".split()
)
# Every word that a tokenizer must know, in a fixed order.
VOCABULARY: tuple[str, ...] = (*_NEEDED_WORDS, *COLOURS, *MATERIALS)


@dataclass(frozen=True)
class Instruction:
    """One order to the robot.

    Attributes:
        text: Lower-case words, such as "pick up the red object".
        task: "pick" or "place".
        target: Index of the object it names.
        phrase: Which words name the object: "colour", "material" or "both".
    """

    text: str
    task: Task
    target: int
    phrase: Phrase


@dataclass(frozen=True)
class Question:
    """One question with its one-word answer.

    Attributes:
        text: Lower-case words ending in "?".
        answer: One word of `VOCABULARY`.
        kind: "colour", "fragile", "where" or "gripper".
    """

    text: str
    answer: str
    kind: str


def words(text: str) -> list[str]:
    """Words of a text as a tokenizer sees them; a question mark is a word of its own."""
    return re.findall(r"\?|[^\s?]+", text)


def prompt(text: str) -> str:
    """The text that follows the image tokens: the instruction or question inside `PROMPT`."""
    return PROMPT.format(text=text)


def instructions(scene: Scene, *, tasks: Sequence[Task] = ("pick", "place")) -> list[Instruction]:
    """All unambiguous instructions of a scene (see `instructions_from_arrays`)."""
    colour, material = _codes(scene)
    return instructions_from_arrays(colour, material, tasks=tasks)


def instructions_from_arrays(
    colour: Sequence[int] | np.ndarray,
    material: Sequence[int] | np.ndarray,
    *,
    tasks: Sequence[Task] = ("pick", "place"),
) -> list[Instruction]:
    """All unambiguous instructions for objects given as codes.

    Args:
        colour: Index into `COLOURS` per object, -1 where the slot is empty.
        material: Index into `MATERIALS` per object, -1 where the slot is empty.
        tasks: Which tasks to phrase.

    Returns:
        Instructions ordered by task, then object, then phrase. Every object has at least the phrase "both",
        because no two objects of a scene share colour and material.
    """
    found = []
    for task in tasks:
        pattern = _pattern(task)
        for target in _present(colour):
            for phrase in PHRASES:
                name = _name(colour, material, target, phrase)  # type: ignore[arg-type]
                if name is not None:
                    found.append(Instruction(pattern.format(name), task, target, phrase))  # type: ignore[arg-type]
    return found


def questions(scene: Scene, state: State) -> list[Question]:
    """All unambiguous questions about a scene in its present state (see `questions_from_arrays`)."""
    colour, material = _codes(scene)
    return questions_from_arrays(colour, material, state.object_xyz, gripper_open=state.gripper_open)


def questions_from_arrays(
    colour: Sequence[int] | np.ndarray,
    material: Sequence[int] | np.ndarray,
    object_xyz: np.ndarray,
    *,
    gripper_open: bool,
) -> list[Question]:
    """All unambiguous questions, with answers, for objects given as arrays.

    Args:
        colour: Index into `COLOURS` per object, -1 where the slot is empty.
        material: Index into `MATERIALS` per object, -1 where the slot is empty.
        object_xyz: Positions in metres, shape [objects, 3]; rows of empty slots are not read.
        gripper_open: Whether the gripper is commanded open.

    Returns:
        Questions in a fixed order; the last one is always about the gripper.
    """
    found = []
    xyz = np.asarray(object_xyz, dtype=np.float64)
    fragile = MATERIALS.index("fragile")

    def yes(truth: bool) -> str:
        return "yes" if truth else "no"

    for side, index in _sides(colour, xyz).items():
        found.append(Question(f"what colour is the {side} object?", COLOURS[int(colour[index])], "colour"))
        is_fragile = yes(int(material[index]) == fragile)
        found.append(Question(f"is the {side} object fragile?", is_fragile, "fragile"))
    for index in _present(colour):
        by_material = _name(colour, material, index, "material")
        by_colour = _name(colour, material, index, "colour")
        if by_material is not None:
            found.append(Question(f"what colour is {by_material}?", COLOURS[int(colour[index])], "colour"))
        if by_colour is not None:
            is_fragile = yes(int(material[index]) == fragile)
            found.append(Question(f"is {by_colour} fragile?", is_fragile, "fragile"))
        y = float(xyz[index, 1])
        if abs(y) >= CENTRE_MARGIN_M:
            side = "left" if y < 0 else "right"
            for name in (by_colour, _name(colour, material, index, "both")):
                if name is not None:
                    found.append(Question(f"where is {name}?", side, "where"))
    found.append(Question("is the gripper open?", yes(bool(gripper_open)), "gripper"))
    return found


def instruction_text(task: Task, name: str) -> str:
    """The instruction for a task and an object's name, such as ("pick", "the red object")."""
    return _pattern(task).format(name)


def _pattern(task: str) -> str:
    patterns = {"pick": "pick up {}", "place": "put {} on the pad"}
    return patterns[task]


def _present(colour: Sequence[int] | np.ndarray) -> list[int]:
    return [i for i, code in enumerate(colour) if int(code) >= 0]


def _name(
    colour: Sequence[int] | np.ndarray, material: Sequence[int] | np.ndarray, target: int, phrase: Phrase
) -> str | None:
    """The object's name in the given kind of words, or None where that would be ambiguous."""
    c, m = int(colour[target]), int(material[target])
    others = [i for i in _present(colour) if i != target]
    if phrase == "colour":
        return None if any(int(colour[i]) == c for i in others) else f"the {COLOURS[c]} object"
    if phrase == "material":
        return None if any(int(material[i]) == m for i in others) else f"the {MATERIALS[m]} object"
    return f"the {COLOURS[c]} {MATERIALS[m]} object"


def _sides(colour: Sequence[int] | np.ndarray, xyz: np.ndarray) -> dict[str, int]:
    """Which object is "the left object" and "the right object", where that is clear."""
    order = sorted(_present(colour), key=lambda i: float(xyz[i, 1]))
    sides: dict[str, int] = {}
    if len(order) < 2:
        return sides
    if xyz[order[1], 1] - xyz[order[0], 1] > SIDE_MARGIN_M:
        sides["left"] = order[0]
    if xyz[order[-1], 1] - xyz[order[-2], 1] > SIDE_MARGIN_M:
        sides["right"] = order[-1]
    return sides


def _codes(scene: Scene) -> tuple[list[int], list[int]]:
    colour = [COLOURS.index(o.colour) for o in scene.objects]
    material = [MATERIALS.index(o.material) for o in scene.objects]
    return colour, material
