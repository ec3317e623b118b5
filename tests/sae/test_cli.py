"""`vlascope sae train | eval | cards | discover` on a small run."""

from __future__ import annotations

import json
from pathlib import Path

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
