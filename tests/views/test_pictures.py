from __future__ import annotations

import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlascope.errors import InputError, SiteNotFoundError
from vlascope.items.fonts import font
from vlascope.views import grid, strip
from vlascope.views.choose import camera_note, item_note, label_texts, row_notes
from vlascope.views.panels import input_panel
from vlascope.views.style import ink_on, wrap
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


def test_every_camera_has_a_row(tmp_path):
    from fakes import make_cut

    from vlascope.views.panels import color_panel

    both = make_cut(tmp_path, n_steps=2, n_episodes=1, n_vision=2, n_language=0, cameras=("front", "wrist"))
    for picture in (grid(both, items=[1], panel_width=60), strip(both, items=[1], panel_width=60)):
        pixels = np.asarray(picture.image)
        for camera, wh, size in ((0, (112, 96), (120, 103)), (1, (56, 96), (88, 150))):
            patches = [g for g in TokenIndex(both).patches("vision.1", 1) if g.camera == camera]
            assert find(pixels, color_panel(both.rgb, grids=patches, image_wh=wh, out_wh=size))
    assert camera_note(both.run, 0, 1) == "camera 2 of 2: wrist"
    assert camera_note(both.run, 0, 0, shown=[0]) == "camera 1 of 2 shown: front"


def test_an_instruction_stands_once_per_episode_and_labels_beside_images(cut):
    told = row_notes(cut.run, [0, 3, 9])
    assert [note for note, _ in told] == [
        "0.0 s · success",
        "0.3 s · success",
        "0.1 s · failure: wrong object",
    ]
    assert [bool(prompt) for _, prompt in told] == [True, False, True]
    labels = {"class": "cat", "score": 0.25, "success": None, "event.grasp": 3, "split": "train", "more": 1}
    assert label_texts(labels) == ["class: cat", "score: 0.25", "split: train"]
    photo = SimpleNamespace(
        items=[dataclasses.replace(cut.run.items[0], episode=None, labels={"class": "cat"})]
    )
    assert item_note(photo, 0, with_prompt=False) == "class: cat"  # type: ignore[arg-type]


def test_long_instructions_do_not_blow_up_a_row(tmp_path):
    from fakes import make_cut

    def height(prompt: str) -> int:
        one = make_cut(tmp_path, n_steps=1, n_episodes=1, n_vision=1, n_language=0, prompt=prompt)
        return grid(one, panel_width=60).image.height

    assert height("put it there " * 80) == height("put it there " * 20)


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


def test_names_of_files_are_cut_in_the_middle():
    names = [f"a_long_folder_name/with/another/inside/image-{n}.jpg" for n in ("0001", "0002")]
    shown = [wrap(name, face=font(13), width=150, max_lines=2, middle=True) for name in names]
    assert shown[0] != shown[1]
    for name, lines in zip(names, shown, strict=True):
        head, tail = "".join(lines).split("…")
        assert len(lines) <= 2 and name.startswith(head) and name.endswith(tail) and tail.endswith(".jpg")
    assert wrap("short.jpg", face=font(13), width=150, max_lines=2, middle=True) == ["short.jpg"]


def test_ink_contrasts():
    assert ink_on((250, 240, 120)) != (255, 255, 255)
    assert ink_on((20, 10, 120)) == (255, 255, 255)


def test_a_picture_shows_itself(cut):
    with Image.open(io.BytesIO(grid(cut, items=[0], panel_width=60)._repr_png_())) as file:
        assert file.format == "PNG"
