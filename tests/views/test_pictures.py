from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from vlascope.errors import InputError, SiteNotFoundError
from vlascope.views import grid, strip
from vlascope.views.panels import input_panel
from vlascope.views.style import font, ink_on, wrap
from vlascope.views.tokens import TokenIndex


def find(picture: np.ndarray, panel: np.ndarray) -> bool:
    """Whether `panel` lies somewhere in `picture`, pixel for pixel."""
    h, w = panel.shape[:2]
    candidates = np.argwhere((picture[: -h + 1, : -w + 1] == panel[0, 0]).all(2))
    return any(np.array_equal(picture[y : y + h, x : x + w], panel) for y, x in candidates[:4000])


def test_grid_holds_every_cluster_panel_exactly(cropped):
    from vlascope.views.panels import color_panel

    picture = np.asarray(grid(cropped, site="vision.1", items=[2], panel_width=66, scale=2).image)
    patches = TokenIndex(cropped).patches("vision.1", 2)
    for rgb in [cropped.rgb, *(cropped.cluster_colors(k)[cropped.labels[k]] for k in cropped.labels)]:
        panel = color_panel(rgb, grids=patches, image_wh=(132, 96), out_wh=(132, 96))
        assert find(picture, panel)


def test_strip_has_a_panel_per_site(cropped):
    from vlascope.views.panels import color_panel

    picture = np.asarray(strip(cropped, items=[1], panel_width=66).image)
    for site in cropped.sites:
        patches = TokenIndex(cropped).patches(site, 1)
        assert find(picture, color_panel(cropped.rgb, grids=patches, image_wh=(132, 96), out_wh=(132, 96)))


def test_margin_that_the_model_did_not_see_is_veiled(cropped):
    image = cropped.run.image(0)
    patches = TokenIndex(cropped).patches("vision.0", 0)
    veiled = input_panel(image, out_wh=(132, 96), grids=patches).astype(int)
    plain = input_panel(image, out_wh=(132, 96)).astype(int)
    np.testing.assert_array_equal(veiled[6:90, 11:121], plain[6:90, 11:121])
    assert (veiled[:6] > plain[:6]).all() and (veiled[:, :11] > plain[:, :11]).all()


def test_saved_pictures_carry_their_parameters(cut, tmp_path):
    picture = grid(cut, items=[0], panel_width=60)
    path = picture.save(tmp_path / "grid.png")
    with Image.open(path) as file:
        params = json.loads(file.text["vlascope"])  # type: ignore[attr-defined]
    assert params["model"] == "fake-vla" and params["cut"]["seed"] == 0 and params["sites"] == ["vision.2"]
    assert params["sampled_share"] == pytest.approx(1024 / len(cut.rgb))
    jpeg = picture.save(tmp_path / "grid.jpg")
    with Image.open(jpeg) as file:
        assert json.loads(file.getexif()[0x010E])["view"] == "grid"
    with pytest.raises(InputError, match=r"\.png"):
        picture.save(tmp_path / "grid.gif")


def test_same_cut_gives_the_same_bytes(cut):
    assert strip(cut, n_items=2).to_png() == strip(cut, n_items=2).to_png()


def test_nothing_touches_the_edge_of_a_sheet(cut):
    """Text that was clipped would leave ink in the margin or at the border."""
    for n_items in (1, 3):
        pixels = np.asarray(grid(cut, n_items=n_items, panel_width=90).image)
        for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
            assert (edge == 255).all()


def test_bad_arguments(cut):
    with pytest.raises(InputError, match="K=7"):
        grid(cut, ks=[7])
    with pytest.raises(InputError, match="item 99"):
        grid(cut, items=[99])
    with pytest.raises(InputError, match="no items"):
        strip(cut, items=[])
    with pytest.raises(SiteNotFoundError):
        strip(cut, sites=["vision.9"])


@pytest.mark.parametrize("text", ["pick up the red fragile object " * 5, "x" * 300, "a " + "y" * 90, ""])
def test_wrapped_lines_fit_and_lose_nothing(text):
    face = font(13)
    lines = wrap(text, face=face, width=120)
    assert all(face.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_cut_off_text_ends_with_an_ellipsis():
    lines = wrap("one two three four five six seven", face=font(13), width=60, max_lines=2)
    assert len(lines) == 2 and lines[1].endswith("…") and font(13).getlength(lines[1]) <= 60


def test_ink_contrasts():
    assert ink_on((250, 240, 120)) != (255, 255, 255)
    assert ink_on((20, 10, 120)) == (255, 255, 255)


def test_a_picture_shows_itself(cut):
    with Image.open(io.BytesIO(grid(cut, items=[0], panel_width=60)._repr_png_())) as file:
        assert file.format == "PNG"
