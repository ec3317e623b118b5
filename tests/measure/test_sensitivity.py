"""Sensitivity of models whose dependence on text is known by construction, and of mini-vla with deaf words."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.items import Item
from vlascope.measure.prompts import negate, paraphrase, swap_noun, swap_verb
from vlascope.measure.sensitivity import sensitivity
from vlascope.models import Response


def items(n: int = 12) -> list[Item]:
    rng = np.random.default_rng(0)
    return [
        Item(
            item_id=f"i{i}",
            images=(rng.integers(0, 256, (11, 17, 3)).astype(np.uint8),),
            prompt=f"pick up the {('red', 'blue', 'green')[i % 3]} object",
        )
        for i in range(n)
    ]


def fake(text_weight: float):
    """A model whose action is known: mean red, plus the length of the prompt's third-last word."""

    def respond(some):
        replies = []
        for item in some:
            word = sum(map(ord, item.prompt or "")) % 97 / 97
            red = float(item.image[..., 0].mean()) / 10
            action = np.array([red, text_weight * word, 0.5], np.float32)
            replies.append(Response(action=action, action_names=("dx", "dy", "grip")))
        return replies

    return SimpleNamespace(answers=True, respond=respond)


def test_a_model_that_ignores_text_is_told_from_one_that_uses_it():
    deaf = sensitivity(fake(0.0), items())  # type: ignore[arg-type]
    assert deaf.verdict().startswith("the action hardly depends on the text")
    ratio = {r.name: r for r in deaf.ratios}
    assert ratio["text : image"].value == 0 and ratio["text : image"].interval == (0, 0)
    hears = sensitivity(fake(5.0), items())  # type: ignore[arg-type]
    assert hears.verdict().startswith("the action depends on the text")
    json.dumps(hears.to_json(), allow_nan=False)


def test_actions_move_in_their_own_unit():
    found = sensitivity(fake(0.0), items(), changes=["no colour", "occluded"])  # type: ignore[arg-type]
    by_name = {r.name: r for r in found.actions}
    source = items()
    expected = np.mean([
        abs(np.rint(i.image @ [0.299, 0.587, 0.114]).mean() - i.image[..., 0].mean()) / 10 for i in source
    ])  # fmt: skip
    assert by_name["no colour / dx"].value == pytest.approx(expected, rel=1e-4)
    assert by_name["no colour / grip"].value == 0
    assert found.verdict().startswith("cannot say")
    named = sensitivity(fake(0.0), items(), changes=["no colour"], action_unit={"": "m", "grip": "share"})  # type: ignore[arg-type]
    assert {r.name.split()[-1]: r.unit for r in named.actions} == {"dx": "m", "dy": "m", "grip": "share"}
    with pytest.raises(InputError, match="no degree of freedom 'gripper'.*it has dx, dy, grip"):
        sensitivity(fake(0.0), items(), changes=["no colour"], action_unit={"gripper": "share"})  # type: ignore[arg-type]


def test_prompts_change_as_named():
    assert swap_verb("pick up the red object") == "push away the red object"
    assert swap_noun("pick up the red object") == "pick up the blue object"
    assert swap_noun("put the rigid cup", among=("cup", "plate")) == "put the rigid plate"
    assert paraphrase("Pick up the cup") == "grab the cup"
    assert negate("open it") == "do not open it"
    assert swap_verb("hello") is None and swap_noun("hello") is None


def test_what_cannot_be_asked():
    with pytest.raises(InputError, match="unknown change 'dance'"):
        sensitivity(fake(1), items(), changes=["dance"])  # type: ignore[arg-type]
    few = sensitivity(fake(1.0), items(3))  # type: ignore[arg-type]
    assert "3 independent items" in few.verdict()


def test_words_cannot_move_patches_that_come_before_them():
    """In mini-vla the image comes first and attention looks back only: an oracle for features."""
    import vlascope as vs

    model = vs.load("mini-vla", device="cpu")
    source = vs.items("demo:pick")
    some = [source[i] for i in range(0, len(source), 17)]
    found = sensitivity(model, some, sites=["vision.5", "language.3"], changes=["other noun", "other scene"])
    by_name = {r.name: r for r in found.features}
    assert by_name["other noun / vision.5 / patch"].value == pytest.approx(0, abs=1e-4)
    assert by_name["other noun / language.3 / patch"].value == pytest.approx(0, abs=1e-4)
    text, patch = by_name["other noun / language.3 / text"], by_name["other scene / vision.5 / patch"]
    assert text.value is not None and text.value > 0.05
    assert patch.value is not None and patch.value > 0.3
    assert set(found.action_names) == {"dx", "dy", "dz", "grip"}


