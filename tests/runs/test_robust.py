"""What can go wrong beyond a crash: damage, repair, memory, odd places; and the plan's time and the progress."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs.fakes import ArraySource, FakeModel, tree
from tests.runs.test_capture import run_capture
from vlascope.errors import InputError, RunIncompleteError, StorageError
from vlascope.runs import CaptureProgress, Run, capture_config, make_plan, read_info, timed, verify_run
from vlascope.runs.plan import human_secs

DAMAGES = {
    "a changed array": lambda r: _flip(r / "acts.zarr" / "vision.1" / "000002" / "c" / "0" / "0"),
    "a lost array": lambda r: shutil.rmtree(r / "acts.zarr" / "language.0" / "000001"),
    "a cut image": lambda r: _cut(next((r / "media" / "000000").iterdir())),
    "a lost marker": lambda r: (r / "blocks" / "000003.ok").unlink(),
    "a broken marker": lambda r: (r / "blocks" / "000003.ok").write_text('{"block"'),
    "an empty marker": lambda r: (r / "blocks" / "000000.ok").write_text("{}"),
    "a lost index": lambda r: (r / "blocks" / "index.json").unlink(),
    "a broken index": lambda r: (r / "blocks" / "index.json").write_text("[1"),
    "a changed table": lambda r: _flip(r / "tokens.vision.parquet"),
    "a lost table": lambda r: (r / "items.parquet").unlink(),
    "a cut index of arrays": lambda r: _cut(r / "acts.zarr" / "zarr.json"),
    "a lost index of a site": lambda r: (r / "acts.zarr" / "vision.1" / "zarr.json").unlink(),
    "a broken index of settings": lambda r: _cut(r / "config.json"),
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "r"
    run_capture(out)
    return out


@pytest.mark.parametrize("name", DAMAGES)
def test_a_complete_run_is_mended_block_by_block(whole: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "r"
    shutil.copytree(whole, out)
    DAMAGES[name](out)
    assert tree(out) != tree(whole)
    found = verify_run(out, read_info(out))
    assert found.problems and not found.ok
    source = ArraySource(17)
    run = run_capture(out, source=source, resume=True)
    assert tree(out) == tree(whole)
    assert run.verify().ok and run.info["content_sha256"] == read_info(whole)["content_sha256"]
    assert any("mended" in text for text in run.info["warnings"])
    n_blocks = 4 if "table" in name else 0 if "index" in name else 1
    assert source.n_read <= 4 + 5 * n_blocks, (
        "only the damaged blocks are read again (and four before it begins)"
    )


def test_what_was_derived_before_a_repair_is_moved_aside(whole: Path, tmp_path: Path) -> None:
    """It may have been computed from the damaged bytes, and its name would be found again."""
    out = tmp_path / "r"
    shutil.copytree(whole, out)
    for round_number in (1, 2):
        cut = Run.open(out).derived_dir("cut", {"k": 3})
        cut.mkdir(parents=True)
        (cut / "labels").write_text("of damaged tokens")
        DAMAGES["a changed array"](out)
        run = run_capture(out, resume=True)
        assert not run.derived_dir("cut", {"k": 3}).exists()
        aside = out / f"derived.before-repair-{round_number}"
        assert (aside / cut.name / "labels").exists()
        assert any(aside.name in text for text in run.info["warnings"])


def test_blocks_that_come_out_otherwise_do_not_mix_with_old_tables(whole: Path, tmp_path: Path) -> None:
    """A model whose fingerprint lies: same name, other tokens. Everything is captured again."""
    out = tmp_path / "r"
    shutil.copytree(whole, out)
    DAMAGES["a changed array"](out)
    model = FakeModel()
    real = model.values
    model.values = lambda *a: real(*a) + 1  # type: ignore[method-assign]
    run = run_capture(out, model=model, resume=True)
    assert run.verify().ok
    assert any("differ in bits" in text for text in run.info["warnings"])
    assert run.info["content_sha256"] != read_info(whole)["content_sha256"]

    DAMAGES["a changed array"](out)
    longer = FakeModel()
    longer.respond = lambda items, **_: []  # type: ignore[method-assign]
    longer.answers = False
    run = run_capture(out, model=longer, resume=True)
    assert run.verify().ok and run.responses == [], "all blocks, since one block's answers are gone"


def test_a_mending_that_fails_leaves_the_rest(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    shutil.copytree(whole, out)
    DAMAGES["a lost array"](out)
    with pytest.raises(InputError, match="NaN"):
        run_capture(out, model=FakeModel(nan_at="ep0000/000006"), resume=True)
    assert read_info(out)["status"] == "complete"
    report = Run.open(out).verify()
    assert report.bad_blocks == (1,) and not report.bad_tables
    np.testing.assert_array_equal(Run.open(out).acts("vision.0")[:80], Run.open(whole).acts("vision.0")[:80])
    run_capture(out, resume=True)
    assert tree(out) == tree(whole)


def test_a_broken_marker_of_an_unfinished_run(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    with pytest.raises(InputError):
        run_capture(out, model=FakeModel(nan_at="ep0000/000014"))
    (out / "blocks" / "000000.ok").write_text("no json")
    run_capture(out, resume=True)
    assert tree(out) == tree(whole)


def test_a_damaged_configuration_is_said(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    shutil.copytree(whole, out)
    (out / "config.json").write_text("{")
    for other in ({}, {"resume": True, "dtype": "float16"}):  # the same one, resumed, mends it: see above
        with pytest.raises(RunIncompleteError, match="is damaged"):
            run_capture(out, **other)
    with pytest.raises(RunIncompleteError, match="--force"):
        Run.open(out)


# --- memory


def test_kinds_of_out_of_memory(tmp_path: Path) -> None:
    import torch

    kinds = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ]
    for number, error in enumerate(kinds):
        model = FakeModel()

        def full(batch: Any, error: BaseException = error) -> None:
            if len(batch.items) > 2:
                raise error

        model.hook = full
        run = run_capture(tmp_path / str(number), model=model, batch_size=5)
        assert any("halved to 2" in text for text in run.info["warnings"])
    model = FakeModel()
    model.memory_items = 0
    with pytest.raises(InputError, match=r"ep0000/000000' alone does not fit into the memory of cpu"):
        run_capture(tmp_path / "one", model=model)
    model = FakeModel()

    def other(batch: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.hook = other
    with pytest.raises(RuntimeError, match="mat1"):
        run_capture(tmp_path / "other", model=model)


# --- places


def test_places_where_nothing_can_be_made() -> None:
    for place in ("/proc/vlascope", "/proc/1/x/y", "/sys/vlascope", "/dev/null/x"):
        if Path(place).parent.exists():
            with pytest.raises(StorageError, match="-o"):
                run_capture(Path(place))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("options", ["size=180k", "ro"])
def test_a_really_full_and_a_really_read_only_disk(whole: Path, tmp_path: Path, options: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        out = disk / "r"
        if options == "ro":
            with pytest.raises(InputError):
                run_capture(out, model=FakeModel(nan_at="ep0000/000012"))
        remount = ["mount", "-o", f"remount,{options}", str(disk)]
        if subprocess.run(remount, capture_output=True).returncode:
            pytest.skip("this machine does not let root remount a tmpfs")
        before = tree(out)
        usage = shutil.disk_usage(disk)
        with pytest.MonkeyPatch.context() as patch:
            # The plan would refuse a disk that is too small before anything is written.
            patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
            with pytest.raises(StorageError, match="disk is full|read-only"):
                run_capture(out, resume=True)
        if options == "ro":
            assert tree(out) == before
        subprocess.run(["mount", "-o", "remount,rw,size=64M", str(disk)], check=True)
        run_capture(out, resume=True)
        assert tree(out) == tree(whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- kill -9


def test_twenty_kills_and_the_bits_are_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments, again and again; each child goes on where the one before it was killed."""
    settings: dict[str, Any] = {"batch_size": 2, "block_items": 3, "n": 37}
    whole, out = tmp_path / "whole", tmp_path / "r"
    run_capture(whole, **settings)
    rng = np.random.default_rng(11)
    fork = multiprocessing.get_context("fork")  # a new interpreter would spend the time on its imports
    n_killed, n_unfinished = 0, 0
    for attempt in itertools.count():
        assert attempt < 400
        kwargs = {**settings, "model": FakeModel(delay_secs=0.01), "resume": True}
        process = fork.Process(target=run_capture, args=(out,), kwargs=kwargs)
        process.start()
        process.join(timeout=float(rng.uniform(0.005, 0.12)) if n_killed < 22 else 100.0)
        if process.exitcode is None:
            process.kill()
            n_killed += 1
            n_unfinished += not (out / "run.json").exists() or read_info(out)["status"] != "complete"
        process.join()
        if process.exitcode == 0:
            if n_killed >= 22:
                break
            # It was through before it was killed often enough: break a block, so that there is more to do.
            DAMAGES["a lost marker"](out)
    assert n_killed >= 20 and n_unfinished >= 10
    assert tree(out) == tree(whole)
    assert Run.open(out).verify().ok


