"""Demonstrations in HDF5 files, as robomimic and LIBERO write them, as items."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError, missing_extra
from ..files import content_hash
from ._lru import Lru
from ._walk import find_files, natural_key
from .frames import EpisodicSource
from .images import file_facts, short_names
from .item import Item, OnError, Scalar
from .rlds import choose_cameras

HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
STATE_KEYS = (
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
    ("ee_states", "gripper_states"),
)
_MIN_SIDE_PX = 8  # smaller things of three or four axes are matrices
Turn = Literal["none", "flip", "rotate"]


class Hdf5Source(EpisodicSource):
    """Frames of robomimic or LIBERO demonstrations, `data/demo_<i>/{obs/<key>, actions, rewards, dones}`.

    Cameras are the uint8 entries [T, h, w, 3] of `obs`. Entries that look like a camera of another form (channels
    first, floats, grey) are an error unless `camera` chooses others; depth and segmentation, known by their names, are
    no cameras. Item ids are "demo_3/000012", with the file's name in front
    when there are several files. The state is `robot0_eef_pos + robot0_eef_quat + robot0_gripper_qpos` (robomimic) or
    `ee_states + gripper_states` (LIBERO), unless `state_keys` names others. Labels: reward and done of the step, the
    scalar attributes of the demonstration, and "split" from `mask/<name>`.

    Args:
        paths: A file, several, or a folder of them.
        camera: Name of one camera or several, in the order wanted; all by default.
        prompt: Replaces the instruction (LIBERO keeps one per file, robomimic none).
        turn: "flip" turns the rows of every image around, "rotate" turns it by 180 degrees. LIBERO stores images
            upside down (OpenGL): "flip" shows them upright, "rotate" is what OpenVLA was trained on.
        state_keys: Entries of `obs` that make up the state, in this order.
        on_error: "skip" leaves out files and demonstrations that are damaged and lists them in `skipped`.

    Raises:
        MissingExtraError: h5py is not installed (extra `data`).
        ItemNotFoundError: no such file.
        ItemError: damaged, no demonstrations with images in it, or a camera that is not uint8 [T, h, w, 3].
        InputError: no such camera or state entry.
    """

    def __init__(
        self,
        paths: Path | str | Sequence[Path | str],
        *,
        camera: str | Sequence[str] | None = None,
        prompt: str | None = None,
        turn: Turn = "none",
        state_keys: Sequence[str] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if turn not in ("none", "flip", "rotate"):
            raise InputError(f"turn is {turn!r}; need none, flip or rotate.")
        _h5py()
        self.prompt, self.turn, self.on_error = prompt, turn, on_error
        self.paths = _files(paths, report=self._skip)
        self._handles: Lru[Path, Any] = Lru(4, drop=lambda handle: handle.close())
        self._prompts: dict[Path, str | None] = {}
        self._splits: dict[Path, dict[str, str]] = {}
        self._places: list[tuple[Path, str]] = []  # file, name of the demonstration
        self.all_cameras: tuple[str, ...] = ()
        self.cameras: tuple[str, ...] = ()
        self.state_keys: tuple[str, ...] = tuple(state_keys or ())
        lengths = self._open_all(camera)
        if not self._places:
            raise ItemError(f"no demonstration can be read: {self.skipped[0].reason}")
        self.name = self.paths[0].stem if len(self.paths) == 1 else f"{len(self.paths)} files"
        short = short_names(self.paths)
        prefix = (lambda path: "") if len(self.paths) == 1 else (lambda path: f"{short[path]}/")
        self._set_episodes([prefix(path) + demo for path, demo in self._places], lengths)

    # ---- opening ----

    def _open_all(self, camera: str | Sequence[str] | None) -> list[int]:
        lengths: list[int] = []
        for path in self.paths:
            try:
                names = self._open_file(path)
            except (ItemError, ItemNotFoundError) as error:
                self._skip(str(path), error)
                continue
            for demo in names:
                try:
                    lengths.append(self._check_demo(path, demo, camera))
                except ItemError as error:
                    self._skip(f"{path}, {demo}", error)
                    continue
                self._places.append((path, demo))
        return lengths

    def _handle(self, path: Path) -> Any:
        def make() -> Any:
            if not path.is_file():
                raise ItemNotFoundError(f"there is no file '{path}'; check the path.")
            try:
                return _h5py().File(path, "r")
            except OSError as error:
                raise ItemError(
                    f"'{path}' cannot be opened as HDF5 ({error}); is it complete? Fetch it again."
                ) from error

        return self._handles.get(path, make)

    def _open_file(self, path: Path) -> list[str]:
        file = self._handle(path)
        if "data" not in file or not len(file["data"]):
            raise ItemError(
                f"'{path}' has no demonstrations: need groups data/demo_0, ... as robomimic and LIBERO write. It has "
                f"{', '.join(file) or 'nothing'} at the top."
            )
        problem = _json_attribute(file["data"].attrs, "problem_info", path)
        self._prompts[path] = problem.get("language_instruction") or None
        if isinstance(self._prompts[path], list):  # some LIBERO files keep the sentence as a list of words
            self._prompts[path] = " ".join(problem["language_instruction"])
        if problem and self.turn == "none":
            warnings.warn(
                f"'{path}' is a LIBERO file, whose images are stored upside down; they are left so. Use "
                f"'hdf5:{path}?turn=flip' for upright images, or turn=rotate for what OpenVLA was trained on.",
                stacklevel=4,
            )
        self._splits[path] = {}
        for split in file.get("mask", ()):
            for demo in np.atleast_1d(file["mask"][split][()]):
                name = demo.decode() if isinstance(demo, bytes) else str(demo)
                self._splits[path].setdefault(name, split)
        return sorted(file["data"], key=natural_key)

    def _check_demo(self, path: Path, demo: str, camera: str | Sequence[str] | None) -> int:
        """Return the number of steps; the first demonstration that can be read says which cameras there are."""
        group, where = self._handle(path)["data"][demo], f"'{path}', {demo}"
        if "obs" not in group:
            raise ItemError(f"{where} has no observations (obs/...); need images to look at.")
        obs = group["obs"]
        cameras = self.cameras or self._choose_cameras(obs, camera, where)
        missing = (set(cameras) | set(self.state_keys)) - set(obs) if self.cameras else set()
        if missing:
            raise ItemError(f"{where} lacks obs {sorted(missing)}, which the first demonstration has.")
        for one in cameras:
            if not _is_camera(obs[one]):
                raise ItemError(f"{where}: {_wrong_form(one, obs[one])}")
        lengths = {one: obs[one].shape[0] for one in cameras}
        if "actions" in group:
            lengths["actions"] = group["actions"].shape[0]
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ItemError(f"{where}: lengths differ or are 0: {lengths}.")
        if not self.cameras:
            keys = set(obs)
            if self.state_keys and not keys.issuperset(self.state_keys):
                raise InputError(
                    f"{where} has no obs {sorted(set(self.state_keys) - keys)}; it has {sorted(keys)}."
                )
            self.state_keys = self.state_keys or next((k for k in STATE_KEYS if keys.issuperset(k)), ())
            self.all_cameras, self.cameras = tuple(k for k in obs if _is_camera(obs[k])), cameras
        return next(iter(lengths.values()))

    def _choose_cameras(self, obs: Any, camera: str | Sequence[str] | None, where: str) -> tuple[str, ...]:
        good = [key for key in obs if _is_camera(obs[key])]
        wrong = [key for key in obs if _is_like_a_camera(key, obs[key])]
        if not good and not wrong:
            found = ", ".join(f"{k} {getattr(v, 'shape', '')}" for k, v in obs.items())
            raise ItemError(
                f"{where} has no images in obs; need uint8 [T, height, width, 3], but there is {found or 'nothing'}. "
                "With robomimic: make them with dataset_states_to_obs.py."
            )
        if camera is None and wrong:
            others = f" Or leave it out by choosing among the others: {', '.join(good)}." if good else ""
            raise ItemError(f"{where}: {_wrong_form(wrong[0], obs[wrong[0]])}{others}")
        return choose_cameras(camera, dict.fromkeys([*good, *wrong]), name=where)

    # ---- reading ----

    def read(self, index: int) -> Item:
        place, step = self.locate(index)
        path, demo = self._places[place]
        item_id = f"{self._names[place]}/{step:06d}"
        try:
            group = self._handle(path)["data"][demo]
            obs = group["obs"]
            images = tuple(self._turned(obs[camera][step]) for camera in self.cameras)
            state = [np.atleast_1d(np.asarray(obs[k][step], np.float32)).reshape(-1) for k in self.state_keys]
            action = np.asarray(group["actions"][step], np.float32) if "actions" in group else None
            labels = self._labels(path, demo, group, step)
        except (OSError, KeyError, ValueError) as error:
            raise ItemError(
                f"'{path}', {demo}, step {step}, cannot be read ({error}); the file is damaged."
            ) from error
        return Item(
            item_id=item_id,
            images=images,
            cameras=self.cameras,
            prompt=self.prompt or self._prompts[path],
            labels=labels,
            episode=place,
            step=step,
            state=np.concatenate(state) if state else None,
            action=action,
            source=str(path),
        )

    def _turned(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.turn == "none":
            return image
        return np.ascontiguousarray(image[::-1] if self.turn == "flip" else image[::-1, ::-1])

    def _labels(self, path: Path, demo: str, group: Any, step: int) -> dict[str, Scalar]:
        labels: dict[str, Scalar] = {}
        if demo in self._splits[path]:
            labels["split"] = self._splits[path][demo]
        for name, value in group.attrs.items():
            value = value.item() if isinstance(value, np.generic) else value
            # model_file is the whole scene as XML: no label.
            if isinstance(value, int | float | bool) or (isinstance(value, str) and len(value) <= 200):
                labels[name] = value
        if "rewards" in group:
            labels["reward"] = float(group["rewards"][step])
        if "dones" in group:
            labels["done"] = bool(group["dones"][step])
        return labels

    def fingerprint(self) -> str:
        facts = [file_facts(path) for path in self.paths]
        chosen = [list(self.cameras), list(self.state_keys), self.turn, self.prompt, self._names]
        return content_hash([facts, chosen])


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise missing_extra("h5py", extra="data", needed_for="Reading HDF5 demonstrations") from error
    return h5py


def _files(
    paths: Path | str | Sequence[Path | str], *, report: Callable[[str, ItemError], object]
) -> list[Path]:
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if len(files) == 1 and files[0].is_dir():
        found, _ = find_files(files[0], HDF5_SUFFIXES, report=report)
        if not found:
            raise ItemError(f"the folder '{files[0]}' has no HDF5 file ({', '.join(HDF5_SUFFIXES)}).")
        return found
    if not files:
        raise ItemError("got an empty list of HDF5 files; need at least one.")
    return files


def _is_camera(entry: Any) -> bool:
    shape = getattr(entry, "shape", ())
    return len(shape) == 4 and shape[-1] == 3 and entry.dtype == np.uint8


def _is_like_a_camera(name: str, entry: Any) -> bool:
    """Return whether an entry seems to be a camera of a form that is not read: channels first, floats, grey, RGBA."""
    shape: Any = getattr(entry, "shape", ())
    if _is_camera(entry) or re.search("depth|seg|mask", name.lower()) or not hasattr(entry, "dtype"):
        return False
    if entry.dtype.kind not in "uif" or len(shape) not in (3, 4):
        return False
    if len(shape) == 3:  # [T, a, b] may also be poses or clouds of points; bytes are pictures
        return entry.dtype == np.uint8 and min(shape[1:]) >= _MIN_SIDE_PX
    sides = [shape[1:3]] * (shape[3] in (1, 3, 4)) + [shape[2:]] * (shape[1] in (1, 3, 4))
    return any(min(side) >= _MIN_SIDE_PX for side in sides)


def _wrong_form(name: str, entry: Any) -> str:
    shape: tuple[int, ...] = getattr(entry, "shape", ())
    is_first = len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4)
    hint = ", which looks like channels first" if is_first else ""
    return (
        f"the camera '{name}' is {getattr(entry, 'dtype', 'a group')} {shape}{hint}; need uint8 "
        "[T, height, width, 3] (RGB, 0..255). Convert it."
    )


def _json_attribute(attributes: Any, name: str, path: Path) -> dict[str, Any]:
    text = attributes.get(name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ItemError(f"'{path}': its attribute {name} is not JSON ({error}).") from error
    return value if isinstance(value, dict) else {}
