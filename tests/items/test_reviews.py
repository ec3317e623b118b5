from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from items_helpers import LENGTHS, picture, write_rlds
from PIL import Image

from vlascope.errors import InputError, ItemError, ItemNotFoundError, StorageError
from vlascope.files import MADE_NAME
from vlascope.items import (
    EpisodeSource,
    ReviewTable,
    export_curated,
    open_items,
    reviews_beside,
    units_of,
    with_reviews,
)
from vlascope.items._video import VideoWriter
from vlascope.items.contact import contact_sheet, sheet_format
from vlascope.items.reviews import _folder_lock, parse_where

KNOWN = [f"ep{i:04d}" for i in range(40)]


def test_last_review_counts_and_none_is_lost(tmp_path):
    table = ReviewTable(tmp_path / "deep" / "labels.csv")
    assert table.rows() == [] and table.current() == {}
    table.add(["ep0001", "ep0003"], review="failure", reason='it said "no",\nthen fell', known=KNOWN)
    table.add(["ep0003"], review="success", by="ann", known=KNOWN)
    assert [r.id for r in table.rows()] == ["ep0001", "ep0003", "ep0003"]
    current = table.current()
    assert current["ep0003"].review == "success" and current["ep0003"].by == "ann"
    assert current["ep0001"].reason == 'it said "no",\nthen fell' and current["ep0001"].time
    before = table.path.read_bytes()
    with pytest.raises(InputError, match=r"'ep004'.*Nearest.*Nothing was recorded"):
        table.add(["ep0005", "ep004"], review="drop", known=KNOWN)
    with pytest.raises(InputError, match="need one of success, failure, drop"):
        table.add(["ep0005"], review="great", known=KNOWN)
    assert table.path.read_bytes() == before and len(list(table.path.parent.iterdir())) == 1


def test_labellers_at_once_lose_no_row(tmp_path):
    code = (
        "import sys; from vlascope.items.reviews import ReviewTable\n"
        "t = ReviewTable(sys.argv[1]); k = [f'ep{i:04d}' for i in range(40)]\n"
        "for i in range(int(sys.argv[2]), 40, 2): t.add([k[i]], review='success', known=k)\n"
    )
    path = tmp_path / "labels.csv"
    command = [sys.executable, "-c", code, str(path)]
    workers = [subprocess.Popen([*command, str(start)]) for start in (0, 1)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert sorted(ReviewTable(path).current()) == KNOWN


def test_a_locked_folder_is_said(tmp_path):
    with _folder_lock(tmp_path, wait_secs=1), pytest.raises(StorageError, match=r"locked for 0\.05 s"):
        ReviewTable(tmp_path / "labels.csv").add(["ep0001"], review="drop", known=KNOWN, wait_secs=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "has the columns file, label"),
        ("id,review\nep0001,good\n", "line 2: id 'ep0001'"),
    ],
)
def test_other_tables_are_refused_and_kept(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ItemError, match=message):
        ReviewTable(path).add(["ep0001"], review="drop", known=KNOWN)
    assert path.read_text() == text


def test_filters():
    assert parse_where("success,drop") == {"success", "drop"}
    assert parse_where("not drop") == {"success", "failure", "unlabelled"}
    with pytest.raises(InputError, match="Nearest: 'success'"):
        parse_where("succes")


