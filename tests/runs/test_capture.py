"""Capturing: what lies on disk afterwards, and every way in which it can be refused."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.fakes import COLS, ROWS, WIDTHS, ArraySource, FakeModel, expected_acts, make_item, tree
from vlascope.errors import (
    InputError,
    ItemError,
    RunExistsError,
    RunIncompleteError,
    SiteNotFoundError,
    StorageError,
)
from vlascope.runs import CaptureInterrupted, Run, capture, make_plan, read_info


def run_capture(
    out: Path, *, n: int = 17, model: FakeModel | None = None, source: Any = None, **changes: Any
) -> Run:
    settings: dict[str, Any] = {"sites": "*", "batch_size": 3, "block_items": 5, "quiet": True}
    model, source = model or FakeModel(), ArraySource(n) if source is None else source
    return capture(model, source, out=out, **{**settings, **changes})  # type: ignore[arg-type]


def test_acts_and_tokens_agree_with_the_model(tmp_path: Path) -> None:
    run = run_capture(tmp_path / "r")
    model, source = FakeModel(), ArraySource(17)
    for site in WIDTHS:
        np.testing.assert_array_equal(run.acts(site)[:], expected_acts(model, source, site))
        assert len(run.tokens(run.sites[site].layout)) == len(run.acts(site))
    for index in (0, 4, 5, 16):
        layout = model.prepare([source[index]]).layouts["vision"][0]
        got = run.tokens("vision").layout_of(index)
        for name in ("kind", "row", "col", "camera", "tile", "box"):
            np.testing.assert_array_equal(getattr(got, name), getattr(layout, name))
        assert run.tokens("language").layout_of(index).text == tuple(source[index].prompt.split())
        rows = run.tokens("language").rows_of(index)
        np.testing.assert_array_equal(
            run.tokens("language").position[rows], np.arange(rows.stop - rows.start)
        )
    assert len(run.tokens("vision").select(["patch"])) == 17 * ROWS * COLS
    with pytest.raises(InputError, match="kinds are"):
        run.tokens("vision").select(["pach"])


def test_items_images_masks_and_answers_come_back(tmp_path: Path) -> None:
    run = run_capture(tmp_path / "r")
    assert (run.n_items, run.n_failed, len(run.items)) == (17, 0, 17)
    for index in (0, 4, 16):
        item, row = make_item(index), run.items[index]
        np.testing.assert_array_equal(run.image(index), item.image)
        np.testing.assert_array_equal(run.image(index, "wrist"), item.images[1])
        assert row.image_sizes == tuple(x.shape[:2] for x in item.images)
        for name in ("segmentation", "depth_mm"):
            np.testing.assert_array_equal(run.mask(index, name), item.masks[name])
        assert run.mask(index, "other") is None
        assert run.mask_names(index, "segmentation") == {0: "background", 4: "red fragile"}
        assert dict(row.labels) == dict(item.labels)
        for name in ("item_id", "prompt", "episode", "step", "time_secs", "cameras"):
            assert getattr(row, name) == getattr(item, name)
        np.testing.assert_array_equal(row.state, item.state)
        assert (row.action is None) == (item.action is None)
        answer = run.response(index)
        assert (
            answer is not None
            and answer.text == f"answer to {item.item_id}"
            and answer.flags == ("length_limit",)
        )
        np.testing.assert_array_equal(answer.action, item.state)
    with pytest.raises(InputError, match="17 items"):
        run.image(17)
    with pytest.raises(InputError, match="main, wrist"):
        run.image(0, "top")


def test_zarr_package_reads_the_arrays(tmp_path: Path) -> None:
    import zarr

    for dtype in ("float32", "float16", "bfloat16"):
        run = run_capture(tmp_path / dtype, dtype=dtype)
        group = zarr.open_group(tmp_path / dtype / "acts.zarr", mode="r")
        assert group["vision.1"].attrs["layout"] == "vision"
        blocks = [group[f"vision.1/{b:06d}"] for b in range(4)]
        stored = np.concatenate([np.asarray(b[:]) for b in blocks])
        want = torch.from_numpy(expected_acts(FakeModel(), ArraySource(17), "vision.1")).to(
            getattr(torch, dtype)
        )
        if dtype == "bfloat16":
            assert blocks[0].attrs["dtype"] == "bfloat16"
            stored = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(stored, want.to(torch.float32).numpy())
        np.testing.assert_array_equal(run.acts("vision.1")[:], want.to(torch.float32).numpy())


def test_same_inputs_same_bits(tmp_path: Path) -> None:
    run_capture(tmp_path / "a")
    run_capture(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    a, b = read_info(tmp_path / "a"), read_info(tmp_path / "b")
    assert a["content_sha256"] == b["content_sha256"]
    assert Run.open(tmp_path / "a").derived_dir("cut", {"k": 5}).name == (
        Run.open(tmp_path / "b").derived_dir("cut", {"k": 5}).name
    )
    other = run_capture(tmp_path / "c", source=ArraySource(16))
    assert (
        other.derived_dir("cut", {"k": 5}).name != Run.open(tmp_path / "a").derived_dir("cut", {"k": 5}).name
    )
    left = {p.name for p in (tmp_path / "a").iterdir()}
    assert left == {
        "acts.zarr", "blocks", "media", "config.json", "run.json", "items.parquet", "responses.parquet",
        "tokens.language.parquet", "tokens.vision.parquet",
    }  # fmt: skip


def test_original_file_bytes_are_kept_when_they_are_the_image(tmp_path: Path) -> None:
    from PIL import Image

    from vlascope.runs.media import encode_image

    pixels = np.asarray(Image.fromarray(make_item(0).image).resize((40, 30)))
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path)
    decoded = np.asarray(Image.open(path).convert("RGB"))
    assert encode_image(decoded, source=str(path)) == (path.read_bytes(), ".jpg")
    assert encode_image(255 - decoded, source=str(path))[1] == ".png"
    assert encode_image(decoded, source=str(tmp_path / "gone.jpg"))[1] == ".png"


# --- interruption and resumption


class Stop(Exception):
    """Stands for any crash."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("crash_at", [1, 2, 4, 6])
