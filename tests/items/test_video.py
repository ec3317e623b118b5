from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from items_helpers import picture

from vlascope.errors import ItemError, ItemNotFoundError
from vlascope.items import VideoSource
from vlascope.items._video import VideoReader, VideoWriter, convert

N_FRAMES = 47
FRAMES = [picture(50, 66, t) for t in range(N_FRAMES)]

CODECS = {
    "h264-b.mp4": ("libx264", {"g": "12", "bf": "3"}),
    "h264-open-gop.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=9:bframes=3:b-pyramid=normal"}),
    "av1.mp4": ("libsvtav1", {"g": "16", "preset": "10", "svtav1-params": "lp=1"}),
    "vp9.webm": ("libvpx-vp9", {"g": "15", "cpu-used": "8"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "h264.ts": ("libx264", {"g": "12"}),
}


def encode(path, codec, options, *, stamps=None, muxer=None):
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV on this machine has no encoder {codec}")
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 66, 50, "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        for number, image in enumerate(FRAMES):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", CODECS)
def test_random_access_is_exact(tmp_path, name):
    path = encode(tmp_path / name, *CODECS[name])
    with av.open(str(path)) as container:  # the slow reference: decode everything once, in order
        slow = [convert(frame, "rgb24").to_ndarray() for frame in container.decode(video=0)]
    assert len(slow) == N_FRAMES
    reader = VideoReader(path, keep=1)
    assert len(reader) == N_FRAMES
    np.testing.assert_allclose(reader.times_secs, np.arange(N_FRAMES) / 10, atol=2e-3)
    order = [*range(N_FRAMES), *np.random.default_rng(3).permutation(N_FRAMES), *range(N_FRAMES - 1, -1, -1)]
    for number in order:
        np.testing.assert_array_equal(reader.read(int(number)), slow[number], err_msg=f"frame {number}")
    reader.close()


def test_frames_are_the_right_ones_and_colours_are_kept(tmp_path):
    flat = np.zeros((40, 60, 3), np.uint8)
    flat[:, :20], flat[:, 20:40], flat[:, 40:] = (200, 30, 40), (20, 160, 60), (30, 60, 220)
    with VideoWriter(tmp_path / "a.mp4", fps=10) as writer:
        for image in (flat, flat[:, ::-1]):
            writer.write(image)
    reader = VideoReader(tmp_path / "a.mp4")
    for number, want in enumerate((flat, flat[:, ::-1])):
        got = reader.read(number).astype(int)
        for column in (8, 30, 52):  # away from the edges, where halved colour planes blend
            assert np.abs(got[:, column] - want[:, column]).max() <= 4
    reader.close()


def test_reading_in_order_decodes_each_frame_once(tmp_path, monkeypatch):
    reader = VideoReader(encode(tmp_path / "a.mp4", "libx264", {"g": "12", "sc_threshold": "0"}))
    seeks = []
    seek = reader._seek
    monkeypatch.setattr(reader, "_seek", lambda key: (seeks.append(key), seek(key)))
    for number in range(10):
        reader.read(number)
    assert seeks == [0]
    for number in (9, 8, 7, 10, 11):  # the last ones are kept, then it goes on
        reader.read(number)
    assert seeks == [0]
    reader.read(40)
    assert seeks == [0, 36]
    reader.close()


