from __future__ import annotations

import json

import numpy as np
import pytest
from items_helpers import picture
from PIL import Image

from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import Box, CocoSource, open_items

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 300, "name": "big dog"}]


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def note(number, image, category, box, **changes):
    x0, y0, x1, y1 = box
    made = {"id": number, "image_id": image, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return made | {"segmentation": rectangle(*box), "iscrowd": 0} | changes


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "images").mkdir()
    images = []
    for number in range(3):
        Image.fromarray(picture(9, 13, number)).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": 10 + number, "file_name": f"{number}.png", "height": 9, "width": 13})
    counts = np.zeros((9, 13), bool)
    counts[7:, 10:] = True
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, counts.T.reshape(-1), -1]))).tolist()
    notes = [
        note(1, 10, 300, (1, 1, 9, 7)),
        note(2, 10, 3, (3, 2, 6, 5)),
        note(3, 10, 3, (10, 7, 13, 9), iscrowd=1, segmentation={"size": [9, 13], "counts": runs}),
        note(4, 12, 3, (0, 0, 2, 2)),
    ]
    whole = {"images": images, "annotations": notes, "categories": CATEGORIES}
    (tmp_path / "instances.json").write_text(json.dumps(whole))
    captions = [{"id": n, "image_id": 10, "caption": f" line {n}.\n"} for n in range(2)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path


def test_masks_boxes_and_captions(dataset):
    source = open_items(dataset)
    assert isinstance(source, CocoSource) and source.item_ids == ["0.png", "1.png", "2.png"]
    item = source[0]
    wanted = np.zeros((9, 13), int)
    wanted[1:7, 1:9] = 300
    wanted[2:5, 3:6] = 3  # the smaller one is on top, though the file names it second
    wanted[7:, 10:] = 3
    np.testing.assert_array_equal(item.masks["segmentation"], wanted)
    assert item.masks["segmentation"].dtype == np.uint16 and item.masks["instance"].dtype == np.uint8
    instance = np.where(wanted == 300, 1, np.where(wanted == 3, 2, 0))
    instance[7:, 10:] = 0
    np.testing.assert_array_equal(item.masks["instance"], instance)
    np.testing.assert_array_equal(item.masks["crowd"], (wanted == 3) & (instance == 0))
    assert item.mask_names["segmentation"] == {300: "big dog", 3: "cat"}
    assert item.mask_names["instance"] == {1: "big dog", 2: "cat"}
    assert item.boxes[0] == Box("big dog", 1, 1, 9, 7) and item.boxes[2].flags == ("crowd",)
    captions = {"caption": "line 0.", "caption.1": "line 1."}
    assert item.labels == {"objects": "big dog, cat", "n_objects": 2, **captions}
    empty = source[1]
    assert empty.labels == {"objects": "", "n_objects": 0} and empty.masks["segmentation"].max() == 0
    assert "crowd" not in empty.masks


def test_official_names_and_splits(dataset, tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (dataset / "images").rename(root / "train")
    (dataset / "instances.json").rename(root / "annotations" / "instances_train.json")
    source = open_items(root)
    assert source[0].labels["split"] == "train" and len(source) == 3
    file = root / "annotations" / "instances_train.json"
    assert open_items(file)[2].boxes == (Box("cat", 0, 0, 2, 2),)
    (root / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"such as '0\.png'.*are in none of.*\?images=FOLDER"):
        open_items(root)
    assert len(open_items(f"coco:{root}?images={tmp_path / 'elsewhere'}")) == 3


def test_missing_and_damaged(dataset):
    (dataset / "images" / "1.png").unlink()
    with pytest.raises(ItemNotFoundError, match=r"images/1\.png"):
        open_items(dataset)
    broken = dataset / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:50])
    source = open_items(dataset, on_error="skip")
    assert [i.item_id for i in source] == ["0.png"]
    assert source.skipped[0].name == "1.png" and "2.png" in source.skipped[1].reason
    Image.fromarray(picture(9, 14)).save(broken)
    with pytest.raises(ItemError, match="do not belong together"):
        source[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [note(1, 99, 3, (0, 0, 1, 1))]}, "annotation 1 is of image 99"),
        ({"annotations": [note(1, 10, 5, (0, 0, 1, 1))]}, "unknown category"),
        ({"images": []}, "lists no image"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "cow"}]}, "calls category 3 'cow'"),
    ],
)
def test_files_that_contradict_themselves(dataset, change, message):
    file = dataset / "instances.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ItemError, match=message):
        open_items(dataset)
    for text, wrong in (("{", "cannot be read"), ("[]", "is no COCO file")):
        file.write_text(text)
        with pytest.raises(ItemError, match=wrong):
            open_items(dataset)


def rewrite(dataset, notes):
    file = dataset / "instances.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": notes}))


def test_a_box_alone_gives_no_mask_that_claims_background(dataset):
    boxed = note(1, 10, 3, (1, 1, 4, 4))
    del boxed["segmentation"]
    rewrite(dataset, [boxed, note(2, 10, 300, (5, 5, 8, 8)), note(3, 11, 3, (0, 0, 2, 2))])
    source = open_items(dataset)
    assert source[0].masks == {} and source[0].mask_names == {} and len(source[0].boxes) == 2
    assert source[1].masks["segmentation"].sum() == 12 and source[2].masks["segmentation"].max() == 0
    rewrite(dataset, [boxed, note(2, 11, 3, (0, 0, 2, 2), segmentation=[])])
    assert [item.masks for item in open_items(dataset)] == [{}, {}, {}]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 2, -3, 4], "negative size"),
        ([5, 2, 3, -4], "negative size"),
        ([5, 2, 10, 4], "outside the image, which is 13 wide and 9 high"),
        ([5, -4, 3, 4], "outside the image"),
        ([5, 2, 3], "need four numbers"),
        ([5, 2, 3, None], "need four numbers"),
        ([5, 2, 3, float("nan")], "negative size"),
    ],
)
def test_impossible_boxes_are_named(dataset, box, message):
    rewrite(dataset, [note(7, 10, 3, (0, 0, 2, 2), bbox=box), note(8, 11, 3, (0, 0, 13, 9))])
    with pytest.raises(ItemError, match=rf"annotation 7 of '.*0\.png': bbox .*{message}"):
        open_items(dataset)
    source = open_items(dataset, on_error="skip")
    assert source.item_ids == ["1.png", "2.png"] and source.skipped[0].name == "0.png"


def test_real_coco(real_data):
    source = open_items(real_data / "coco_objects")
    assert len(source) == 80 and sum(item.labels["n_objects"] for item in source[::16]) > 0
    captions = open_items(real_data / "coco_captions")
    assert len(captions) == 79 and captions[0].labels["caption.4"]
    total = sum(len(i.objects) for _, i in source._images)  # README: 705 objects
    assert total == 705