def test_episodes_are_chosen_whole_and_labelled(dataset, tmp_path):
    table = tmp_path / "t.csv"
    ReviewTable(table).add(["ep0000", "ep0002"], review="success", known=KNOWN)
    ReviewTable(table).add(["ep0001"], review="failure", reason="slipped", known=KNOWN)
    chosen = open_items(dataset, labels=table, where="success", fps=5)
    ids = [(item.episode, item.step) for item in chosen]
    assert ids == [(e, t) for e in (0, 2) for t in range(0, LENGTHS[e], 2)]
    whole = open_items(dataset, labels=table)
    item = whole[LENGTHS[0] + 2]
    assert item.labels["review"] == "failure" and item.labels["review_reason"] == "slipped"
    np.testing.assert_array_equal(item.image, open_items(dataset)[LENGTHS[0] + 2].image)
    assert item.labels.items() > open_items(dataset)[LENGTHS[0] + 2].labels.items()
    prints = {
        s.fingerprint()
        for s in (whole, open_items(dataset), open_items(dataset, labels=table, where="failure"))
    }
    assert len(prints) == 3
    with pytest.raises(InputError, match="keeps none of the 3"):
        open_items(dataset, labels=table, where="unlabelled")
    with pytest.raises(ItemNotFoundError, match="no table of labels"):
        open_items(dataset, labels=tmp_path / "none.csv", where="success")
    with pytest.raises(InputError, match="no place beside 'demo'"):
        open_items("demo", where="success")
    other = tmp_path / "other.csv"
    ReviewTable(other).add(["x"], review="drop", known=["x"])
    with pytest.raises(InputError, match="table of other data"):
        open_items(dataset, labels=other)


def test_curated_episodes_as_lerobot(dataset, tmp_path):
    table = tmp_path / "t.csv"
    ReviewTable(table).add(["ep0000", "ep0002"], review="success", reason="fine", known=KNOWN)
    old = open_items(dataset)
    out = export_curated(with_reviews(old, table, where="success"), tmp_path / "out", crf=0)
    new = open_items(out)
    assert new.episode_lengths == [LENGTHS[0], LENGTHS[2]] and new.fps == 10
    here, there = new[LENGTHS[0] + 4], old[LENGTHS[0] + LENGTHS[1] + 4]
    np.testing.assert_array_equal(here.state, there.state)
    np.testing.assert_array_equal(here.masks["segmentation"], there.masks["segmentation"])
    assert (
        here.cameras == there.cameras and here.prompt == there.prompt and here.mask_names == there.mask_names
    )
    close = [np.abs(a.astype(int) - b).max() for a, b in zip(here.images, there.images, strict=True)]
    assert max(close) <= 24  # colour is halved by the video
    known = {k: v for k, v in there.labels.items() if v is not None}
    assert here.labels == known | {"review": "success", "review_reason": "fine", "source_episode": "ep0002"}
    np.testing.assert_array_equal(new.poses(1)["gripper"], old.poses(2)["gripper"])
    with pytest.raises(StorageError, match="exists"):
        export_curated(old, tmp_path / "out")


