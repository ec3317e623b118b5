"""Listing, cleaning, comparing and exporting runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.fakes import ArraySource, FakeModel, make_item, tree
from tests.runs.test_capture import run_capture
from vlascope.errors import InputError, RunExistsError, RunNotFoundError, SiteNotFoundError, StorageError
from vlascope.items import open_items
from vlascope.items.item import Item
from vlascope.runs import (
    Run,
    clean_run,
    diff_runs,
    export_lerobot,
    export_safetensors,
    list_runs,
)
from vlascope.runs.lock import write_lock


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_capture(tmp_path_factory.mktemp("whole") / "r")


# --- ls


def test_runs_are_listed_newest_first_with_their_state(tmp_path: Path) -> None:
    run_capture(tmp_path / "a" / "first", sites=["vision.0"])
    with pytest.raises(InputError):
        run_capture(tmp_path / "b" / "c" / "second", model=FakeModel(nan_at="ep0000/000012"))
    run_capture(tmp_path / "third")
    (tmp_path / "third" / "config.json").write_text("{")
    (tmp_path / "fourth").mkdir()
    info = json.loads((tmp_path / "a" / "first" / "run.json").read_text())
    (tmp_path / "fourth" / "run.json").write_text(
        json.dumps({**info, "schema_version": 99, "created": "2999"})
    )
    entries = {entry.path.name: entry for entry in list_runs(tmp_path)}
    assert set(entries) == {"first", "second", "third", "fourth"}
    first, second = entries["first"], entries["second"]
    assert (first.status, first.model, first.items, first.n_items) == ("complete", "fake", "arrays", 17)
    assert (first.n_sites, first.n_done, first.n_blocks) == (1, 4, 4)
    assert first.size_bytes == sum(p.stat().st_size for p in first.path.rglob("*") if p.is_file())
    assert (second.status, second.n_done, second.n_blocks, second.n_items) == ("failed", 2, 4, 17)
    assert entries["third"].model is None and entries["fourth"].status == "newer"
    assert list_runs(tmp_path)[0].path.name == "fourth"
    assert [entry.path for entry in list_runs(first.path)] == [first.path]
    with pytest.raises(RunNotFoundError, match="no folder"):
        list_runs(tmp_path / "nowhere")


# --- gc


def test_only_leftovers_and_derived_results_are_removed(whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "r"
    shutil.copytree(whole.path, out)
    captured = tree(out)
    for name in (
        ".work/000001/x",
        "blocks/.index.json.abc.tmp",
        "derived/.cut-1.x/y",
        "blocks/000002/items.parquet",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(bytes(1000))
    (out / "derived" / "cut-12").mkdir()
    (out / "derived" / "cut-12" / "eigvecs.npy").write_bytes(bytes(500))
    would = clean_run(out, dry_run=True)
    assert would.paths == (".work", "blocks/.index.json.abc.tmp", "blocks/000002", "derived/.cut-1.x")
    assert would.size_bytes == 4000 and (out / ".work").exists()
    with write_lock(out), pytest.raises(RunExistsError, match="being written"):
        clean_run(out)
    assert clean_run(out) == would
    assert (out / "derived" / "cut-12").exists()
    assert clean_run(out, derived=True).size_bytes == 500
    assert tree(out) == captured and clean_run(out, derived=True).paths == ()
    with pytest.raises(RunNotFoundError):
        clean_run(tmp_path)


def test_an_unfinished_run_keeps_what_resuming_needs(tmp_path: Path, whole: Run) -> None:
    out = tmp_path / "r"
    with pytest.raises(InputError):
        run_capture(out, model=FakeModel(nan_at="ep0000/000012"))
    clean_run(out, derived=True)
    source = ArraySource(17)
    run_capture(out, source=source, resume=True)
    assert source.n_read == 4 + 7 and tree(out) == tree(whole.path)


# --- diff


def test_a_run_equals_itself_and_its_copy(whole: Run, tmp_path: Path) -> None:
    found = diff_runs(whole, run_capture(tmp_path / "b"))
    assert found.identical and not (found.config or found.answers or found.only_a or found.sites_only_b)
    assert [(s.site, s.identical, s.max_abs) for s in found.sites][0] == ("vision.0", True, 0.0)


def test_what_differs_is_named_and_measured(whole: Run, tmp_path: Path) -> None:
    model = FakeModel(weights="w2")
    real = model.values

    def values(item: Item, site: str, n_tokens: int) -> np.ndarray:
        out = real(item, site, n_tokens)
        if site == "vision.1":
            out = out * 2
        if site == "language.0" and item.item_id.endswith("03"):
            out[1, 4] += 0.5
        return out

    model.values = values  # type: ignore[method-assign]
    answers = model.respond

    def respond(items: Any, **more: Any) -> list[Any]:
        given = answers(items, **more)
        for each in given:
            if each.text.endswith("07"):
                each.text = "other"
        return given

    model.respond = respond  # type: ignore[method-assign]
    other = run_capture(tmp_path / "b", model=model, source=ArraySource(17, broken=[5]), on_error="skip")
    found = diff_runs(whole, other)
    assert not found.identical and found.n_common == 16
    assert found.only_a == ("ep0000/000005",) and found.only_b == () and found.answers == ("ep0000/000007",)
    assert any("model.fingerprint" in line for line in found.config)
    sites = {s.site: s for s in found.sites}
    assert sites["vision.0"].max_abs == 0 and not sites["vision.0"].identical, "one item is missing"
    double = sites["vision.1"]
    assert double.relative == pytest.approx(1) and double.mean_cosine == pytest.approx(1)
    assert sites["language.0"].max_abs == pytest.approx(0.5) and 0 < sites["language.0"].relative < 0.1
    json.dumps(found.as_dict())


def test_longer_prompts_and_other_sites_cannot_be_compared(whole: Run, tmp_path: Path) -> None:
    other = run_capture(tmp_path / "b", source=ArraySource(17, prompt=False), sites=["language.0"])
    found = diff_runs(whole, other)
    assert found.sites_only_a == ("vision.0", "vision.1")
    (site,) = found.sites
    assert site.n_items_uncomparable == 17 and site.n_tokens == 0 and site.mean_cosine is None


# --- export


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_hold_the_very_tokens(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file

    run = run_capture(tmp_path / "r", dtype=dtype)
    out = export_safetensors(run, tmp_path / "out" / "x")
    for site in run.sites:
        acts = load_file(out / "acts" / f"{site}.safetensors")["acts"]
        assert acts.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(acts.float().numpy(), run.acts(site)[:].astype(np.float32))
    tokens = load_file(out / "tokens" / "vision.safetensors")
    for name in ("item", "position", "kind", "row", "col", "camera", "tile", "box"):
        np.testing.assert_array_equal(tokens[name].numpy(), getattr(run.tokens("vision"), name))
    about = json.loads((out / "run.json").read_text())
    assert about["sites"]["language.0"]["layout"] == "language" and about["config"] == run.config
    assert (out / "items.parquet").read_bytes() == (run.path / "items.parquet").read_bytes()


def test_exports_never_replace_unasked(whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "x"
    export_safetensors(whole, out, sites=["vision.1"])
    assert [p.name for p in (out / "acts").iterdir()] == ["vision.1.safetensors"]
    with pytest.raises(StorageError, match="exists"):
        export_safetensors(whole, out)
    with pytest.raises(SiteNotFoundError, match="vision.9"):
        export_safetensors(whole, out, sites=["vision.9"], force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"], (
        "a failed export leaves what was there, and nothing else"
    )
    export_safetensors(whole, out, force=True)
    assert len(list((out / "acts").iterdir())) == 3


class Episodes(ArraySource):
    """Two episodes of 4 and 5 frames, images of one size, every frame with an action."""

    name = "episodes"

    def __init__(self) -> None:
        super().__init__(9)

    def read(self, index: int) -> Item:
        item = make_item(index)
        episode, step = divmod(index, 4) if index < 8 else (1, 4)
        rng = np.random.default_rng(index)
        mask = np.zeros((34, 46), np.int64)
        mask[3:9, 5:20] = 4
        return Item(
            item_id=f"ep{episode:04d}/{step:06d}",
            images=(np.full((34, 46, 3), 20 * index, np.uint8), rng.integers(0, 256, (32, 40, 3), np.uint8)),
            cameras=("main", "wrist"),
            prompt="pick up the red cube",
            labels={"success": episode == 0},
            masks={"segmentation": mask},
            mask_names={"segmentation": {4: "red cube"}},
            episode=episode,
            step=step,
            time_secs=step / 10,
            state=item.state,
            action=np.full(4, index / 3, np.float32),
        )


@pytest.mark.parametrize("view", [lambda source: source, lambda source: source[:9]])
def test_names_of_states_and_actions_come_back(tmp_path: Path, view: Any) -> None:
    """Also through a view of the source; where the numbers do not fit the names they are counted."""
    source = Episodes()
    source.state_names, source.action_names = ("x", "y", "z"), ("left", "right")
    run = run_capture(tmp_path / "r", source=view(source))
    assert run.state_names == ("x", "y", "z") and run.action_names == ("left", "right")
    back = open_items(str(export_lerobot(run, tmp_path / "data")))
    assert back.state_names == ("x", "y", "z")
    assert back.action_names == ("action_0", "action_1", "action_2", "action_3")


def test_episodes_come_back_from_lerobot(tmp_path: Path) -> None:
    run = run_capture(tmp_path / "r", source=Episodes())
    assert run.state_names == ()
    out = export_lerobot(run, tmp_path / "data")
    back = open_items(str(out))
    assert len(back) == 9
    for index in (0, 3, 4, 8):
        item, row = back[index], run.items[index]
        assert (item.episode, item.step, item.prompt) == (row.episode, row.step, row.prompt)
        np.testing.assert_array_equal(item.state, row.state)
        np.testing.assert_allclose(item.action, row.action)
        assert item.labels["success"] == row.labels["success"]
        assert item.labels["model_answer"] == f"answer to {row.item_id}"
        assert abs(item.image.astype(int) - run.image(index).astype(int)).mean() < 3, "H.264 is not lossless"
        np.testing.assert_array_equal(item.masks["segmentation"], run.mask(index))
    with pytest.raises(StorageError, match="exists"):
        export_lerobot(run, out)


def test_what_lerobot_cannot_hold_is_said(whole: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ep0000/000004' of episode 0 has no action"):
        export_lerobot(whole, tmp_path / "x")
    with pytest.raises(InputError, match="frame rate"):
        export_lerobot(_without_fps(whole), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def _without_fps(run: Run) -> Run:
    other = Run.open(run.path)
    other.config = {**run.config, "items": {**run.config["items"], "fps": None}}
    return other
