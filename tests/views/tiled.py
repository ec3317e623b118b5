"""A run by a model that sees its images in crops, which are padded and so reach beyond the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import vlascope as vs
from tests.models.families import vlm_tiny
from vlascope.items.item import Item
from vlascope.runs import Run


def tiled_run(folder: Path) -> Run:
    """Capture and cut three pictures of four coloured quarters, 144 x 96 pixels: an overview and four crops each."""
    image = np.zeros((96, 144, 3), np.uint8)
    image[:48, :72], image[:48, 72:] = (220, 40, 40), (40, 200, 60)
    image[48:, :72], image[48:, 72:] = (50, 70, 220), (230, 220, 60)
    image += np.random.default_rng(0).integers(0, 3, image.shape, np.uint8)
    model = vs.load(vlm_tiny.llava_next("clip"), processor=vlm_tiny.llava_next_processor("clip"))
    shown = [
        Item(item_id=f"{i}.png", images=(np.roll(image, 24 * i, axis=1),), prompt="a photo") for i in range(3)
    ]
    run = vs.capture(model, shown, sites=["vision.0"], out=folder / "run", quiet=True)
    vs.cut(run, site="vision.0", n_eig=4, k=(3,), color="pca")
    return run
