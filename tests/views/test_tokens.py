from __future__ import annotations

import numpy as np
import pytest

from vlascope.errors import InputError, SiteNotFoundError
from vlascope.models.layout import grid_tokens, token_from_pixel
from vlascope.views.tokens import PatchGrid, TokenIndex, paint


def one_grid(rows, cols, frame):
    return PatchGrid(camera=0, tile=0, index_rc=np.arange(rows * cols).reshape(rows, cols), frame=frame)


@pytest.mark.parametrize(
    ("rows", "cols", "wh", "frame"),
    [
        (7, 11, (132, 96), (0, 0, 132, 96)),
        (11, 7, (97, 131), (0, 17, 97, 114)),
        (3, 5, (50, 20), (-5.5, 0, 55.5, 20)),
        (14, 14, (113, 111), (0, 0, 113, 111)),
    ],
)
def test_painting_agrees_with_token_geometry(rows, cols, wh, frame):
    grid = one_grid(rows, cols, frame)
    ids = np.arange(rows * cols).reshape(rows, cols)
    values = np.stack([ids // 256, ids % 256, ids * 0], 2).astype(np.uint8)
    painted, covered = paint(values, grid=grid, image_wh=wh, out_wh=wh)
    box = grid_tokens(rows, cols, frame=frame).box
    expected = token_from_pixel(box, height=wh[1], width=wh[0])
    np.testing.assert_array_equal(covered, expected >= 0)
    number = painted[..., 0].astype(int) * 256 + painted[..., 1]
    np.testing.assert_array_equal(number[covered], expected[covered])


def test_smooth_painting_meets_the_patch_colour_at_its_centre():
    grid = one_grid(3, 5, (0, 0, 50, 30))
    values = np.random.default_rng(0).integers(0, 255, (3, 5, 3)).astype(np.uint8)
    painted, _ = paint(values, grid=grid, image_wh=(50, 30), out_wh=(555, 333), upsample="smooth")
    np.testing.assert_array_equal(painted[55::111, 55::111], values)


def test_unknown_upsampling_is_refused():
    with pytest.raises(InputError, match="nearest"):
        paint(np.zeros((2, 2, 3), np.uint8), grid=one_grid(2, 2, (0, 0, 4, 4)), image_wh=(4, 4), out_wh=(4, 4),
              upsample="cubic")  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("site", ["vision.1", "language.0"])
def test_patches_have_place_and_rows_of_their_item(cropped, site):
    index = TokenIndex(cropped)
    part = cropped.parts[site]
    table = cropped.run.tokens(part.layout)
    for item in (0, 4):
        (grid,) = index.patches(site, item)
        assert (grid.rows, grid.cols) == (7, 11)
        np.testing.assert_allclose(grid.frame, (11, 6, 121, 90), atol=1e-3)
        rows = part.token_rows[grid.index_rc - part.rows.start]
        np.testing.assert_array_equal(table.item[rows], item)
        np.testing.assert_array_equal(table.row[rows], np.arange(7)[:, None].repeat(11, 1))
        np.testing.assert_array_equal(table.col[rows], np.arange(11)[None].repeat(7, 0))


def test_patches_that_were_not_cut_are_marked(cropped):
    from fakes import FakeCut, FakePart

    rows = np.flatnonzero(np.arange(len(cropped.run.tokens("vision"))) % 5 != 0)
    partial = FakeCut(**{**cropped.__dict__, "sites": ("vision.0",),
                         "parts": {"vision.0": FakePart("vision", rows, slice(0, len(rows)))}})  # fmt: skip
    grids = [TokenIndex(partial).patches("vision.0", item)[0] for item in range(6)]
    assert sum((g.index_rc >= 0).sum() for g in grids) == len(rows)
    assert sum((g.index_rc < 0).sum() for g in grids) == 6 * 77 - len(rows)


def test_words_come_in_order_without_patches(cut):
    words = TokenIndex(cut).words("language.1", 3)
    assert words.texts == ("<s>", "In:", "pick", "up", "the", "red", "fragile", "object", "Out:")
    assert words.kinds == ("special", *["text"] * 8)
    assert TokenIndex(cut).words("vision.0", 3).texts == ()


def test_default_site_is_the_last_of_the_vision_tower(cut):
    assert TokenIndex(cut).default_site() == "vision.2"


def test_unknown_site_names_the_nearest(cut):
    with pytest.raises(SiteNotFoundError, match=r"vision\.2"):
        TokenIndex(cut).check_site("vison.2")
