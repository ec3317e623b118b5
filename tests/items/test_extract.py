from __future__ import annotations

import csv

import numpy as np
import pytest
from items_helpers import picture

from vlascope.errors import InputError, ItemError, StorageError
from vlascope.items import VideoSource, extract_frames, open_items, read_image
from vlascope.items._video import VideoWriter
from vlascope.items.extract import parse_every


@pytest.fixture
def clip(tmp_path):
    with VideoWriter(tmp_path / "my clip.mp4", fps=10) as writer:
        for step in range(23):
            writer.write(picture(10, 14, step))
    return VideoSource(tmp_path / "my clip.mp4")


@pytest.mark.parametrize(
    ("every", "steps"),
    [("0.5s", [0, 5, 10, 15, 20]), ("700ms", [0, 7, 14, 21]), ("9f", [0, 9, 18]), ("10ms", list(range(23)))],
)
def test_frames_and_their_times(clip, tmp_path, every, steps):
    paths = extract_frames(clip, tmp_path / "out", every=every)
    assert [path.name for path in paths] == [f"my_clip-{step:06d}.png" for step in steps]
    np.testing.assert_array_equal(read_image(paths[-1]), clip[steps[-1]].image)
    rows = list(csv.DictReader((tmp_path / "out" / "frames.csv").read_text().splitlines()))
    assert [float(row["time_secs"]) for row in rows] == pytest.approx([step / 10 for step in steps])
    with pytest.raises(StorageError, match="exists"):
        extract_frames(clip, tmp_path / "out")


@pytest.mark.parametrize("text", ["5", "0s", "-1s", "1.5f", "fast"])
def test_wrong_intervals(text):
    with pytest.raises(InputError, match="need seconds"):
        parse_every(text)


def test_broken_videos_are_skipped_only_if_asked(clip, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ItemError, match="broken.mp4"):
        open_items(tmp_path)
    source = open_items(tmp_path, on_error="skip")
    assert len(source) == 23 and source.skipped[0].name.endswith("broken.mp4")
    missing = open_items([clip.paths[0], tmp_path / "gone.mp4"], on_error="skip")
    assert len(missing) == 23 and "no video file" in missing.skipped[0].reason
