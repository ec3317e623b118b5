from __future__ import annotations

import numpy as np
import pytest
from items_helpers import picture
from PIL import Image

from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import Box, VocSource, open_items

XML = """<annotation><object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>6</ymax></bndbox></object></annotation>"""


def palette_png(path, values):
    image = Image.fromarray(values)
    image.putpalette([channel for i in range(256) for channel in (i, 255 - i, 7)])
    image.save(path)


@pytest.fixture
def voc(tmp_path):
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(picture(9, 13, number)).save(tmp_path / "JPEGImages" / f"p{number}.jpg", quality=95)
    classes, objects = np.zeros((9, 13), np.uint8), np.zeros((9, 13), np.uint8)
    classes[1:4, 1:5], objects[1:4, 1:5] = 8, 1
    classes[5:8, 6:9], objects[5:8, 6:9] = 12, 2
    classes[4, :], objects[4, :] = 255, 255
    palette_png(tmp_path / "SegmentationClass" / "p1.png", classes)
    palette_png(tmp_path / "SegmentationObject" / "p1.png", objects)
    (tmp_path / "Annotations" / "p1.xml").write_text(XML)
    (tmp_path / "ImageSets/Main/val.txt").write_text("p2\np1\n")
    (tmp_path / "ImageSets/Main/cat_val.txt").write_text("p1  1\np2 -1\n")
    return tmp_path


def test_masks_and_boxes(voc):
    source = open_items(voc)
    assert isinstance(source, VocSource) and source.item_ids == ["p0", "p1", "p2"]
    item = source[1]
    assert item.mask_names["segmentation"] == {8: "cat", 12: "dog", 255: "void"}
    assert item.mask_names["instance"] == {1: "cat", 2: "dog", 255: "void"}
    assert (item.masks["segmentation"] == 12).sum() == 9 and item.masks["segmentation"][5, 6] == 12
    assert item.boxes == (Box("cat", 1, 2, 9, 6, ("difficult",)),)
    assert item.labels == {"objects": "cat", "n_objects": 1}
    assert not source[0].masks and not source[0].boxes and not source[0].labels


def test_image_sets(voc):
    assert open_items(f"voc:{voc}?image_set=val").item_ids == ["p2", "p1"]
    assert open_items(f"voc:{voc}?image_set=Main/cat_val").item_ids == ["p1"]
    with pytest.raises(InputError, match="none is called so; there are Main/cat_val, Main/val"):
        open_items(f"voc:{voc}?image_set=train")
    (voc / "JPEGImages" / "p2.jpg").unlink()
    with pytest.raises(ItemNotFoundError, match=r"p2\.jpg.*which 'val' lists"):
        open_items(f"voc:{voc}?image_set=val")
    source = open_items(f"voc:{voc}?image_set=val", on_error="skip")
    assert source.item_ids == ["p1"] and source.skipped[0].name == "p2"


def test_damage_is_said(voc):
    (voc / "Annotations" / "p1.xml").write_text(XML[:60])
    with pytest.raises(ItemError, match=r"p1\.xml' cannot be read"):
        VocSource(voc)[1]
    (voc / "Annotations" / "p1.xml").unlink()
    assert VocSource(voc)[1].labels == {"objects": "cat, dog"}
    Image.fromarray(picture(9, 13)).save(voc / "SegmentationClass" / "p1.png")
    with pytest.raises(ItemError, match="is RGB; need the palette"):
        VocSource(voc)[1]
    palette_png(voc / "SegmentationClass" / "p1.png", np.full((9, 13), 40, np.uint8))
    with pytest.raises(ItemError, match="holds 40, but there are 21 class names"):
        VocSource(voc)[1]
    palette_png(voc / "SegmentationClass" / "p1.png", np.zeros((13, 9), np.uint8))
    with pytest.raises(ItemError, match=r"\(13, 9\), its image \(9, 13\)"):
        VocSource(voc)[1]
    (voc / "transforms.json").write_text("{}")
    with pytest.raises(ItemError, match=r"posed images .* or a VOC dataset \('voc:"):
        open_items(voc)


def test_real_voc(real_data):
    source = open_items(real_data / "voc2011")
    assert [i.labels["objects"] for i in source] == ["bottle, person", "chair, person, sofa", "bus, car"]
