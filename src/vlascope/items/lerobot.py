"""LeRobot datasets as items: versions 3.0 and 2.x, all episodes, all cameras, state, action, instruction."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError, nearest_text
from ..files import content_hash, file_hash
from ._lru import Lru
from ._sidecar import Sidecar, SidecarEpisode, read_parquet
from ._video import VideoReader, reader_pool
from .frames import FrameSource
from .images import read_image
from .item import Item, OnError, Scalar
from .lerobot_write import EpisodeData, write_lerobot

__all__ = ["EpisodeData", "EpisodeInfo", "LeRobotSource", "is_lerobot", "write_lerobot"]

STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """What is known about one episode before any frame is read.

    Attributes:
        index: Number of the episode in the dataset.
        length: Number of frames.
        task: First instruction of the episode; None when the dataset has none.
        labels: Facts about the whole episode, from the sidecar.
        events: Step at which something happened, from the sidecar.
        mask_names: Meaning of the integers of the masks, from the sidecar.
    """

    index: int
    length: int
    task: str | None
    labels: Mapping[str, Scalar] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    mask_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """Where an episode lies: its Parquet file, and per camera its video file and start in it, seconds."""

    data: Path
    videos: Mapping[str, tuple[Path, float]]


def is_lerobot(folder: Path | str) -> bool:
    """Return whether `folder` is a LeRobot dataset."""
    return (Path(folder) / "meta" / "info.json").is_file()


class LeRobotSource(FrameSource):
    """Frames of a LeRobot dataset folder, v3.0 or v2.x, with our sidecar of masks and labels when it has one.

    Only `meta/` is read at first. Item ids are "ep0003/000012" (episode, frame). Depth cameras are left out.
    Labels of an item are those of its episode, those of its frame, and "event.<name>" = step for each event.

    Args:
        root: The dataset's folder.
        prompt: Replaces the dataset's instruction.
        camera: Name of one camera or several, in the order wanted; all by default. "wrist" means the feature
            "observation.images.wrist".
        episodes: Numbers of the episodes wanted; all by default.
        on_error: "skip" leaves out episodes of which a file is missing and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such folder, or a file that the dataset lists is missing.
        ItemError: not a LeRobot dataset, another version, damaged or without cameras.
        InputError: no such camera or episode.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        prompt: str | None = None,
        camera: str | Sequence[str] | None = None,
        episodes: Sequence[int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.root, self.on_error = Path(root), on_error
        self.name = self.root.resolve().name
        self.prompt = prompt
        self.info = self._read_info()
        self.fps = float(self.info["fps"])
        self.is_v3 = self._version() == 3
        self.state_names, self.action_names = self._vector_names(STATE), self._vector_names(ACTION)
        self.all_cameras = self._find_cameras()
        self.cameras = self._choose_cameras(camera)
        self._keys = {name: self.all_cameras[name] for name in self.cameras}
        self._sidecar = Sidecar(self.root) if Sidecar.exists(self.root) else None
        self._tasks = self._read_tasks()
        self._places: dict[int, _Place] = {}
        found = self._read_episodes_v3() if self.is_v3 else self._read_episodes_v2()
        self.episodes: list[EpisodeInfo] = self._choose_episodes(found, episodes)
        if on_error == "skip":
            self.episodes = self._with_files(self.episodes)
        self._starts = np.cumsum([0, *(episode.length for episode in self.episodes)])
        self._tables: Lru[int, dict[str, Any]] = Lru(4)
        self._masks: Lru[int, NDArray[np.integer] | None] = Lru(4)
        self._frames: Lru[int, tuple[dict[str, list[Scalar]], dict[str, NDArray[np.float32]]]] = Lru(4)
        self._readers = reader_pool(max(4, 2 * len(self.cameras)))

    # ---- what the dataset says about itself ----

    def _read_info(self) -> dict[str, Any]:
        if not self.root.is_dir():
            raise ItemNotFoundError(f"there is no dataset folder '{self.root}'; check the path.")
        if not is_lerobot(self.root):
            raise ItemError(f"'{self.root}' is no LeRobot dataset: it has no meta/info.json.")
        info = _read_json(self.root / "meta" / "info.json")
        if not isinstance(info, dict):
            raise ItemError(
                f"'{self.root}/meta/info.json' is a {type(info).__name__}; need an object with codebase_version, "
                "fps, features and data_path. Fetch it again."
            )
        missing = [k for k in ("codebase_version", "fps", "features", "data_path") if not info.get(k)]
        if missing:
            raise ItemError(
                f"'{self.root}/meta/info.json' lacks {', '.join(missing)}; is the download complete?"
            )
        return info

    def _version(self) -> int:
        version = str(self.info["codebase_version"])
        major = re.match(r"v?(\d+)\.", version)
        if major is None or int(major[1]) not in (2, 3):
            raise ItemError(
                f"'{self.root}' is LeRobot {version}; this vlascope reads v2.0, v2.1 and v3.x. Convert it with "
                "LeRobot's own conversion script."
            )
        return int(major[1])

    def _vector_names(self, key: str) -> tuple[str, ...]:
        feature = self.info["features"].get(key)
        if feature is None:
            return ()
        names = feature.get("names")
        if isinstance(names, dict):  # {"motors": ["x", "y"]}
            names = next((v for v in names.values() if isinstance(v, list)), list(names))
        n_values = int(np.prod(feature["shape"]))
        names = names if isinstance(names, list) and len(names) == n_values else range(n_values)
        return tuple(str(name) for name in names)

    def _find_cameras(self) -> dict[str, str]:
        cameras: dict[str, str] = {}
        for key, feature in self.info["features"].items():
            about = feature.get("info") or feature.get("video_info") or {}
            is_depth = about.get("is_depth_map") or about.get("video.is_depth_map")
            if feature.get("dtype") in ("video", "image") and not is_depth:
                cameras[re.sub(r"^observation\.(images\.)?", "", key)] = key
        if not cameras:
            raise ItemError(f"'{self.root}' has no colour camera; need a feature of dtype video or image.")
        return cameras

    def _choose_cameras(self, camera: str | Sequence[str] | None) -> tuple[str, ...]:
        if camera is None:
            return tuple(self.all_cameras)
        wanted = [camera] if isinstance(camera, str) else list(camera)
        names = {key: name for name, key in self.all_cameras.items()}
        chosen = tuple(names.get(name, name) for name in wanted)
        for name in chosen:
            if name not in self.all_cameras:
                raise InputError(
                    f"'{self.root}' has no camera '{name}'; it has {', '.join(self.all_cameras)}."
                    f"{nearest_text(name, self.all_cameras)}"
                )
        if not chosen:
            raise InputError("got an empty list of cameras; leave it out to read all.")
        return chosen

    def _read_tasks(self) -> dict[int, str]:
        if self.is_v3:
            path = self.root / "meta" / "tasks.parquet"
            table = read_parquet(path)
            text = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
            if text is None or "task_index" not in table.column_names:
                raise ItemError(f"'{path}' has columns {table.column_names}; need task_index and task.")
            return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
        rows = _read_json_lines(self.root / "meta" / "tasks.jsonl")
        return {row["task_index"]: row["task"] for row in rows}

    def _read_episodes_v3(self) -> list[EpisodeInfo]:
        import pyarrow.parquet as pq

        paths = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not paths:
            raise ItemError(f"'{self.root}' has no meta/episodes/*/*.parquet; is the download complete?")
        found: dict[int, EpisodeInfo] = {}
        for path in paths:
            names = [n for n in pq.read_schema(path).names if not n.startswith(("stats/", "meta/"))]
            for row in read_parquet(path, columns=names).to_pylist():
                index = int(row["episode_index"])
                data = self.info["data_path"].format(
                    chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                )
                videos = {}
                for key in self._video_keys():
                    file = self.info["video_path"].format(
                        video_key=key,
                        chunk_index=row[f"videos/{key}/chunk_index"],
                        file_index=row[f"videos/{key}/file_index"],
                    )
                    videos[key] = (self.root / file, float(row[f"videos/{key}/from_timestamp"]))
                self._places[index] = _Place(self.root / data, videos)
                found[index] = self._episode(index, int(row["length"]), row.get("tasks"))
        return [found[index] for index in sorted(found)]

    def _read_episodes_v2(self) -> list[EpisodeInfo]:
        found: list[EpisodeInfo] = []
        chunk_size = int(self.info.get("chunks_size") or 1000)
        for row in _read_json_lines(self.root / "meta" / "episodes.jsonl"):
            index = int(row["episode_index"])
            where = {"episode_index": index, "episode_chunk": index // chunk_size}
            videos = {
                key: (self.root / self.info["video_path"].format(video_key=key, **where), 0.0)
                for key in self._video_keys()
            }
            self._places[index] = _Place(self.root / self.info["data_path"].format(**where), videos)
            found.append(self._episode(index, int(row["length"]), row.get("tasks")))
        return sorted(found, key=lambda episode: episode.index)

    def _video_keys(self) -> list[str]:
        return [key for key in self._keys.values() if self.info["features"][key]["dtype"] == "video"]

    def _episode(self, index: int, length: int, tasks: Sequence[str] | None) -> EpisodeInfo:
        beside = self._sidecar.episodes.get(index) if self._sidecar else None
        beside = beside or SidecarEpisode()
        return EpisodeInfo(
            index=index,
            length=length,
            task=tasks[0] if tasks else None,
            labels=beside.labels,
            events=beside.events,
            mask_names=beside.mask_names,
        )

    def _choose_episodes(self, found: list[EpisodeInfo], wanted: Sequence[int] | None) -> list[EpisodeInfo]:
        by_index = {episode.index: episode for episode in found if episode.length > 0}
        if not by_index:
            raise ItemError(f"the dataset '{self.root}' has no episode; need at least one.")
        if wanted is None:
            return list(by_index.values())
        for index in wanted:
            if index not in by_index:
                raise InputError(
                    f"'{self.root}' has no episode {index}; it has {len(by_index)}, "
                    f"{min(by_index)}..{max(by_index)}."
                )
        if not wanted:
            raise InputError("got an empty list of episodes; leave it out to read all.")
        return [by_index[index] for index in wanted]

    def _with_files(self, episodes: list[EpisodeInfo]) -> list[EpisodeInfo]:
        """Return the episodes whose files are all there; list the others."""
        whole: list[EpisodeInfo] = []
        for episode in episodes:
            place = self._places[episode.index]
            missing = [p for p in (place.data, *(v[0] for v in place.videos.values())) if not p.is_file()]
            if missing:
                self._skip(f"ep{episode.index:04d}", ItemNotFoundError(f"'{missing[0]}' is missing."))
            else:
                whole.append(episode)
        if not whole:
            raise ItemError(f"'{self.root}' has no episode whose files are all there; fetch it again.")
        return whole

    # ---- frames ----

    def __len__(self) -> int:
        return int(self._starts[-1])

    def episode_names(self) -> list[str]:
        return [f"ep{episode.index:04d}" for episode in self.episodes]

    def episode_times(self) -> list[NDArray[np.float64]]:
        # LeRobot's time stamps lie on the grid of its fps by definition.
        return [np.arange(episode.length) / self.info["fps"] for episode in self.episodes]

    def read(self, index: int) -> Item:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        episode, step = self.episodes[place], index - int(self._starts[place])
        table = self._tables.get(episode.index, lambda: self._read_table(episode))
        time_secs = round(float(table["timestamp"][step]), 6)  # float32 on disk
        item_id = f"ep{episode.index:04d}/{step:06d}"
        images, sources = zip(
            *(self._image(episode, key, step, time_secs, table) for key in self._keys.values()), strict=True
        )
        masks, mask_names = self._mask(episode, step)
        return Item(
            item_id=item_id,
            images=images,
            cameras=self.cameras,
            prompt=self.prompt or self._tasks.get(int(table["task_index"][step]), episode.task),
            labels=self._labels(episode, step),
            masks=masks,
            mask_names=mask_names,
            episode=episode.index,
            step=step,
            time_secs=time_secs,
            state=table[STATE][step] if STATE in table else None,
            action=table[ACTION][step] if ACTION in table else None,
            source=sources[0],
        )

    def _read_table(self, episode: EpisodeInfo) -> dict[str, Any]:
        """Return the columns of one episode; reads only the row groups that hold it."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        path = self._places[episode.index].data
        if not path.is_file():
            raise ItemNotFoundError(
                f"'{path}', which holds episode {episode.index}, is missing; fetch it again."
            )
        images = [key for key in self._keys.values() if self.info["features"][key]["dtype"] == "image"]
        try:
            with pq.ParquetFile(path) as file:
                names = set(file.schema_arrow.names)
                wanted = [n for n in (STATE, ACTION, "timestamp", "task_index", *images) if n in names]
                groups = _groups_of_episode(file, episode.index)
                table = file.read_row_groups(groups, columns=[*wanted, "episode_index", "frame_index"])
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ItemError(f"'{path}' cannot be read ({error}); fetch it again.") from error
        table = table.filter(pc.field("episode_index") == episode.index).sort_by("frame_index")
        if len(table) != episode.length:
            raise ItemError(
                f"'{path}' holds {len(table)} frames of episode {episode.index}; meta/ says {episode.length}. "
                "Fetch the dataset again."
            )
        columns: dict[str, Any] = {name: table[name] for name in images}
        for name in (STATE, ACTION):
            if name in wanted:
                rows = np.array(table[name].to_pylist(), np.float32)
                columns[name] = rows.reshape(episode.length, -1)
        times = table["timestamp"].to_numpy() if "timestamp" in wanted else None
        columns["timestamp"] = np.arange(episode.length) / self.info["fps"] if times is None else times
        tasks = table["task_index"].to_numpy() if "task_index" in wanted else None
        columns["task_index"] = np.full(episode.length, -1) if tasks is None else tasks
        return columns

    def _image(
        self, episode: EpisodeInfo, key: str, step: int, time_secs: float, table: dict[str, Any]
    ) -> tuple[NDArray[np.uint8], str]:
        if key in table:
            cell = table[key][step].as_py()
            name = f"{self.root}, episode {episode.index}, frame {step}, {key}"
            if cell.get("bytes"):
                return read_image(io.BytesIO(cell["bytes"]), name=name), str(self._places[episode.index].data)
            if not cell.get("path"):
                raise ItemError(
                    f"{name}: neither image bytes nor a path are stored; fetch the dataset again."
                )
            path = self.root / cell["path"]
            return read_image(path), str(path)
        path, start_secs = self._places[episode.index].videos[key]
        if not path.is_file():
            raise ItemNotFoundError(
                f"'{path}', the video of episode {episode.index}, is missing; fetch it again (with git-lfs: git "
                "lfs pull)."
            )
        reader = self._readers.get(path, lambda: VideoReader(path))
        number = reader.number_at(start_secs + time_secs)
        off_secs = abs(reader.times_secs[number] - start_secs - time_secs)
        if off_secs > 0.5 / self.info["fps"]:
            raise ItemError(
                f"'{path}' has no frame near {start_secs + time_secs:.3f} s (episode {episode.index}, frame {step}; "
                f"the nearest is {off_secs:.3f} s away): it is shorter than meta/ says. Fetch it again."
            )
        return reader.read(number), str(path)

    def _labels(self, episode: EpisodeInfo, step: int) -> dict[str, Scalar]:
        labels = dict(episode.labels)
        if self._sidecar is not None:
            for name, values in self._frame_facts(episode)[0].items():
                labels[name] = values[step]
            labels |= {f"event.{name}": at for name, at in episode.events.items()}
        return labels

    def _frame_facts(
        self, episode: EpisodeInfo
    ) -> tuple[dict[str, list[Scalar]], dict[str, NDArray[np.float32]]]:
        assert self._sidecar is not None
        sidecar = self._sidecar
        return self._frames.get(episode.index, lambda: sidecar.frames(episode.index))

    def _mask(
        self, episode: EpisodeInfo, step: int
    ) -> tuple[dict[str, NDArray[np.integer]], dict[str, Mapping[int, str]]]:
        sidecar = self._sidecar
        # Masks are in the pixels of one camera; they mean nothing when another one comes first.
        if sidecar is None or sidecar.mask_camera not in (None, self.cameras[0]):
            return {}, {}
        masks = self._masks.get(episode.index, lambda: sidecar.masks(episode.index))
        if masks is None:
            return {}, {}
        if len(masks) != episode.length:
            raise ItemError(
                f"'{self.root}', episode {episode.index}: {len(masks)} masks for {episode.length} frames; "
                "fetch the dataset again."
            )
        return {"segmentation": masks[step]}, {"segmentation": episode.mask_names}

    def poses(self, episode: int) -> dict[str, NDArray[np.float32]]:
        """Return the poses of an episode from the sidecar, float32 [n_frames, k] by name; {} when it has none."""
        info = next((e for e in self.episodes if e.index == episode), None)
        if info is None:
            raise InputError(f"'{self.root}' has no episode {episode} among those chosen.")
        return self._frame_facts(info)[1] if self._sidecar is not None else {}

    def fingerprint(self) -> str:
        # Statistics change with nearly any change of content, and unlike time stamps they survive a copy.
        meta = sorted(p for p in (self.root / "meta").rglob("*") if p.is_file())
        meta += sorted(p for p in (self.root / "vlascope").rglob("*") if p.is_file())
        facts = [[p.relative_to(self.root).as_posix(), file_hash(p, length=16)] for p in meta]
        episodes = [episode.index for episode in self.episodes]
        return content_hash([facts, list(self.cameras), episodes, self.prompt])


def _groups_of_episode(file: Any, episode: int) -> list[int]:
    """Return the row groups of a Parquet file that may hold an episode, by their statistics."""
    groups: list[int] = []
    for group in range(file.metadata.num_row_groups):
        meta = file.metadata.row_group(group)
        found = [
            meta.column(c)
            for c in range(meta.num_columns)
            if meta.column(c).path_in_schema == "episode_index"
        ]
        stats = found[0].statistics if found else None
        if stats is None or not stats.has_min_max or stats.min <= episode <= stats.max:
            groups.append(group)
    return groups


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ItemNotFoundError(f"'{path}' is missing; is the download complete?") from error
    except (OSError, ValueError) as error:
        raise ItemError(f"'{path}' cannot be read ({error}); fetch it again.") from error


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ItemNotFoundError(f"'{path}' is missing; is the download complete?")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ItemError(f"'{path}' cannot be read ({error}); fetch it again.") from error
