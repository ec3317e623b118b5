"""The verbs on real files and a real, tiny model: capture, cut, report, info, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlascope.cli import main

N_IMAGES = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A CLIP vision tower with random weights, 3 blocks, 4 x 4 patches, as a folder on disk."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": size,
        "crop_size": size,
        "do_center_crop": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        coarse = rng.integers(0, 255, (3, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((53, 37)).save(folder / f"p{i}.png")
    return folder


@pytest.fixture
def captured(clip, photos, tmp_path, capsys) -> Path:
    run = tmp_path / "run"
    assert main(["capture", clip, str(photos), "-o", str(run), "-q"]) == 0
    assert capsys.readouterr().out == f"{run}\n"
    return run


def test_sites_of_a_model(clip, capsys):
    assert main(["sites", clip, "vision.*", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["site"] for row in facts["sites"]] == ["vision.0", "vision.1", "vision.2"]
    assert {row["width"] for row in facts["sites"]} == {16}
    assert main(["sites", clip]) == 0
    assert "vision.1.q" in capsys.readouterr().out


def test_models_lists_families_and_embedded_ones(capsys):
    assert main(["models", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"clip", "llava", "dino"} <= {family["family"] for family in facts["families"]}


def test_dry_run_prints_the_plan_and_writes_nothing(clip, photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main(["capture", clip, str(photos), "-o", str(run), "--dry-run", "--json", "--sites", "vision.1"])
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["n_items"] == N_IMAGES
    assert [site["n_tokens"] for site in plan["sites"]] == [N_IMAGES * 17]
    assert not run.exists()


def test_capture_cut_report(captured, capsys):
    cut = ["cut", str(captured), "--k", "2", "3", "--n-eig", "4", "--items", "2", "-q"]
    assert main(cut) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in files] == ["grid.png", "strip.png"]
    first = {path: path.read_bytes() for path in files}
    assert main(cut) == 0
    assert {path: path.read_bytes() for path in files} == first
    capsys.readouterr()
    assert main(["report", str(captured), "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["report"])
    text = page.read_text(encoding="utf-8")
    assert page.parent == captured
    assert "https://cdn" not in text
    assert "<script src=" not in text


def test_cutting_again_gives_the_same_bits(captured, clip, photos, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["capture", clip, str(photos), "-o", str(other), "-q"]) == 0
    for run in (captured, other):
        assert (
            main(["cut", str(run), "--site", "vision.2", "--k", "3", "--n-eig", "4", "--seed", "7", "-q"])
            == 0
        )
    bits = [
        {path.name: path.read_bytes() for path in (run / "derived").rglob("*.npy")}
        for run in (captured, other)
    ]
    assert bits[0]
    assert bits[0] == bits[1]


def test_info_and_damage(captured, capsys):
    assert main(["info", str(captured), "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["n_items"], facts["status"], facts["problems"]) == (N_IMAGES, "complete", [])
    chunk = max(
        (p for p in (captured / "acts.zarr").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert main(["info", str(captured), "--verify"]) == 2


def test_another_configuration_names_the_fields_and_the_ways_out(captured, clip, photos, capsys):
    words = ["capture", clip, str(photos), "-o", str(captured), "-q", "--batch-size", "3"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "batch_size" in message
    assert all(way in message for way in ("--resume", "--force", "-o"))
    assert main([*words, "--force"]) == 0


def test_settings_of_another_run_can_be_taken_over(captured, clip, photos, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    base = ["capture", clip, str(photos), "-q"]
    assert main([*base, "-o", str(first), "--sites", "vision.1.q", "--batch-size", "2", "--seed", "5"]) == 0
    assert main([*base, "-o", str(second), "--config", str(first / "config.json"), "--batch-size", "4"]) == 0
    settings = json.loads((second / "config.json").read_text())["capture"]
    assert (settings["sites"], settings["batch_size"], settings["seed"]) == (["vision.1.q"], 4, 5)
    assert main([*base, "-o", str(second), "--config", str(tmp_path / "none.json")]) == 2


def bad_requests(clip: str, photos: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("hello")
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "precious.txt").write_text("keep me")
    out = ["-o", str(tmp_path / "new")]
    return {
        "unknown model": (["capture", "mini-vlaa", str(photos), *out], "mini-vla"),
        "unknown site": (["capture", clip, str(photos), *out, "--sites", "vision.9"], "0..2"),
        "empty folder": (["capture", clip, str(tmp_path / "empty"), *out], "empty"),
        "missing folder": (["capture", clip, str(tmp_path / "nowhere"), *out], "nowhere"),
        "wrong file type": (["capture", clip, str(tmp_path / "words.txt"), *out], ".txt"),
        "place under a file": (["capture", clip, str(photos), "-o", str(tmp_path / "words.txt" / "r")], "-o"),
        "folder that is no run": (
            ["capture", clip, str(photos), "-o", str(tmp_path / "stuff"), "--force"],
            "not a run",
        ),
        "both ways out": (["capture", clip, str(photos), *out, "--resume", "--force"], "one of them"),
        "no run to cut": (["cut", str(tmp_path / "nowhere")], "nowhere"),
        "no run to report": (["report", str(tmp_path / "stuff")], "stuff"),
        "no run to describe": (["info", str(tmp_path / "empty")], "empty"),
    }


@pytest.mark.parametrize("name", [
    "unknown model", "unknown site", "empty folder", "missing folder", "wrong file type", "place under a file",
    "folder that is no run", "both ways out", "no run to cut", "no run to report", "no run to describe",
])  # fmt: skip
def test_bad_requests_say_what_is_wrong_and_leave_nothing(name, clip, photos, tmp_path, capsys):
    words, said = bad_requests(clip, photos, tmp_path)[name]
    assert main([*words, "-q"]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "stuff" / "precious.txt").read_text() == "keep me"


def test_unknown_site_of_a_run_names_what_it_holds(captured, capsys):
    assert main(["cut", str(captured), "--site", "visoin.2"]) == 2
    assert "Nearest: 'vision.2'" in capsys.readouterr().err


def test_a_corrupt_image_stops_or_is_skipped(clip, photos, tmp_path, capsys):
    (photos / "p2.png").write_bytes((photos / "p2.png").read_bytes()[:60])
    run = tmp_path / "run"
    words = ["capture", clip, str(photos), "-o", str(run), "-q"]
    assert main(words) == 2
    assert "p2.png" in capsys.readouterr().err
    assert main([*words, "--on-error", "skip", "--force", "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["n_items"], facts["n_failed"]) == (N_IMAGES - 1, 1)
    assert "p2.png" in (run / "failures.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)  # two processes and three captures; minutes on a busy machine
def test_control_c_leaves_a_run_that_goes_on_with_the_same_bits(clip, tmp_path, captured, photos):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(60):
        shutil.copy(photos / f"p{i % N_IMAGES}.png", many / f"p{i:04d}.png")
    run, whole = tmp_path / "stopped", tmp_path / "whole"
    options = ["--sites", "vision.2", "--block-items", "4", "--batch-size", "2"]
    base = [sys.executable, "-m", "vlascope", "capture", clip, str(many), *options]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*base, "-o", str(run)], stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 100
    while not list((run / "blocks").glob("*.ok")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the capture was over before Ctrl-C; give it more images")
    assert process.returncode == 130, err
    assert "Go on with:" in err and "--resume" in err
    assert "Traceback" not in err
    assert main(["info", str(run)]) == 2  # unfinished, and says so
    assert main([*base[3:], "-o", str(run), "--resume", "-q"]) == 0
    assert main([*base[3:], "-o", str(whole), "-q"]) == 0
    chunks = [
        {p.relative_to(r).as_posix(): p.read_bytes() for p in (r / "acts.zarr").rglob("*") if p.is_file()}
        for r in (run, whole)
    ]
    assert chunks[0] == chunks[1]
