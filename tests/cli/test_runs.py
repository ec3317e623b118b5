"""The verbs that look after runs: ls, verify, diff, export, gc; and what capture says on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_pipeline import N_IMAGES, captured, clip, photos  # noqa: F401 (fixtures)
from vlascope.cli import main


def test_ls_lists_runs_and_says_when_there_are_none(captured, tmp_path, capsys):  # noqa: F811
    assert main(["ls", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert str(captured) in shown and "complete" in shown
    assert main(["ls", str(tmp_path), "--json"]) == 0
    ((run,),) = json.loads(capsys.readouterr().out).values()
    assert run["n_items"] == N_IMAGES and run["status"] == "complete"
    (tmp_path / "empty").mkdir()
    assert main(["ls", str(tmp_path / "empty")]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert main(["ls", str(tmp_path / "nowhere")]) == 2


def test_verify_finds_and_mends(captured, tmp_path, capsys):  # noqa: F811
    assert main(["verify", str(captured)]) == 0
    assert "every byte is as it was written" in capsys.readouterr().out
    copy = tmp_path / "moved"
    shutil.copytree(captured, copy)
    chunk = next((copy / "acts.zarr" / "vision.1").rglob("c/0/0"))
    before = chunk.read_bytes()
    chunk.write_bytes(bytes(8) + before[8:])
    assert main(["verify", str(copy)]) == 2
    out, err = capsys.readouterr()
    assert "vision.1" in out and "checksum" in out and "--repair" in err
    assert main(["verify", str(copy), "--repair", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == [] and found["mended"] == 1
    assert chunk.read_bytes() == before


def test_a_run_made_in_python_is_mended_there(captured, capsys):  # noqa: F811
    info = json.loads((captured / "run.json").read_text())
    (captured / "run.json").write_text(json.dumps({**info, "command": None}))
    next((captured / "acts.zarr" / "vision.1").rglob("c/0/0")).unlink()
    assert main(["verify", str(captured), "--repair"]) == 2
    assert "was not made in the shell" in capsys.readouterr().err
    (captured / "run.json").write_text(json.dumps({**info, "status": "failed"}))
    assert main(["verify", str(captured)]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"capture": {"batch_size": "x"}}', '{"capture": {"sites": []}}']
)
def test_settings_of_no_run_are_refused(clip, photos, tmp_path, capsys, text):  # noqa: F811
    path = tmp_path / "config.json"
    path.write_text(text)
    words = ["capture", clip, str(photos), "--config", str(path), "-o", str(tmp_path / "r")]
    assert main(words) == 2
    assert "is not the config.json of a run" in capsys.readouterr().err


def test_sizes_are_numbers(captured, capsys):  # noqa: F811
    assert main(["info", str(captured), "--json"]) == 0
    sites = json.loads(capsys.readouterr().out)["sites"]
    assert sites and all(isinstance(site[name], int) for site in sites for name in ("n_tokens", "width"))


def test_diff_and_its_exit_code(captured, clip, photos, tmp_path, capsys):  # noqa: F811
    again, other = tmp_path / "again", tmp_path / "other"
    assert main(["capture", clip, str(photos), "-o", str(again), "-q"]) == 0
    assert (
        main(["capture", clip, str(photos), "-o", str(other), "-q", "--limit", "3", "--store", "float16"])
        == 0
    )
    capsys.readouterr()
    assert main(["diff", str(captured), str(again)]) == 0
    assert "identical: 5 items" in capsys.readouterr().out
    assert main(["diff", str(captured), str(other)]) == 3
    shown = capsys.readouterr().out
    assert "capture.dtype" in shown and "2 items only in" in shown and "mean cosine" in shown
    assert main(["diff", str(captured), str(other), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["n_common"] == 3


def test_export_and_gc(captured, tmp_path, capsys):  # noqa: F811
    assert main(["export", "safetensors", str(captured), "--sites", "vision.1"]) == 0
    out = Path(capsys.readouterr().out.strip())
    assert out == tmp_path / "run-safetensors" and (out / "acts" / "vision.1.safetensors").exists()
    assert main(["export", "safetensors", str(captured), "-o", str(out)]) == 2
    assert main(["export", "lerobot", str(captured), "-o", str(tmp_path / "x")]) == 2
    assert main(["export", "lerobot", str(captured), "--sites", "vision.1"]) == 2
    assert main(["export", "safetensors", str(captured), "--fps", "3"]) == 2
    capsys.readouterr()
    (captured / ".work").mkdir()
    (captured / ".work" / "x").write_bytes(bytes(3000))
    assert main(["gc", str(captured), "--dry-run"]) == 0
    assert "would free 3.0 kB" in capsys.readouterr().out
    assert main(["gc", str(captured), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size_bytes"] == 3000
    assert not (captured / ".work").exists()


@pytest.fixture
def half_clip(clip, tmp_path):  # noqa: F811
    """The same tower, whose own number type is float16."""
    import torch
    from transformers import CLIPVisionModel

    folder = tmp_path / "half-clip"
    shutil.copytree(clip, folder)
    CLIPVisionModel.from_pretrained(clip).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def test_the_plan_counts_the_models_own_type_and_its_time(half_clip, photos, tmp_path, capsys):  # noqa: F811
    words = [
        "capture",
        half_clip,
        str(photos),
        "-o",
        str(tmp_path / "r"),
        "--dtype",
        "bfloat16",
        "--sites",
        "vision.1",
    ]
    assert main([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dtype"] == "bfloat16" and plan["sites"][0]["size_bytes"] == N_IMAGES * 17 * 16 * 2
    assert plan["estimated_secs"] > 0 and not (tmp_path / "r").exists()
    assert main([*words, "-q"]) == 0
    stored = sum(p.stat().st_size for p in (tmp_path / "r" / "acts.zarr").rglob("c/0/0"))
    assert stored == plan["acts_bytes"]


def test_a_disk_that_is_too_small_and_odd_places(clip, photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    assert main(["capture", clip, str(photos), "-o", "/proc/vlascope-run"]) == 2
    assert "nothing can be made" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for more in ([], ["--dry-run"]):
        assert main(["capture", clip, str(photos), "-o", str(tmp_path / "small"), *more]) == 2
        assert "needs about" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_progress_as_json_is_on_stderr_and_quiet_is_quiet(clip, photos, tmp_path, capsys):  # noqa: F811
    assert main(["capture", clip, str(photos), "-o", str(tmp_path / "a"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n_items"] == N_IMAGES
    lines = [json.loads(line)["progress"] for line in err.splitlines() if line.startswith("{")]
    assert lines[-1]["n_done"] == N_IMAGES and lines[-1]["eta_secs"] == 0
    assert main(["capture", clip, str(photos), "-o", str(tmp_path / "b"), "--json", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_workers_belong_to_ray(clip, photos, tmp_path, capsys):  # noqa: F811
    words = ["capture", clip, str(photos), "-o", str(tmp_path / "a"), "--workers"]
    assert main([*words, "2"]) == 2
    assert "engine 'ray'" in capsys.readouterr().err
    assert main([*words, "0", "--engine", "ray"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_unreadable_items_are_refused_before_loading(photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    import vlascope.api

    def load(*args, **settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(vlascope.api, "load", load)
    words = ["capture", "mini-vla", str(photos), "-o", str(tmp_path / "r"), "-q"]
    with pytest.raises(AssertionError, match="a model was loaded"):
        main(words)
    for path in photos.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    for more, said in (([], "p0.png"), (["--on-error", "skip"], "can be read"), (["--json"], "p0.png")):
        assert main([*words, *more]) == 2
        out, err = capsys.readouterr()
        assert said in err and out == "" and not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # starting a cluster's processes takes minutes where a machine is busy
def test_ray_in_the_shell_on_relative_paths_gives_the_same_bits(clip, captured, photos, tmp_path):  # noqa: F811
    """A process of its own: it starts a cluster, two workers that load the model, and stops everything."""
    import os
    import subprocess
    import sys

    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    shutil.copytree(clip, tmp_path / "model")
    words = ["capture", "model", photos.name, "-o", "by/ray", "--engine", "ray", "--workers", "2", "--json"]
    words += ["--block-items", "2"]
    assert (
        main(["capture", clip, str(photos), "-o", str(tmp_path / "local"), "-q", "--block-items", "2"]) == 0
    )
    environment = {**os.environ, "RAY_raylet_start_wait_time_s": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "vlascope", *words, "-q"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "by/ray" and done.stderr == ""
    assert main(["diff", str(tmp_path / "local"), str(tmp_path / "by" / "ray")]) == 0
