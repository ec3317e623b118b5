"""The verbs trace, debug, probe, sensitivity, temporal, semantics and attribute on one small run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlascope as vs
from vlascope.cli import main
from vlascope.items import Item, open_items
from vlascope.measure import saved
from vlascope.runs import Run

N_EPISODES, N_FRAMES = 6, 8
COLOURS = {"red": (210, 30, 30), "blue": (30, 30, 210)}
SITES = ("vision.1", "language.1")
FEW = ("--permutations", "39", "-q")
PLAIN = ("--color", "pca", *FEW)


def picture(colour: str, *, row: int, col: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A square of one colour in front of grey noise, a small green one in the corner, and their mask."""
    image = rng.integers(90, 120, (84, 112, 3)).astype(np.uint8)
    mask = np.zeros((84, 112), np.uint8)
    mask[row : row + 28, col : col + 42] = 1
    mask[70:, 98:] = 2
    image[mask == 1], image[mask == 2] = COLOURS[colour], (30, 180, 30)
    return image, mask


@pytest.fixture(scope="module")
def run_path(tmp_path_factory) -> Path:
    """Six episodes of eight frames: a square that moves to the right, then back from its "grasp" on."""
    rng = np.random.default_rng(0)
    items = []
    for episode in range(N_EPISODES):
        colour, turn = ("red", "blue")[episode % 2], 3 + episode % 3
        for step in range(N_FRAMES):
            x = 8 * (turn - abs(step - turn))
            image, mask = picture(colour, row=14 * (episode % 4), col=max(0, x), rng=rng)
            items.append(
                Item(
                    item_id=f"e{episode}-{step}", images=(image,), prompt=f"pick up the {colour} object",
                    labels={
                        "colour": colour, "x": x, "same": "yes", "success": episode % 2 == 0, "event.grasp": turn,
                        "said": colour if step % 4 else "red", "phase": "back" if step > turn else "there",
                    },
                    masks={"segmentation": mask},
                    mask_names={"segmentation": {0: "background", 1: f"{colour} square", 2: "green square"}},
                    episode=episode, step=step, state=np.array([x, episode], np.float32),
                    action=np.array([np.sign(turn - step), 0.0], np.float32),
                )
            )  # fmt: skip
    out = tmp_path_factory.mktemp("measure") / "run"
    vs.capture(
        vs.load("mini-vla", device="cpu"),
        open_items(items),
        sites=SITES,
        out=out,
        respond=False,
        quiet=True,
    )
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for i in range(5):
        image, _ = picture(("red", "blue")[i % 2], row=14 * (i % 4), col=14 * i, rng=rng)
        Image.fromarray(image).save(folder / f"p{i}.png")
    return folder


def facts_of(words: list[str], capsys) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def kept(run_path: Path, measure: str):
    return [one for one in saved(Run.open(run_path)) if one.measure == measure]


def complaint(words: list[str], capsys) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_trace_finds_the_colour_and_keeps_table_strip_and_finding(run_path, capsys):
    words = ["trace", str(run_path), "--label", "colour", "--tokens", "last", "--k", "3", *PLAIN]
    facts = facts_of(words, capsys)
    assert [layer["site"] for layer in facts["layers"]] == list(SITES)
    assert "raw_pixels" in facts and "'colour'" in facts["verdict"]
    assert all(Path(path).stat().st_size > 1000 for path in [facts["file"], *facts["pictures"]])
    (found,) = kept(run_path, "trace")
    assert Path(facts["finding"]).stem == found.name and found.title == "colour"
    assert found.layers[0].sites == SITES and len(found.rows) == 3
    assert {"CKA with the layer before", "label ARI with the layer before"} <= {s.name for s in found.layers}
    assert main([*words, "--compare", str(run_path)]) == 0
    text = capsys.readouterr().out
    assert "separable" in text and "strip.png" in text and "run-1" in text


def test_trace_of_masks_needs_no_label(run_path, capsys):
    facts = facts_of(["trace", str(run_path), "--site", "vision.1", "--k", "3", *PLAIN], capsys)
    assert facts["concept"] == "region of segmentation" and 0 < facts["layers"][0]["overlap"]["iou"] < 1


def test_trace_says_what_is_wrong(run_path, photos, tmp_path, capsys):
    assert "no item of this run has a label 'colr'" in complaint(
        ["trace", str(run_path), "--label", "colr", "-q"], capsys
    )
    assert "into 1 classes" in complaint(["trace", str(run_path), "--label", "same", "-q"], capsys)
    other = tmp_path / "other"
    assert main(["capture", "mini-vla", str(photos), "-o", str(other), "--sites", "vision.1", "-q"]) == 0
    capsys.readouterr()
    words = ["trace", str(run_path), "--label", "colour", "--compare", str(other), "--k", "3", *PLAIN]
    assert "capture the same items" in complaint(words, capsys)


