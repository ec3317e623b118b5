"""The generator of mini-vla's training frames (training/mini_vla/data.py)."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim

SCRIPT = Path(__file__).resolve().parents[2] / "training" / "mini_vla" / "data.py"


@pytest.fixture(scope="module")
def data():
    spec = importlib.util.spec_from_file_location("mini_vla_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read(folder):
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


@pytest.fixture(scope="module")
def teleport(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("frames")
    data.generate(out, kind="teleport", n_frames=60, seed=7, processes=1, shard_frames=40)
    return out


def test_shards_are_complete_and_agree_with_their_labels(teleport):
    assert sorted(p.name for p in teleport.iterdir()) == ["teleport-7-00000", "teleport-7-00001"]
    shard = read(teleport / "teleport-7-00000")
    assert {len(a) for a in shard.values()} == {40}
    present = np.arange(4) < shard["n_objects"][:, None]
    for name in ("act_pick", "act_place", "object_xyz"):
        np.testing.assert_array_equal(np.isfinite(shard[name]).all(axis=2), present)
    np.testing.assert_array_equal(shard["colour"] >= 0, present)
    assert (shard["holding"] >= 0).any() and not shard["gripper_open"][shard["holding"] >= 0].any()
    for row in np.flatnonzero(shard["holding"] >= 0):
        held = shard["holding"][row]
        assert shard["act_pick"][row, held, 3] == 1  # keep it
        others = present[row] & (np.arange(4) != held)
        assert (shard["act_pick"][row, others, 3] == 0).all()  # let go
    above = (shard["gripper_xyz"][:, 2] > 0.11) & (shard["holding"] < 0)
    for row in np.flatnonzero(above):
        n = shard["n_objects"][row]
        offset = shard["object_xyz"][row, :n, :2] - shard["gripper_xyz"][row, :2]
        np.testing.assert_allclose(shard["act_pick"][row, :n, :2], offset, atol=1e-6)
    for row in range(40):
        ids = set(np.unique(shard["seg"][row])) - {0, 1, 2, 3}
        assert ids <= {4 + i for i in range(shard["n_objects"][row])}


def test_a_lost_shard_is_made_again_bit_for_bit(data, teleport, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(teleport, again)
    shutil.rmtree(again / "teleport-7-00001")
    new = data.generate(again, kind="teleport", n_frames=60, seed=7, processes=1, shard_frames=40)
    assert new == 20
    whole, remade = read(teleport / "teleport-7-00001"), read(again / "teleport-7-00001")
    for name, array in whole.items():
        np.testing.assert_array_equal(array, remade[name], err_msg=name)


def test_physics_frames_follow_each_other(data, tmp_path):
    data.generate(tmp_path, kind="physics", n_frames=30, seed=3, processes=1)
    shard = read(tmp_path / "physics-3-00000")
    assert (shard["source"] == 1).all() and shard["step"][0] == 0
    same = np.diff(shard["episode"]) == 0
    moved = np.linalg.norm(np.diff(shard["gripper_xyz"], axis=0), axis=1)
    assert moved[same].max() < 0.035 and moved[same].max() > 0.015
    assert (np.diff(shard["step"])[same] == 1).all()
