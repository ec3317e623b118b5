from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from items_helpers import picture
from PIL import Image

from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import ImageFolder, ImageList, Item, open_items, read_image

RGB = picture(13, 17)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_rgb_png_is_exact(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(RGB))), RGB)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "YCbCr"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(RGB)
    if mode == "I;16":
        image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    elif mode == "LA":
        image = image.convert("L").convert("LA")
    else:
        image = image.convert(mode)
    ending = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    rgb = read_image(save(tmp_path / f"a.{ending}", image))
    assert rgb.shape == (13, 17, 3) and rgb.dtype == np.uint8
    if mode == "I;16":
        np.testing.assert_array_equal(rgb, np.repeat(RGB[..., :1], 3, 2))
    elif mode == "RGBA":
        np.testing.assert_array_equal(rgb, RGB)


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.dstack([RGB, np.full((13, 17), 255, np.uint8)])
    rgba[2, 5, 3] = 0
    rgb = read_image(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert rgb[2, 5].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(rgb[3:], RGB[3:])
    palette = Image.fromarray(np.array([[0, 1], [1, 0], [1, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    rgb = read_image(save(tmp_path / "p.png", palette, transparency=0))
    assert rgb[:, 0].tolist() == [[255] * 3, [40, 50, 60], [40, 50, 60]]


def test_exif_turns_the_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the top is on the right: turn by 90 degrees clockwise
    rgb = read_image(save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif))
    np.testing.assert_array_equal(rgb, np.rot90(RGB, -1))


def test_depth_and_floats_out_of_range_are_refused(tmp_path):
    fine = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    assert read_image(save(tmp_path / "f.tif", fine))[-1, -1, 0] == 255
    deep = Image.fromarray(np.full((3, 4), 1200.0, np.float32))
    with pytest.raises(ItemError, match=r"d\.tif.*1200.*depth"):
        read_image(save(tmp_path / "d.tif", deep))


def test_damaged_missing_and_wrong_files_are_named(tmp_path):
    whole = save(tmp_path / "a.jpg", Image.fromarray(picture(97, 103))).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name, message in (
        ("half.jpg", "damaged"),
        ("text.png", "not an image"),
        ("empty.png", "not an image"),
    ):
        with pytest.raises(ItemError, match=f"{name}' is {message}"):
            read_image(tmp_path / name)
    with pytest.raises(ItemNotFoundError, match=r"no image '.*gone\.png'"):
        read_image(tmp_path / "gone.png")


def test_folder_is_in_natural_order_and_ignores_the_rest(tmp_path):
    for name in ("img10.png", "img2.png", "sub/img1.JPG", ".hidden.png", ".cache/x.png"):
        save(tmp_path / name, Image.fromarray(RGB), format="PNG")
    (tmp_path / "notes.txt").write_text("x")
    source = ImageFolder(tmp_path, prompt="what is it?")
    assert [item.item_id for item in source] == ["img2.png", "img10.png", "sub/img1.JPG"]
    assert source[-1].prompt == "what is it?" and source[0].source == str(tmp_path / "img2.png")
    assert len(source[1:]) == 2 and source[1:][0].item_id == "img10.png"


def test_folder_without_images_says_what_was_found(tmp_path):
    with pytest.raises(ItemError, match="no images: it holds no file"):
        ImageFolder(tmp_path)
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").touch()
    with pytest.raises(ItemError, match=r"no images: it holds 2 \.csv"):
        ImageFolder(tmp_path)
    with pytest.raises(ItemNotFoundError, match="no folder"):
        ImageFolder(tmp_path / "gone")


def test_corrupt_file_shows_only_when_read(tmp_path):
    save(tmp_path / "a.png", Image.fromarray(RGB))
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    source = ImageFolder(tmp_path)
    assert len(source) == 2 and source[0].image.shape == (13, 17, 3)
    with pytest.raises(ItemError, match=r"b\.png"):
        source[1]


def test_list_of_all_kinds(tmp_path):
    path = save(tmp_path / "x" / "a.png", Image.fromarray(RGB))
    other = save(tmp_path / "y" / "a.png", Image.fromarray(RGB[::-1].copy()))
    item = Item(item_id="mine", images=(RGB,), prompt="own")
    grey = RGB[..., 0]
    source = ImageList([str(path), other, RGB, grey, Image.fromarray(RGB), item], prompt="all")
    names = ["x/a.png", "y/a.png", "image-000002", "image-000003", "image-000004", "mine"]
    assert [i.item_id for i in source] == names
    assert [i.prompt for i in source] == ["all"] * 5 + ["own"]
    np.testing.assert_array_equal(source[1].image, RGB[::-1])
    np.testing.assert_array_equal(source[3].image, np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (RGB.astype(np.float32), r"shape \(13, 17, 3\) and type float32.*need uint8"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 13, 17\).*channels first"),
        (RGB[..., :2], r"shape \(13, 17, 2\); need \[height, width, 3\]\.$"),
        (RGB[None], "need uint8"),
        (3, "is a int"),
        ("gone.png", "no image 'gone.png'"),
    ],
)
def test_wrong_entries_are_named(bad, message):
    with pytest.raises((InputError, ItemNotFoundError), match=message):
        [item.image for item in ImageList([RGB, bad])]


def test_fingerprint_follows_content(tmp_path):
    first = ImageList([RGB]).fingerprint()
    assert first == ImageList([RGB.copy()]).fingerprint()
    changed = RGB.copy()
    changed[12, 16, 2] ^= 1
    assert first != ImageList([changed]).fingerprint()
    assert first != ImageList([RGB], prompt="x").fingerprint()
    source = ImageList([RGB, changed])
    assert source[:1].fingerprint() != source[1:].fingerprint()


def test_same_id_twice_is_an_error():
    item = Item(item_id="mine", images=(RGB,))
    with pytest.raises(InputError, match="two items are called 'mine'"):
        ImageList([item, item])


def test_a_broken_link_that_is_skipped_leaves_the_other_ids_right(tmp_path):
    for number in (1, 3):
        save(tmp_path / f"{number}.png", Image.fromarray(picture(13, 17, number)))
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ItemNotFoundError, match=r"2\.png"):
        ImageFolder(tmp_path)
    source = ImageFolder(tmp_path, on_error="skip")
    assert source.item_ids == ["1.png", "3.png"] and len(source.skipped) == 1
    assert source[1].item_id == "3.png"
    np.testing.assert_array_equal(source[1].image, picture(13, 17, 3))
    source.fingerprint()


def test_one_flipped_byte_in_a_png_is_damage(tmp_path):
    smooth = (np.add.outer(np.arange(97) * 3, np.arange(103) * 2) % 256).astype(np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(smooth))
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    for place in range(start, len(whole) - 16, 7):  # some of them still make a picture: another one
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ItemError, match=r"a\.png' is damaged"):
            read_image(path)
        with path.open("rb") as handle, pytest.raises(ItemError, match="damaged"):
            read_image(handle, name="handle")
    path.write_bytes(whole)
    with path.open("rb") as handle:
        np.testing.assert_array_equal(read_image(handle)[..., 0], smooth)


def test_runs_and_what_macos_leaves_are_no_data(tmp_path):
    from vlascope.items._walk import RUN_FORMAT
    from vlascope.runs.paths import FORMAT

    assert RUN_FORMAT == FORMAT
    for name in ("a.png", "runs/first/media/0.png", "__MACOSX/a.png", "other/1.png", "list/2.png"):
        save(tmp_path / name, Image.fromarray(RGB))
    (tmp_path / "runs" / "first" / "run.json").write_text(json.dumps({"format": FORMAT}))
    (tmp_path / "other" / "run.json").write_text(json.dumps({"format": "of others"}))
    (tmp_path / "list" / "run.json").write_text("[]")
    assert ImageFolder(tmp_path).item_ids == ["a.png", "list/2.png", "other/1.png"]


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    save(tmp_path / "store" / "far" / "x.png", Image.fromarray(RGB))
    data = tmp_path / "data"
    save(data / "b" / "1.png", Image.fromarray(RGB))
    (data / "far").symlink_to(tmp_path / "store")
    (data / "a-latest").symlink_to(data / "b")
    (data / "b" / "up").symlink_to(data)
    (data / "self").symlink_to("self")
    assert ImageFolder(data).item_ids == ["b/1.png", "far/far/x.png"]


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder with an image in each of two folders, one of which the user may not list (root may list all)."""
    for name in ("fine/1.png", "locked/2.png"):
        save(tmp_path / name, Image.fromarray(RGB))
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return tmp_path


def test_a_folder_that_may_not_be_listed_is_named(locked):
    with pytest.raises(ItemError, match="locked' cannot be read: permission denied"):
        open_items(locked)
    source = open_items(locked, on_error="skip")
    assert [item.item_id for item in source] == ["fine/1.png"]
    assert source.skipped[0].name == "locked" and "permission denied" in source.skipped[0].reason
    with pytest.raises(ItemError, match="locked' cannot be read: permission denied"):
        open_items(locked / "locked", on_error="skip")


def test_files_that_may_not_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", refuse)
        with pytest.raises(ItemError, match=r"a\.png' cannot be read: permission denied"):
            read_image(path)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ItemError, match="cannot be read: permission denied"):
        ImageList([path])
    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(ItemError, match=r"a\.png' cannot be read: permission denied"):
        open_items(path)


def test_photographs(real_data):
    source = ImageFolder(real_data / "bsds500" / "images")
    assert len(source) == 100
    assert {source[i].image.shape for i in range(7)} <= {(321, 481, 3), (481, 321, 3)}
