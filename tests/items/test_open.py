from __future__ import annotations

import numpy as np
import pytest
from items_helpers import LENGTHS, picture, write_rlds
from PIL import Image

import vlascope.items
from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import (
    ImageFolder,
    ImageList,
    Item,
    LeRobotSource,
    RldsSource,
    VideoSource,
    VocSource,
    open_items,
)
from vlascope.items._demo import open_demo
from vlascope.items._video import VideoWriter

RGB = picture(11, 7)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(picture(11, 7, number)).save(folder / f"im{number}.png")
    with VideoWriter(tmp_path / "clips.mp4", fps=10) as writer:
        for number in range(23):
            writer.write(picture(10, 14, number))
    return folder


def ids(source):
    return [item.item_id for item in source]


def test_the_room_can_be_called(folder):
    assert isinstance(vlascope.items(folder), ImageFolder)
    import vlascope as vs

    assert len(vs.items([RGB])) == 1


def test_each_kind_of_spec(folder, dataset):
    assert isinstance(open_items(dataset), LeRobotSource)
    assert isinstance(open_items(str(folder)), ImageFolder)
    assert isinstance(open_items(folder.parent / "clips.mp4"), VideoSource)
    assert ids(open_items(folder / "im3.png")) == ["im3.png"]
    assert ids(open_items(str(folder / "im[135].png"))) == ["im1.png", "im3.png", "im5.png"]
    assert len(open_items(str(folder.parent / "*.mp4"))) == 23
    assert isinstance(open_items([str(folder.parent / "clips.mp4")]), VideoSource)
    assert len(open_items(np.stack([RGB, RGB, RGB]))) == 3
    assert len(open_items(RGB)) == 1 and len(open_items(Image.fromarray(RGB))) == 1
    with pytest.raises(ItemError, match=r"'images:.*' *\) or video files \('video:"):
        open_items(folder.parent)
    assert isinstance(open_items(f"video:{folder.parent}"), VideoSource)
    assert len(open_items(f"images:{folder.parent}")) == 7
    for path in folder.iterdir():
        path.unlink()
    assert isinstance(open_items(folder.parent), VideoSource)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("im0.pn", ItemNotFoundError, r"Nearest: 'im0\.png'"),
        ("*.jpg", ItemNotFoundError, "matches 0 files"),
        ("../**/*", ItemError, "7 images and 1 videos"),
        ("notes.txt", ItemError, r"'\.txt'; need an image"),
        ("void", ItemError, "no images"),
    ],
)
def test_wrong_paths_are_named(folder, spec, error, message):
    (folder / "notes.txt").touch()
    (folder / "void").mkdir()
    with pytest.raises(error, match=message):
        open_items(str(folder / spec))


def test_wrong_values_and_options_are_named(folder, dataset):
    for spec, message in (
        ([], "empty list"),
        ([RGB, folder.parent / "clips.mp4"], "both videos"),
        (5, "is a int"),
    ):
        with pytest.raises((InputError, ItemError), match=message):
            open_items(spec)
    for spec in ("", " "):
        with pytest.raises(InputError, match="empty name"):
            open_items(spec)
    with pytest.raises(ItemNotFoundError, match="hf download lerobot/pusht"):
        open_items("lerobot/pusht")
    with pytest.raises(InputError, match="no time stamps"):
        open_items(folder, fps=3)
    with pytest.raises(InputError, match="LeRobot"):
        open_items(folder, camera="main")
    for option in ({"stride": 0}, {"limit": 0}, {"fps": 0}):
        with pytest.raises(InputError, match="need stride >= 1"):
            open_items(dataset, **option)
    for option in ({"stride": 1.5}, {"limit": 2.5}, {"stride": "2"}):
        with pytest.raises(InputError, match="need a whole number"):
            open_items(dataset, **option)


