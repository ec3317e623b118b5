"""Directions on disk: one safetensors file with the direction and what it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import InputError, RunVersionError, StorageError
from ..files import write_atomic
from .steer import SteerDirection

if TYPE_CHECKING:
    from ..models import Model

SCHEMA = 1


def save_direction(path: Path | str, steer: SteerDirection, *, model: Model) -> Path:
    """Write a direction with its site, unit, tokens and the model's fingerprint; returns the path.

    Raises:
        InputError: tokens that are a function, which a file cannot hold.
        StorageError: a folder is there, or the file cannot be written.
    """
    from safetensors.torch import save

    if not isinstance(steer.tokens, str):
        raise InputError(
            "a direction whose tokens are chosen by a function cannot be saved; name a kind of token."
        )
    check_file(path)
    facts = {
        "schema": SCHEMA,
        "site": steer.site,
        "unit": steer.unit,
        "tokens": steer.tokens,
        "label": steer.label,
        "model": model.name,
        "fingerprint": model.fingerprint(),
    }
    data = save({"direction": torch.from_numpy(steer.direction)}, metadata={"vlascope": json.dumps(facts)})
    path = Path(path)
    write_atomic(path, lambda handle: handle.write(data))
    return path


def check_file(path: Path | str) -> None:
    """Raise `StorageError` where a folder stands in the place of a file that is to be written."""
    if Path(path).is_dir():
        raise StorageError(f"'{path}' is a folder; name a file, such as '{Path(path) / 'NAME'}'.")


def load_direction(path: Path | str, *, model: Model) -> SteerDirection:
    """Return a saved direction at strength 1, for the model that it was found in.

    Raises:
        InputError: no such file, another kind of file, or another model.
        RunVersionError: written by a newer vlascope.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            text = (handle.metadata() or {}).get("vlascope")
            direction = handle.get_tensor("direction").numpy() if text else None
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"'{path}' cannot be read as a direction ({error}); write one with `vlascope steer`."
        ) from error
    if text is None or direction is None:
        raise InputError(f"'{path}' holds no direction of vlascope; write one with `vlascope steer --save`.")
    facts = json.loads(text)
    if facts["schema"] > SCHEMA:
        raise RunVersionError(
            f"'{path}' has format {facts['schema']}; this vlascope reads up to {SCHEMA}. Update it."
        )
    if facts["fingerprint"] != model.fingerprint():
        raise InputError(
            f"the direction in '{path}' belongs to the weights of '{facts['model']}', not to '{model.name}' as loaded."
        )
    return SteerDirection(
        site=facts["site"],
        direction=direction,
        unit=facts["unit"],
        tokens=facts["tokens"],
        label=facts["label"],
    )
