"""Models that see an image in crops: a crop's patches hide those of the overview under them, where they lie."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def tiled_book(tmp_path_factory):
    from tests.views.tiled import tiled_run
    from vlascope.app import open_books

    return open_books([tiled_run(tmp_path_factory.mktemp("tiles"))])[0]


def test_colours_of_a_crop_are_blended_with_the_photograph_alone(drive, tiled_book):
    grids = list(tiled_book.index.patches("vision.0", 0))
    assert len(grids) > 2  # the overview and several crops
    d = drive([tiled_book])
    d.page.locator('input[aria-label^="Opacity"]').evaluate(
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
