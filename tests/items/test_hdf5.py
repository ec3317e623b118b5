from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from items_helpers import picture

from vlascope.errors import InputError, ItemError, ItemNotFoundError, MissingExtraError
from vlascope.items import Hdf5Source, open_items


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(MissingExtraError, match=r"vlascope\[data\]"):
        open_items(tmp_path / "a.hdf5")


def write_demos(path, lengths=(5, 3, 4), *, libero=False):
    h5py = pytest.importorskip("h5py", reason="the extra data is not installed")
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if libero:
            data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for place, n in enumerate(lengths):
            demo = data.create_group(f"demo_{9 + place}")  # demo_9, demo_10: natural order matters
            demo.attrs["num_samples"] = n
            demo.attrs["model_file"] = "<mujoco>" + "x" * 500
            demo["actions"] = np.arange(n * 3.0).reshape(n, 3) + 100 * place
            demo["rewards"], demo["dones"] = np.arange(n) / 4, np.arange(n) == n - 1
            obs = demo.create_group("obs")
            obs["agentview_rgb"] = np.stack([picture(11, 7, t, seed=place) for t in range(n)])
            obs["eye_rgb"] = np.stack([picture(5, 13, t, seed=place) for t in range(n)])
            obs["ee_states"] = np.arange(n * 2.0).reshape(n, 2)
            obs["gripper_states"] = np.full((n, 1), 7.0)
        if not libero:
            file["mask/train"] = np.array([b"demo_9", b"demo_11"])
            file["mask/valid"] = np.array([b"demo_10"])
    return path


def test_robomimic_file(tmp_path):
    source = open_items(write_demos(tmp_path / "low.hdf5"))
    assert isinstance(source, Hdf5Source)
    assert source.episode_names() == ["demo_9", "demo_10", "demo_11"] and source.episode_lengths == [5, 3, 4]
    item = source[6]
    assert item.item_id == "demo_10/000001" and item.cameras == ("agentview_rgb", "eye_rgb")
    np.testing.assert_array_equal(item.images[0], picture(11, 7, 1, seed=1))
    np.testing.assert_array_equal(item.images[1], picture(5, 13, 1, seed=1))
    np.testing.assert_array_equal(item.action, [103, 104, 105])
    np.testing.assert_array_equal(item.state, [2, 3, 7])
    assert item.labels == {"split": "valid", "num_samples": 3, "reward": 0.25, "done": False}
    assert item.prompt is None and source[7].labels["done"] is True
    chosen = open_items(f"hdf5:{tmp_path}/low.hdf5?state_keys=gripper_states", camera="eye_rgb", prompt="go")
    np.testing.assert_array_equal(chosen[6].state, [7])
    assert chosen[6].cameras == ("eye_rgb",) and chosen[6].prompt == "go"
    with pytest.raises(InputError, match=r"has no obs \['joints'\]"):
        open_items(f"hdf5:{tmp_path}/low.hdf5?state_keys=joints")


def test_libero_images_are_turned_only_if_asked(tmp_path):
    path = write_demos(tmp_path / "task.hdf5", libero=True)
    with pytest.warns(UserWarning, match="stored upside down"):
        stored = open_items(path)
    assert stored[0].prompt == "open the drawer"
    upright, turned = (open_items(f"hdf5:{path}?turn={turn}") for turn in ("flip", "rotate"))
    np.testing.assert_array_equal(upright[2].image, stored[2].image[::-1])
    np.testing.assert_array_equal(turned[2].image, stored[2].image[::-1, ::-1])
    assert len({s.fingerprint() for s in (stored, upright, turned)}) == 3
    with pytest.raises(InputError, match="need none, flip or rotate"):
        open_items(f"hdf5:{path}?turn=left")


def test_folder_of_files(tmp_path):
    for name in ("b2.hdf5", "b10.h5"):
        write_demos(tmp_path / name, (2,))
    source = open_items(tmp_path)
    assert source.episode_names() == ["b2.hdf5/demo_9", "b10.h5/demo_9"]
    assert open_items([tmp_path / "b10.h5"])[1].item_id == "demo_9/000001"


