"""Changes to an item that leave its answer the same, or should change it: to ask what a model relies on.

Each function takes an item and returns a new one with the same id and, in its labels, "perturbation" saying what
was done. Apply one to a whole source, lazily, with `perturbed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .frames import MappedSource
from .item import Item, ItemSource


def perturbed(source: ItemSource, change: Callable[[Item], Item], *, tag: str) -> ItemSource:
    """Return `source` with every item changed when it is asked for.

    Args:
        source: Any items.
        change: E.g. `functools.partial(brightness, factor=0.8)`.
        tag: Names the change with its parameters, e.g. "brightness=0.8"; part of the fingerprint.
    """
    return MappedSource(source, change, tag=tag)


def _changed(item: Item, what: str, **new: object) -> Item:
    before = item.labels.get("perturbation")
    labels = {**item.labels, "perturbation": f"{before}, {what}" if before else what}
    if "images" in new:
        new["source"] = None  # the file no longer holds these pixels
    return replace(item, labels=labels, **new)  # type: ignore[arg-type]


def _map_images(item: Item, what: str, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Item:
    return _changed(item, what, images=tuple(change(image) for image in item.images))


def brightness(item: Item, *, factor: float) -> Item:
    """Return the item with every pixel value multiplied by `factor` >= 0, rounded and cut off at 255."""
    if not (factor >= 0 and np.isfinite(factor)):
        raise InputError(f"the brightness factor is {factor}; need a number of at least 0.")
    table = np.rint(np.arange(256) * factor).clip(0, 255).astype(np.uint8)
    return _map_images(item, f"brightness={factor:g}", lambda image: table[image])


def blur(item: Item, *, sigma_px: float) -> Item:
    """Return the item with its images blurred by a Gaussian of `sigma_px` > 0 pixels (edges reflected)."""
    if not (sigma_px > 0 and np.isfinite(sigma_px)):
        raise InputError(f"the blur is {sigma_px} pixels; need more than 0.")
    from scipy.ndimage import gaussian_filter

    def change(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        smooth = gaussian_filter(image.astype(np.float32), sigma=(sigma_px, sigma_px, 0), mode="reflect")
        return np.rint(smooth).clip(0, 255).astype(np.uint8)

    return _map_images(item, f"blur={sigma_px:g}", change)


def desaturate(item: Item) -> Item:
    """Return the item without colour: each pixel takes its brightness (ITU-R BT.601 weights)."""

    def change(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        luma = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
        return np.repeat(luma[:, :, None], 3, axis=2)

    return _map_images(item, "desaturate", change)


def grey(item: Item, *, level: int = 128) -> Item:
    """Return the item with all images replaced by plain grey: a control that sees nothing. Masks are dropped."""
    if not 0 <= level <= 255:
        raise InputError(f"the grey level is {level}; need 0..255.")
    blank = tuple(np.full_like(image, level) for image in item.images)
    return _changed(item, f"grey={level}", images=blank, masks={}, mask_names={})


def swap_image(item: Item, other: Item) -> Item:
    """Return the item with the images and masks of `other`: a control that sees another scene."""
    return _changed(
        item,
        f"image of {other.item_id}",
        images=other.images,
        cameras=other.cameras,
        masks=other.masks,
        mask_names=other.mask_names,
    )


def swap_prompt(item: Item, *, prompt: str) -> Item:
    """Return the item with another prompt."""
    return _changed(item, f"prompt={prompt}", prompt=prompt)


def shuffle_words(item: Item, *, seed: int) -> Item:
    """Return the item with the words of its prompt in another order, always changed where that is possible.

    The order depends on `seed` and on the prompt, not on the item, so equal prompts stay equal.

    Raises:
        InputError: the item has no prompt.
    """
    if item.prompt is None:
        raise InputError(f"item '{item.item_id}' has no prompt whose words could be shuffled.")
    words = item.prompt.split()
    if len(set(words)) < 2:
        return _changed(item, f"shuffle_words={seed}")
    rng = np.random.default_rng([seed, *item.prompt.encode()])
    shuffled = list(words)
    while shuffled == words:
        shuffled = [words[place] for place in rng.permutation(len(words))]
    return _changed(item, f"shuffle_words={seed}", prompt=" ".join(shuffled))
