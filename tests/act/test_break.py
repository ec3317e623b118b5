"""The smallest change that makes a model fail: kinds of change, and a search against a known weakness."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from vlascope.act import breaking, find_breaks
from vlascope.act.breaking import episodes_of
from vlascope.act.changes import KINDS_OF_CHANGE, LARGEST, UNITS, rewordings, word_distance
from vlascope.act.rollout import Played, Trial
from vlascope.errors import InputError
from vlascope.sim import draw_task, instructions
from vlascope.sim.episode import MAX_STEPS


def trial(seed: int = 0) -> Trial:
    scene, instruction = draw_task(seed, task="pick", n_objects=2)
    return Trial(scene=scene, instruction=instruction, labels={"seed": seed})


@pytest.mark.parametrize("kind", KINDS_OF_CHANGE)
def test_changes_leave_the_task_the_same(kind):
    start = trial()
    found = list(KINDS_OF_CHANGE[kind](start))
    assert found and {v.kind for v in found} == {kind} and {v.unit for v in found} == {UNITS[kind]}
    for variant in found:
        assert 0 < variant.size <= LARGEST[kind] and variant.says
        assert variant.trial != start and variant.trial.instruction == start.instruction
        said = [(i.text, i.target) for i in instructions(variant.trial.scene, tasks=("pick",))]
        assert (start.instruction.text, start.instruction.target) in said
        if variant.again is not None:
            same = variant.again(variant.size)
            assert same is not None and same.trial == variant.trial and same.again is not None
            twice = same.again(variant.size / 2)  # a change made again stays in its direction
            assert twice is None or twice.says.split()[-1] == variant.says.split()[-1]


def test_word_distance_counts_words():
    assert word_distance("pick up the red object", "pick up the red object") == 0
    assert word_distance("pick up the red object", "grab the red object") == 2
    assert word_distance("a b c", "a x c d") == 2 and word_distance("", "one two") == 2
    found = rewordings("pick up the red object")
    sizes = [word_distance("pick up the red object", text) for text in found]
    assert sizes == sorted(sizes) and sizes[0] == 1 and len(set(found)) == len(found) > 6


def weak_to(fails):
    """A stand-in for playing: episodes fail where `fails(trial)` says so."""
    played: list[Trial] = []

    def play(model, trials, **_):
        played.extend(trials)
        episodes = []
        for one in trials:
            bad = fails(one)
            episodes.append(SimpleNamespace(success=not bad, outcome="dropped" if bad else "success"))
        return Played(tuple(episodes), (None,) * len(trials), 0.0, 1)

    return play, played


def test_the_search_finds_the_edge_of_a_known_weakness(monkeypatch):
    starts = {i: draw_task(100 + i, task="pick")[0].brightness for i in range(6)}
    edge = 2**-0.7  # fails when darker by more than 0.7 stops

    def fails(one: Trial) -> bool:
        seed = one.labels["seed"]
        return (
            seed == 102
            or one.scene.brightness < starts[seed - 100] * edge
            or (one.told or "").startswith("grab")
        )

    play, played = weak_to(fails)
    monkeypatch.setattr(breaking, "play", play)
    found = find_breaks(
        None,
        n_scenes=6,
        seed=100,
        kinds=("lighting", "wording", "camera"),
        n_halvings=6,  # type: ignore[arg-type]
    )
    assert (found.n_scenes, found.n_failed) == (6, 1) and len(found.breaks) == 15
    for one in found.breaks:
        if one.kind == "lighting":
            assert one.size is not None and 0.7 < one.size < 0.7 + 0.5 / 2**5 and "darker" in one.says
            assert one.size - one.largest_done < 0.02 and one.outcome == "dropped"
            assert one.after is not None and one.after.scene.brightness < starts[one.seed - 100] * edge
        elif one.kind == "wording":
            assert one.size == 2 and one.after is not None and (one.after.told or "").startswith("grab")
        else:
            assert one.size is None and one.after is None and one.largest_done == 20.0
    rates = {r.name: r for r in found.broken}
    assert rates["lighting / broken"].value == 1 and rates["camera / broken"].value == 0
    assert rates["camera / broken"].n == 5 and rates["camera / broken"].interval[1] > 0.4
    smallest = {r.name: r for r in found.smallest}
    assert smallest["wording / smallest"].value == 2 and smallest["wording / smallest"].interval == (2.0, 2.0)
    assert smallest["camera / smallest"].value is None
    assert found.easiest().kind == "wording" and "grab" in found.verdict()
    assert len(played) < 300
    again = json.loads(json.dumps(found.to_json()))
    assert again["breaks"][0]["after"]["scene"]["brightness"] == pytest.approx(
        found.breaks[0].after.scene.brightness
    )


def test_a_failure_in_the_middle_is_not_taken_for_an_edge(monkeypatch):
    play, _ = weak_to(lambda one: 0.04 < np.hypot(*one.scene.camera_shift[1:]) < 0.06)
    monkeypatch.setattr(breaking, "play", play)
    (one,) = find_breaks(None, seed=100, kinds=("camera",), n_halvings=0).breaks  # type: ignore[arg-type]
    assert one.size == 5.0 and one.largest_done == 2.0 and one.larger_fail == pytest.approx(0.0)


def test_nothing_breaks_and_wrong_requests(monkeypatch):
    play, _ = weak_to(lambda one: False)
    monkeypatch.setattr(breaking, "play", play)
    found = find_breaks(None, seed=100, kinds=("table",))  # type: ignore[arg-type]
    assert found.easiest() is None and "nothing" in found.verdict()
    hopeless, _ = weak_to(lambda one: True)
    monkeypatch.setattr(breaking, "play", hopeless)
    found_none = find_breaks(None, seed=100, n_scenes=3, kinds=("table",))  # type: ignore[arg-type]
    assert found_none.verdict().startswith("it fails in all 3 scenes unchanged")
    monkeypatch.setattr(breaking, "play", play)
    with pytest.raises(InputError, match="nothing to show"):
        episodes_of(None, found.breaks[0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Nearest: 'lighting'"):
        find_breaks(None, kinds=("lightning",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n_scenes"):
        find_breaks(None, n_scenes=0)  # type: ignore[arg-type]


def test_what_was_found_is_kept_when_the_capture_fails(monkeypatch, tmp_path):
    from vlascope import api
    from vlascope.cli import main

    play, _ = weak_to(lambda one: one.scene.brightness < 0.4)
    monkeypatch.setattr(breaking, "play", play)
    monkeypatch.setattr(breaking, "episodes_of", lambda *_, **__: None)

    def full(*_, **__):
        raise InputError("no room")

    monkeypatch.setattr(api, "capture", full)
    words = (
        "break",
        "mini-vla",
        "--kinds",
        "lighting",
        "-q",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "broken"),
    )
    assert main(list(words)) == 2
    kept = json.loads((tmp_path / "broken" / "break.json").read_text())
    assert kept["breaks"][0]["size"] > 0 and "run" not in kept


@pytest.mark.sim
def test_both_episodes_come_back_as_items(mini, monkeypatch):
    pytest.importorskip("pybullet")
    monkeypatch.setitem(MAX_STEPS, "pick", 3)
    start = trial()
    dark = dataclasses.replace(start, scene=start.scene.replace(brightness=0.1), told="fetch it")
    one = breaking.Break(
        seed=0, kind="lighting", size=1.0, largest_done=0.0, unit="stops", says="", outcome="dropped", n_tried=1,
        larger_fail=0.0, before=start, after=dark,
    )  # fmt: skip
    items = episodes_of(mini, one, image_px=48)
    episodes = [items[i].episode for i in range(len(items))]
    assert set(episodes) == {0, 1} and items[0].prompt == start.instruction.text
    last = items[len(items) - 1]
    assert last.prompt == "fetch it" and last.image.mean() < 0.3 * items[0].image.mean()
