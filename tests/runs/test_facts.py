"""Facts about items survive a run: boxes, cameras, chunks of actions. Runs of the first format still open."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.runs.fakes import ArraySource, FakeModel, make_item
from tests.runs.test_capture import run_capture
from vlascope.errors import InputError
from vlascope.files import file_hash, read_json, write_json
from vlascope.items import open_items
from vlascope.items.item import Box, Item
from vlascope.runs import Run, diff_runs, export_lerobot
from vlascope.runs.arrays import chunk_path
from vlascope.runs.checksum import Crc32c, file_crc32c
from vlascope.runs.finish import content_sha256
from vlascope.runs.paths import array_dir

INTRINSICS = np.array([[61.5, 0, 23], [0, 62.25, 17], [0, 0, 1]])
BOXES = (Box("röd cube", 1.5, 2, 11.25, 7, ("crowd", "truncated")), Box("plate", 0, 0, 3, 3))


def pose(index: int) -> np.ndarray:
    """A camera that turns; its entries are no float32 numbers."""
    angle = 0.1 * index + 1e-9
    out = np.eye(4)
    out[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    out[:3, 3] = (1, 2, index / 3)
    return out


class Seen(ArraySource):
    """One episode; every third item has boxes, every item but number `without` a camera."""

    name = "seen"

    def __init__(self, n_items: int = 7, *, without: int | None = None, version: str = "a") -> None:
        super().__init__(n_items, version=version)
        self.without = without

    def read(self, index: int) -> Item:
        picture = np.full((32, 46, 3), 20 * index, np.uint8)
        return replace(
            make_item(index),
            images=(picture,),
            cameras=("main",),
            masks={},
            mask_names={},
            labels={},
            prompt="pick",
            episode=0,
            step=index,
            action=np.full(4, index / 3, np.float32),
            boxes=BOXES if index % 3 == 0 else (),
            pose=None if index == self.without else pose(index),
            intrinsics=None if index == self.without else INTRINSICS,
        )


class Planner(FakeModel):
    """Answers with the actions of the next five steps."""

    def respond(self, items: Any, *, max_new_tokens: int = 16) -> list[Any]:
        given = super().respond(items, max_new_tokens=max_new_tokens)
        for answer in given:
            answer.action_chunk = np.arange(15, dtype=np.float32).reshape(5, 3) + answer.action[0]
            answer.action_bins = (3, 2, 1)
            answer.flags = ("unnormalized",) if answer.text.endswith("2") else ()
        return given


def seen(out: Path, **changes: Any) -> Run:
    return run_capture(out, model=Planner(), source=changes.pop("source", None) or Seen(), **changes)


def test_boxes_and_cameras_come_back(tmp_path: Path) -> None:
    rows = seen(tmp_path / "r", source=Seen(without=4)).items
    assert [row.boxes for row in rows] == [BOXES if i % 3 == 0 else () for i in range(7)]
    assert rows[4].pose is None and rows[4].intrinsics is None
    for index in (0, 3, 6):
        np.testing.assert_array_equal(rows[index].pose, pose(index))
        np.testing.assert_array_equal(rows[index].intrinsics, INTRINSICS)
        assert rows[index].pose.dtype == np.float64  # type: ignore[union-attr]
    plain = run_capture(tmp_path / "plain").items[0]
    assert plain.boxes == () and plain.pose is None and plain.intrinsics is None


def test_a_box_without_place_is_refused(tmp_path: Path) -> None:
    class Lost(Seen):
        def read(self, index: int) -> Item:
            return replace(super().read(index), boxes=(Box("cup", 0, 0, float("nan"), 2),))

    with pytest.raises(InputError, match="box of 'cup'"):
        seen(tmp_path / "r", source=Lost())


def test_chunks_of_actions_come_back(tmp_path: Path) -> None:
    run = seen(tmp_path / "r")
    for index in (0, 2, 6):
        row = run.response(index)
        assert row is not None and row.action_chunk is not None
        np.testing.assert_array_equal(row.action_chunk, np.arange(15).reshape(5, 3) + index)
        assert row.action_chunk.dtype == np.float32 and row.action_names == ("x", "y", "z")
        assert row.action_bins == (3, 2, 1) and row.flags == (("unnormalized",) if index == 2 else ())


def test_lerobot_keeps_chunks_cameras_and_boxes(tmp_path: Path) -> None:
    run = seen(tmp_path / "r")
    back: Any = open_items(str(export_lerobot(run, tmp_path / "data")))
    poses = back.poses(0)
    assert poses["model_action_chunk"].shape == (7, 15)
    np.testing.assert_array_equal(poses["model_action_chunk"][2].reshape(5, 3), run.response(2).action_chunk)  # type: ignore[union-attr]
    np.testing.assert_array_equal(poses["camera_pose"][3].reshape(4, 4), pose(3).astype(np.float32))
    np.testing.assert_array_equal(poses["camera_intrinsics"][6].reshape(3, 3), INTRINSICS.astype(np.float32))
    boxes = json.loads(back[3].labels["boxes"])
    assert tuple(Box(**{**box, "flags": tuple(box["flags"])}) for box in boxes) == BOXES
    assert back[1].labels["boxes"] == "[]"
    assert [back[i].labels["model_flags"] for i in (1, 2)] == ["", "unnormalized"]
    half = export_lerobot(seen(tmp_path / "half", source=Seen(without=4)), tmp_path / "half-data")
    assert set(open_items(str(half)).poses(0)) == {"model_action", "model_action_chunk"}  # type: ignore[attr-defined]


def test_diff_names_items_and_answers_of_which_anything_differs(tmp_path: Path) -> None:
    class Moved(Seen):
        def read(self, index: int) -> Item:
            item = super().read(index)
            moved = pose(index) + 1e-9 * (np.arange(16).reshape(4, 4) == 3)
            changes: dict[int, dict[str, Any]] = {2: {"pose": moved}, 3: {"boxes": BOXES[:1]}}
            return replace(item, **changes.get(index, {}))

    class Other(Planner):
        def respond(self, items: Any, *, max_new_tokens: int = 16) -> list[Any]:
            given = super().respond(items, max_new_tokens=max_new_tokens)
            for answer in given:
                if answer.text.endswith("5"):
                    answer.action_chunk[4, 2] += 1  # far ahead: the first action is the same
            return given

    a = seen(tmp_path / "a")
    b = run_capture(tmp_path / "b", model=Other(), source=Moved())
    found = diff_runs(a, b)
    assert not found.identical
    assert found.items == ("ep0000/000002", "ep0000/000003") and found.answers == ("ep0000/000005",)
    same = diff_runs(a, seen(tmp_path / "c"))
    assert same.identical and same.items == same.answers == ()


# --- runs of the first format: SHA-256 of activations, no columns for boxes and cameras


def as_first_format(run_dir: Path, *, blocks: Sequence[int], n_blocks: int, finished: bool) -> None:
    """Rewrite a run as the first format had it."""
    gone = ["boxes", "pose", "intrinsics"]
    for block in blocks:
        path = run_dir / "blocks" / f"{block:06d}.ok"
        marker = read_json(path)
        marker["version"] = 1
        for site, entry in marker["arrays"].items():
            del entry["crc32c"]
            entry["sha256"] = file_hash(chunk_path(array_dir(run_dir, site, block)))
        if finished:  # the table itself is gone; it had other columns, hence another checksum
            marker["tables"]["items"] = hashlib.sha256(b"without newer columns").hexdigest()
        else:
            part = run_dir / "blocks" / f"{block:06d}" / "items.parquet"
            pq.write_table(pq.read_table(part).drop_columns(gone), part, compression="zstd")
            marker["tables"]["items"] = file_hash(part)
        write_json(path, marker)
    info = {**read_json(run_dir / "run.json"), "schema_version": 1}
    if finished:
        pq.write_table(pq.read_table(run_dir / "items.parquet").drop_columns(gone), run_dir / "items.parquet")
        info["tables"]["items.parquet"] = file_hash(run_dir / "items.parquet")
        info["content_sha256"] = content_sha256(run_dir, n_blocks=n_blocks)
    write_json(run_dir / "run.json", info)


def test_a_run_of_the_first_format_opens_and_is_verified_and_mended(tmp_path: Path) -> None:
    whole = run_capture(tmp_path / "new")
    old = tmp_path / "old"
    shutil.copytree(whole.path, old)
    as_first_format(old, blocks=range(4), n_blocks=4, finished=True)
    run = Run.open(old)
    assert run.verify().ok and run.items[0].boxes == () and run.items[0].pose is None
    np.testing.assert_array_equal(run.acts("vision.1")[:], whole.acts("vision.1")[:])
    found = diff_runs(run, whole)
    assert (
        not found.identical and found.items == found.answers == () and all(s.identical for s in found.sites)
    )

    chunk = chunk_path(array_dir(old, "vision.1", 2))
    chunk.write_bytes(bytes(4) + chunk.read_bytes()[4:])
    assert run.verify().bad_blocks == (2,)
    mended = run_capture(old, resume=True)
    assert mended.verify().ok and mended.info["schema_version"] == 2
    assert mended.info["content_sha256"] == whole.info["content_sha256"]


def test_a_run_that_the_first_format_began_is_finished(tmp_path: Path) -> None:
    class Dead(FakeModel):
        def capture(self, batch: Any, sites: Any, **_: Any) -> Any:
            if any(item.item_id.endswith("000012") for item in batch.items):
                raise KeyError("a stopped machine")
            return super().capture(batch, sites)

    out = tmp_path / "r"
    with pytest.raises(KeyError):
        run_capture(out, model=Dead())
    done = [int(path.stem) for path in (out / "blocks").glob("*.ok")]
    assert 0 in done, "block 1 may have been about to be committed"
    as_first_format(out, blocks=done, n_blocks=4, finished=False)
    source = ArraySource(17)
    run = run_capture(out, source=source, resume=True)
    assert run.verify().ok and run.info["schema_version"] == 2 and source.n_read == 4 + 17 - 5 * len(done)
    whole = run_capture(tmp_path / "whole")
    assert (
        diff_runs(run, whole).items == ()
        and (out / "items.parquet").read_bytes() == (whole.path / "items.parquet").read_bytes()
    )


def test_checksums_of_known_bytes(tmp_path: Path) -> None:
    """The examples of RFC 3720, and that pieces are as good as the whole."""
    for data, wanted in ((bytes(32), "8a9136aa"), (b"\xff" * 32, "62a8ab43"), (bytes(range(32)), "46dd794e")):
        digest = Crc32c()
        digest.update(np.frombuffer(data[:7], np.uint8))
        digest.update(data[7:])
        assert digest.hexdigest() == wanted
    noise = hashlib.sha256(b"x").digest() * 70_001
    (tmp_path / "f").write_bytes(noise)
    digest = Crc32c()
    digest.update(noise)
    assert file_crc32c(tmp_path / "f") == digest.hexdigest()
