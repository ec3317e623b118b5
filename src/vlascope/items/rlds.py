"""RLDS datasets (TFDS folders of TFRecord files, as in Open X-Embodiment) as items, without TensorFlow."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError, nearest_text
from ..files import content_hash
from ._lru import Lru
from ._tfrecord import RecordFile, decode_feature, feature_length, raw_features
from .frames import EpisodicSource
from .images import file_facts, read_image
from .item import Item, OnError, Scalar

_SHARD = re.compile(r"^(?P<stem>.+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_STATE_KEYS = ("state", "proprio", "robot_state", "EEF_state")
_PROMPT_KEYS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/natural_language_instruction",
    "steps/observation/language_instruction",
)
_OBSERVATION, _ACTION = "steps/observation/", "steps/action"


@dataclass(frozen=True)
class _Spec:
    """A feature as features.json declares it: its `kind` (image, text, tensor), numpy type and shape."""

    kind: str
    dtype: str
    shape: tuple[int, ...]


def find_record_folders(folder: Path) -> list[Path]:
    """Return the folders at or (versions such as 1.0.0) below `folder` that hold TFRecord files, in order."""
    candidates = [folder, *sorted(p for p in folder.glob("*") if p.is_dir())]
    candidates += sorted(p for p in folder.glob("*/*") if p.is_dir())
    return [path for path in candidates if any(path.glob("*.tfrecord*"))]


def is_rlds(folder: Path) -> bool:
    """Return whether `folder` is a TFDS dataset, or one of its versions such as 1.0.0, in TFRecord files."""
    versions = (path for path in folder.glob("*.*") if re.fullmatch(r"\d+\.\d+(\.\d+)?", path.name))
    return any(any(path.glob("*.tfrecord*")) for path in (folder, *versions))


class RldsSource(EpisodicSource):
    """Frames of an RLDS dataset; one record is one episode.

    On opening the files are mapped and the number of steps of each record is counted; no image is read. Item ids
    are "train/ep0003/000012" (split, record, step), with the number of the file behind the split where there are
    several. Labels are the split, the scalars of the episode ("episode_metadata/...") and of the step (reward,
    is_terminal, ...).

    Args:
        root: The folder with features.json and the *.tfrecord files, or the one above (a single version).
        split: Only this split (train, val, ...); all by default.
        camera: Name of one camera or several, in the order wanted; all colour cameras by default.
        prompt: Replaces the dataset's instruction.
        on_error: "skip" leaves out shards and records that are missing or damaged and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such folder, or a shard is missing.
        ItemError: no RLDS dataset, damaged, or without cameras.
        InputError: no such split or camera.

    Cost: on opening a few pages of each record; 25 episodes take 15 ms. Reading checks the record's checksum.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        split: str | None = None,
        camera: str | Sequence[str] | None = None,
        prompt: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.prompt, self.on_error = prompt, on_error
        self.root = _version_folder(Path(root))
        self.name = self.root.parent.name if re.match(r"\d+\.\d+", self.root.name) else self.root.name
        self._specs = _read_specs(self.root / "features.json")
        self._records: list[tuple[str, RecordFile, int]] = []  # split, file, number of the record in it
        self._paths: list[Path] = []
        lengths = self._open_shards(split)
        if not self._records:
            why = f" {self.skipped[0].reason}" if self.skipped else ""
            raise ItemError(f"'{self.root}' holds no episode that can be read.{why}")
        first = raw_features(self._records[0][1].view(self._records[0][2]), name=str(self.root))
        self.all_cameras = self._find_cameras(first)
        self.cameras = choose_cameras(camera, self.all_cameras, name=str(self.root))
        self._state_key = next((k for k in _STATE_KEYS if _OBSERVATION + k in first), None)
        self._action_keys = (
            [_ACTION] if _ACTION in first else [k for k in first if k.startswith(_ACTION + "/")]
        )
        self._action_keys.sort()
        # Names come from the place on disk, so that they do not depend on the split chosen or on what is skipped.
        self._set_episodes([_episode_name(f.path, number) for _, f, number in self._records], lengths)
        self._episodes: Lru[int, dict[str, Any]] = Lru(4)

    # ---- opening ----

    def _open_shards(self, split: str | None) -> list[int]:
        shards = _find_shards(self.root)
        splits = list(dict.fromkeys(name for name, _ in shards))
        if split is not None and split not in splits:
            raise InputError(f"'{self.root}' has no split '{split}'; it has {', '.join(splits)}.")
        lengths: list[int] = []
        for name, path in shards:
            if split not in (None, name):
                continue
            try:
                file = RecordFile(path)
            except ItemNotFoundError as error:
                self._skip(str(path), error)
                continue
            self._paths.append(path)
            for number in range(len(file)):
                try:
                    lengths.append(_n_steps(file, number))
                except ItemError as error:
                    self._skip(f"{path}, record {number}", error)
                    continue
                self._records.append((name, file, number))
            if file.broken is not None:
                self._skip(str(path), ItemError(file.broken))
        return lengths

    def _find_cameras(self, first: Mapping[str, memoryview]) -> dict[str, str]:
        """Return the colour cameras: name -> feature. Declared by features.json, else known by their bytes."""
        cameras: dict[str, str] = {}
        for key in sorted(first):
            if not key.startswith(_OBSERVATION):
                continue
            spec = self._specs.get(key)
            if spec is not None:
                is_camera = spec.kind == "image" and spec.dtype == "uint8" and spec.shape[-1:] in ((3,), (4,))
            else:
                values = decode_feature(first[key])
                head = values[0][:4] if isinstance(values, list) and values else b""
                is_camera = not self._specs and head.startswith((b"\xff\xd8\xff", b"\x89PNG"))
            if is_camera:
                cameras[key.removeprefix(_OBSERVATION)] = key
        if not cameras:
            raise ItemError(
                f"'{self.root}' has no colour camera; need an image feature in steps/observation. It has "
                f"{', '.join(sorted(first))}."
            )
        return cameras

    # ---- reading ----

    def read(self, index: int) -> Item:
        place, step = self.locate(index)
        episode = self._episodes.get(place, lambda: self._read_episode(place))
        split, file, number = self._records[place]
        item_id = f"{self._names[place]}/{step:06d}"
        where = f"'{file.path}', record {number}, step {step}"
        return Item(
            item_id=item_id,
            images=tuple(
                self._image(episode["images"][camera][step], camera, f"{where}, {camera}")
                for camera in self.cameras
            ),
            cameras=self.cameras,
            prompt=self.prompt or (episode["prompts"][step] if episode["prompts"] else None),
            labels={"split": split, **episode["labels"], **{k: v[step] for k, v in episode["steps"].items()}},
            episode=place,
            step=step,
            state=None if episode["state"] is None else episode["state"][step],
            action=None if episode["action"] is None else episode["action"][step],
            source=str(file.path),
        )

    def _image(self, data: bytes, camera: str, name: str) -> NDArray[np.uint8]:
        if not data:
            raise ItemError(f"{name}: the image is empty; choose other cameras or skip it (on_error='skip').")
        return read_image(io.BytesIO(data), name=name)

    def _read_episode(self, place: int) -> dict[str, Any]:
        _, file, number = self._records[place]
        where = f"'{file.path}', record {number}"
        raw = raw_features(file.read(number), name=where)
        n = int(np.diff(self._starts)[place])
        images = {}
        for camera in self.cameras:
            key = self.all_cameras[camera]
            values = decode_feature(raw[key], name=key) if key in raw else []
            if not isinstance(values, list) or len(values) != n:
                raise ItemError(f"{where}: '{key}' holds {len(values)} images for {n} steps.")
            images[camera] = values
        prompt_key = next((key for key in _PROMPT_KEYS if key in raw), None)
        prompts = decode_feature(raw[prompt_key], name=prompt_key) if prompt_key else []
        texts = [p.decode("utf-8", "replace") for p in prompts] if isinstance(prompts, list) else []
        if len(texts) not in (0, n):
            raise ItemError(f"{where}: '{prompt_key}' holds {len(texts)} instructions for {n} steps.")
        state = None if self._state_key is None else self._rows(raw, _OBSERVATION + self._state_key, n, where)
        actions = [self._rows(raw, key, n, where) for key in self._action_keys]
        return {
            "images": images,
            "prompts": [text or None for text in texts],
            "state": state,
            "action": np.concatenate(actions, axis=1) if actions else None,
            "labels": self._scalars(raw, "episode_metadata/", 1),
            "steps": self._scalars(raw, "steps/", n),
        }

    def _rows(self, raw: Mapping[str, memoryview], key: str, n: int, where: str) -> NDArray[np.float32]:
        values = decode_feature(raw[key], name=key) if key in raw else []
        if isinstance(values, list) or len(values) == 0 or len(values) % n:
            raise ItemError(f"{where}: '{key}' holds {len(values)} numbers, not a row for each of {n} steps.")
        return values.reshape(n, -1).astype(np.float32)

    def _scalars(self, raw: Mapping[str, memoryview], prefix: str, n: int) -> dict[str, Any]:
        """Return the features right below `prefix` that hold `n` numbers or texts: lists, or values if n == 1."""
        found: dict[str, Any] = {}
        for key in sorted(raw):
            name = key.removeprefix(prefix)
            spec = self._specs.get(key)
            is_known = key in _PROMPT_KEYS or key in self._action_keys
            if not key.startswith(prefix) or "/" in name or is_known or (spec and spec.kind == "image"):
                continue
            if feature_length(raw[key], name=key) != n:
                continue
            values = [_scalar(v, spec) for v in decode_feature(raw[key], name=key)]
            if prefix == "steps/":
                found[name] = values
            else:
                found[name] = values[0]
        return {k: v for k, v in found.items() if v is not None}

    def fingerprint(self) -> str:
        facts = [file_facts(path) for path in self._paths]
        return content_hash([facts, len(self._records), list(self.cameras), self.prompt])


