import numpy as np
import pytest

from vlascope.sim.language import (
    COLOURS,
    MATERIALS,
    VOCABULARY,
    instructions,
    instructions_from_arrays,
    prompt,
    questions_from_arrays,
    words,
)
from vlascope.sim.scene import sample_scene

RED, BLUE, GREEN, YELLOW = range(4)
FRAGILE, RIGID = range(2)


def test_only_unambiguous_phrases():
    found = instructions_from_arrays([RED, RED, BLUE, -1], [FRAGILE, RIGID, RIGID, -1], tasks=("pick",))
    texts = {(x.target, x.text) for x in found}
    assert texts == {
        (0, "pick up the fragile object"),
        (0, "pick up the red fragile object"),
        (1, "pick up the red rigid object"),
        (2, "pick up the blue object"),
        (2, "pick up the blue rigid object"),
    }


def test_place_is_phrased_with_the_pad():
    found = instructions_from_arrays([GREEN], [RIGID], tasks=("place",))
    assert "put the green object on the pad" in {x.text for x in found}


def _answers(colour, material, xyz, *, gripper_open=True):
    found = questions_from_arrays(colour, material, np.array(xyz), gripper_open=gripper_open)
    return {q.text: q.answer for q in found}


def test_answers():
    answers = _answers(
        [YELLOW, BLUE, -1, -1], [FRAGILE, RIGID, -1, -1], [[0.5, 0.1, 0], [0.5, -0.1, 0]] + [[np.nan] * 3] * 2
    )
    assert answers["what colour is the left object?"] == "blue"
    assert answers["what colour is the fragile object?"] == "yellow"
    assert answers["is the left object fragile?"] == "no"
    assert answers["is the yellow object fragile?"] == "yes"
    assert answers["where is the yellow object?"] == "right"
    assert answers["where is the blue rigid object?"] == "left"
    assert answers["is the gripper open?"] == "yes"
    assert _answers([RED], [RIGID], [[0.5, 0, 0]], gripper_open=False)["is the gripper open?"] == "no"


def test_no_side_when_it_is_not_clear():
    close = _answers([RED, BLUE], [RIGID, RIGID], [[0.45, -0.01, 0], [0.58, 0.015, 0]])
    assert not any("left" in text or "right" in text or "where" in text for text in close)
    three = _answers([RED, BLUE, GREEN], [RIGID] * 3, [[0.5, -0.1, 0], [0.6, -0.09, 0], [0.5, 0.1, 0]])
    assert "what colour is the left object?" not in three
    assert three["what colour is the right object?"] == "green"


@pytest.mark.parametrize("seed", range(7))
def test_every_word_is_in_the_vocabulary(seed):
    scene = sample_scene(seed)
    xyz = np.array([[o.x, o.y, 0.04] for o in scene.objects])
    colour = [COLOURS.index(o.colour) for o in scene.objects]
    material = [MATERIALS.index(o.material) for o in scene.objects]
    asked = questions_from_arrays(colour, material, xyz, gripper_open=True)
    texts = [x.text for x in instructions(scene)] + [q.text for q in asked]
    for text in texts:
        assert set(words(prompt(text))) <= set(VOCABULARY), text
        assert text == text.lower()
    assert {q.answer for q in asked} <= set(VOCABULARY)
    assert {x.target for x in instructions(scene)} == set(range(len(scene.objects)))


def test_question_mark_is_a_word():
    assert words("is the gripper open?") == ["is", "the", "gripper", "open", "?"]
