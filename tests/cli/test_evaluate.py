"""The verbs nave, eval and concepts on a small run: tables, files, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vlascope as vs
from vlascope.cli import main
from vlascope.items import Item, open_items


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    """Eight images with a square in front of noise, its mask, and a caption."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(12):
        image = rng.integers(90, 120, (84, 112, 3)).astype(np.uint8)
        row, col = 14 * rng.integers(1, 3), 14 * rng.integers(1, 4)
        mask = np.zeros((84, 112), np.uint8)
        mask[row : row + 28, col : col + 42] = 1
        image[mask > 0] = (200, 30, 30) if i % 2 else (30, 30, 200)
        word = "dog runs" if i % 2 else "cat sleeps"
        items.append(
            Item(
                item_id=f"image-{i}", images=(image,), labels={"caption": f"A {word}."},
                masks={"segmentation": mask}, mask_names={"segmentation": {0: "background", 1: "square"}},
            )
        )  # fmt: skip
    out = tmp_path_factory.mktemp("eval") / "run"
    vs.capture(
        vs.load("mini-vla"),
        open_items(items),
        sites=["vision.0", "vision.2"],
        out=out,
        respond=False,
        quiet=True,
    )
    return out


def test_nave_prints_and_saves(run_path, capsys):
    assert main(["nave", str(run_path), "--k", "2", "3", "--layers", "--outliers", "-q"]) == 0
    text = capsys.readouterr().out
    assert "NAVE of 2 layers (vision.0, vision.2)" in text and "K=3" in text and "raw pixels" in text
    saved = json.loads(Path(text.strip().splitlines()[-1]).read_text(encoding="utf-8"))
    assert len(saved["labels"]) == 12 and len(saved["boxes"]) == 12


def test_what_cannot_be_a_control_or_a_number_of_clusters_is_said(run_path, tmp_path, capsys):
    pytest.importorskip("textblob")
    rng = np.random.default_rng(1)
    photos = [
        Item(item_id=f"photo-{i}", images=(rng.integers(0, 255, (84, 112, 3)).astype(np.uint8),))
        for i in range(12)
    ]
    other = tmp_path / "other"
    vs.capture(
        vs.load("mini-vla"),
        open_items(photos),
        sites=["vision.0", "vision.2"],
        out=other,
        respond=False,
        quiet=True,
    )
    for words in (["nave"], ["eval"], ["concepts", "--site", "vision.2"]):
        assert main([words[0], str(run_path), *words[1:], "--random", str(other), "-q"]) == 2
        assert "capture the same items" in capsys.readouterr().err
        assert main([words[0], str(run_path), *words[1:], "--random", str(run_path), "-q"]) == 2
        assert "with the same weights" in capsys.readouterr().err
    for verb in ("nave", "eval"):
        assert main([verb, str(run_path), "--k", "0", "-q"]) == 2
        assert "got k=0; need at least 2" in capsys.readouterr().err


def test_eval_finds_the_square_and_gives_json(run_path, capsys):
    words = [
        "eval",
        str(run_path),
        "--k",
        "2",
        "--method",
        "kmeans",
        "pixels",
        "tiles",
        "--permutations",
        "39",
        "-q",
    ]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    one = facts["methods"]["kmeans"]["best overlap"]
    assert one["value"] > 0.3 and one["n"] == 12 and set(one["controls"]) >= {"raw pixels", "tiles"}
    assert main(words) == 0
    assert "CorLoc" in capsys.readouterr().out


def test_eval_without_truth_says_what_to_give(run_path, tmp_path, capsys):
    assert main(["eval", str(run_path), "--truth", str(tmp_path / "nowhere"), "-q"]) == 2
    assert "there is no file or folder" in capsys.readouterr().err


def test_concepts_ranks_words(run_path, capsys):
    pytest.importorskip("textblob")
    words = ["concepts", str(run_path), "--site", "vision.2", "--permutations", "39", "-q"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "mAP of nouns" in text and "mAP of verbs" in text and "finds" in text
    assert main([*words, "--label", "title"]) == 2
    assert "no item has a label 'title'" in capsys.readouterr().err
