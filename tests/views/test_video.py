from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.views import video
from vlascope.views.robot import episode_track
from vlascope.views.tokens import TokenIndex
from vlascope.views.video import _pace, _timing, video_panel_size

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def clip(cut):
    return video(cut, episode=1, panel_width=224)


def read(data, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        about = (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height, dict(file.metadata))
        frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    return about, frames


def test_plays_in_browsers_and_says_what_it_is(clip, tmp_path):
    (codec, pix_fmt, width, height, metadata), frames = read(clip.data, tmp_path)
    assert (codec, pix_fmt) == ("h264", "yuv420p")
    assert (width, height) == (clip.width, clip.height) and width % 2 == 0 and height % 2 == 0
    assert len(frames) == clip.n_frames == 8
    assert json.loads(metadata["comment"])["episode"] == 1
    assert clip.data.index(b"moov") < clip.data.index(b"mdat")  # the index first: plays before all is read


def test_colours_lie_where_the_patches_are(cut, clip, tmp_path):
    _, frames = read(clip.data, tmp_path)
    index = TokenIndex(cut)
    (grid,) = index.patches("vision.2", 8 + 5)
    colors = grid.values(cut.rgb).astype(int)
    x0, y0, patch = 16 + 224 + 8, 16 + 17 + 4, 16  # second panel; a 112 px frame is enlarged twice
    centres = frames[5][y0 + 8 : y0 + 192 : patch, x0 + 8 : x0 + 224 : patch].astype(int)
    assert centres.shape == colors.shape
    assert np.abs(centres - colors).mean() < 8  # lossy, and colour has half the resolution


def test_same_cut_gives_the_same_pictures(cut, clip):
    """The encoder itself may differ by a few bytes now and then (tests/QUARANTINE.md): pictures are compared."""
    again = _frames(video(cut, episode=1, panel_width=224).data)
    first = _frames(clip.data)
    assert again.shape == first.shape
    assert np.abs(again - first).mean() < 1.0


def _frames(data):
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24").astype(float) for f in container.decode(video=0)])


def test_speed_is_stated_and_used(cut):
    assert video(cut, episode=0, panel_width=112, speed=1).fps == pytest.approx(10)
    assert video(cut, episode=0, panel_width=112).fps == pytest.approx(2.5)


def test_an_unknown_rate_is_not_called_a_speed(cut):
    track = episode_track(cut.run, episode=0, items=range(8))
    assert _pace(track, 5.0, 0.5) == "played at 0.5 x real time" and _pace(track, 10.0, 1.0) == ""
    timeless = dataclasses.replace(track, times=(float("nan"),) * 8)
    assert _timing(timeless, None) == (2.0, 0.4)
    assert _pace(timeless, 2.0, 0.4) == "2 frames a second"


def test_every_camera_has_a_row(tmp_path):
    from fakes import make_cut

    both = make_cut(tmp_path, n_steps=2, n_episodes=1, n_vision=1, n_language=0, cameras=("front", "wrist"))
    clip = video(both, panel_width=224)
    frame = _frames(clip.data)[1]
    index = TokenIndex(both)
    assert clip.params["cameras"] == ["front", "wrist"]
    # Second row: 37 px above the first, then a 192 px panel, 8 px, a 21 px title; the wrist camera is half as wide,
    # so enlarged four times.
    grid = next(g for g in index.patches("vision.0", 1) if g.camera == 1)
    colors = grid.values(both.rgb).astype(int)
    x0, y0 = 16 + 224 + 8, 37 + 192 + 8 + 21
    centres = frame[y0 + 16 : y0 + 384 : 32, x0 + 8 : x0 + 224 : 16].astype(int)
    assert centres.shape == colors.shape and np.abs(centres - colors).mean() < 10


def test_long_instructions_and_answers_wrap(tmp_path):
    from fakes import make_cut

    long = make_cut(tmp_path, n_steps=2, n_episodes=1, n_vision=1, n_language=0, prompt="put it there " * 40)
    short = make_cut(tmp_path, n_steps=2, n_episodes=1, n_vision=1, n_language=0)
    assert video(long, panel_width=112).height > video(short, panel_width=112).height


@pytest.mark.parametrize(
    ("wh", "expected"), [((112, 96), (448, 384)), ((640, 480), (448, 336)), ((300, 200), (300, 200))]
)
def test_small_frames_grow_by_whole_factors(wh, expected):
    assert video_panel_size(wh, width=448) == expected


def test_bad_arguments(cut, clip, tmp_path):
    with pytest.raises(InputError, match="episode 7"):
        video(cut, episode=7)
    with pytest.raises(InputError, match="speed"):
        video(cut, episode=0, speed=0)
    with pytest.raises(InputError, match=r"\.mp4"):
        clip.save(tmp_path / "clip.avi")
