"""Models that see an image in crops: a crop's patches hide those of the overview under them, where they lie."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def tiled_book(tmp_path_factory):
    import vlascope as vs
    from tests.models.families import vlm_tiny
    from vlascope.app import open_books
    from vlascope.items.item import Item

    image = np.zeros((96, 144, 3), np.uint8)
    image[:48, :72], image[:48, 72:] = (220, 40, 40), (40, 200, 60)
    image[48:, :72], image[48:, 72:] = (50, 70, 220), (230, 220, 60)
    image += np.random.default_rng(0).integers(0, 3, image.shape, np.uint8)
    model = vs.load(vlm_tiny.llava_next("clip"), processor=vlm_tiny.llava_next_processor("clip"))
    shown = [
        Item(item_id=f"{i}.png", images=(np.roll(image, 24 * i, axis=1),), prompt="a photo") for i in range(3)
    ]
    run = vs.capture(
        model, shown, sites=["vision.0"], out=tmp_path_factory.mktemp("tiles") / "run", quiet=True
    )
    vs.cut(run, site="vision.0", n_eig=4, k=(3,), color="pca")
    return open_books([run])[0]


def test_colours_of_a_crop_are_blended_with_the_photograph_alone(drive, tiled_book):
    grids = list(tiled_book.index.patches("vision.0", 0))
    assert len(grids) > 2  # the overview and several crops
    d = drive([tiled_book])
    d.page.locator('input[aria-label^="Strength"]').evaluate(
        "(e) => { e.value = 50; e.dispatchEvent(new Event('input')); }"
    )
    d.settle()
    height, width = tiled_book.run.items[0].image_sizes[0]
    photo = tiled_book.run.image(0)
    crops, n_checked = grids[1:], 0
    for grid in crops:
        x0, y0, x1, y1 = grid.frame
        for row in range(grid.rows):
            for col in range(grid.cols):
                x, y = x0 + (col + 0.5) / grid.cols * (x1 - x0), y0 + (row + 0.5) / grid.rows * (y1 - y0)
                far = min(abs(x - 72), abs(y - 48)) > 6 and 4 < x < width - 4 and 4 < y < height - 4
                index = int(grid.index_rc[row, col])
                over = [
                    g
                    for g in crops
                    if g is not grid and g.frame[0] < x < g.frame[2] and g.frame[1] < y < g.frame[3]
                ]
                if not far or index < 0 or over:
                    continue
                token = tiled_book.cut.rgb[index].astype(float)
                # The photograph is veiled to 1 - 0.55 / 2, the colours lie over it by half.
                expected = (0.5 * token + 0.5 * 0.725 * photo[int(y), int(x)]) / (0.5 + 0.5 * 0.725)
                got = np.array(d.pixel(x / width, y / height))
                assert np.abs(got - expected).max() <= 5, (grid.tile, row, col)
                n_checked += 1
    assert n_checked >= 10
