"""Taking a run elsewhere: safetensors files, or a LeRobot dataset of the frames that it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import new_folder, write_json
from ..items import EpisodeData, write_lerobot
from ..items.item import vector_names
from ..progress import watched
from .arrays import site_folder
from .run import Run

_SAFE_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
}


def export_safetensors(
    run: Run, out: Path | str, *, sites: Sequence[str] | None = None, force: bool = False
) -> Path:
    """Write the tokens of a run as safetensors files and return the folder.

    It holds `acts/SITE.safetensors` (one tensor "acts" [n, d] in the stored type), `tokens/LAYOUT.safetensors` (one
    tensor per column: item, position, kind, row, col, camera, tile, box), the run's Parquet tables, and `run.json`
    with the configuration, the layout of each site and the names of the token kinds.

    Args:
        run: A complete run.
        out: Folder to make.
        sites: Sites to write; None writes all.
        force: Replace a folder that vlascope wrote.

    Raises:
        SiteNotFoundError: no such site.
        StorageError: `out` exists and `force` is False, or it cannot be written.

    Cost: reads and writes the sites once; memory of one block.
    """
    from ..models.layout import KINDS

    chosen = {name: run.site(name) for name in (run.sites if sites is None else sites)}
    layouts = dict.fromkeys(site.layout for site in chosen.values())
    with new_folder(out, force=force, apart=[run.path]) as work:
        for name, site in watched(chosen.items(), desc="sites", unit="site", total=len(chosen)):
            acts = run.acts(name)
            _write_safetensors(
                work / "acts" / f"{site_folder(name)}.safetensors",
                {"acts": (site.dtype, acts.shape, lambda acts=acts: acts.stored_blocks())},
                metadata={"site": name, "layout": site.layout, "model": str(run.config["model"]["name"])},
            )
        for layout in layouts:
            tokens = run.tokens(layout)
            names = ("item", "position", "kind", "row", "col", "camera", "tile", "box")
            columns = {name: np.ascontiguousarray(getattr(tokens, name)) for name in names}
            _write_safetensors(
                work / "tokens" / f"{site_folder(layout)}.safetensors",
                {n: (c.dtype.name, c.shape, lambda c=c: iter([c])) for n, c in columns.items()},
                metadata={"layout": layout, "kinds": ",".join(KINDS)},
            )
        for name in ("items", "responses", *(f"tokens.{layout}" for layout in layouts)):
            shutil.copyfile(run.path / f"{name}.parquet", work / f"{name}.parquet")
        write_json(
            work / "run.json",
            {
                "config": run.config,
                "content_sha256": run.info["content_sha256"],
                "versions": run.info["versions"],
                "kinds": list(KINDS),
                "sites": {
                    n: {"layout": s.layout, "width": s.width, "dtype": s.dtype} for n, s in chosen.items()
                },
            },
        )
    return Path(out)


def _write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, Sequence[int], Callable[[], Iterator[NDArray[Any]]]]],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write tensors piece by piece: (type, shape, function that yields their rows in order).

    The format is a little-endian uint64 with the length of a JSON header, the header, and the bytes of the tensors.
    References: https://huggingface.co/docs/safetensors/index#format
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, _) in tensors.items():
        width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        end = at + int(np.prod(shape)) * width
        header[name] = {"dtype": _SAFE_TYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for _, _, parts in tensors.values():
            for part in parts():
                _write_array(handle, part)
        assert handle.tell() == 8 + len(text) + at, "the pieces of a tensor add up to its shape"


def _write_array(handle: IO[bytes], part: NDArray[Any]) -> None:
    handle.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def export_lerobot(run: Run, out: Path | str, *, fps: int | None = None, force: bool = False) -> Path:
    """Write the episodes of a run as a LeRobot v3 dataset and return the folder.

    Frames come from the images that the run keeps, states and actions from its items. The dataset's sidecar takes the
    rest, where every frame of an episode has it. As poses: the model's action, "model_action", its next H actions,
    "model_action_chunk" (H x dof values, step by step), and of the first camera "camera_pose" (16 values, row by row)
    and "camera_intrinsics" (9), in float32. As labels of frames: "model_answer", "model_flags" and, as JSON, "boxes".

    Args:
        run: A complete run of episodes.
        out: Folder to make.
        fps: Frames per second; None takes that of the source.
        force: Replace a folder that vlascope wrote.

    Raises:
        InputError: the run holds no episodes, or its frames lack state, action or prompt, or the rate is unknown.
        StorageError: `out` exists and `force` is False, or it cannot be written.

    Cost: reads and encodes every image; memory of one episode.
    """
    rate = fps if fps is not None else run.config["items"].get("fps")
    if rate is None:
        raise InputError("the frame rate of this run is not known; give it with fps (--fps).")
    if round(rate) != rate or rate < 1:
        raise InputError(
            f"got {rate:g} frames per second; LeRobot needs a whole number of at least 1: give fps (--fps)."
        )
    episodes: dict[int, list[int]] = {}
    for row in run.items:
        if row.episode is not None:
            episodes.setdefault(row.episode, []).append(row.index)
    if not episodes:
        raise InputError(f"run '{run.path}' holds no episodes; LeRobot datasets are made of them.")
    for number, rows in watched(episodes.items(), desc="episodes", unit="episode", total=len(episodes)):
        for index in rows:
            row = run.items[index]
            for name in ("state", "action", "prompt"):
                if getattr(row, name) is None:
                    raise InputError(
                        f"item '{row.item_id}' of episode {number} has no {name}; a LeRobot frame needs one. Capture "
                        "from a dataset that has it, or export as safetensors."
                    )
    first = run.items[next(iter(episodes.values()))[0]]
    assert first.state is not None and first.action is not None, "checked above"
    return write_lerobot(
        out,
        (_episode(run, rows) for rows in episodes.values()),
        fps=round(rate),
        state_names=vector_names(run.state_names, len(first.state), what="state_"),
        action_names=vector_names(run.action_names, len(first.action), what="action_"),
        robot_type="unknown",
        force=force,
        apart=[run.path],
    )


def _episode(run: Run, rows: Sequence[int]) -> EpisodeData:
    items = [run.items[index] for index in rows]
    masks = [run.mask(index) for index in rows]
    has_masks = all(mask is not None for mask in masks)
    answers = [run.response(index) for index in rows]
    frame_labels: dict[str, NDArray[Any]] = {}
    if all(answer is not None and answer.text is not None for answer in answers):
        frame_labels["model_answer"] = np.array([answer.text for answer in answers if answer is not None])
    if any(answer is not None and answer.flags for answer in answers):
        flags = ["" if answer is None else ", ".join(answer.flags) for answer in answers]
        frame_labels["model_flags"] = np.array(flags)
    if any(item.boxes for item in items):
        frame_labels["boxes"] = np.array([json.dumps([asdict(box) for box in item.boxes]) for item in items])
    of_frames = {
        "model_action": [None if answer is None else answer.action for answer in answers],
        "model_action_chunk": [None if answer is None else answer.action_chunk for answer in answers],
        "camera_pose": [item.pose for item in items],
        "camera_intrinsics": [item.intrinsics for item in items],
    }
    poses = {name: stacked for name, values in of_frames.items() if (stacked := _stacked(values)) is not None}
    return EpisodeData(
        frames={
            camera: np.stack([run.image(index, camera) for index in rows]) for camera in items[0].cameras
        },
        state=np.stack([np.asarray(item.state, np.float32) for item in items]),
        action=np.stack([np.asarray(item.action, np.float32) for item in items]),
        task=items[0].prompt or "",
        masks=np.stack([np.asarray(mask) for mask in masks]).astype(np.uint16) if has_masks else None,
        mask_names=dict(run.mask_names(rows[0])) if has_masks else {},
        labels={
            name: value
            for name, value in items[0].labels.items()
            if all(item.labels.get(name) == value for item in items)
        },
        frame_labels=frame_labels,
        poses=poses,
    )


def _stacked(values: Sequence[NDArray[Any] | None]) -> NDArray[np.float32] | None:
    """Return arrays of one shape as float32 [T, k]; None when one is missing or of another shape."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len({value.shape for value in known}) != 1:
        return None
    return np.stack(known).reshape(len(known), -1).astype(np.float32)
