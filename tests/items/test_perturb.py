from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from items_helpers import picture

from vlascope.errors import InputError
from vlascope.items import ImageList, Item, perturb

RGB = picture(13, 17)
ITEM = Item(
    item_id="a",
    images=(RGB, RGB[:5]),
    cameras=("main", "wrist"),
    prompt="pick up the red object",
    labels={"target": "red"},
    masks={"segmentation": np.ones((13, 17), np.uint8)},
    mask_names={"segmentation": {1: "arm"}},
    source="a.png",
)


def test_brightness():
    item = perturb.brightness(ITEM, factor=1.2)
    np.testing.assert_array_equal(item.image, np.minimum(np.rint(RGB * 1.2), 255).astype(np.uint8))
    assert item.images[1].shape == (5, 17, 3) and item.source is None and item.item_id == "a"
    assert item.labels == {"target": "red", "perturbation": "brightness=1.2"}
    np.testing.assert_array_equal(ITEM.image, picture(13, 17))
    np.testing.assert_array_equal(perturb.brightness(ITEM, factor=1).image, RGB)
    with pytest.raises(InputError):
        perturb.brightness(ITEM, factor=-1)


def test_blur_spreads_a_point_evenly_and_per_channel():
    point = np.zeros((31, 37, 3), np.uint8)
    point[15, 18, 1] = 255
    image = perturb.blur(Item(item_id="p", images=(point,)), sigma_px=1.5).image
    assert image[..., 0].max() == 0 and image[..., 2].max() == 0
    np.testing.assert_array_equal(image[:, :, 1], image[::-1, :, 1])
    assert image[15, 18, 1] == round(255 / (2 * np.pi * 1.5**2))
    with pytest.raises(InputError):
        perturb.blur(ITEM, sigma_px=0)


def test_grey_and_desaturate():
    item = perturb.grey(ITEM)
    assert (item.image == 128).all() and not item.masks
    image = perturb.desaturate(ITEM).image.astype(int)
    assert np.ptp(image, axis=2).max() == 0
    assert np.abs(image[..., 0] - RGB @ [0.299, 0.587, 0.114]).max() <= 0.5


def test_words_and_swaps():
    item = perturb.shuffle_words(ITEM, seed=3)
    assert item.prompt != ITEM.prompt and sorted(item.prompt.split()) == sorted(ITEM.prompt.split())
    assert item.prompt == perturb.shuffle_words(ITEM, seed=3).prompt
    assert len({perturb.shuffle_words(ITEM, seed=s).prompt for s in range(20)}) > 10
    assert perturb.swap_prompt(ITEM, prompt="stop").prompt == "stop"
    other = Item(item_id="b", images=(RGB[::-1].copy(),), prompt="x")
    swapped = perturb.swap_image(ITEM, other)
    assert swapped.prompt == ITEM.prompt and swapped.cameras == ("main",) and not swapped.masks
    np.testing.assert_array_equal(swapped.image, RGB[::-1])
    with pytest.raises(InputError, match="no prompt"):
        perturb.shuffle_words(Item(item_id="p", images=(RGB,)), seed=0)


def test_perturbed_source_is_lazy_and_marked():
    source = ImageList([RGB, RGB[:, ::-1]], prompt="go")
    dark = perturb.perturbed(source, partial(perturb.brightness, factor=0.5), tag="brightness=0.5")
    np.testing.assert_array_equal(dark[1].image, np.rint(RGB[:, ::-1] * 0.5).astype(np.uint8))
    assert len(dark) == 2 and dark.fingerprint() != source.fingerprint()
    both = perturb.brightness(perturb.swap_prompt(ITEM, prompt="go"), factor=0.5)
    assert both.labels["perturbation"] == "prompt=go, brightness=0.5"