def test_rlds_needs_a_frame_rate_to_be_written(tmp_path):
    write_rlds(tmp_path / "toy")
    source = open_items(tmp_path / "toy", camera="front")
    with pytest.raises(InputError, match="give fps"):
        export_curated(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    new = open_items(export_curated(source, tmp_path / "out", fps=5))
    assert new.episode_lengths == [5, 3, 7] and new[6].prompt == "task 1"
    np.testing.assert_array_equal(new[6].action, source[6].action)
    assert new[6].labels["source_episode"] == "train/ep0001" and new[6].labels["reward"] == pytest.approx(0.1)


def test_images_and_videos_are_copied_as_they_are(tmp_path):
    for name in ("b/x.png", "a/x.png", "y.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(7, 11)).save(tmp_path / "photos" / name)
    table = reviews_beside(tmp_path / "photos")
    assert table == tmp_path / "photos" / "labels.csv"
    ids = [unit.id for unit in units_of(open_items(tmp_path / "photos"))]
    ReviewTable(table).add(["b/x.png", "y.png"], review="success", known=ids)
    kept = open_items(tmp_path / "photos", where="success")
    assert [item.item_id for item in kept] == ["b/x.png", "y.png"]
    out = export_curated(kept, tmp_path / "out")
    for name in ("b/x.png", "y.png"):
        assert (out / name).read_bytes() == (tmp_path / "photos" / name).read_bytes()
    lines = (out / "items.csv").read_text().splitlines()
    assert lines[0].startswith("id,file,prompt,label.review") and len(lines) == 3
    assert not (out / "a").exists()

    for number in range(2):
        with VideoWriter(tmp_path / f"v{number}.mp4", fps=10) as writer:
            for step in range(4):
                writer.write(picture(10, 14, step))
    videos = open_items(str(tmp_path / "*.mp4"))
    ReviewTable(tmp_path / "v.csv").add(["v1.mp4"], review="drop", known=["v0.mp4", "v1.mp4"])
    out = export_curated(with_reviews(videos, tmp_path / "v.csv", where="not drop"), tmp_path / "kept")
    assert sorted(p.name for p in out.iterdir()) == [MADE_NAME, "items.csv", "v0.mp4"]
    assert reviews_beside(tmp_path / "v1.mp4") == tmp_path / "v1.mp4.labels.csv"


def test_contact_sheet_shows_every_episode(dataset, tmp_path):
    source = open_items(dataset)
    units = units_of(source)
    sheet = contact_sheet(source, units, captions=[u.id for u in units], n_thumbs=3, thumb_px=38)
    first = source[0].image  # 26 x 38: shown without scaling
    assert sheet.shape[1] == 3 * 42 + 4
    top = next(r for r in range(sheet.shape[0] - 26) if np.array_equal(sheet[r : r + 26, 4:42], first))
    last = source[LENGTHS[0] - 1].image
    np.testing.assert_array_equal(sheet[top : top + 26, 4 + 84 : 4 + 84 + 38], last)
    with pytest.raises(InputError, match="one sheet"):
        contact_sheet(source, [], captions=[])
    Image.fromarray(picture(7, 11)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    images = open_items(tmp_path)
    made = contact_sheet(images, units_of(images), captions=["a", "b"])
    assert (made == 160).all(axis=2).sum() > 1000  # the grey field of the one that cannot be read


def test_episodes_in_memory_and_simulated(tmp_path):
    from items_helpers import episodes

    source = EpisodeSource(episodes(), fps=10)
    assert source.episode_lengths == list(LENGTHS) and source[14].item_id == "ep0001/000001"
    assert source[14].time_secs == 0.1 and source[14].masks["segmentation"].shape == (26, 38)
    assert not EpisodeSource(episodes(), camera="wrist")[0].masks
    assert [i.step for i in open_items(source, fps=5, limit=3)] == [0, 2, 4]
    with pytest.raises(InputError, match="no simulated task 'pik'.*'pick'"):
        open_items("sim:pik")
    with pytest.raises(InputError, match="need a whole number"):
        open_items("sim:pick?n=two")
    pytest.importorskip("pybullet")
    played = open_items("sim:pick?n=1&seed=3&image_px=64")
    assert played[0].image.shape == (64, 64, 3) and played[0].labels["success"] is True
    assert played.fingerprint() == open_items("sim:pick?n=1&seed=3&image_px=64").fingerprint()


def test_a_sheet_draws_more_than_ascii(dataset):
    source = open_items(dataset)
    units = units_of(source)
    made = [
        contact_sheet(source, units, captions=[c, *"bc"], n_thumbs=1)
        for c in ("gr\u00fcn", "gr\u0451n", "gr\u03b1n")
    ]
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[1], made[2])


def test_a_sheet_is_what_its_name_says(tmp_path, dataset):
    from PIL import Image

    from vlascope.cli import main

    for name, form in (("s.jpg", "JPEG"), ("s.PNG", "PNG"), ("s.webp", "WEBP")):
        table = str(tmp_path / "labels.csv")
        main(["label", str(dataset), "--table", table, "--sheet", str(tmp_path / name), "--quiet"])
        with Image.open(tmp_path / name) as image:
            assert image.format == form
    assert sheet_format(tmp_path / "a.jpeg") == "JPEG"
    with pytest.raises(InputError, match=r"s\.pdf' for the sheet; its name must end in \.png, \.jpg"):
        sheet_format(tmp_path / "s.pdf")
