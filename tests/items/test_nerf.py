from __future__ import annotations

import json
import math

import numpy as np
import pytest
from items_helpers import picture
from PIL import Image

from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import Item, NerfSource, open_items


def pose(number: int) -> list[list[float]]:
    return [[1, 0, 0, number], [0, 0, -1, 2.5], [0, 1, 0, -3], [0, 0, 0, 1]]


def write(folder, frames, name="transforms.json", **shared):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"frames": frames, **shared}))


@pytest.fixture
def scene(tmp_path):
    (tmp_path / "images").mkdir()
    frames = []
    for number in range(3):
        Image.fromarray(picture(11, 17, number)).save(tmp_path / "images" / f"f{number}.png")
        frames.append({"file_path": f"images/f{number}.png", "transform_matrix": pose(number)})
    mask = np.zeros((11, 17), np.uint8)
    mask[2:5, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    frames[1] |= {"mask_path": "mask.png", "fl_x": 40.0}
    lens = {"fl_x": 20.0, "fl_y": 30.0, "cx": 8.0, "cy": 5.0, "w": 17, "h": 11, "k1": 0.1, "k2": 0.0}
    write(tmp_path, frames, camera_model="OPENCV", **lens)
    return tmp_path


def test_poses_intrinsics_and_masks(scene):
    source = open_items(scene)
    assert isinstance(source, NerfSource) and [i.item_id for i in source] == [
        f"images/f{n}.png" for n in range(3)
    ]
    item = source[1]
    np.testing.assert_array_equal(item.image, picture(11, 17, 1))
    np.testing.assert_array_equal(item.pose, pose(1))
    np.testing.assert_array_equal(source[0].intrinsics, [[20, 0, 8], [0, 30, 5], [0, 0, 1]])
    assert item.intrinsics[0, 0] == 40  # of the frame, before that of the file
    assert item.masks["kept"].sum() == 18 and item.masks["kept"][2, 3] == 1
    assert item.labels == {"camera_model": "OPENCV", "k1": 0.1} and not source[0].masks
    assert open_items(scene / "transforms.json", limit=1)[0].item_id == "images/f0.png"
    Image.fromarray(picture(22, 34)).save(scene / "images" / "f0.png")  # twice as large as the file says
    np.testing.assert_array_equal(NerfSource(scene)[0].intrinsics, [[40, 0, 16], [0, 60, 10], [0, 0, 1]])


def test_blender_files_leave_endings_out_and_give_an_angle(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(picture(10, 16)).save(tmp_path / split / "r_0.png")
        frame = {"file_path": f"./{split}/r_0", "transform_matrix": pose(0)}
        write(tmp_path, [frame], f"transforms_{split}.json", camera_angle_x=math.pi / 2)
    source = open_items(tmp_path)
    assert [(i.item_id, i.labels["split"]) for i in source] == [("test/r_0", "test"), ("train/r_0", "train")]
    np.testing.assert_allclose(source[0].intrinsics, [[8, 0, 8], [0, 8, 5], [0, 0, 1]])


def test_missing_and_damaged(scene):
    (scene / "images" / "f1.png").unlink()
    with pytest.raises(ItemNotFoundError, match=r"frame 1: there is no image '.*f1\.png'"):
        open_items(scene)
    (scene / "images" / "f2.png").write_bytes((scene / "images" / "f2.png").read_bytes()[:60])
    source = open_items(scene, on_error="skip")
    assert len(source) == 2 and [i.item_id for i in source] == ["images/f0.png"]
    assert [s.name for s in source.skipped] == ["images/f1.png", "item 1"]
    assert "f2.png" in source.skipped[1].reason


LENS = (
    '{%s, "frames": [{"file_path": "a", '
    '"transform_matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}]}'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no frames"),
        ('{"frames": [{"file_path": "a.png"}]}', "frame 0, lacks"),
        ('{"frames": [{"file_path": "a", "transform_matrix": [[1, 2], [3, 4]]}]}', r"shape \(2, 2\)"),
        ('{"frames": [{"file_path": "a", "transform_matrix": [[1, "x"]]}]}', "no matrix of numbers"),
        ('{"frames": [5]}', "frame 0, lacks"),
        (LENS % '"fl_x": "abc"', r"frame 0: fl_x is 'abc'; need a number"),
        (LENS % '"cx": [3]', r"frame 0: cx is \[3\]; need a number"),
        (LENS % '"h": NaN', "frame 0: h is nan; need a number"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(ItemError, match=message):
        open_items(tmp_path)


def test_a_pose_is_checked():
    with pytest.raises(InputError, match=r"pose has shape \(3, 4\)"):
        Item(item_id="a", images=(picture(3, 5),), pose=np.zeros((3, 4)))


@pytest.mark.parametrize("images", [picture(3, 5), (5,), (picture(3, 5).tolist(),)])
def test_images_are_a_tuple_of_arrays(images):
    with pytest.raises(InputError, match=r"need a tuple of arrays, one per camera: images=\(array,\)"):
        Item(item_id="a", images=images)
