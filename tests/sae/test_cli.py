"""`vlascope sae train | eval | cards | discover` on a small run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.runs.fakes import ArraySource, FakeModel
from vlascope.cli import main
from vlascope.runs import capture


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sae-cli") / "run"
    capture(FakeModel(), ArraySource(43), sites=["vision.0", "vision.1"], out=path, quiet=True)
    return path


WORDS = ("--latents", "28", "--k", "3", "--levels", "5", "11", "--batch", "50", "-q")


def told(capsys, *words: str, code: int = 0) -> dict:
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_train_eval_cards(run, capsys):
    facts = told(capsys, "sae", "train", str(run), "--site", "vision.*", *WORDS)
    assert [one["site"] for one in facts["dictionaries"]] == ["vision.0", "vision.1"]
    one = facts["dictionaries"][1]
    path = one["path"]
    assert [level["level"] for level in one["evaluation"]["levels"]] == [5, 11, 28]
    again = told(capsys, "sae", "train", str(run), "--site", "vision.1", *WORDS)["dictionaries"][0]
    assert again["was_there"] and again["path"] == path
    held = told(capsys, "sae", "eval", str(run), path)
    assert held["items"] == "held-out items"
    for now, then in zip(held["levels"], one["evaluation"]["levels"], strict=True):
        assert now == pytest.approx(then, rel=1e-5)
    everything = told(capsys, "sae", "eval", str(run), path, "--items", "all", "--site", "vision.1")
    assert everything["n_tokens"] == 43 * 15 > held["n_tokens"] == one["evaluation"]["n_tokens"]
    cards = told(capsys, "sae", "cards", str(run), path, "--latent", "0", "7", "-q")
    assert [card["latent"] for card in cards["cards"]] == [0, 7] and Path(cards["file"]).is_file()
    assert main(["sae", "cards", str(run), path, "--latent", "0", "-q"]) == 0
    assert "strongest at" in capsys.readouterr().out
    assert main(["sae", "train", str(run), "--site", "vision.1", *WORDS]) == 0
    assert "trained before" in capsys.readouterr().out


def test_refusals_are_one_message(run, capsys, tmp_path):
    out = str(tmp_path / "sae")
    assert main(["sae", "train", str(run), "--site", "vision.0", *WORDS, "-o", out]) == 0
    text = capsys.readouterr().out
    assert "held-out" in text and "FVU" in text and out in text
    assert main(["sae", "discover", str(run), out, "--factors", "success", "colour", "-q"]) == 2
    assert "success' changes within the episode" in capsys.readouterr().err
    assert main(["sae", "eval", str(run), out, "--site", "vision.1"]) == 2
    assert "trained at site 'vision.0'" in capsys.readouterr().err
    assert main(["sae", "eval", str(run), out, "--model", "mini-vla"]) == 2
    assert main(["sae", "eval", str(run), str(tmp_path / "none")]) == 2
    assert "holds no dictionary" in capsys.readouterr().err
    assert main(["sae", "train", str(run), "--site", "vision.0", "--k", "99", "-q"]) == 2
    assert "k=99" in capsys.readouterr().err


class Constant(FakeModel):
    """The same number in every token. (Tokens with NaN never get into a run: capture refuses them.)"""

    def values(self, item, site, n_tokens):
        return np.full_like(super().values(item, site, n_tokens), 2.5)


@pytest.mark.parametrize(
    ("model", "n_items", "words"),
    [
        (FakeModel(), 1, "need at least 2, as one is held out"),
        (FakeModel(), 3, "30 tokens of kind 'patch' in 2 items"),
        (Constant(), 20, "all tokens are the same"),
    ],
    ids=["one item", "too small", "constant"],
)
def test_runs_that_cannot_be_learned_from_are_refused(model, n_items, words, capsys, tmp_path):
    path = tmp_path / "run"
    capture(model, ArraySource(n_items), sites=["vision.0"], out=path, quiet=True)
    assert main(["sae", "train", str(path), "--site", "vision.0", *WORDS, "-o", str(tmp_path / "sae")]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_a_dictionary_of_other_weights_or_width_is_refused(run, capsys, tmp_path):
    out = str(tmp_path / "sae")
    assert main(["sae", "train", str(run), "--site", "vision.0", *WORDS, "-o", out]) == 0
    capture(FakeModel(weights="w2"), ArraySource(9), sites=["vision.0"], out=tmp_path / "other", quiet=True)
    for verb in (("eval",), ("cards",), ("discover", "--factors", "a", "b")):
        assert main(["sae", verb[0], str(tmp_path / "other"), out, *verb[1:], "-q"]) == 2
        assert "belongs to the weights of 'fake' (w1)" in capsys.readouterr().err
    cfg = Path(out) / "cfg.json"
    weights = cfg.with_name("sae_weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-400] + bytes(400))
    assert main(["sae", "eval", str(run), out, "-q"]) == 2
    assert "Its weights were changed or damaged; train it again with --force." in capsys.readouterr().err


def test_a_full_disk_keeps_the_state_and_the_same_command_goes_on(run, capsys, tmp_path, monkeypatch):
    words = ["sae", "train", str(run), "--site", "vision.0", *WORDS, "--epochs", "20", "-o"]
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("vlascope.files.os.fsync", full)
    assert main([*words, str(tmp_path / "a")]) != 0
    said = capsys.readouterr().err
    assert "disk is full" in said and "Traceback" not in said
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["training.safetensors"]
    monkeypatch.undo()
    for name in "ab":
        assert main([*words, str(tmp_path / name)]) == 0
    a, b = (tmp_path / name / "sae_weights.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes(), "it went on to the same bits"


class Spike(FakeModel):
    """One enormous value in one token of one item."""

    item_id = ""

    def values(self, item, site, n_tokens):
        values = np.array(super().values(item, site, n_tokens))
        if item.item_id == self.item_id:
            values[4, 3] = 1e30
        return values


@pytest.mark.parametrize("number", range(0, 43, 6))
def test_a_value_that_overflows_is_named_before_training(capsys, tmp_path, number, monkeypatch):
    """In any item, trained on or held out."""
    source = ArraySource(43)
    model = Spike()
    model.item_id = source[number].item_id
    capture(model, source, sites=["vision.0"], out=tmp_path / "run", quiet=True)
    monkeypatch.setattr("vlascope.sae.step.SAETrainer.step", lambda *_: pytest.fail("it was trained"))
    words = ["sae", "train", str(tmp_path / "run"), "--site", "vision.0", *WORDS]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"item '{model.item_id}' hold a value of size 1e+30" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", "inf"), "epochs=inf"),
        (("--epochs", "1e300"), "epochs=1e+300"),
        (("--lr", "inf"), "lr=inf"),
        (("--seed", "-1"), "seed=-1"),
        (("--kind", "state"), "choose others with --kind."),
    ],
)
def test_numbers_that_cannot_be_trained_with(run, capsys, tmp_path, words, message):
    out = str(tmp_path / "s")
    assert main(["sae", "train", str(run), "--site", "vision.0", *WORDS, *words, "-o", out]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_dictionary_is_one_message_and_force_replaces_it(run, capsys, tmp_path):
    out = tmp_path / "s"
    train = ["sae", "train", str(run), "--site", "vision.0", *WORDS, "-o", str(out)]
    assert main(train) == 0
    for words in (("cards", "--examples", "0"), ("cards", "--n", "0"), ("cards", "--latent", "0", "--examples", "-2"),
                  ("discover", "--factors", "a", "b", "--permutations", "-1"),
                  ("discover", "--factors", "a", "b", "--seed", "-1")):  # fmt: skip
        assert main(["sae", words[0], str(run), str(out), *words[1:], "-q"]) == 2, words
        assert "need" in capsys.readouterr().err
    whole = json.loads((out / "cfg.json").read_text())
    own = whole["metadata"]["vlascope"]

    def damaged(**changed) -> dict:
        return {
            **whole,
            "metadata": {"vlascope": {k: v for k, v in {**own, **changed}.items() if v != "gone"}},
        }

    key = own["origin"]["key"]
    for cfg in (
        [],
        "text",
        {**whole, "metadata": [1]},
        {**whole, "metadata": {"vlascope": [1]}},
        {**whole, "metadata": None, "d_sae": None},
        {"architecture": "topk"},
        damaged(config="gone"),
        damaged(config={**own["config"], "later": 1}),
        damaged(config={**own["config"], "k": "three"}),
        damaged(schema="gone"),
        damaged(expected="gone"),
        damaged(expected={"fvu": [0.1]}),
        damaged(expected={"fvu": None}),
        damaged(origin="gone"),
        damaged(origin={**own["origin"], "key": {k: v for k, v in key.items() if k != "train"}}),
        damaged(origin={**own["origin"], "key": {**key, "train": {**key["train"], "later": 1}}}),
        damaged(origin={**own["origin"], "training": {}}),
    ):
        (out / "cfg.json").write_text(json.dumps(cfg))
        for words in (["sae", "eval", str(run), str(out), "-q"], train):
            assert main(words) == 2, cfg
            assert "train it again with --force" in capsys.readouterr().err, cfg
    assert main([*train, "--force"]) == 0 and json.loads((out / "cfg.json").read_text()) == whole