def test_a_copy_of_mini_vla_that_cannot_tell_words_apart_is_called_deaf():
    import torch

    import vlascope as vs

    source = vs.items("demo:pick")
    some = [source[i] for i in range(0, len(source), 5)]
    model = vs.load("mini-vla", device="cpu")
    rows = [3, *range(5, 48)]  # unknown and all words
    with torch.no_grad():
        words = model.module.get_input_embeddings().weight  # type: ignore[operator]
        words[rows] = words[rows].mean(0, keepdim=True)
    for item in some:
        object.__setattr__(item, "episode", None)  # two episodes are too few; here each frame counts
    changes = ["other scene", "other verb", "other noun"]
    deaf = sensitivity(model, some, changes=changes)
    assert {r.value for r in deaf.actions if "scene" not in r.name} == {0.0}
    assert deaf.verdict().startswith("the action hardly depends on the text")
    hears = sensitivity(vs.load("mini-vla", device="cpu"), some, changes=changes)
    assert hears.verdict().startswith("the action depends on the text"), hears.verdict()


def test_a_model_that_answers_differently_each_time_shows_it_in_the_control():
    rng = np.random.default_rng(5)
    model = fake(0.0)
    steady = model.respond

    def respond(some):
        return [
            Response(action=r.action + rng.normal(0, 0.5, 3).astype(np.float32), action_names=r.action_names)
            for r in steady(some)
        ]

    model.respond = respond
    shaky = sensitivity(model, items(), changes=["other noun", "other scene"])  # type: ignore[arg-type]
    text = next(r for r in shaky.ratios if r.name == "text : image")
    assert text.value is not None and text.controls["same input again"] > 0.5 * text.value > 0.1
    grip = next(r for r in shaky.actions if r.name == "other noun / grip")
    assert 0.3 < grip.controls["same input again"] < 0.9, "the mean distance of two draws is about 0.56"


def noise(seed: int):
    """A policy that looks at nothing."""
    rng = np.random.default_rng(seed)
    answer = lambda: Response(action=rng.normal(size=3).astype(np.float32), action_names=("dx", "dy", "grip"))  # noqa: E731
    return SimpleNamespace(answers=True, respond=lambda some: [answer() for _ in some])


def test_a_policy_of_pure_noise_is_not_said_to_depend_on_the_text():
    some = [replace(item, prompt=f"pick up the {item.prompt.split()[3]} cup") for item in items()]
    wrong = 0
    for seed in range(40):
        found = sensitivity(noise(seed), some, changes=["other scene", "other verb", "other noun"])  # type: ignore[arg-type]
        wrong += not found.verdict().startswith("cannot say whether the action depends on the text")
        text = next(r for r in found.ratios if r.name == "text : image")
        assert text.value is not None and text.value > 0.5 and text.unit == "ratio (larger of verb and noun)"
    assert wrong <= 5, f"{wrong} of 40; 2 are expected"


def test_frames_of_one_episode_are_one_observation():
    for n_episodes in (1, 3):
        some = [replace(item, episode=i % n_episodes) for i, item in enumerate(items())]
        found = sensitivity(fake(5.0), some, changes=["other scene", "other noun"])  # type: ignore[arg-type]
        moved = next(r for r in found.actions if r.name == "other noun / dy")
        assert (
            moved.n == 12
            and moved.n_units == n_episodes
            and moved.over == "episode"
            and moved.interval is None
        )
        why = {1: "another scene applies to none of the items", 3: "for 3 independent episodes"}
        assert why[n_episodes] in found.verdict()


def test_verdicts_at_the_border_are_rarely_wrong():
    from vlascope.measure.resample import units_of
    from vlascope.measure.sensitivity import AGAIN, AGAIN_TWICE, HARDLY, SensitivityResult, _ratios

    false, n = 0, 41
    for trial in range(200):
        rng = np.random.default_rng(trial)
        image = rng.gamma(3.0, size=n)
        text = (
            HARDLY * rng.gamma(2.0, size=n) / 2.0 * 3.0
        )  # its mean is exactly HARDLY times that of the image
        moved = {"other scene": image, "other noun": text, AGAIN: np.zeros(n), AGAIN_TWICE: np.zeros(n)}
        result = SensitivityResult(n, ("dx",), (), (), _ratios(moved, units_of(range(n)), seed=trial))
        false += not result.verdict().startswith("undecided")
    assert false <= 18, f"{false} of 200 verdicts at the border; 10 are expected"


def test_recoloured_images_keep_their_shape_and_change_their_colours():
    from vlascope.measure.sensitivity import recolour

    one = items(1)[0]
    other = recolour(one)
    np.testing.assert_array_equal(other.image[..., 0], one.image[..., 2])
    np.testing.assert_array_equal(np.sort(other.image, axis=2), np.sort(one.image, axis=2))


def test_a_mean_counts_the_units_that_have_a_value():
    from vlascope.measure.means import mean_result
    from vlascope.measure.resample import MIN_UNITS, units_of

    units = units_of(["a", "a", "b", "c", "d", "e", "f"], over="episode")
    values = np.array([1.0, 3.0, np.nan, 2.0, 2.0, 2.0, 2.0])
    found = mean_result("m", values, units, unit="cm", controls={"still": 0.0})
    assert (found.value, found.n, found.n_units, found.over) == (2.0, 6, 5, "episode")
    assert found.interval is not None and found.controls == {"still": 0.0}
    values[-1] = np.nan
    fewer = mean_result("m", values, units, unit="cm")
    assert fewer.n_units == MIN_UNITS - 1 and fewer.interval is None
    assert mean_result("m", np.full(7, np.nan), units, unit="cm", reason="none moved").reason == "none moved"
