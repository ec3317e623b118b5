"""A monitor on disk: JSON, safetensors, and its own copy of the dictionary; another model's tokens are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError, RunNotFoundError, RunVersionError, StorageError
from ..files import file_hash, read_json, storage_errors, write_json
from ..sae import load_sae
from ..sae.checkpoint import CONFIG_NAME, PROOF_NAME, WEIGHTS_NAME
from ..sae.tensors import write_tensors
from .monitor import Fitted, Monitor, Patches
from .monitor_detectors import SAEError, SAEFall, from_tensors
from .monitor_thresholds import Rate, Thresholds

if TYPE_CHECKING:
    from ..sae import Checkpoint

SCHEMA = 1
MONITOR_NAME, TENSORS_NAME, DICTIONARY_NAME = "monitor.json", "monitor.safetensors", "dictionary"
_PATCH_FIELDS = ("position", "row", "col", "camera")
_BY_DICTIONARY = {one.name: one for one in (SAEError, SAEFall)}


def save_monitor(monitor: Monitor, path: Path | str, *, checkpoint: Checkpoint) -> Path:
    """Write a monitor as a folder: monitor.json (last), monitor.safetensors and the dictionary.

    Args:
        monitor: From `fit_monitor`.
        path: Folder, made when missing.
        checkpoint: The dictionary that it was fitted with; its files are copied.

    Raises:
        StorageError: full or read-only disk; an older monitor in the folder is then incomplete, not wrong.
    """
    path = Path(path)
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / MONITOR_NAME).unlink(missing_ok=True)
        own = path / DICTIONARY_NAME
        own.mkdir(exist_ok=True)
        for name in (WEIGHTS_NAME, PROOF_NAME, CONFIG_NAME):
            source = checkpoint.path / name
            if source.resolve() != (own / name).resolve() and source.is_file():
                shutil.copyfile(source, own / name)
    tensors = {name: torch.from_numpy(getattr(monitor.patches, name)) for name in _PATCH_FIELDS}
    tensors["box"] = torch.from_numpy(np.ascontiguousarray(monitor.patches.box, np.float32))
    tensors["level_centre"] = torch.from_numpy(np.ascontiguousarray(monitor.level_centre, np.float32))
    tensors["level_spread"] = torch.from_numpy(np.ascontiguousarray(monitor.level_spread, np.float32))
    detectors: dict[str, Any] = {}
    for name, fitted in monitor.fitted.items():
        tensors[f"{name}.centre"] = torch.from_numpy(np.ascontiguousarray(fitted.centre, np.float32))
        tensors[f"{name}.spread"] = torch.from_numpy(np.ascontiguousarray(fitted.spread, np.float32))
        for key, value in fitted.detector.tensors().items():
            tensors[f"{name}.detector.{key}"] = value.detach().float().cpu().contiguous()
        detectors[name] = {
            "patch_threshold": fitted.patch_threshold,
            "thresholds": {group: dict(vars(limits)) for group, limits in fitted.thresholds.items()},
            "realised_false_alarms": {
                group: {rule: rate.to_json() for rule, rate in by_rule.items()}
                for group, by_rule in fitted.realised.items()
            },
            "realised_any_camera": {
                task: {rule: rate.to_json() for rule, rate in by_rule.items()}
                for task, by_rule in fitted.any_camera.items()
            },
        }
    write_tensors(path / TENSORS_NAME, tensors)
    sae = monitor.fitted["sae"].detector
    assert isinstance(sae, SAEError)
    write_json(
        path / MONITOR_NAME,
        {
            "schema": SCHEMA,
            "site": monitor.site,
            "alpha": monitor.alpha,
            "by": monitor.by,
            "top": monitor.top,
            "cameras": list(monitor.cameras),
            "model": dict(monitor.model),
            "variance": sae.variance,
            "dictionary_sha256": file_hash(path / DICTIONARY_NAME / WEIGHTS_NAME),
            "facts": dict(monitor.facts),
            "detectors": detectors,
        },
    )
    return path


def load_monitor(path: Path | str, *, device: str = "cpu") -> Monitor:
    """Return a saved monitor, after checking its dictionary.

    Raises:
        RunNotFoundError: no monitor there.
        RunVersionError: written by a newer vlascope.
        InputError: damaged files, or a dictionary that is not the one it was fitted with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not (path / MONITOR_NAME).is_file():
        raise RunNotFoundError(
            f"'{path}' holds no monitor ({MONITOR_NAME} is missing). Fit one with `vlascope monitor fit`."
        )
    try:
        facts = read_json(path / MONITOR_NAME)
        if facts["schema"] > SCHEMA:
            raise RunVersionError(
                f"the monitor in '{path}' has format {facts['schema']}; this vlascope reads up to {SCHEMA}. Update it."
            )
        tensors = load_file(path / TENSORS_NAME)
        found = file_hash(path / DICTIONARY_NAME / WEIGHTS_NAME)
        if found != facts["dictionary_sha256"]:
            raise InputError(
                f"the dictionary in '{path / DICTIONARY_NAME}' is not the one that the monitor was fitted with; fit it "
                "again."
            )
        checkpoint = load_sae(path / DICTIONARY_NAME, device=device)
        fitted = {
            name: Fitted(
                detector=(
                    _BY_DICTIONARY[name](checkpoint.sae, float(facts["variance"]))
                    if name in _BY_DICTIONARY
                    else from_tensors(
                        name,
                        {
                            key.removeprefix(f"{name}.detector."): value
                            for key, value in tensors.items()
                            if key.startswith(f"{name}.detector.")
                        },
                    )
                ),
                centre=tensors[f"{name}.centre"].numpy(),
                spread=tensors[f"{name}.spread"].numpy(),
                patch_threshold=float(one["patch_threshold"]),
                thresholds={group: Thresholds(**values) for group, values in one["thresholds"].items()},
                realised=_rates(one["realised_false_alarms"]),
                any_camera=_rates(one.get("realised_any_camera", {})),
            )
            for name, one in facts["detectors"].items()
        }
        return Monitor(
            site=facts["site"],
            alpha=float(facts["alpha"]),
            by=facts["by"],
            top=float(facts["top"]),
            patches=Patches(
                **{name: tensors[name].numpy() for name in _PATCH_FIELDS}, box=tensors["box"].numpy()
            ),
            cameras=tuple(facts["cameras"]),
            fitted=fitted,
            level_centre=tensors["level_centre"].numpy(),
            level_spread=tensors["level_spread"].numpy(),
            model=facts["model"],
            facts=facts["facts"],
        )
    except StorageError:
        raise
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the monitor in '{path}' cannot be read ({error!r}); fit it again.") from error


def _rates(saved: dict[str, Any]) -> dict[str, dict[str, Rate]]:
    return {
        group: {rule: Rate(alarms=r["alarms"], n=r["n"]) for rule, r in by_rule.items()}
        for group, by_rule in saved.items()
    }
