from __future__ import annotations

import sys

import numpy as np
import pytest
from items_helpers import picture, png

from vlascope.errors import InputError, ItemError, MissingExtraError
from vlascope.items import HfSource, open_items


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"vlascope\[data\]"):
        open_items("hf:some/name")


@pytest.fixture
def table(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the extra data is not installed")
    features = {
        "photo": datasets.Image(),
        "wrist": datasets.Image(),
        "kind": datasets.ClassLabel(names=["cup", "bowl"]),
        "score": datasets.Value("float32"),
        "caption": datasets.Value("string"),
        "boxes": datasets.Sequence(datasets.Value("int32")),
    }
    rows = {
        "photo": [{"bytes": png(picture(11, 7, t)), "path": None} for t in range(4)],
        "wrist": [{"bytes": png(picture(5, 13, t)), "path": None} for t in range(3)] + [None],
        "kind": [1, 0, -1, 1],
        "score": [0.5, float("nan"), 2.0, 3.0],
        "caption": ["a", "b", "c", None],
        "boxes": [[1, 2]] * 4,
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_rows_in_memory(table):
    source = open_items(table)
    assert isinstance(source, HfSource) and len(source) == 4 and source.left_out == ["boxes"]
    item = source[2]
    assert item.item_id == "row-000002" and item.cameras == ("photo", "wrist")
    np.testing.assert_array_equal(item.images[1], picture(5, 13, 2))
    assert item.labels == {"score": 2.0, "caption": "c", "kind": None}
    assert source[0].labels["kind"] == "bowl" and source[1].labels["score"] is None
    with pytest.raises(ItemError, match="row 3, column wrist: there is no image"):
        source[3]
    skipping = open_items(table, on_error="skip")
    assert len(list(skipping)) == 3 and "row 3" in skipping.skipped[0].reason
    assert len(open_items(table, camera="photo").check()) == 0
    with pytest.raises(InputError, match="no camera 'phto'"):
        open_items(table, camera="phto")


def test_saved_folder_and_splits(table, tmp_path):
    import datasets

    table.save_to_disk(tmp_path / "one")
    source = open_items(tmp_path / "one", camera="photo")
    np.testing.assert_array_equal(source[1].image, picture(11, 7, 1))
    asked = open_items(f"hf:{tmp_path / 'one'}?prompt_column=caption", camera="photo")
    assert asked[1].prompt == "b" and "caption" not in asked[1].labels
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match="no split was chosen; there are train, test"):
        open_items(tmp_path / "two")
    assert len(open_items(f"hf:{tmp_path / 'two'}?split=test")) == 1
    with pytest.raises(InputError, match=r"no column 'captoin'; its columns are photo, .*Nearest: 'caption'"):
        HfSource(table, prompt_column="captoin")
    with pytest.raises(ItemError, match=r"image columns \[\].*cast_column"):
        open_items(table.remove_columns(["photo", "wrist"]))
    with pytest.raises(InputError, match="not streaming"):
        open_items(table.to_iterable_dataset())