def _episode_name(path: Path, number: int) -> str:
    """Return "train/ep0003", or "train-00002/ep0003" where the split has several files."""
    match = _SHARD.match(path.name)
    split = _split(match["stem"] if match else path.name.partition(".tfrecord")[0])
    shard = f"-{match['number']}" if match and int(match["count"]) > 1 else ""
    return f"{split}{shard}/ep{number:04d}"


def _split(stem: str) -> str:
    return stem.rpartition("-")[2]


def choose_cameras(
    camera: str | Sequence[str] | None, available: Mapping[str, Any], *, name: str
) -> tuple[str, ...]:
    """Return the cameras wanted, all by default. Raises `InputError` naming those that there are."""
    wanted = tuple(available) if camera is None else (camera,) if isinstance(camera, str) else tuple(camera)
    for one in wanted:
        if one not in available:
            raise InputError(
                f"'{name}' has no camera '{one}'; it has {', '.join(available)}.{nearest_text(one, available)}"
            )
    if not wanted:
        raise InputError("got an empty list of cameras; leave it out to read all.")
    return wanted


def _scalar(value: Any, spec: _Spec | None) -> Scalar:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    number = value.item()
    if spec is not None and spec.dtype == "bool":
        return bool(number)
    return number if np.isfinite(number) else None


