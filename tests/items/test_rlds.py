from __future__ import annotations

import json

import numpy as np
import pytest
from items_helpers import example, picture, png, rlds_episode, tfrecord, write_rlds

from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import RldsSource, open_items


def test_every_frame_of_every_episode(tmp_path):
    write_rlds(tmp_path / "toy" / "1.0.0")
    source = open_items(tmp_path / "toy")
    assert isinstance(source, RldsSource) and source.name == "toy" and len(source) == 15
    assert source.cameras == ("front", "wrist") and source.episode_lengths == [5, 3, 7]
    item = source[6]
    assert item.item_id == "train/ep0001/000001" and (item.episode, item.step) == (1, 1)
    np.testing.assert_array_equal(item.images[0], picture(11, 13, 1, seed=1))
    np.testing.assert_array_equal(item.images[1], picture(7, 5, 1, seed=1))
    assert item.prompt == "task 1" and item.time_secs is None
    np.testing.assert_array_equal(item.action, [103, 104, 105])
    wanted = np.random.default_rng(1).normal(size=15).reshape(3, 5)[1]
    np.testing.assert_allclose(item.state, wanted, rtol=1e-6)
    facts = {"split": "train", "robot": "arm", "offset": -8, "is_first": 0, "reward": pytest.approx(0.1)}
    assert item.labels == facts
    only = open_items(f"rlds:{tmp_path / 'toy'}", camera="wrist", stride=2, prompt="new")
    assert [i.item_id[-2:] for i in only][:4] == ["00", "02", "04", "00"]
    assert only[0].cameras == ("wrist",) and only[0].prompt == "new"
    with pytest.raises(InputError, match="no time stamps"):
        open_items(tmp_path / "toy", fps=2)
    with pytest.raises(InputError, match=r"no camera 'wrst'.*Nearest: 'wrist'"):
        open_items(tmp_path / "toy", camera="wrst")


def test_names_do_not_depend_on_what_else_is_read(tmp_path):
    folder = tmp_path / "toy"
    for shard in (0, 1):
        write_rlds(folder, (2, 3), shard=(shard, 2))
    write_rlds(folder, (4,), split="val")
    both = RldsSource(folder)
    shards = ["train-00000/ep0000", "train-00000/ep0001", "train-00001/ep0000", "train-00001/ep0001"]
    assert both.episode_names() == [*shards, "val/ep0000"]
    val = open_items(f"rlds:{folder}?split=val")
    assert [i.item_id for i in val] == [f"val/ep0000/{t:06d}" for t in range(4)]
    assert val.fingerprint() != both.fingerprint()
    with pytest.raises(InputError, match="no split 'test'; it has train, val"):
        open_items(f"rlds:{folder}?split=test")
    with pytest.raises(InputError, match="no option 'splt'.*Nearest: 'split'"):
        open_items(f"rlds:{folder}?splt=val")

    (folder / "toy-train.tfrecord-00000-of-00002").unlink()
    with pytest.raises(ItemNotFoundError, match="train.tfrecord-00000-of-00002"):
        RldsSource(folder)
    rest = open_items(folder, on_error="skip")
    assert rest.episode_names() == [*shards[2:], "val/ep0000"]
    assert "00000-of-00002" in rest.skipped[0].name


def test_features_json_says_what_is_a_camera(tmp_path):
    def tensor(dtype, *shape):
        return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype}}

    def image(dtype, *shape):
        return {"image": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype}}

    seen = {"rgb": image("uint8", 11, 7, 3), "depth": image("uint16", 11, 7, 1)}
    act = {"featuresDict": {"features": {"xyz": tensor("float32", 3), "grip": tensor("float32", 1)}}}
    step = {"observation": {"featuresDict": {"features": seen}}, "action": act, "is_last": tensor("bool")}
    steps = {"sequence": {"feature": {"featuresDict": {"features": step}}}}
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": steps}}}))
    record = example(
        {
            "steps/observation/rgb": [png(picture(11, 7, t)) for t in range(2)],
            "steps/observation/depth": [png(np.full((11, 7), 700, np.uint16))] * 2,
            "steps/action/xyz": np.arange(6) / 1.0,
            "steps/action/grip": np.array([8.0, 9.0]),
            "steps/is_last": np.array([0, 1]),
        }
    )
    (tmp_path / "x-train.tfrecord-00000-of-00001").write_bytes(tfrecord([record]))
    source = RldsSource(tmp_path)
    assert source.cameras == ("rgb",) and source[1].labels["is_last"] is True
    np.testing.assert_array_equal(source[1].action, [9, 3, 4, 5])  # in the order of the names
    assert source[1].state is None and source[1].prompt is None


def test_damage_is_named_and_skipped_only_if_asked(tmp_path):
    path = write_rlds(tmp_path / "cut")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ItemError, match=r"toy-train.*record 2 .*9 bytes early"):
        open_items(tmp_path / "cut")
    source = open_items(tmp_path / "cut", on_error="skip")
    assert len(source) == 8 and len(list(source)) == 8
    assert [s.name for s in source.skipped] == [str(path)] and "9 bytes early" in source.skipped[0].reason

    path = write_rlds(tmp_path / "bad")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT", len(data) // 2) + 9] ^= 255  # within a picture
    path.write_bytes(data)
    source = open_items(tmp_path / "bad")
    with pytest.raises(ItemError, match="do not match their checksum"):
        list(source)
    assert 0 < len(source.check()) < len(source)
    skipping = open_items(tmp_path / "bad", on_error="skip")
    assert len(list(skipping)) == len(source) - len(source.check()) == len(list(skipping))
    assert len(skipping.skipped) == len(source.check())

    path = write_rlds(tmp_path / "odd")
    other = example({"image": [b"x"]})
    path.write_bytes(tfrecord([rlds_episode(2, 0), other, rlds_episode(3, 2)]))
    with pytest.raises(ItemError, match="record 1 is no RLDS episode"):
        open_items(tmp_path / "odd")
    source = open_items(tmp_path / "odd", on_error="skip", stride=2)
    assert [i.item_id for i in source] == [
        f"train/ep{e}" for e in ("0000/000000", "0002/000000", "0002/000002")
    ]
    assert "record 1" in source.skipped[0].name

    (tmp_path / "none").mkdir()
    for path, message in ((tmp_path / "none", "no \\*.tfrecord"), (tmp_path / "void", "no dataset folder")):
        with pytest.raises((ItemError, ItemNotFoundError), match=message):
            RldsSource(path)


def test_bridge_data(real_data):
    source = open_items(real_data / "bridge_rlds")
    assert source.episode_lengths == [10] * 25 and len(source.check()) == 0
    item = source[137]
    assert item.cameras == tuple(f"image_{i}" for i in range(4))
    assert {image.shape for image in item.images} == {(64, 64, 3)}
    assert item.state.shape == item.action.shape == (7,) and item.prompt
    assert item.labels["is_first"] is False and item.labels["has_language"] is True
    assert all(set(np.unique(i.action[6])) <= {0, 1} for i in source[::10])
