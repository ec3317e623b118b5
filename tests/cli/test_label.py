"""`vlascope label` and `vlascope frames`: listing, recording, drawing, writing out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlascope.cli import main
from vlascope.items import ReviewTable, open_items


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full((11, 7, 3), number * 50, np.uint8)).save(folder / f"im{number}.png")
    return folder


def test_record_list_draw_and_write(photos, tmp_path, capsys):
    assert main(["label", str(photos)]) == 0
    assert "im3.png  1       unlabelled" in capsys.readouterr().out and not (photos / "labels.csv").exists()
    words = ["--failure", "im1.png", "im2.png", "--drop", "im3.png", "--reason", "too dark", "--by", "ann"]
    assert main(["label", str(photos), *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"success": 0, "failure": 2, "drop": 1, "unlabelled": 1}
    assert facts["recorded"] == 3 and facts["items"][3]["reason"] == "too dark"
    assert {row.by for row in ReviewTable(photos / "labels.csv").rows()} == {"ann"}

    sheet = tmp_path / "sheet.png"
    assert main(["label", str(photos), "--where", "failure", "--sheet", str(sheet)]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("too dark") == 2 and str(sheet) in captured.err
    pixels = np.asarray(Image.open(sheet))
    assert (pixels == 50).all(-1).any() and not (pixels == 150).all(-1).any()  # im1 is drawn, im3 is not

    out = tmp_path / "kept"
    assert main(["label", str(photos), "--where", "not drop", "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert open_items(out).item_ids == ["im0.png", "im1.png", "im2.png"]
    assert main(["label", str(photos), "--where", "not drop", "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--success", "im0.png", "--failure", "im9.png"], "no episode or image 'im9.png'"),
        (["--success", "im0.png", "--drop", "im0.png"], "given twice"),
        (["--reason", "why"], "without --success"),
        (["--where", "good"], "need success, failure"),
        (["--limit", "0"], "need at least 1"),
    ],
)
def test_wrong_requests_record_nothing(photos, capsys, words, message):
    assert main(["label", str(photos), *words]) == 2
    assert message in capsys.readouterr().err and not (photos / "labels.csv").exists()


def test_labels_and_skipping_survive_a_capture(photos, tmp_path, capsys):
    from vlascope.runs import Run

    assert main(["label", str(photos), "--failure", "im1.png", "im2.png", "--reason", "blur", "-q"]) == 0
    (photos / "im2.png").write_bytes(b"broken")
    out = str(tmp_path / "run")
    words = ["capture", "mini-vla", str(photos), "-o", out, "--where", "failure", "--sites", "vision.0", "-q"]
    assert main([*words, "--respond", "no"]) == 2
    assert "im2.png" in capsys.readouterr().err
    assert main([*words, "--respond", "no", "--on-error", "skip", "--force"]) == 3
    (row,) = Run.open(out).items
    assert row.item_id == "im1.png" and row.labels == {"review": "failure", "review_reason": "blur"}


def test_frames(tmp_path, capsys):
    from vlascope.items._video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", fps=10) as writer:
        for step in range(12):
            writer.write(np.full((16, 24, 3), step * 20, np.uint8))
    assert (
        main(["frames", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "f"), "--every", "0.4s", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["n_frames"] == 3
    assert len(list((tmp_path / "f").glob("clip-*.png"))) == 3
    assert main(["frames", "demo", "-o", str(tmp_path / "g")]) == 2
    assert "is no video" in capsys.readouterr().err
