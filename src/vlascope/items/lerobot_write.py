"""Writing LeRobot v3.0 datasets: Parquet, H.264 video, statistics, and our sidecar of masks and labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import new_folder, write_json
from ._sidecar import SidecarWriter
from ._stats import ImageStats, VectorStats
from ._video import VideoWriter

CODEBASE_VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
IMAGE_PREFIX = "observation.images."
CHUNK_FILES = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200


@dataclass(frozen=True, kw_only=True)
class EpisodeData:
    """One recorded episode of T >= 1 frames.

    Attributes:
        frames: For each camera uint8 [T, h, w, 3], RGB; every episode has the same cameras and sizes.
        state: Robot state, float32 [T, n].
        action: Action taken at each frame, float32 [T, m].
        task: Instruction.
        masks: Segmentation of the first camera, uint8 or uint16 [T, h, w], 0 = nothing; None when unknown.
        mask_names: What each integer of `masks` means.
        labels: Facts about the episode (success, failure, target, ...), JSON scalars.
        frame_labels: Facts about each frame, arrays [T].
        poses: Positions and the like, float32 [T, k] by name.
        events: Step at which something happened (grasp, lift, release), 0 <= step < T.
    """

    frames: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    task: str
    masks: NDArray[np.integer] | None = None
    mask_names: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    frame_labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    poses: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_frames(self) -> int:
        """Number of frames T."""
        return len(self.action)


def write_lerobot(
    out: Path | str,
    episodes: Iterable[EpisodeData],
    *,
    fps: int,
    state_names: Sequence[str],
    action_names: Sequence[str],
    robot_type: str = "franka_panda",
    video: bool = True,
    sidecar: bool = True,
    crf: int = 16,
    force: bool = False,
    apart: Iterable[Path | str] = (),
) -> Path:
    """Write episodes as a LeRobot v3.0 dataset and return its folder.

    The dataset appears under its name only when it is whole: an exception or a kill leaves `out` as it was.
    Episodes are taken one at a time, so memory does not grow with their number (but for about 1 kB each).
    Video is H.264 and lossy (see `crf`); masks are exact. Sizes that are odd are written as yuv444p, which not
    every browser plays. The same episodes give the same bytes on the same machine.

    Args:
        out: Folder to make.
        episodes: At least one; all with the same cameras, image sizes, state and action widths.
        fps: Frames per second, a whole number.
        state_names: One name per state value.
        action_names: One name per action value.
        robot_type: Name for `meta/info.json`.
        video: True writes mp4; False writes the images without loss (PNG) into the Parquet files.
        sidecar: Write masks, labels, poses and events to `vlascope/`.
        crf: H.264 quality, 0 (lossless) to 51.
        force: Replace a folder that vlascope wrote.
        apart: What the episodes come from; it is never replaced.

    Raises:
        InputError: no episode, or one that does not fit (shapes, NaN, another camera set).
        StorageError: `out` exists and `force` is False, or it cannot be written.
    """
    out = Path(out)
    if isinstance(fps, bool) or int(fps) != fps or fps < 1:
        raise InputError(f"fps is {fps!r}; LeRobot needs a whole number of at least 1.")
    with new_folder(out, force=force, apart=apart) as temp, ExitStack() as stack:
        writer = _DatasetWriter(
            temp,
            fps=int(fps),
            names={"observation.state": list(state_names), "action": list(action_names)},
            robot_type=robot_type,
            video=video,
            sidecar=sidecar,
            crf=crf,
        )
        stack.callback(writer.close_files)
        for episode in episodes:
            writer.add(episode)
        writer.finish()
    return out


@dataclass
class _FileSlot:
    """Which file of a numbered series is being written: (chunk, file), a new one when the last is full."""

    chunk: int = 0
    file: int = 0

    def advance(self) -> None:
        self.file += 1
        if self.file == CHUNK_FILES:
            self.chunk, self.file = self.chunk + 1, 0


class _DatasetWriter:
    """State of a dataset being written; see `write_lerobot`."""

    def __init__(
        self,
        root: Path,
        *,
        fps: int,
        names: dict[str, list[str]],
        robot_type: str,
        video: bool,
        sidecar: bool,
        crf: int,
    ) -> None:
        self.root, self.fps, self.names, self.crf = root, fps, names, crf
        self.robot_type, self.is_video = robot_type, video
        self.sidecar = SidecarWriter(root) if sidecar else None
        self.sizes: dict[str, tuple[int, int]] = {}  # camera -> height, width
        self.pix_fmt: dict[str, str] = {}
        self.tasks: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.stats: dict[str, ImageStats | VectorStats] = {}
        self.n_frames = 0
        self.data_writer: Any = None
        self.data_slot = _FileSlot()
        self.video_writers: dict[str, VideoWriter] = {}
        self.video_slots: dict[str, _FileSlot] = {}

    def add(self, episode: EpisodeData) -> None:
        index = len(self.rows)
        self._check(episode, index)
        task_index = self.tasks.setdefault(episode.task, len(self.tasks))
        n = episode.n_frames
        frame_index = np.arange(n, dtype=np.int64)
        columns: dict[str, NDArray[Any]] = {
            "observation.state": np.asarray(episode.state, np.float32),
            "action": np.asarray(episode.action, np.float32),
            "timestamp": (frame_index / self.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(n, index, np.int64),
            "index": frame_index + self.n_frames,
            "task_index": np.full(n, task_index, np.int64),
        }
        self._write_data(columns, episode)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode.task],
            "length": n,
            "data/chunk_index": self.data_slot.chunk,
            "data/file_index": self.data_slot.file,
            "dataset_from_index": self.n_frames,
            "dataset_to_index": self.n_frames + n,
        }
        for camera, frames in episode.frames.items():
            key = IMAGE_PREFIX + camera
            if self.is_video:
                row |= self._write_video(key, frames)
            self._add_stats(row, key, ImageStats(), frames)
        for name, values in columns.items():
            self._add_stats(row, name, VectorStats(), values)
        self.rows.append(row)
        self.n_frames += n
        if self.sidecar is not None:
            self.sidecar.add(
                index,
                n_frames=n,
                labels=episode.labels,
                events=episode.events,
                mask_names=episode.mask_names,
                masks=episode.masks,
                frame_labels=episode.frame_labels,
                poses=episode.poses,
            )

    def _add_stats(
        self, row: dict[str, Any], name: str, mine: ImageStats | VectorStats, values: NDArray[Any]
    ) -> None:
        mine.add(values)
        self.stats.setdefault(name, type(mine)()).add(values)
        for stat, value in mine.result().items():
            row[f"stats/{name}/{stat}"] = value

    def _check(self, episode: EpisodeData, index: int) -> None:
        def need(fine: bool, got: str, wanted: str) -> None:
            if not fine:
                raise InputError(f"episode {index}: got {got}; need {wanted}.")

        n = episode.n_frames
        need(n > 0, "no frame", "at least one")
        need(bool(episode.task.strip()), "an empty task", "an instruction")
        need(bool(episode.frames), "no camera", "at least one")
        for name, values in (("observation.state", episode.state), ("action", episode.action)):
            shape = (n, len(self.names[name]))
            need(np.shape(values) == shape, f"{name} of shape {np.shape(values)}", f"{shape}")
            need(bool(np.isfinite(values).all()), f"NaN or infinity in {name}", "finite numbers")
        sizes: dict[str, tuple[int, int]] = {}
        for camera, frames in episode.frames.items():
            need("/" not in camera, f"a camera named '{camera}'", "a name without '/'")
            fine = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
            fine = fine and len(frames) == n and 0 not in frames.shape
            need(fine, f"camera '{camera}' {frames.dtype} {frames.shape}", f"uint8 [{n}, height, width, 3]")
            sizes[camera] = frames.shape[1:3]
        self.sizes = self.sizes or sizes
        need(sizes == self.sizes, f"cameras (height, width) {sizes}", f"{self.sizes} as in episode 0")
        if episode.masks is not None:
            shape = (n, *next(iter(sizes.values())))
            fine = episode.masks.shape == shape and episode.masks.dtype in (np.uint8, np.uint16)
            need(fine, f"masks {episode.masks.dtype} {episode.masks.shape}", f"uint8 or uint16 {shape}")
        for name, values in (*episode.frame_labels.items(), *episode.poses.items()):
            need(len(values) == n, f"{len(values)} values of '{name}'", f"one per frame ({n})")
        both = sorted(set(episode.labels) & set(episode.frame_labels))
        need(not both, f"{both} as a label of both episode and frame", "different names")
        for name, step in episode.events.items():
            need(0 <= step < n, f"event '{name}' at step {step}", f"a step in 0..{n - 1}")

    def _write_data(self, columns: Mapping[str, NDArray[Any]], episode: EpisodeData) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays: dict[str, Any] = {}
        if not self.is_video:
            for camera, frames in episode.frames.items():
                arrays[IMAGE_PREFIX + camera] = _png_column(frames)
        for name, values in columns.items():
            if values.ndim == 2 and values.shape[1] > 1:
                flat = pa.array(np.ascontiguousarray(values).reshape(-1))
                arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            else:  # LeRobot stores features of shape (1,) as plain columns
                arrays[name] = pa.array(values.reshape(-1))
        table = pa.table(arrays)
        if self.data_writer is not None and self._data_path().stat().st_size > DATA_FILE_MB << 20:
            self._close_data()
            self.data_slot.advance()
        if self.data_writer is None:
            self._data_path().parent.mkdir(parents=True, exist_ok=True)
            self.data_writer = pq.ParquetWriter(self._data_path(), table.schema, compression="snappy")
        self.data_writer.write_table(table, row_group_size=len(table))

    def _data_path(self) -> Path:
        return self.root / DATA_PATH.format(chunk_index=self.data_slot.chunk, file_index=self.data_slot.file)

    def _close_data(self) -> None:
        if self.data_writer is not None:
            self.data_writer.close()
            self.data_writer = None

    def _write_video(self, key: str, frames: NDArray[np.uint8]) -> dict[str, Any]:
        slot = self.video_slots.setdefault(key, _FileSlot())
        writer = self.video_writers.get(key)
        if writer is not None and writer.size_bytes() > VIDEO_FILE_MB << 20:
            writer.close()
            slot.advance()
            writer = None
        if writer is None:
            path = VIDEO_PATH.format(video_key=key, chunk_index=slot.chunk, file_index=slot.file)
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            writer = self.video_writers[key] = VideoWriter(self.root / path, fps=self.fps, crf=self.crf)
        first = writer.n_frames
        for number, frame in enumerate(frames):
            writer.write(frame, key=number == 0)
        self.pix_fmt[key] = writer.pix_fmt
        return {
            f"videos/{key}/chunk_index": slot.chunk,
            f"videos/{key}/file_index": slot.file,
            f"videos/{key}/from_timestamp": first / self.fps,
            f"videos/{key}/to_timestamp": writer.n_frames / self.fps,
        }

    def close_files(self) -> None:
        self._close_data()
        for writer in self.video_writers.values():
            writer.close()

    def finish(self) -> None:
        if not self.rows:
            raise InputError("there is no episode to write; need at least one.")
        self.close_files()
        (self.root / "meta").mkdir()
        self._write_tasks()
        self._write_episodes()
        write_json(self.root / "meta/stats.json", {name: s.result() for name, s in self.stats.items()})
        write_json(self.root / "meta/info.json", self._info())
        if self.sidecar is not None:
            self.sidecar.close(mask_camera=next(iter(self.sizes)))

    def _write_tasks(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # LeRobot reads this table with pandas and looks tasks up in its index, so it is marked as the index.
        columns = {"task_index": list(self.tasks.values()), "task": list(self.tasks)}
        names = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {"name": n, "field_name": n, "pandas_type": p, "numpy_type": t, "metadata": None}
                for n, p, t in names
            ],
            "creator": {"library": "vlascope", "version": "1"},
            "pandas_version": "2.0.0",
        }
        types = [("task_index", pa.int64()), ("task", pa.string())]
        schema = pa.schema(types, metadata={b"pandas": json.dumps(pandas).encode()})
        pq.write_table(pa.table(columns, schema=schema), self.root / "meta/tasks.parquet")

    def _write_episodes(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {}
        for name in self.rows[0]:
            kind = None
            if name.startswith("stats/"):
                image = name.startswith(f"stats/{IMAGE_PREFIX}") and not name.endswith("/count")
                kind = pa.list_(pa.int64() if name.endswith("/count") else pa.float64())
                kind = pa.list_(pa.list_(kind)) if image else kind
            columns[name] = pa.array([row[name] for row in self.rows], kind)
        n_rows = len(self.rows)
        columns["meta/episodes/chunk_index"] = pa.array([0] * n_rows, pa.int64())
        columns["meta/episodes/file_index"] = pa.array([0] * n_rows, pa.int64())
        path = self.root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path, compression="snappy")

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for camera, (height, width) in self.sizes.items():
            key = IMAGE_PREFIX + camera
            feature: dict[str, Any] = {
                "dtype": "video" if self.is_video else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if self.is_video:
                feature["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": self.pix_fmt[key],
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
            features[key] = feature
        for name, names in self.names.items():
            features[name] = {"dtype": "float32", "shape": [len(names)], "names": names}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index"):
            features[name] = {"dtype": "int64", "shape": [1], "names": None}
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self.rows),
            "total_frames": self.n_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.is_video else None,
            "features": features,
        }


def _png_column(frames: NDArray[np.uint8]) -> Any:
    """Return the frames as LeRobot's image column: structs of PNG bytes and a (missing) path."""
    import io

    import pyarrow as pa
    from PIL import Image

    rows = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