def test_debug_compares_truth_and_answers_and_draws_them(run_path, capsys):
    words = ["debug", str(run_path), "--label", "colour", "--answers", "said", *FEW]
    facts = facts_of(words, capsys)
    assert facts["n_wrong"] == sum(1 for e in (1, 3, 5) for s in range(N_FRAMES) if s % 4 == 0)
    assert [layer["site"] for layer in facts["layers"]] == list(SITES)
    with Image.open(facts["picture"]) as image:
        assert image.width > 200 and json.loads(image.info["vlascope"])["view"] == "answers"
    assert kept(run_path, "debug")[0].layers[1].name == "NMI with the answers"
    assert main([*words[:5], "none", *words[6:]]) == 0
    assert "the groups follow" in capsys.readouterr().out


def test_debug_without_answers_or_with_one_value_says_so(run_path, capsys):
    assert "the model gave no answers" in complaint(
        ["debug", str(run_path), "--label", "colour", "-q"], capsys
    )
    words = ["debug", str(run_path), "--label", "same", "--answers", "none", "-q"]
    assert "has 1 different values" in complaint(words, capsys)


def test_probe_reads_numbers_and_classes_and_the_future(run_path, capsys):
    words = ["probe", str(run_path), "--permutations", "19", "-q", "--site", "vision.1"]
    facts = facts_of([*words, "--target", "x"], capsys)
    (layer,) = facts["layers"]
    assert layer["test"]["controls"]["mean predictor"] == 0 and layer["train"] > layer["test"]["value"]
    assert main([*words, "--target", "colour"]) == 0
    text = capsys.readouterr().out
    assert "balanced accuracy" in text and "raw pixels" in text and "on those fitted" in text
    ahead = facts_of([*words, "language.1", "--ahead", "1", "30"], capsys)
    assert ahead["state_site"] == "vision.1" and [one["site"] for one in ahead["layers"]] == ["language.1"]
    one, thirty = ahead["layers"][0]["horizons"]
    assert one["controls"]["shuffled time"] < 1 and thirty["value"] is None and "0 pairs" in thirty["reason"]
    assert {"colour", "x"} <= {f.title for f in kept(run_path, "probe")}
    assert kept(run_path, "world model")[0].rows[1].result.reason.startswith("0 pairs")


def test_probe_reads_what_a_region_shows(run_path, capsys):
    words = ["probe", str(run_path), "--site", "vision.1", "--permutations", "39", "-q", "--region"]
    (layer,) = facts_of([*words, "red", "blue", "green"], capsys)["layers"]
    assert layer["target"] == "region red/blue/green" and layer["test"]["value"] > 0.9
    assert layer["test"]["controls"]["majority"] == pytest.approx(1 / 3)
    assert main([*words, "name"]) == 0
    assert "region name is" in capsys.readouterr().out
    assert {"region name", "region red/blue/green"} <= {f.title for f in kept(run_path, "probe")}


def test_probe_chooses_within_an_episode(run_path, capsys):
    words = ["probe", str(run_path), "--site", "vision.1", "--permutations", "19", "-q", "--within"]
    (layer,) = facts_of([*words, "--target", "phase"], capsys)["layers"]
    test = layer["test"]
    assert test["controls"]["chance"] == 0.5 and "exchanged labels" in test["controls"]
    assert test["n_units"] == N_EPISODES and layer["target"] == "phase, among those of its episode"
    (same,) = facts_of([*words, "--target", "colour"], capsys)["layers"]
    assert "nothing to choose" in same["test"]["reason"]
    assert "--within needs --target" in complaint([*words, "--region", "red", "blue"], capsys)


def test_probe_says_what_is_wrong(run_path, capsys):
    words = ["probe", str(run_path), "-q"]
    assert "give one of --target" in complaint(words, capsys)
    assert "give one of --target" in complaint([*words, "--target", "x", "--ahead", "1"], capsys)
    assert "into 0 classes" in complaint([*words, "--region", "pink", "--site", "vision.1"], capsys)
    assert "no item of this run has a label 'y'" in complaint([*words, "--target", "y"], capsys)
    assert "no item of this run has a pose" in complaint([*words, "--target", "pose"], capsys)
    assert "state.7" in complaint([*words, "--target", "state.7"], capsys)
    facts = facts_of([*words, "--target", "x", "--split", "success", "--site", "vision.1"], capsys)
    assert "need at least" in facts["layers"][0]["test"]["reason"], "two outcomes are too few units"


