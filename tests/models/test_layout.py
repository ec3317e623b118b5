"""Where patches lie in the image: exact on non-square grids, crops and padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlascope.errors import InputError
from vlascope.models.layout import KINDS, Grid, concat, grid_tokens, plain_tokens, token_from_pixel


@pytest.mark.parametrize("rows, cols", [(3, 7), (7, 3), (1, 1)])
def test_every_pixel_of_a_resized_image_belongs_to_the_patch_that_covers_it(rows, cols):
    height, width = 61, 97
    layout = grid_tokens(rows, cols, frame=(0, 0, width, height))
    token_hw = token_from_pixel(layout.box, height=height, width=width)
    y, x = np.mgrid[0:height, 0:width]
    expected = ((y + 0.5) * rows // height) * cols + (x + 0.5) * cols // width
    np.testing.assert_array_equal(token_hw, expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(9, 80), st.integers(9, 80))
def test_a_grid_over_the_whole_image_leaves_no_gap(rows, cols, height, width):
    layout = grid_tokens(rows, cols, frame=(0, 0, width, height))
    token_hw = token_from_pixel(layout.box, height=height, width=width)
    assert token_hw.min() >= 0
    assert len(np.unique(token_hw)) == rows * cols


def test_outside_a_centre_crop_there_is_no_token_and_padding_is_cut_off():
    crop = token_from_pixel(grid_tokens(2, 2, frame=(20, 0, 60, 40)).box, height=40, width=80)
    assert (crop[:, :20] == -1).all() and (crop[:, 60:] == -1).all() and (crop[:, 20:60] >= 0).all()
    padded = token_from_pixel(grid_tokens(2, 2, frame=(0, -20, 80, 60)).box, height=40, width=80)
    assert (padded >= 0).all() and padded[0, 0] == 0 and padded[39, 79] == 3


def test_layouts_concatenate_in_order():
    layout = concat([plain_tokens("text", ["pick", "up"]), grid_tokens(2, 3, frame=(0, 0, 6, 4), camera=1)])
    assert len(layout) == 8
    assert layout.text[:3] == ("pick", "up", "")
    np.testing.assert_array_equal(layout.is_kind("patch"), [False] * 2 + [True] * 6)
    assert KINDS[layout.kind[0]] == "text" and layout.camera[2] == 1 and np.isnan(layout.box[0]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"cols": -1},
        {"rows": 14.0},
        {"cols": "28"},
        {"rows": True},
        {"rows": None},
        {"prefix": -1},
    ],
)
def test_a_grid_has_whole_numbers(wrong):
    with pytest.raises(InputError, match=rf"got Grid\({next(iter(wrong))}=.*need a whole number"):
        Grid(**({"rows": 3, "cols": 28} | wrong))
    with pytest.raises(InputError, match="channels_first='yes'"):
        Grid(3, 28, channels_first="yes")
    assert Grid(np.int64(3), np.int32(28)) == Grid(3, 28) and type(Grid(np.int64(3), 28).rows) is int


def test_kinds_that_there_are():
    layout = grid_tokens(2, 3, frame=(0, 0, 3, 2))
    assert layout.is_kind("patch", "text").all() and not layout.is_kind("text").any()
    with pytest.raises(InputError, match="got token kind 'zzz'; there are patch, class, register"):
        layout.is_kind("patch", "zzz")
