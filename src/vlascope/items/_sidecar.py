"""What LeRobot has no column for, kept beside it in `vlascope/`: masks, poses, events, facts, label per frame.

Layout, all of it optional to other tools:

    vlascope/sidecar.json                     schema version, camera of the masks
    vlascope/episodes.parquet                 one row per episode: label/<name>, event/<name>, mask_names (JSON)
    vlascope/frames/episode_000000.parquet    one row per frame: frame_index, label/<name>, pose/<name> (list)
    vlascope/masks/episode_000000.npz         "segmentation": integers [n_frames, h, w], exact
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError
from ..files import read_json, write_json
from .item import Scalar

SCHEMA_VERSION = 1
FOLDER = "vlascope"


def _scalar(value: Any, *, where: str) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, str | int | float | bool):
        raise InputError(f"{where}: got {value!r}; need a text, number, bool or None.")
    return value


class SidecarWriter:
    """Writes the sidecar of a dataset episode by episode; `close` writes the table of episodes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._rows: list[dict[str, Any]] = []
        self.folder.mkdir(parents=True)

    def add(
        self,
        index: int,
        *,
        n_frames: int,
        labels: Mapping[str, Any],
        events: Mapping[str, int],
        mask_names: Mapping[int, str],
        masks: NDArray[np.integer] | None,
        frame_labels: Mapping[str, NDArray[Any]],
        poses: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Write what is known about one episode."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        row: dict[str, Any] = {"episode_index": index}
        for name, value in labels.items():
            row[f"label/{name}"] = _scalar(value, where=f"episode {index}, label '{name}'")
        for name, step in events.items():
            row[f"event/{name}"] = int(step)
        row["mask_names"] = json.dumps({str(k): v for k, v in mask_names.items()})
        self._rows.append(row)
        if frame_labels or poses:
            columns: dict[str, Any] = {"frame_index": pa.array(np.arange(n_frames), pa.int64())}
            for name, values in frame_labels.items():
                columns[f"label/{name}"] = pa.array(np.asarray(values).tolist())
            for name, values in poses.items():
                rows = np.asarray(values, np.float32).reshape(n_frames, -1)
                columns[f"pose/{name}"] = pa.array(rows.tolist(), pa.list_(pa.float32(), rows.shape[1]))
            path = self.folder / "frames" / f"episode_{index:06d}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(pa.table(columns), path)
        if masks is not None:
            path = self.folder / "masks" / f"episode_{index:06d}.npz"
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, segmentation=masks)

    def close(self, *, mask_camera: str) -> None:
        """Write the table of episodes; `mask_camera` is the one whose pixels the masks are in."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in self._rows for name in row):
            values = [row.get(name) for row in self._rows]
            try:
                columns[name] = pa.array(values, pa.int64() if name.startswith("event/") else None)
            except pa.ArrowException as error:
                raise InputError(
                    f"'{name}' has values of different types over the episodes ({error}); use one type per name."
                ) from error
        pq.write_table(pa.table(columns), self.folder / "episodes.parquet")
        write_json(
            self.folder / "sidecar.json", {"schema_version": SCHEMA_VERSION, "mask_camera": mask_camera}
        )


@dataclass(frozen=True, kw_only=True)
class SidecarEpisode:
    """What the sidecar knows about one episode as a whole."""

    labels: dict[str, Scalar] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    mask_names: dict[int, str] = field(default_factory=dict)


class Sidecar:
    """Reads a sidecar folder; the tables of frames and the masks of an episode only when asked for."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        about = read_json(self.folder / "sidecar.json")
        version = about.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ItemError(
                f"'{self.folder}' has sidecar schema {version!r}; this vlascope reads up to {SCHEMA_VERSION}. "
                "Update vlascope."
            )
        self.mask_camera: str | None = about.get("mask_camera")
        self.episodes = self._read_episodes()

    @staticmethod
    def exists(root: Path) -> bool:
        """Return whether the dataset at `root` has a sidecar."""
        return (root / FOLDER / "sidecar.json").is_file()

    def _read_episodes(self) -> dict[int, SidecarEpisode]:
        episodes: dict[int, SidecarEpisode] = {}
        for row in read_parquet(self.folder / "episodes.parquet").to_pylist():
            names = json.loads(row.get("mask_names") or "{}")
            episodes[row["episode_index"]] = SidecarEpisode(
                labels={k[6:]: v for k, v in row.items() if k.startswith("label/") and v is not None},
                events={k[6:]: v for k, v in row.items() if k.startswith("event/") and v is not None},
                mask_names={int(k): v for k, v in names.items()},
            )
        return episodes

    def frames(self, episode: int) -> tuple[dict[str, list[Scalar]], dict[str, NDArray[np.float32]]]:
        """Return the labels and the poses of every frame of an episode."""
        path = self.folder / "frames" / f"episode_{episode:06d}.parquet"
        if not path.is_file():
            return {}, {}
        table = read_parquet(path)
        labels = {n[6:]: table[n].to_pylist() for n in table.column_names if n.startswith("label/")}
        poses = {
            n[5:]: np.array(table[n].to_pylist(), np.float32).reshape(table.num_rows, -1)
            for n in table.column_names
            if n.startswith("pose/")
        }
        return labels, poses

    def masks(self, episode: int) -> NDArray[np.integer] | None:
        """Return the segmentation of every frame of an episode, integers [n_frames, h, w], or None."""
        path = self.folder / "masks" / f"episode_{episode:06d}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["segmentation"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ItemError(
                f"the masks '{path}' cannot be read ({error}); copy the dataset again."
            ) from error


def read_parquet(path: Path, *, columns: list[str] | None = None) -> Any:
    """Return a Parquet file as a pyarrow table. Raises `ItemError` when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ItemError(f"'{path}' cannot be read ({error}); copy the dataset again.") from error