def test_resume_gives_the_same_bits(tmp_path: Path, crash_at: int, error: type[BaseException]) -> None:
    run_capture(tmp_path / "whole")
    model = FakeModel()

    def crash(batch: Any) -> None:
        if len(model.batch_sizes) == crash_at:
            raise error

    model.hook = crash
    command = ["vlascope", "capture", "fake", "my photos/", "-o", "r", "--force"]
    with pytest.raises(error) as caught:
        run_capture(tmp_path / "r", model=model, command=command)
    info = read_info(tmp_path / "r")
    if error is KeyboardInterrupt:
        assert isinstance(caught.value, CaptureInterrupted) and info["status"] == "interrupted"
        assert "vlascope capture fake 'my photos/' -o r --resume" in str(caught.value)
        assert caught.value.n_done == len(list((tmp_path / "r" / "blocks").glob("*.ok"))) < 4
    else:
        assert info["status"] == "failed"
    assert not (tmp_path / "r" / "run.lock").exists()
    with pytest.raises(RunIncompleteError, match="--resume"):
        Run.open(tmp_path / "r")
    with pytest.raises(RunExistsError, match="unfinished"):
        run_capture(tmp_path / "r")
    source = ArraySource(17)
    run = run_capture(tmp_path / "r", source=source, resume=True)
    n_blocks_done = max(0, (crash_at - 1) // 2)
    assert (
        source.n_read <= 4 + 17 - 5 * n_blocks_done
    )  # four before it begins; done blocks are not read again
    assert tree(tmp_path / "r") == tree(tmp_path / "whole")
    assert run.info["timings"]["n_sessions"] == 2


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.runs.fakes import ArraySource, FakeModel
from vlascope.runs import capture
print("go", flush=True)
capture(FakeModel(delay_secs=0.01), ArraySource(41), sites="*", out=Path({out!r}), batch_size=2, block_items=3,
        quiet=True, resume=True)
"""


@pytest.mark.parametrize("moment", ["tables", "complete", "tidy"])
def test_killed_while_finishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    run_capture(tmp_path / "whole")
    module = sys.modules["vlascope.runs.session"]

    def crash(*args: Any, **kwargs: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module.Session, "_stop", lambda *a, **k: None)  # a kill -9 tidies nothing up
        if moment == "tables":
            patch.setattr(sys.modules["vlascope.runs.finish"], "file_hash", crash)
        elif moment == "complete":
            patch.setattr(module.Session, "_add_time", crash)
        else:
            patch.setattr(module, "remove_parts", crash)
        with pytest.raises(Stop):
            run_capture(tmp_path / "r")
    run_capture(tmp_path / "r", resume=True)
    assert tree(tmp_path / "r") == tree(tmp_path / "whole")


def test_killed_before_there_was_a_configuration(tmp_path: Path) -> None:
    run_capture(tmp_path / "r")
    (tmp_path / "r" / "config.json").unlink()
    run_capture(tmp_path / "r", n=7)
    run_capture(tmp_path / "new", n=7)
    assert tree(tmp_path / "r") == tree(tmp_path / "new")


def test_a_damaged_block_is_captured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_capture(tmp_path / "whole")
    model = FakeModel()

    def crash(batch: Any) -> None:
        if len(model.batch_sizes) == 5:
            raise Stop

    model.hook = crash
    out = tmp_path / "r"
    with pytest.raises(Stop):
        run_capture(out, model=model)
    chunk = out / "acts.zarr" / "vision.0" / "000000" / "c" / "0" / "0"
    chunk.write_bytes(bytes(4) + chunk.read_bytes()[4:])  # as long as before: only the checksum can tell
    with caplog.at_level(logging.WARNING):
        run_capture(out, resume=True)
    assert "block 0 is damaged" in caplog.text
    assert tree(out) == tree(tmp_path / "whole")


# --- places that must not be written


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    out = tmp_path / "r"
    run_capture(out)
    before = tree(out)
    with pytest.raises(RunExistsError) as caught:
        run_capture(out, sites=["vision.0"], batch_size=4, source=ArraySource(17, version="b"))
    message = str(caught.value)
    assert "capture.batch_size: the run has 3, asked for 4" in message
    assert "capture.sites: the run also has vision.1, language.0" in message
    assert "items.fingerprint" in message and "capture.seed" not in message
    assert all(way in message for way in ("--resume", "--force", "-o"))
    with pytest.raises(RunExistsError, match="model.fingerprint"):
        run_capture(out, model=FakeModel(weights="w2"), resume=True)
    assert tree(out) == before
    assert run_capture(out).n_items == 17  # the same question: the same run
    assert run_capture(out, n=7, force=True).n_items == 7


def test_force_deletes_runs_only(tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(RunExistsError, match="not a run"):
        run_capture(out, force=True)
    (out / "run.json").write_text('{"format": "another program"}')
    with pytest.raises(RunExistsError, match="not a run"):
        run_capture(out, force=True)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_two_writers(tmp_path: Path) -> None:
    out = tmp_path / "r"
    seen: list[str] = []
    model = FakeModel()

    def second_writer(batch: Any) -> None:
        model.hook = None
        for way in ({"resume": True}, {"force": True}):
            with pytest.raises(RunExistsError) as caught:
                run_capture(out, **way)
            seen.append(str(caught.value))

    model.hook = second_writer
    run = run_capture(out, model=model)
    assert len(seen) == 2 and all("process" in text and "being written" in text for text in seen)
    assert run.verify().ok


def test_a_stale_lock_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    (out / "run.lock").write_text('{"pid": 1, "host": "elsewhere"}')
    assert run_capture(out).n_items == 17
    assert not (out / "run.lock").exists()


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        run_capture(tmp_path / "file")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        run_capture(tmp_path / "file" / "r")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    with pytest.raises(StorageError, match=r"needs about .* but the disk .* has 20 kB free"):
        run_capture(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_full_disk_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_capture(tmp_path / "whole")
    block = sys.modules["vlascope.runs.block"]
    whole, calls = block.encode_item, []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 8:
            raise OSError(28, "No space left on device")
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(block, "encode_item", full)
        with pytest.raises(StorageError, match="disk is full"):
            run_capture(tmp_path / "r")
    assert read_info(tmp_path / "r")["status"] == "failed"
    run_capture(tmp_path / "r", resume=True)
    assert tree(tmp_path / "r") == tree(tmp_path / "whole")


# --- bad input


def test_broken_items(tmp_path: Path) -> None:
    source = ArraySource(17, broken=[1, 5, 6, 7, 8, 9, 13])
    with pytest.raises(ItemError, match=r"frame(1|8)\.jpg"):
        run_capture(tmp_path / "raise", source=source)
    run = run_capture(tmp_path / "skip", source=source, on_error="skip")
    assert (run.n_items, run.n_failed) == (10, 7)
    assert [row.source_index for row in run.items] == [0, 2, 3, 4, 10, 11, 12, 14, 15, 16]
    assert [row.index for row in run.items] == list(range(10))
    np.testing.assert_array_equal(np.unique(run.tokens("vision").item), np.arange(10))
    np.testing.assert_array_equal(run.acts("vision.1")[:], expected_acts(FakeModel(), source, "vision.1"))
    np.testing.assert_array_equal(run.image(4), make_item(10).image)
    lines = [json.loads(x) for x in (tmp_path / "skip" / "failures.jsonl").read_text().splitlines()]
    assert [x["index"] for x in lines] == [1, 5, 6, 7, 8, 9, 13] and "frame13.jpg" in lines[-1]["message"]
    assert run.verify().ok
    with pytest.raises(ItemError, match="none of the 3"):
        run_capture(tmp_path / "none", source=ArraySource(3, broken=[0, 1, 2]), on_error="skip")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ItemError, match="no items"):
        run_capture(tmp_path / "none", source=ArraySource(0))
    assert not (tmp_path / "none").exists()


def test_nan_names_item_and_site(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ep0000/000011', site 'vision\.1': 1 of 16 tokens"):
        run_capture(tmp_path / "r", model=FakeModel(nan_at="ep0000/000011"))
    big = FakeModel()
    big.values = lambda item, site, n: np.full((n, WIDTHS[site]), 1e6, np.float32)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="do not fit into float16"):
        run_capture(tmp_path / "f16", model=big, dtype="float16")


def test_a_layout_of_another_length_is_refused(tmp_path: Path) -> None:
    model = FakeModel()
    real = model.values
    model.values = lambda item, site, n: real(item, site, n + (site == "vision.1"))  # type: ignore[method-assign]
    with pytest.raises(InputError, match="17 rows, but its layout 'vision' names 16"):
        run_capture(tmp_path / "r", model=model)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sites": ["vision.9"]}, SiteNotFoundError),
        ({"batch_size": 0}, InputError),
        ({"block_items": -1}, InputError),
        ({"dtype": "int8"}, InputError),
        ({"respond": "yes"}, InputError),
        ({"on_error": "ignore"}, InputError),
        ({"source": [make_item(0)]}, InputError),
    ],
)
def test_bad_arguments_leave_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run_capture(tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


def test_answers_when_they_make_sense(tmp_path: Path) -> None:
    assert run_capture(tmp_path / "no-prompt", source=ArraySource(5, prompt=False)).responses == []
    asked = run_capture(tmp_path / "asked", source=ArraySource(5, prompt=False), respond=True)
    assert len(asked.responses) == 5
    mute = FakeModel()
    mute.answers = False
    assert run_capture(tmp_path / "mute", model=mute).responses == []
    with pytest.raises(InputError, match="gives no answers"):
        run_capture(tmp_path / "mute2", model=mute, respond=True)
    assert run_capture(tmp_path / "never", respond=False).responses == []


def test_tokens_of_the_answer(tmp_path: Path) -> None:
    run = run_capture(tmp_path / "r", source=ArraySource(7, prompt=False), with_answer=True)
    tokens = run.tokens("language")
    assert [tokens.text[i] for i in range(3)] == ["what?", "answer", "to"]
    assert len(tokens.select("action")) == 14 and len(run.responses) == 7
    with pytest.raises(InputError, match="respond is False"):
        run_capture(tmp_path / "no", with_answer=True, respond=False)
    mute = FakeModel()
    mute.answers = False
    with pytest.raises(InputError, match="gives no answers"):
        run_capture(tmp_path / "no", model=mute, with_answer=True)


def test_a_run_of_another_grid_preprocessing_or_edit_is_not_this_one(tmp_path: Path) -> None:
    """The weights and the sites are the same, the activations or their places are not."""
    import vlascope as vs

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2, stride=2))

    def pixels(item: Any, *, gain: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(np.resize(item.image, (4, 8, 3))).permute(2, 0, 1) * gain / 255

    def model(rows: int = 2, cols: int = 4, **how: Any) -> Any:
        layout = vs.Grid(rows, cols, channels_first=True)
        return vs.wrap(module, sites={"c": "0"}, layout=layout, preprocess=lambda item: pixels(item, **how))

    def run(one: Any, **more: Any) -> Any:
        return vs.capture(one, ArraySource(3), sites="c", out=tmp_path / "r", quiet=True, **more)

    first = run(model())
    assert run(model()).info["created"] == first.info["created"], "the very same is not captured again"
    with pytest.raises(RunExistsError, match="makes something else of the first item"):
        run(model(gain=0.5))
    edited = model()
    with edited.edit("c", lambda x: x * 0):
        with pytest.raises(RunExistsError, match="edits"):
            run(edited)
        zeros = run(edited, force=True)
        assert not np.asarray(zeros.acts("c")[:]).any() and zeros.config["model"]["edits"] == ["c"]
        with pytest.raises(RunExistsError, match="cannot be compared"):
            run(edited)
        with pytest.raises(InputError, match="without the edit"):
            run(edited, force=True, engine="ray")
    with pytest.raises(RunExistsError, match="edits"):
        run(model())


def test_a_capture_that_an_item_stopped_goes_on_without_it(tmp_path: Path) -> None:
    broken = ArraySource(17, broken=[11])
    with pytest.raises(ItemError, match=r"frame11.*--resume --on-error skip"):
        run_capture(tmp_path / "r", source=broken)
    run = run_capture(tmp_path / "r", source=broken, resume=True, on_error="skip")
    assert run.n_items == 16 and run.config["capture"]["on_error"] == "skip" and run.verify().ok
    whole = run_capture(tmp_path / "whole", source=broken, on_error="skip")
    assert tree(run.path) == tree(whole.path)
    with pytest.raises(RunExistsError, match="on_error"):
        run_capture(tmp_path / "r", source=broken, resume=True)


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path) -> None:
    model = FakeModel()
    model.memory_items = 2
    run = run_capture(tmp_path / "r", model=model, batch_size=5)
    assert model.batch_sizes[:3] == [2, 2, 1]
    assert any("halved to 2" in text for text in run.info["warnings"])
    whole = run_capture(tmp_path / "whole", batch_size=5)
    np.testing.assert_array_equal(run.acts("language.0")[:], whole.acts("language.0")[:])
    assert [r.text for r in run.responses] == [r.text for r in whole.responses]


@pytest.mark.parametrize("batch_size", [7, 8, 17])
def test_a_batch_that_is_halved_several_times_keeps_all_its_items(tmp_path: Path, batch_size: int) -> None:
    """A part that was halved once more cut the parts behind it, too, and their ends were lost."""
    model = FakeModel()
    model.memory_items = 1
    run = run_capture(tmp_path / "r", model=model, source=ArraySource(17), batch_size=batch_size)
    whole = run_capture(tmp_path / "whole", source=ArraySource(17), batch_size=1)
    np.testing.assert_array_equal(run.acts("language.0")[:], whole.acts("language.0")[:])
    assert [r.text for r in run.responses] == [r.text for r in whole.responses]


def test_plan_sizes_are_those_of_the_run(tmp_path: Path) -> None:
    model, source = FakeModel(), ArraySource(17, prompt=False)
    sites = model.resolve(["vision.0", "vision.1"])
    plan = make_plan(
        model, source, sites=sites, dtype="float16", batch_size=3, block_items=5, out=tmp_path / "x" / "y"
    )  # type: ignore[arg-type]
    run_capture(tmp_path / "r", source=source, sites=["vision.0", "vision.1"], dtype="float16")
    chunks = (tmp_path / "r" / "acts.zarr").rglob("c/0/0")
    assert sum(p.stat().st_size for p in chunks) == plan.acts_bytes == 17 * 16 * 7 * 2 * 2
    assert plan.n_blocks == 4 and "vision.1" in str(plan) and plan.free_bytes
    json.dumps(plan.as_dict())


def test_sites_without_tokens_are_refused(tmp_path: Path) -> None:
    model = FakeModel()
    real = model.prepare

    def blind(items: Any, **more: Any) -> Any:
        batch = real(items, **more)
        del batch.layouts["language"]
        return batch

    model.prepare = blind  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"'language\.0' needs language tokens.*prompt"):
        run_capture(tmp_path / "r", model=model)
    assert not (tmp_path / "r").exists()


def test_width_that_only_a_forward_pass_can_tell(tmp_path: Path) -> None:
    import dataclasses

    model, source = FakeModel(), ArraySource(3)
    known = model.resolve("*")
    unknown = tuple(dataclasses.replace(site, width=0) for site in known)
    settings: dict[str, Any] = {"dtype": "float32", "batch_size": 3, "block_items": 5}
    plans = [make_plan(model, source, sites=s, **settings) for s in (known, unknown)]  # type: ignore[arg-type]
    assert plans[0] == plans[1]


def test_ctrl_c_from_the_keyboard(tmp_path: Path) -> None:
    """The real signal, in a real process, with its threads."""
    import signal

    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(root=root, out=str(tmp_path / "r")).replace("0.01", "0.2")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    while not list((tmp_path / "r" / "blocks").glob("*.ok")):
        assert child.poll() is None, child.communicate()[1]
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=120)
    assert child.returncode != 0 and "blocks are safe" in stderr
    assert read_info(tmp_path / "r")["status"] == "interrupted"
    run_capture(tmp_path / "r", n=41, batch_size=2, block_items=3, resume=True)
    run_capture(tmp_path / "whole", n=41, batch_size=2, block_items=3)
    assert tree(tmp_path / "r") == tree(tmp_path / "whole")
