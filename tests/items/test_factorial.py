"""The factorial set of the simulator, read back with its factors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from vlascope.errors import ItemError, ItemNotFoundError
from vlascope.items import open_items
from vlascope.sim import record_factorial

pytest.importorskip("pybullet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("factors") / "set"
    return record_factorial(out, n_images=8, image_px=48, processes=1, quiet=True)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


def test_items_carry_factors_and_masks(folder):
    source = open_items(folder)
    assert source.item_ids == [f"{i:06d}" for i in range(8)]
    kinds = set()
    for item in source:
        assert item.images[0].shape == (48, 48, 3) and item.masks["segmentation"].shape == (48, 48)
        kinds.add((item.labels["target_colour"], item.labels["target_material"]))
        name = f"{item.labels['target_colour']} {item.labels['target_material']} object"
        value = next(v for v, n in item.mask_names["segmentation"].items() if n == name)
        # The target is drawn in the mask as often as the index says.
        assert np.count_nonzero(item.masks["segmentation"] == value) == item.labels["target_pixels"] > 0
        assert (item.labels["target_y"] < 0) == (item.labels["side"] == "left")
        assert item.labels["target_mass"] > 0 and item.prompt is None and item.episode is None
        json.dumps(dict(item.labels))
    assert len(kinds) == 8


def test_prompt_and_prefix(folder):
    assert open_items(f"factorial:{folder}", prompt="pick it up")[3].prompt == "pick it up"


def test_fingerprint_follows_the_files(folder):
    before = open_items(folder).fingerprint()
    assert open_items(folder).fingerprint() == before != open_items(folder, prompt="p").fingerprint()
    (folder / "masks" / "000002.png").write_bytes((folder / "masks" / "000003.png").read_bytes() + b" ")
    assert open_items(folder).fingerprint() != before


def test_what_is_missing_or_damaged_is_said(folder):
    (folder / "images" / "000004.png").unlink()
    with pytest.raises(ItemNotFoundError, match="000004"):
        open_items(folder)
    source = open_items(folder, on_error="skip")
    assert len(source) == 7 and "000004" in str(source.skipped)
    (folder / "masks" / "000001.png").write_bytes(b"no png")
    with pytest.raises(ItemError, match="000001"):
        source[1]
    (folder / "index.parquet").write_bytes(b"no parquet")
    with pytest.raises(ItemError, match="cannot be read"):
        open_items(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(ItemError, match="not complete"):
        open_items(folder)