# --- plan and progress


def test_the_plan_is_timed(tmp_path: Path) -> None:
    model, source = FakeModel(delay_secs=0.05), ArraySource(40)
    sites = model.resolve("*")
    settings: dict[str, Any] = {"dtype": "float32", "batch_size": 4, "block_items": 8}
    plan = make_plan(model, source, sites=sites, **settings)  # type: ignore[arg-type]
    assert plan.estimated_secs is None
    config = capture_config(
        model,  # type: ignore[arg-type]
        source,
        sites=sites,
        respond="auto",
        max_new_tokens=4,
        with_answer=False,
        seed=0,
        on_error="raise",
        **settings,
    )
    plan = timed(plan, model, source, settings=config["capture"])  # type: ignore[arg-type]
    assert plan.estimated_secs is not None and 0.5 <= plan.estimated_secs < 30
    assert "about" in str(plan).splitlines()[-1] and json.dumps(plan.as_dict())
    one = make_plan(model, ArraySource(1), sites=sites, **settings)  # type: ignore[arg-type]
    assert timed(one, model, ArraySource(1), settings=config["capture"]).estimated_secs  # type: ignore[arg-type]
    assert [human_secs(x) for x in (0.1, 59, 130, 5000, 9000, 200_000)] == [
        "1 s", "59 s", "2 min", "83 min", "2.5 h", "2.3 days",
    ]  # fmt: skip


