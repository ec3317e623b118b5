"""Reading a run: lazy arrays, damage, versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs.fakes import ArraySource, FakeModel
from vlascope.errors import (
    InputError,
    RunIncompleteError,
    RunNotFoundError,
    RunVersionError,
    SiteNotFoundError,
)
from vlascope.runs import Run, capture
from vlascope.runs.acts import Acts
from vlascope.runs.arrays import ArrayWriter, from_stored, to_stored
from vlascope.runs.paths import array_dir, resume_command


@pytest.fixture
def run(tmp_path: Path) -> Run:
    model: Any = FakeModel()
    return capture(
        model, ArraySource(11), sites="*", out=tmp_path / "r", batch_size=2, block_items=3, quiet=True
    )


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def acts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Acts, np.ndarray]:
    """Blocks of 5, 0, 7, 1 and 0 rows, and the same numbers in memory."""
    path = tmp_path_factory.mktemp("acts")
    values = np.random.default_rng(0).standard_normal((13, 3)).astype(np.float32)
    rows, at = [5, 0, 7, 1, 0], 0
    for block, n in enumerate(rows):
        writer = ArrayWriter(array_dir(path, "s", block), dtype=request.param)
        part = to_stored(values[at : at + n], request.param, what="test")
        writer.append([part[:2], part[2:]])
        writer.close(attributes={})
        at += n
    whole = from_stored(to_stored(values, request.param, what="test"), request.param)
    return Acts(path, "s", rows_per_block=rows, width=3, dtype=request.param), whole


@settings(deadline=None)
@given(key=st.slices(13))
def test_slices_like_numpy(acts: tuple[Acts, np.ndarray], key: slice) -> None:
    lazy, whole = acts
    np.testing.assert_array_equal(lazy[key], whole[key])


@settings(deadline=None)
@given(rows=st.lists(st.integers(-13, 12), max_size=30))
def test_rows_like_numpy(acts: tuple[Acts, np.ndarray], rows: list[int]) -> None:
    lazy, whole = acts
    np.testing.assert_array_equal(lazy[np.array(rows, np.int64)], whole[np.array(rows, np.int64)])


@settings(max_examples=30, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=13, max_size=13))
def test_masks_like_numpy(acts: tuple[Acts, np.ndarray], mask: list[bool]) -> None:
    lazy, whole = acts
    np.testing.assert_array_equal(lazy[np.array(mask)], whole[np.array(mask)])


def test_other_keys(acts: tuple[Acts, np.ndarray]) -> None:
    lazy, whole = acts
    np.testing.assert_array_equal(lazy[-1], whole[-1])
    np.testing.assert_array_equal(np.asarray(lazy), whole)
    assert lazy.shape == (13, 3) and len(lazy) == 13 and lazy[:].dtype == np.float32
    spans = list(lazy.blocks())
    assert [(r.start, r.stop) for r, _ in spans] == [(0, 5), (5, 12), (12, 13)]
    np.testing.assert_array_equal(np.concatenate([v for _, v in spans]), whole)
    with pytest.raises(IndexError, match="13 tokens"):
        lazy[np.array([13])]
    with pytest.raises(InputError, match="mask has 12"):
        lazy[np.ones(12, bool)]
    with pytest.raises(InputError, match="chosen by"):
        lazy[np.array([0.5])]


def test_memory_maps_cannot_be_written(run: Run) -> None:
    view = run.acts("vision.0")[0:4]
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_bfloat16_is_exact_and_rounds_like_torch() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32) * 1e-3
    got = from_stored(to_stored(values, "bfloat16", what="x"), "bfloat16")
    np.testing.assert_array_equal(got, torch.from_numpy(values).bfloat16().float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_found_and_large_ones_are_not_bad(dtype: str, value: float) -> None:
    values = np.full((3, 7), 6e4 if dtype == "float16" else 3e38, np.float32)
    values[1] *= -1
    assert to_stored(values, dtype, what="x").shape == (3, 7)
    assert to_stored(values[:0], dtype, what="x").shape == (0, 7)
    values[2, 5] = value
    with pytest.raises(InputError, match="1 of 3 tokens"):
        to_stored(values, dtype, what="x")


def test_verify_names_every_kind_of_damage(run: Run) -> None:
    assert run.verify().ok and run.verify().n_blocks == 4
    chunk = run.path / "acts.zarr" / "vision.0" / "000001" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    picture = next((run.path / "media" / "000002").glob("*.png"))
    picture.unlink()
    (run.path / "blocks" / "000003.ok").unlink()
    with (run.path / "items.parquet").open("ab") as handle:
        handle.write(b"x")
    text = "\n".join(run.verify().problems)
    assert "block 1: acts.zarr/vision.0/000001/c/0/0 has changed" in text
    assert f"block 2: media/000002/{picture.name} is missing" in text
    assert "block 3: its commit marker is missing" in text
    assert "items.parquet has changed" in text
    assert len(run.verify().problems) == 4


def test_cut_short_or_missing_arrays_are_never_read_as_numbers(run: Run) -> None:
    chunk = run.path / "acts.zarr" / "vision.1" / "000000" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(RunIncompleteError, match="has 100 bytes"):
        Run.open(run.path).acts("vision.1")[:3]
    chunk.unlink()
    with pytest.raises(RunIncompleteError, match="is missing"):
        Run.open(run.path).acts("vision.1")[:3]
    (run.path / "tokens.vision.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunIncompleteError, match="cannot be read"):
        Run.open(run.path).tokens("vision")


def test_what_is_no_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="does not exist"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(RunNotFoundError, match="not a run directory"):
        Run.open(tmp_path)
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(RunVersionError, match="pip install -U"):
        Run.open(run.path)
    (run.path / "run.json").write_text('{"half": ')
    with pytest.raises(RunNotFoundError):
        Run.open(run.path)


def test_unknown_names(run: Run) -> None:
    with pytest.raises(SiteNotFoundError, match=r"Nearest: 'vision\.[01]'"):
        run.acts("vision.2")
    with pytest.raises(InputError, match="language, vision"):
        run.tokens("audio")
    assert "fake" in repr(run) and "vision.0" in repr(run)


def test_resume_command_is_what_was_typed() -> None:
    assert (
        resume_command(["vlascope", "capture", "m", "a b", "--force"], "r")
        == "vlascope capture m 'a b' --resume"
    )
    assert resume_command(None, "r") == "vlascope.capture(..., out='r', resume=True)"