def test_source(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264", {})
    other = encode(tmp_path / "b.mp4", "libx264", {})
    source = VideoSource([path, other], prompt="go")
    assert len(source) == 2 * N_FRAMES and source.fps == 10
    item = source[N_FRAMES + 5]
    assert (item.item_id, item.episode, item.step) == ("b.mp4/000005", 1, 5)
    assert (item.time_secs, item.prompt, item.source) == (pytest.approx(0.5), "go", str(other))
    assert np.abs(item.image.astype(int) - FRAMES[5]).mean() < 6


def test_uneven_time_stamps_are_kept(tmp_path):
    stamps = np.cumsum([0, *([1, 3, 2] * N_FRAMES)])[:N_FRAMES].tolist()
    reader = VideoReader(encode(tmp_path / "a.mp4", "libx264", {"bf": "0"}, stamps=stamps))
    np.testing.assert_allclose(reader.times_secs, np.array(stamps) / 10, atol=1e-6)
    assert [reader.number_at(t) for t in (-1, 0.04, 0.06, 0.24, 0.26, 1e9)] == [0, 0, 1, 1, 2, N_FRAMES - 1]
    reader.close()


def test_damage_is_named(tmp_path):
    whole = encode(tmp_path / "a.mp4", "libx264", {"movflags": "+faststart"}).read_bytes()
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "head.mp4").write_bytes(whole[:200])
    for name in ("text.mp4", "empty.mp4", "head.mp4"):
        with pytest.raises(ItemError, match=name):
            VideoSource(tmp_path / name)
    with pytest.raises(ItemNotFoundError, match=r"gone\.mp4"):
        VideoSource(tmp_path / "gone.mp4")
    with pytest.raises(ItemError, match="empty list"):
        VideoSource([])
    (tmp_path / "sound.mp4").write_bytes(whole)
    reader = VideoReader(tmp_path / "a.mp4")
    with pytest.raises(IndexError, match=r"0\.\.46"):
        reader.read(47)
    reader.close()


@pytest.mark.parametrize(
    ("name", "codec", "movflags"),
    [
        ("a.mp4", "libx264", "+faststart"),
        ("a.mp4", "libx264", "+frag_keyframe+empty_moov"),
        ("a.avi", "mpeg4", ""),
    ],
)
def test_an_interrupted_copy_is_not_a_shorter_video(tmp_path, name, codec, movflags):
    path = encode(tmp_path / name, codec, {"g": "12"}, muxer={"movflags": movflags} if movflags else {})
    whole = path.read_bytes()
    assert len(VideoReader(path)) == N_FRAMES
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    says = (
        "header says 47 frames, of which {} are there" if "faststart" in movflags else "ends within frame {}"
    )
    for n_left in (31, 46):
        path.write_bytes(whole[: places[n_left][0] + places[n_left][1] // 2])
        with pytest.raises(ItemError, match=rf"{name}' is not complete.*{says.format(n_left)}"):
            VideoSource(path)
    if "faststart" in movflags:
        path.write_bytes(whole[: places[31][0]])
        with pytest.raises(ItemError, match="says 47 frames, of which 31"):
            VideoSource(path)
        good = encode(tmp_path / "good.mp4", codec, {})
        source = VideoSource([path, good], on_error="skip")
        assert len(source) == N_FRAMES and source.skipped[0].name == str(path)


def test_frames_that_are_cut_away_or_dropped_are_not_missing(tmp_path):
    # An edit list (ffmpeg -ss 0.5 -c copy) hides frames that the file holds; AVI counts those that were dropped.
    with av.open(str(encode(tmp_path / "a.mp4", "libx264", {"g": "12"}))) as old:
        with av.open(str(tmp_path / "trim.mp4"), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is None or packet.pts is None:
                    continue
                early = int(Fraction(1, 2) / old.streams.video[0].time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, stream
                new.mux(packet)
    assert len(VideoReader(tmp_path / "trim.mp4")) == N_FRAMES - 5
    gap = [n if n < 20 else n + 7 for n in range(N_FRAMES)]
    assert len(VideoReader(encode(tmp_path / "gap.avi", "mpeg4", {}, stamps=gap))) == N_FRAMES


def test_broken_middle_is_an_error_not_another_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264", {"bf": "0", "g": "6"})
    size = path.stat().st_size
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    position, length = packets[20]
    data[position : position + length] = bytes([255]) * length
    path.write_bytes(bytes(data))
    assert path.stat().st_size == size
    reader = VideoReader(path)
    reader.read(3)
    with pytest.raises(ItemError, match=r"a\.mp4.*frame 20"):
        reader.read(20)
    reader.read(40)
    reader.close()


def test_real_rollout(real_data):
    source = VideoSource(real_data / "libero_rollout.mp4")
    assert len(source) == 220 and source.fps == 10 and source[219].image.shape == (448, 448, 3)
    far = source[150].image
    for index in range(144, 150):
        source[index]
    np.testing.assert_array_equal(source[150].image, far)