def test_progress_counts_every_item_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("vlascope.runs.meter.REPORT_EVERY_SECS", 0.0)
    seen: list[CaptureProgress] = []
    source = ArraySource(17, broken=[4])
    run = run_capture(tmp_path / "r", source=source, on_error="skip", on_progress=seen.append)
    assert [p.n_done for p in seen] == sorted({p.n_done for p in seen}) and seen[-1].n_done == 17
    stored = sum(p.stat().st_size for p in (tmp_path / "r" / "acts.zarr").rglob("c/0/0"))
    assert seen[-1].n_bytes == stored and seen[-1].eta_secs == 0 and seen[0].items_per_sec > 0
    assert run.info["timings"]["items_per_sec"] > 0
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("VLASCOPE_PROGRESS", "1")
    run_capture(tmp_path / "bar", quiet=False)
    shown = capsys.readouterr().err
    assert "17/17" in shown and "item/s" in shown and "GB" in shown
    run_capture(tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""


def test_sources_that_are_no_images_are_not_opened(tmp_path: Path) -> None:
    from vlascope.runs.media import encode_image

    image = np.zeros((4, 6, 3), np.uint8)
    for name in ("clip.mp4", "file-000.parquet", "scan.png"):
        path = tmp_path / name
        path.write_bytes(b"no image at all")
        assert encode_image(image, source=str(path))[1] == ".png"