def _n_steps(file: RecordFile, number: int) -> int:
    """Return the number of steps of a record, from the feature of one value per step."""
    name = f"'{file.path}', record {number}"
    raw = raw_features(file.view(number), name=name)
    for key in ("steps/is_first", "steps/is_last", "steps/is_terminal", "steps/reward", *_PROMPT_KEYS):
        if key in raw:
            n_steps = feature_length(raw[key], name=name)
            if n_steps == 0:
                raise ItemError(f"{name}: the episode has no step.")
            return n_steps
    raise ItemError(
        f"{name} is no RLDS episode: none of steps/is_first, steps/is_last, steps/reward is there. It has "
        f"{', '.join(sorted(raw)[:8]) or 'nothing'}."
    )


def _version_folder(root: Path) -> Path:
    if not root.is_dir():
        raise ItemNotFoundError(f"there is no dataset folder '{root}'; check the path.")
    folders = find_record_folders(root)
    if not folders:
        raise ItemError(f"'{root}' is no RLDS dataset: there is no *.tfrecord file in it.")
    if len(folders) > 1:
        names = ", ".join(f"'{path}'" for path in folders[:5])
        raise InputError(f"'{root}' holds several datasets or versions: {names}. Name one of them.")
    return folders[0]


def _find_shards(folder: Path) -> list[tuple[str, Path]]:
    """Return (split, path) of all shards in order, those included that the names of the others promise."""
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.tfrecord*")):
        match = _SHARD.match(path.name)
        if match is None:
            found.setdefault(path.name.partition(".tfrecord")[0], {})[0] = path
            continue
        stem = match["stem"]
        found.setdefault(stem, {})[int(match["number"])] = path
        counts[stem] = int(match["count"])
    shards: list[tuple[str, Path]] = []
    for stem, paths in found.items():
        split = _split(stem)
        for number in range(counts.get(stem, 1)):
            missing = folder / f"{stem}.tfrecord-{number:05d}-of-{counts.get(stem, 1):05d}"
            shards.append((split, paths.get(number, missing)))
    return shards


def _read_specs(path: Path) -> dict[str, _Spec]:
    """Return what features.json declares, by feature name; {} when there is none."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ItemError(f"'{path}' cannot be read ({error}); fetch it again.") from error
    specs: dict[str, _Spec] = {}
    _walk(tree, "", specs)
    return specs


def _walk(node: Mapping[str, Any], name: str, specs: dict[str, _Spec]) -> None:
    if "featuresDict" in node:
        for key, child in node["featuresDict"].get("features", {}).items():
            _walk(child, f"{name}/{key}" if name else key, specs)
    elif "sequence" in node:
        _walk(node["sequence"].get("feature", {}), name, specs)
    else:
        kind = next((k for k in ("image", "text", "tensor") if k in node), "other")
        about = node.get(kind) or {}
        sizes = (about.get("shape") or {}).get("dimensions", [])
        specs[name] = _Spec(kind, str(about.get("dtype", "")), tuple(int(size) for size in sizes))
