"""The simulator's verbs: small real recordings, and rollouts of a policy that needs no weights."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vlascope.cli import main

pytest.importorskip("pybullet", reason="the extra 'sim' is not installed")
pytestmark = pytest.mark.sim


def test_preview_draws_the_sheet_that_was_asked_for(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    assert main(["sim", "preview", "-o", str(path), "--scenes", "3", "--image-px", "96", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with Image.open(path) as sheet:
        assert sheet.size == (facts["width"], facts["height"])
    assert facts["width"] > 3 * 96 > 2 * facts["height"]


def test_record_makes_a_dataset_that_can_be_read_and_refuses_to_replace_it(tmp_path, capsys):
    from vlascope.items import open_items

    out = tmp_path / "data"
    words = ["sim", "record", "-o", str(out), "--episodes", "1", "--image-px", "96", "-q"]
    assert main([*words, "--seed", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dataset": str(out), "n_episodes": 1}
    items = open_items(str(out))
    assert items[0].image.shape == (96, 96, 3)
    assert items[0].prompt and items[0].action is not None
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--failures", "slipp"], "Nearest: 'slip'"),
        (["--image-px", "2048"], "to 1024"),
        (["--episodes", "0"], "at least 1"),
        (["--factorial", "--images", "12008"], "12"),
    ],
)
def test_bad_requests_make_nothing(words, said, tmp_path, capsys):
    assert main(["sim", "record", "-o", str(tmp_path / "data"), *words, "-q"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_rollout_counts_and_says_how_it_failed(monkeypatch, tmp_path, capsys):
    """A policy that never moves: no success, and every failure has its label."""
    import numpy as np

    from vlascope import api
    from vlascope.models import policy

    class Model:
        name = "statue"

    monkeypatch.setattr(api, "load", lambda name, *, device: Model())

    class Still:
        n_malformed = 0

        def __init__(self, model, *, malformed):
            assert malformed == "hold"  # a malformed reply must not end the count

        def __call__(self, rgb, text):
            return np.zeros(4, np.float32)

    monkeypatch.setattr(policy, "VLAPolicy", Still)
    assert main(["sim", "rollout", "statue", "--episodes", "2", "--seed", "11", "--json", "-q"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["n"], facts["successes"], facts["model"], facts["seed"]) == (2, 0, "statue", 11)
    assert sum(facts["failure_labels"].values()) == 2 and facts["malformed_replies"] == 0
    low, high = facts["wilson_interval"]
    assert low == 0
    assert high == pytest.approx(0.6576, abs=1e-3)  # Wilson's formula for 0 of 2
    assert main(["sim", "rollout", "statue", "--episodes", "2", "--seed", "11", "-q"]) == 0
    assert "successes  0 (0.0%)" in capsys.readouterr().out
