"""`vlascope steer | knockout | patch | rollout | break`: what they print, keep and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlascope import items
from vlascope.act import SteerDirection, load_direction, save_direction
from vlascope.cli import main
from vlascope.cli._items import open_both
from vlascope.cli.cut import spread
from vlascope.cli.steer import Args as SteerArgs
from vlascope.errors import InputError, RunVersionError
from vlascope.models import load
from vlascope.sim.episode import MAX_STEPS

FEW = ("mini-vla", "demo:pick", "--items", "2", "-q", "--device", "cpu")


def told(capsys, *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_steer_between_words_and_keep_the_direction(capsys, tmp_path):
    path = tmp_path / "direction.safetensors"
    more = ("--strengths", "1", "--controls", "1", "--unrelated", "is the gripper open?", "--save", str(path))
    facts = told(capsys, "steer", *FEW, "--site", "language.1", "--words", "up", "down", *more)
    assert (
        facts["edit"]["site"] == "language.1" and len(facts["doses"]) == 1 and facts["doses"][0]["unrelated"]
    )
    model = load("mini-vla", device="cpu")
    kept = load_direction(path, model=model)
    assert kept.label == "up to down" and kept.tokens == "text" and kept.unit > 0
    assert np.linalg.norm(kept.direction) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="belongs to the weights"):
        changed = load("mini-vla", device="cpu")
        next(changed.module.parameters()).data.add_(1.0)
        load_direction(path, model=changed)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_direction(path, model=model)


def test_items_without_the_word_give_way_to_others(capsys):
    few = ("mini-vla", "demo:pick", "--items", "4", "-q", "--device", "cpu", "--site", "language.1")
    once = ("--strengths", "1", "--controls", "1")
    source = items("demo:pick")
    # Two in three are about a blue object, so that four items spread over all of them hold one or two red ones.
    assert sum("red" in (source[i].prompt or "") for i in spread(len(source), 4)) < 4
    facts = told(capsys, "steer", *few, "--words", "red", "blue", *once)
    assert facts["n_items"] == 4
    args = SteerArgs(model="mini-vla", data="demo:pick", items=4, device="cpu", quiet=True)
    _, chosen = open_both(args, keep=lambda item: "red" in (item.prompt or ""))
    assert [one.prompt for one in chosen] == ["pick up the red fragile object"] * 4
    assert len({one.item_id for one in chosen}) == 4
    _, unable = open_both(args, keep=lambda item: False)
    assert [one.item_id for one in unable] == [source[i].item_id for i in spread(len(source), 4)]


def test_directions_of_newer_versions_and_functions_are_refused(tmp_path, monkeypatch):
    model = load("mini-vla", device="cpu")
    ones = np.ones(128, np.float32)
    steer = SteerDirection(site="language.1", direction=ones, tokens=lambda layout: layout.kind == 0)
    with pytest.raises(InputError, match="function"):
        save_direction(tmp_path / "a", steer, model=model)
    monkeypatch.setattr("vlascope.act.saved.SCHEMA", 2)
    path = save_direction(tmp_path / "b", SteerDirection(site="language.1", direction=ones), model=model)
    monkeypatch.setattr("vlascope.act.saved.SCHEMA", 1)
    with pytest.raises(RunVersionError, match="format 2"):
        load_direction(path, model=model)


def test_knockout_and_patch_print_their_tables(capsys):
    facts = told(capsys, "knockout", *FEW, "--cut", "patch:action", "--ablate", "language.0.mlp", "--mean")
    assert [e["kind"] for e in facts["edits"]] == ["cut attention", "ablate, mean"]
    assert len(facts["results"]) == 2 * 6
    facts = told(capsys, "patch", *FEW, "--sites", "language.0", "--kinds", "last")
    assert facts["n_pairs"] == 2 and len(facts["restored"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("steer", *FEW), "--words FROM TO, or --sae"),
        (("steer", *FEW, "--words", "up", "down"), "needs --site"),
        (("steer", *FEW, "--words", "zebra", "gnu", "--site", "language.1"), "none of 2 prompts"),
        (("knockout", *FEW, "--cut", "patch"), "SOURCE:READER"),
        (("rollout", "mini-vla", "--cut", "patch", "-q"), "SOURCE:READER"),
        (("rollout", "mini-vla", "--ablate", "language.77", "-q"), "no site"),
        (("break", "mini-vla", "--kinds", "weather", "-q"), "known are position"),
    ],
)
def test_wrong_requests_are_one_message(capsys, words, said):
    assert main(list(words)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.sim
def test_rollout_plays_pairs(capsys, tmp_path, monkeypatch):
    pytest.importorskip("pybullet")
    monkeypatch.setitem(MAX_STEPS, "pick", 3)
    out = tmp_path / "failed"
    facts = told(
        capsys, "rollout", "mini-vla", "--episodes", "1", "--seed", "3", "--cut", "patch:action", "--processes", "1",
        "--failures", str(out), "-q", "--image-px", "48",
    )  # fmt: skip
    base, cut = facts["conditions"]
    assert (
        base["edit"] == "no edit"
        and "patch -> action" in cut["edit"]
        and facts["comparison"]["change"] == cut["edit"]
    )
    assert cut["successes"] == 0 and Path(out, "meta", "info.json").is_file()
