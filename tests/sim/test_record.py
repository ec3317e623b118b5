import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlascope.errors import InputError, RunExistsError, StorageError
from vlascope.sim import preview, record_episodes, record_factorial
from vlascope.sim.factorial import FACTORS, N_COMBINATIONS, factors_of

pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("record") / "pick"
    return record_episodes(
        out, n_episodes=2, seed=7, failures=("none", "wrong_object"), image_px=64, n_objects=2, quiet=True
    )


def test_dataset_opens_with_labels_masks_and_events(dataset):
    from vlascope.items import open_items

    items = open_items(str(dataset))
    first, last = items[0], items[len(items) - 1]
    assert first.labels["success"] is True and first.labels["failure"] == "none"
    assert last.labels["outcome"] == last.labels["failure"] == "wrong_object"
    assert first.prompt.startswith("pick up the")
    mask = first.masks["segmentation"]
    assert mask.shape == (64, 64) and mask.max() <= 5
    scene = json.loads(first.labels["scene"])
    assert len(scene["objects"]) == first.labels["n_objects"] == 2
    episodes = pq.read_table(dataset / "vlascope" / "episodes.parquet").to_pylist()
    assert episodes[0]["event/grasp"] <= episodes[0]["event/lift"]
    assert episodes[1]["event/grasp"] is None  # the target was never in the hand


def test_state_and_action_agree_in_the_table(dataset):
    info = json.loads((dataset / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 10
    rows = pq.read_table(next((dataset / "data").rglob("*.parquet"))).to_pylist()
    first = [r for r in rows if r["episode_index"] == 0]
    state, action = np.array([r["observation.state"] for r in first]), np.array([r["action"] for r in first])
    assert state.shape[1] == 11 and action.shape[1] == 4
    moved = np.diff(state[:, :3], axis=0)[0]
    assert moved @ action[0, :3] > 0  # it went where it was told


def test_existing_folder_is_left_alone(dataset):
    with pytest.raises(StorageError, match="exists"):
        record_episodes(dataset, n_episodes=1, image_px=32, quiet=True)


@pytest.mark.parametrize(
    "wrong",
    [{"n_episodes": 0}, {"task": "throw"}, {"failures": ("dropp",)}, {"failures": ()}, {"image_px": 5}],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(InputError, match="got"):
        record_episodes(tmp_path / "x", quiet=True, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_factors_are_balanced_and_uncorrelated():
    rows = [factors_of(i) for i in range(N_COMBINATIONS)]
    assert len({tuple(r.values()) for r in rows}) == N_COMBINATIONS
    for name, values in FACTORS.items():
        assert {sum(r[name] == v for r in rows) for v in values} == {N_COMBINATIONS // len(values)}
    kinds = [(r["colour"], r["material"]) for r in rows[:8]]
    assert len(set(kinds)) == 8


def test_factorial_set_is_resumable_and_says_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr("vlascope.sim.factorial.SHARD_IMAGES", 8)
    whole = record_factorial(tmp_path / "whole", n_images=16, image_px=56, processes=1, seed=3, quiet=True)
    index = pq.read_table(whole / "index.parquet").to_pylist()
    assert [r["index"] for r in index] == list(range(16))
    for row in index:
        assert {k: row[k] for k in FACTORS} == factors_of(row["index"])
        mask = np.asarray(Image.open(whole / row["mask"]))
        assert np.count_nonzero(mask == 4) == row["target_pixels"] > 10
        assert row["objects"][0]["colour"] == row["colour"] and len(row["objects"]) == row["n_objects"]
        assert (row["target_xyz"][2] > 0.08) == row["held"] and row["gripper_open"] != row["held"]
        assert (row["target_xyz"][1] < 0) == (row["side"] == "left")

    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "parts" / "00001.parquet").unlink()  # as if killed in the second shard
    (part / "index.parquet").unlink()
    (part / "images" / "000015.png").unlink()
    kept = (part / "images" / "000000.png").stat().st_mtime_ns
    record_factorial(part, n_images=16, image_px=56, processes=1, seed=3, quiet=True)
    assert (part / "images" / "000000.png").stat().st_mtime_ns == kept
    for path in sorted(whole.rglob("*.png")):
        assert path.read_bytes() == (part / path.relative_to(whole)).read_bytes()

    with pytest.raises(RunExistsError, match="seed = 3"):
        record_factorial(whole, n_images=16, image_px=56, processes=1, seed=4, quiet=True)


@pytest.mark.parametrize("n_images", [0, 12, 12_008])
def test_factorial_counts_must_allow_balance(tmp_path, n_images):
    with pytest.raises(InputError, match="multiple of 8"):
        record_factorial(tmp_path / "x", n_images=n_images)


def test_preview_is_one_sheet():
    sheet = preview(seed=1, n_scenes=3, image_px=40, columns=2)
    assert sheet.shape == (84, 84, 3) and sheet.dtype == np.uint8
    assert (sheet[44:, 44:] == 255).all()  # the fourth place is empty
    np.testing.assert_array_equal(sheet[:40, :40], preview(seed=1, n_scenes=1, image_px=40))