def test_damage_is_named_and_skipped_only_if_asked(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra data is not installed")
    write_demos(tmp_path / "good.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    whole = (tmp_path / "good.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("text", "cannot be opened as HDF5"),
        ("empty", "no demonstrations.*nothing at the top"),
        ("cut", "cannot be opened as HDF5"),
    ):
        with pytest.raises(ItemError, match=f"{name}.hdf5.*{message}"):
            open_items(tmp_path / f"{name}.hdf5")
    with pytest.raises(ItemNotFoundError, match="no file or folder"):
        open_items(tmp_path / "gone.hdf5")
    source = open_items(tmp_path, on_error="skip")
    assert len(source) == 12 and len(source.skipped) == 3

    other = write_demos(tmp_path / "other.hdf5")
    with h5py.File(other, "a") as file:
        del file["data/demo_10/obs/eye_rgb"]
        del file["data/demo_11/actions"]
        file["data/demo_11/actions"] = np.zeros((9, 3))
    with pytest.raises(ItemError, match=r"demo_10 lacks obs \['eye_rgb'\]"):
        open_items(other)
    source = open_items(other, on_error="skip")
    assert source.episode_names() == ["demo_9"] and "lengths differ" in source.skipped[1].reason
    with h5py.File(tmp_path / "states.hdf5", "w") as file:
        file["data/demo_0/obs/pos"] = np.zeros((4, 3))
    with pytest.raises(ItemError, match=r"no images in obs.*pos \(4, 3\).*dataset_states_to_obs"):
        open_items(tmp_path / "states.hdf5")


def test_a_camera_of_another_form_is_never_dropped_silently(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra data is not installed")
    rgb = np.stack([picture(11, 17, t) for t in range(4)])
    forms = {
        "first": (rgb.transpose(0, 3, 1, 2), r"uint8 \(4, 3, 11, 17\), which looks like channels first"),
        "float": (rgb.astype(np.float32) / 255, r"float32 \(4, 11, 17, 3\); need uint8"),
        "grey": (rgb[..., :1], r"uint8 \(4, 11, 17, 1\); need"),
        "flat": (rgb[..., 0], r"uint8 \(4, 11, 17\); need"),
        "rgba": (np.concatenate([rgb, rgb[..., :1]], -1), r"uint8 \(4, 11, 17, 4\); need"),
    }
    for name, (values, message) in forms.items():
        path = tmp_path / f"{name}.hdf5"
        for file_path in (path, tmp_path / f"fine-{name}.hdf5"):
            with h5py.File(file_path, "w") as file:
                obs = file.create_group("data/demo_0/obs")
                obs["zfront"], obs["matrix"] = rgb, np.zeros((4, 3, 4, 4))
                obs["wrist_depth"] = np.zeros((4, 11, 17, 1), np.float32)
                obs["segmentation"] = np.zeros((4, 11, 17, 1), np.int32)
                if file_path == path:
                    obs["wrist"] = values
        for camera in (None, "wrist"):
            with pytest.raises(ItemError, match=f"the camera 'wrist' is {message}"):
                open_items(path, camera=camera)
        assert open_items(path, camera="zfront")[0].cameras == ("zfront",)
        assert open_items(file_path)[0].cameras == ("zfront",)


def test_only_the_cameras_asked_for_matter(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra data is not installed")
    path = write_demos(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_10/obs/eye_rgb"]
        eye = file["data/demo_11/obs/eye_rgb"][:2]
        del file["data/demo_11/obs/eye_rgb"]
        file["data/demo_11/obs/eye_rgb"] = eye
    assert open_items(path, camera="agentview_rgb").episode_lengths == [5, 3, 4]
    assert open_items(path, camera="eye_rgb", on_error="skip").episode_names() == ["demo_9"]
