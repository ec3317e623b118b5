from __future__ import annotations

import copy
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from items_helpers import ACTION_NAMES, FPS, LENGTHS, STATE_NAMES, episodes

from vlascope.errors import InputError, ItemError, ItemNotFoundError
from vlascope.items import LeRobotSource, write_lerobot
from vlascope.items._video import VideoWriter

VIDEO = "videos/observation.images.main/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def damaged(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "set")


def check_all(source, *, with_sidecar=True, exact=False):
    """Every item of `source` holds what was written."""
    assert len(source) == sum(LENGTHS)
    index = 0
    for number, ep in enumerate(episodes()):
        for step in range(ep.n_frames):
            item = source[index]
            index += 1
            assert item.item_id == f"ep{number:04d}/{step:06d}"
            assert (item.episode, item.step, item.prompt) == (number, step, ep.task)
            assert item.time_secs == pytest.approx(step / FPS)
            np.testing.assert_array_equal(item.state, ep.state[step])
            np.testing.assert_array_equal(item.action, ep.action[step])
            assert item.cameras == ("main", "wrist")
            for image, camera in zip(item.images, item.cameras, strict=True):
                off = np.abs(image.astype(int) - ep.frames[camera][step]).mean()
                assert off == 0 if exact else off < 4, (item.item_id, camera, off)
            if with_sidecar:
                np.testing.assert_array_equal(item.masks["segmentation"], ep.masks[step])
                assert item.mask_names["segmentation"] == ep.mask_names
                expected = {k: v for k, v in ep.labels.items() if v is not None}
                expected |= {"holding": step >= 3, "force": pytest.approx(ep.frame_labels["force"][step])}
                assert item.labels == expected | {"event.grasp": 3}


def test_what_is_written_is_read(dataset):
    source = LeRobotSource(dataset)
    assert source.fps == FPS and source.cameras == ("main", "wrist")
    assert source.action_names == tuple(ACTION_NAMES) and source.state_names == tuple(STATE_NAMES)
    assert [e.length for e in source.episodes] == list(LENGTHS)
    check_all(source)
    np.testing.assert_array_equal(source.poses(1)["gripper"], episodes()[1].poses["gripper"])


def test_random_access_equals_reading_in_order(dataset):
    in_order = [item.image for item in LeRobotSource(dataset)]
    source = LeRobotSource(dataset)
    for index in np.random.default_rng(0).permutation(len(source)):
        np.testing.assert_array_equal(source[int(index)].image, in_order[index])


def test_several_episodes_in_one_row_group(damaged):
    """Other tools write the whole file as one row group, not always in order."""
    table = pq.read_table(damaged / DATA)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), damaged / DATA)
    assert pq.ParquetFile(damaged / DATA).num_row_groups == 1
    check_all(LeRobotSource(damaged))


def test_images_without_video_are_exact(tmp_path):
    options = {"fps": FPS, "state_names": STATE_NAMES, "action_names": ACTION_NAMES}
    out = write_lerobot(tmp_path / "set", episodes(), video=False, sidecar=False, **options)
    assert not (out / "videos").exists() and not (out / "vlascope").exists()
    cell = pq.read_schema(out / "data/chunk-000/file-000.parquet").field("observation.images.main").type
    assert cell == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    check_all(LeRobotSource(out), with_sidecar=False, exact=True)


