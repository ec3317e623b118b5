"""What is written for Rerun is read back as it was: every frame, on one time line, with a layout."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from vlascope.errors import InputError, MissingExtraError, SiteNotFoundError
from vlascope.measure import EpisodeSeries, Finding, keep
from vlascope.views import save_recording


def chunks(path):
    pytest.importorskip("rerun", reason="needs the extra `rerun`")
    reader = pytest.importorskip("rerun.chunk", reason="this rerun-sdk cannot read recordings").RrdReader(
        str(path)
    )
    found: dict[str, list] = {}
    for chunk in reader.stream():
        found.setdefault(chunk.entity_path, []).append(chunk)
    return reader, found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("rerun", reason="needs the extra `rerun`")
    from fakes import make_cut

    made = make_cut(tmp_path_factory.mktemp("recorded"), n_steps=5, rows=7, cols=11, n_vision=2, n_language=1,
                    wh=(132, 96), frame=(11.0, 6.0, 121.0, 90.0))  # fmt: skip
    made.run.info["content_sha256"] = "ab" * 16
    series = EpisodeSeries(episode=1, site="vision.1", items=(5, 6, 7, 8, 9), steps=(0, 1, 2, 3, 4),
                           change_points=(2,), anomaly=(0.1, 0.2, 0.3, 0.9, 0.4), threshold=0.5, alarm=3)  # fmt: skip
    keep(made.run, Finding(measure="monitor", title="t", verdict="v", rows=(), episodes=(series,)))
    return made, save_recording(made, tmp_path_factory.mktemp("out") / "deep" / "run.rrd")


def rows(found, entity):
    return sum(chunk.num_rows for chunk in found[entity])


def test_every_frame_is_there_on_both_time_lines(written):
    cut, path = written
    reader, found = chunks(path)
    n = cut.run.n_items
    assert len(reader.recordings()) == 1 and len(reader.blueprints()) == 1
    for entity in (
        "/cameras/main/image",
        "/cuts/vision.1/main",
        "/words/said",
        "/words/tokens",
        "/gripper/closed",
    ):
        assert rows(found, entity) == n, entity
        assert all(set(c.timeline_names) == {"frame", "time"} for c in found[entity])
    frames = np.concatenate(
        [c.to_record_batch().column("frame").to_numpy() for c in found["/gripper/closed"]]
    )
    assert sorted(frames.tolist()) == list(range(n))
    assert (
        rows(found, "/anomaly/score") == rows(found, "/anomaly/threshold") == 5
    )  # the second episode was scored
    scored = np.concatenate([c.to_record_batch().column("frame").to_numpy() for c in found["/anomaly/score"]])
    assert sorted(scored.tolist()) == [5, 6, 7, 8, 9]
    assert rows(found, "/log/episodes") == 2 and rows(found, "/log/measures") == 2
    assert [e for e in found if e.startswith("/action/")] and "/about" in found


def test_colours_lie_where_the_patches_are(written):
    from PIL import Image

    from vlascope.views.tokens import TokenIndex

    cut, path = written
    _, found = chunks(path)
    (first, *_) = found["/cuts/vision.1/main"]
    batch = first.to_record_batch()
    (name,) = (n for n in batch.schema.names if "blob" in n.lower())
    blob = np.asarray(batch.column(name)[0].values[0].values if hasattr(batch.column(name)[0].values[0], "values")
                      else batch.column(name)[0].values[0].as_py())  # fmt: skip
    if blob.dtype != np.uint8:
        blob = np.frombuffer(blob.tobytes(), np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(blob.tobytes())))
    frame = int(batch.column("frame")[0].as_py())
    (grid,) = TokenIndex(cut).patches("vision.1", frame)
    assert picture.shape == (96, 132, 3)
    for row, col in [(0, 0), (6, 10), (2, 7)]:
        x, y = 11 + (col + 0.5) * 10, 6 + (row + 0.5) * 12
        np.testing.assert_array_equal(picture[int(y), int(x)], cut.rgb[grid.index_rc[row, col]])


def test_bad_arguments(written, tmp_path, monkeypatch):
    cut, _ = written
    with pytest.raises(InputError, match=r"\.rrd"):
        save_recording(cut, tmp_path / "run.mcap")
    with pytest.raises(SiteNotFoundError):
        save_recording(cut, tmp_path / "run.rrd", sites=["vision.9"])
    with pytest.raises(InputError, match="K=4"):
        save_recording(cut, tmp_path / "run.rrd", k=4)
    with pytest.raises(InputError, match="episode 7"):
        save_recording(cut, tmp_path / "run.rrd", episodes=[7])
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(MissingExtraError, match=r"vlascope\[rerun\]"):
        save_recording(cut, tmp_path / "run.rrd")
