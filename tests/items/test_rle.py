from __future__ import annotations

import json

import numpy as np
import pytest

from vlascope.errors import ItemError
from vlascope.items._rle import mask_from_runs, mask_from_segmentation, unpack_runs


def test_rectangle_covers_its_pixels():
    mask = mask_from_segmentation([[2, 1, 6, 1, 6, 4, 2, 4]], height=7, width=11)
    wanted = np.zeros((7, 11), bool)
    wanted[1:4, 2:6] = True
    np.testing.assert_array_equal(mask, wanted)
    two = mask_from_segmentation([[2, 1, 6, 1, 6, 4, 2, 4], [4, 2, 9, 2, 9, 7, 4, 7]], height=7, width=11)
    wanted[2:7, 4:9] = True  # a union: where they overlap it stays inside
    np.testing.assert_array_equal(two, wanted)


def test_runs_go_down_the_columns():
    wanted = np.zeros((3, 5), bool)
    wanted[1:, 0] = wanted[:2, 1] = True
    np.testing.assert_array_equal(mask_from_runs([1, 4, 10], height=3, width=5), wanted)
    given = mask_from_segmentation({"size": [3, 5], "counts": [1, 4, 10]}, height=3, width=5)
    np.testing.assert_array_equal(given, wanted)


def test_packed_runs_of_the_format():
    # 6, 1, 40, 4 and 5: from the fourth on the difference to the number two places before.
    assert unpack_runs("61X1") == [6, 1, 40]
    assert unpack_runs("61X13") == [6, 1, 40, 4]
    assert unpack_runs("61X13mN") == [6, 1, 40, 4, 5]
    with pytest.raises(ItemError, match="end within a number"):
        unpack_runs("61X")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "a polygon of 4 numbers"),
        ({"size": [3, 6], "counts": [18]}, r"for \(3, 6\), but the image is \(3, 5\)"),
        ({"size": [3, 5], "counts": [14]}, "cover 14 pixels of 15"),
        ({"size": [3, 5], "counts": [20, -5]}, "cover 15 pixels"),
        ("text", "is str; need polygons or run lengths"),
    ],
)
def test_damage_is_said(segmentation, message):
    with pytest.raises(ItemError, match=message):
        mask_from_segmentation(segmentation, height=3, width=5, name="annotation 7")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_equal_to_pycocotools_for_random_polygons():
    oracle = pytest.importorskip("pycocotools.mask", reason="only for comparing: pip install pycocotools")
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(n) for n in rng.integers(1, 40, 2))
        polygon = rng.uniform(-10, 50, 2 * rng.integers(3, 9)).round(int(rng.integers(0, 3))).tolist()
        packed = oracle.merge(oracle.frPyObjects([polygon], height, width))
        wanted = oracle.decode(packed).astype(bool)
        for segmentation in ([polygon], packed):
            np.testing.assert_array_equal(
                mask_from_segmentation(segmentation, height=height, width=width), wanted
            )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_equal_to_pycocotools_for_real_masks(real_data):
    oracle = pytest.importorskip("pycocotools.mask", reason="only for comparing: pip install pycocotools")
    data = json.loads((real_data / "coco_objects" / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    crowds = [note for note in data["annotations"] if note["iscrowd"]]
    for note in [*data["annotations"][::9], *crowds]:
        (height, width), segmentation = sizes[note["image_id"]], note["segmentation"]
        packed = oracle.frPyObjects(segmentation, height, width)
        wanted = oracle.decode(oracle.merge(packed) if isinstance(packed, list) else packed).astype(bool)
        got = mask_from_segmentation(segmentation, height=height, width=width)
        np.testing.assert_array_equal(got, wanted)