def write_v21(root, *, names):
    """A LeRobot v2.1 dataset of the same episodes, made by hand after the description of the format."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    video = {"dtype": "video", "names": ["height", "width", "channel"]}
    features = {f"observation.images.{c}": video | {"shape": [1, 1, 3]} for c in ("main", "wrist")}
    features["observation.state"] = {"dtype": "float32", "shape": [5], "names": {"motors": STATE_NAMES}}
    features["action"] = {"dtype": "float32", "shape": [3], "names": names}
    depth = {"dtype": "video", "shape": [1, 1, 1], "names": None, "info": {"video.is_depth_map": True}}
    features["observation.images.depth"] = depth
    info = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "chunks_size": 2,
        "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (meta / "info.json").write_text(json.dumps(info))
    tasks = list(dict.fromkeys(e.task for e in episodes()))
    lines = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(tasks)]
    (meta / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    lines = [
        json.dumps({"episode_index": i, "tasks": [e.task], "length": e.n_frames})
        for i, e in enumerate(episodes())
    ]
    (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    start = 0
    for number, ep in enumerate(episodes()):
        n, chunk = ep.n_frames, f"chunk-{number // 2:03d}"
        columns = {
            "observation.state": pa.array(ep.state.tolist(), pa.list_(pa.float32())),
            "action": pa.array(ep.action.tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(n) / FPS, pa.float32()),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, number),
            "index": np.arange(start, start + n),
            "task_index": np.full(n, tasks.index(ep.task)),
        }
        start += n
        path = root / f"data/{chunk}/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        for camera, frames in ep.frames.items():
            path = root / f"videos/{chunk}/observation.images.{camera}/episode_{number:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with VideoWriter(path, fps=FPS) as writer:
                for frame in frames:
                    writer.write(frame)
    return root


def test_v21(tmp_path):
    source = LeRobotSource(write_v21(tmp_path / "old", names=None))
    assert source.cameras == ("main", "wrist")  # without the depth camera
    assert source.state_names == tuple(STATE_NAMES) and source.action_names == ("0", "1", "2")
    check_all(source, with_sidecar=False)


def test_choosing_cameras_and_episodes(dataset):
    source = LeRobotSource(dataset, camera="wrist", episodes=[2, 0])
    assert len(source) == LENGTHS[2] + LENGTHS[0]
    item = source[1]
    assert item.item_id == "ep0002/000001" and item.cameras == ("wrist",) and item.image.shape == (22, 18, 3)
    assert not item.masks  # they are in the pixels of the other camera
    assert source[LENGTHS[2]].item_id == "ep0000/000000"
    assert LeRobotSource(dataset, camera=["wrist", "observation.images.main"])[0].cameras == ("wrist", "main")
    with pytest.raises(InputError, match=r"no camera 'wrst'.*Nearest: 'wrist'"):
        LeRobotSource(dataset, camera="wrst")
    with pytest.raises(InputError, match=r"no episode 3; it has 3, 0\.\.2"):
        LeRobotSource(dataset, episodes=[3])


def test_a_copy_or_pickle_starts_with_no_open_file(dataset):
    source = LeRobotSource(dataset)
    want = source[20].image
    for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert len(other._readers) == 0
        np.testing.assert_array_equal(other[20].image, want)


def test_fingerprint_follows_content_not_place(dataset, damaged):
    same = LeRobotSource(damaged).fingerprint()
    assert same == LeRobotSource(dataset).fingerprint()
    assert same != LeRobotSource(dataset, camera="main").fingerprint()
    assert same != LeRobotSource(dataset, episodes=[0, 1]).fingerprint()
    stats = json.loads((damaged / "meta/stats.json").read_text())
    stats["action"]["mean"][0] += 1
    (damaged / "meta/stats.json").write_text(json.dumps(stats))
    assert same != LeRobotSource(damaged).fingerprint()


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda d: (d / VIDEO).unlink(), ItemNotFoundError, "file-000.mp4.*missing"),
        (lambda d: (d / VIDEO).write_bytes(b"version https://git-lfs"), ItemError, "cannot be opened"),
        (lambda d: (d / DATA).write_bytes(b"PAR1"), ItemError, r"file-000\.parquet' cannot be read"),
        (lambda d: (d / DATA).unlink(), ItemNotFoundError, r"file-000\.parquet'.*missing"),
        (lambda d: (d / "meta/info.json").write_text("{"), ItemError, r"info\.json' cannot be read"),
        (
            lambda d: (d / "meta/info.json").write_text("[1]"),
            ItemError,
            r"info\.json' is a list; need an object",
        ),
        (lambda d: (d / "meta/info.json").write_text("{}"), ItemError, "lacks codebase_version"),
        (lambda d: (d / "meta/info.json").unlink(), ItemError, "no LeRobot dataset"),
        (lambda d: (d / "meta/tasks.parquet").unlink(), ItemError, r"tasks\.parquet' cannot be read"),
        (lambda d: shutil.rmtree(d / "meta/episodes"), ItemError, "meta/episodes"),
        (lambda d: (d / "vlascope/masks/episode_000000.npz").write_bytes(b"PK"), ItemError, "the masks"),
        (lambda d: (d / "vlascope/sidecar.json").write_text('{"schema_version": 9}'), ItemError, "schema 9"),
        (lambda d: shutil.rmtree(d), ItemNotFoundError, "no dataset folder"),
    ],
)
def test_damage_is_named(damaged, break_it, error, message):
    break_it(damaged)
    with pytest.raises(error, match=message):
        LeRobotSource(damaged)[0]


def test_newer_and_older_versions_are_refused(damaged):
    path = damaged / "meta/info.json"
    info = json.loads(path.read_text())
    for version in ("v1.6", "v4.0"):
        path.write_text(json.dumps(info | {"codebase_version": version}))
        with pytest.raises(ItemError, match=version):
            LeRobotSource(damaged)


def test_a_video_shorter_than_meta_says_is_an_error_not_another_frame(damaged):
    with VideoWriter(damaged / "short.mp4", fps=FPS) as writer:
        for frame in episodes()[0].frames["main"][:9]:
            writer.write(frame)
    (damaged / "short.mp4").replace(damaged / VIDEO)
    source = LeRobotSource(damaged)
    assert source[8].step == 8
    with pytest.raises(ItemError, match="no frame near 0.9"):
        source[9]