def test_temporal_keeps_a_time_line_per_episode(run_path, capsys):
    facts = facts_of(["temporal", str(run_path), "--site", "vision.1", "--k", "4", *PLAIN], capsys)
    assert [e["name"] for e in facts["events"]] == ["grasp"] and facts["early_warning"]["value"] is None
    (found,) = kept(run_path, "temporal")
    assert [one.episode for one in found.episodes] == list(range(N_EPISODES))
    one = found.episodes[1]
    assert len(one.occupancy) == len(one.items) == N_FRAMES and len(one.occupancy[0]) == 4
    assert one.events == {"grasp": 5} and one.change_points is not None and one.anomaly == ()
    assert main(["temporal", str(run_path), "--k", "4", *PLAIN]) == 0
    assert "Early warning: cannot say (3 successes and 3 failures" in capsys.readouterr().out


def test_temporal_needs_episodes_and_patches(run_path, photos, tmp_path, capsys):
    other = tmp_path / "stills"
    assert main(["capture", "mini-vla", str(photos), "-o", str(other), "--sites", "vision.1", "-q"]) == 0
    capsys.readouterr()
    assert "belong to none" in complaint(["temporal", str(other), "-q"], capsys)
    assert "no site 'vision.7'" in complaint(["temporal", str(run_path), "--site", "vision.7", "-q"], capsys)


def test_semantics_scores_the_words_of_the_prompt(run_path, capsys):
    facts = facts_of(["semantics", str(run_path), "--k", "4", *FEW], capsys)
    (layer,) = facts["layers"]
    assert layer["site"] == "language.1"
    names = [one["name"] for one in layer["results"]]
    assert {"all words / pointing", "all words / IoU", "word and patches in one group"} <= set(names)
    red = next(one for one in layer["results"] if one["name"] == "red / pointing")
    assert "in 3 independent episodes" in red["reason"], "three episodes name the red object: too few"
    assert kept(run_path, "semantics")[0].layers[0].name == "pointing"
    assert main(["semantics", str(run_path), "--word", "red", "zebra", "--k", "4", *FEW]) == 0
    assert "it is in no prompt among the tokens" in capsys.readouterr().out
    assert "has no words" in complaint(["semantics", str(run_path), "--site", "vision.1", "-q"], capsys)


def ask_mini_vla(photos: Path) -> list[str]:
    """Return the arguments of a verb that asks the model about photographs with one prompt."""
    return ["mini-vla", str(photos), "--prompt", "pick up the red object", "--device", "cpu", "-q"]


def test_sensitivity_of_images_and_prompts(run_path, photos, capsys):
    words = ["sensitivity", *ask_mini_vla(photos)]
    words += ["--change", "other scene", "other noun", "--site", "vision.1", "--keep", str(run_path)]
    facts = facts_of([*words, "--action-unit", "m", "grip=share"], capsys)
    moves = {one["name"]: one for one in facts["actions"]}
    assert (
        moves["other noun / dx"]["unit"] == "m"
        and moves["other noun / dx"]["controls"]["same input again"] == 0
    )
    assert moves["other noun / grip"]["unit"] == "share"
    assert "give one for all" in complaint([*words, "--action-unit", "m", "s"], capsys)
    assert "the text moves" in facts["verdict"] or "the action" in facts["verdict"]
    assert kept(run_path, "sensitivity")[0].settings["items"] == 5
    assert "unknown change 'dance'" in complaint([*words[:8], "--change", "dance"], capsys)


def test_attribute_takes_groups_apart(run_path, photos, capsys):
    words = ["attribute", *ask_mini_vla(photos)]
    groups = [*words, "--items", "2", "--site", "vision.1", "--k", "3", "--keep", str(run_path)]
    facts = facts_of(groups, capsys)
    assert all(one["name"].startswith("group ") for one in facts["results"])
    assert kept(run_path, "attribute")[0].rows[0].site == "vision.1"
    assert "no degree of freedom 'roll'" in complaint([*words, "--dof", "roll", "--items", "1"], capsys)


def test_a_run_that_is_not_there(tmp_path, capsys):
    for verb in ("trace", "debug", "probe", "temporal", "semantics"):
        extra = {"debug": ["--label", "a"], "probe": ["--target", "a"]}.get(verb, [])
        assert "nowhere' does not exist" in complaint([verb, str(tmp_path / "nowhere"), *extra, "-q"], capsys)


@pytest.mark.parametrize("verb", ["trace", "debug", "probe", "semantics", "concepts", "temporal", "eval"])
@pytest.mark.parametrize("number", ["0", "3"])
def test_too_few_shuffles_are_refused_at_once(verb, number, run_path, capsys):
    extra = {"debug": ["--label", "colour"], "probe": ["--target", "colour"]}.get(verb, [])
    words = [verb, str(run_path), *extra, "--permutations", number, "-q"]
    assert f"got {number} shuffles; need at least 19" in complaint(words, capsys)


def test_a_layer_is_not_asked_what_it_adds_to_itself(run_path, capsys):
    words = ["probe", str(run_path), "--ahead", "1", "-q"]
    assert "'vision.1' is the only layer" in complaint([*words, "--site", "vision.1"], capsys)
    assert "leave --random out" in complaint([*words, "--random", str(run_path)], capsys)