def test_stride_limit_and_fps(folder, dataset):
    assert ids(open_items(folder, stride=3)) == ["im0.png", "im3.png", "im6.png"]
    assert ids(open_items(folder, stride=3, limit=2)) == ["im0.png", "im3.png"]
    strided = open_items(dataset, stride=4)
    steps = [(item.episode, item.step) for item in strided]
    assert steps == [(e, t) for e, n in enumerate(LENGTHS) for t in range(0, n, 4)]
    assert strided.fps == 2.5
    video = open_items(folder.parent / "clips.mp4", fps=4)
    assert [item.step for item in video] == [0, 2, 5, 7, 10, 12, 15, 17, 20]
    assert video.fps == 4 and video[2].item_id == "clips.mp4/000005"
    assert len(open_items(folder.parent / "clips.mp4", fps=10)) == 23
    with pytest.raises(InputError, match=r"'clips\.mp4' has 10 frames per second, fewer than fps=100"):
        open_items(folder.parent / "clips.mp4", fps=100)
    with pytest.raises(InputError, match="'ep0000' has 10 frames per second, fewer than fps=11"):
        open_items(dataset, fps=11)
    assert len(open_items(dataset, limit=1000)) == sum(LENGTHS)
    assert strided.fingerprint() != open_items(dataset, stride=5).fingerprint()


def test_prompt_replaces_what_was_there(folder, dataset):
    item = Item(item_id="mine", images=(RGB,), prompt="own")
    given = ImageList([item])
    for spec in (dataset, folder, folder.parent / "clips.mp4", RGB, [item], item, given):
        source = open_items(spec, prompt="new", limit=2)
        assert source[0].prompt == "new"
        assert source.fingerprint() != open_items(spec, prompt="newer", limit=2).fingerprint()
    assert given[0].prompt == "own"


def test_camera(dataset):
    assert open_items(dataset, camera="wrist")[0].cameras == ("wrist",)


def test_demo_kinds(dataset):
    # The made-up episodes stand in for the embedded ones: 0 and 2 pick and succeed, 1 places and fails.
    chosen = {kind: {i.episode for i in open_demo(kind, root=dataset)} for kind in ("demo", "demo:success")}
    assert chosen == {"demo": {0, 1, 2}, "demo:success": {0, 2}}
    assert {i.episode for i in open_demo("demo:failure", root=dataset)} == {1}
    assert {i.episode for i in open_demo("demo:pick", root=dataset)} == {0, 2}
    assert {i.episode for i in open_demo("demo:place", root=dataset)} == {1}
    with pytest.raises(ItemNotFoundError, match="Nearest: 'pick'"):
        open_demo("demo:pik", root=dataset)


def test_missing_demo_says_so(tmp_path):
    with pytest.raises(ItemNotFoundError, match="no demo episodes"):
        open_demo("demo", root=tmp_path)


def test_a_folder_of_datasets_is_not_the_first_of_them(tmp_path):
    root = tmp_path / "data"
    write_rlds(root / "bridge" / "1.0.0", (2, 3))
    assert isinstance(open_items(root), RldsSource)  # nothing else is there
    (root / "voc" / "JPEGImages").mkdir(parents=True)
    (root / "voc" / "Annotations").mkdir()
    Image.fromarray(RGB).save(root / "voc" / "JPEGImages" / "1.png")
    with pytest.raises(
        ItemError, match=r"RLDS dataset \('rlds:.*bridge'\) or a VOC dataset \('voc:.*voc'\); write"
    ):
        open_items(root)
    (root / "bridge").rename(tmp_path / "bridge")
    assert isinstance(open_items(root), VocSource)
    (root / "loose").mkdir()
    Image.fromarray(RGB).save(root / "loose" / "1.png")
    with pytest.raises(ItemError, match=r"a VOC dataset \('voc:.*voc'\) or images \('images:.*data'\)"):
        open_items(root)


def test_the_run_of_this_folder_bears_its_name(folder, monkeypatch):
    from vlascope.cli.capture import default_out

    monkeypatch.chdir(folder)
    for data, name in (
        (".", "m-photos"),
        ("./", "m-photos"),
        ("sub/..", "m-photos"),
        ("../photos/", "m-photos"),
    ):
        assert default_out("org/m", data).as_posix() == f"runs/{name}", data
    assert default_out("mini-vla", "demo:pick").as_posix() == "runs/mini-vla-demo-pick"
