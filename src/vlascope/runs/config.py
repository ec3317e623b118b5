"""What was asked of a capture, in JSON: saved with the run, compared when a run is resumed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import InputError
from .arrays import check_dtype
from .plan import first_item

if TYPE_CHECKING:
    from ..items.item import ItemSource
    from ..models import Model, Site


def capture_config(
    model: Model,
    items: ItemSource,
    *,
    sites: Sequence[Site],
    batch_size: int,
    block_items: int,
    dtype: str,
    respond: bool | str,
    max_new_tokens: int,
    with_answer: bool,
    seed: int,
    on_error: str,
) -> dict[str, Any]:
    """Return the full, resolved configuration of a capture: all that its bits depend on.

    Raises:
        InputError: a value is out of range.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("block_items", block_items),
        ("max_new_tokens", max_new_tokens),
    ):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; need a whole number of at least 1.")
    if not isinstance(seed, int):
        raise InputError(f"seed is {seed!r}; need a whole number.")
    if respond not in (True, False, "auto"):
        raise InputError(f"respond is {respond!r}; choose True, False or 'auto'.")
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}; choose 'raise' or 'skip'.")
    if with_answer and respond is False:
        raise InputError(
            "with_answer needs the model's answers, but respond is False; leave respond at 'auto'."
        )
    if (with_answer or respond is True) and not model.answers:
        asked = "with_answer" if with_answer else "respond"
        raise InputError(f"model '{model.name}' gives no answers, but {asked} is True; leave it out.")
    model_dtype = str(model.dtype).removeprefix("torch.")
    dtype = stored_dtype(model, dtype)
    return {
        "model": {
            "name": str(model.name),
            "family": model.family,
            "revision": model.revision,
            "fingerprint": model.fingerprint(),
            "reads": model.reads(first_item(items, on_error=on_error)),
            "dtype": model_dtype,
            "device": str(model.device).split(":")[0],
            **({"edits": list(model.edited)} if model.edited else {}),
        },
        "items": {
            "name": items.name,
            "n_items": len(items),
            "fps": items.fps,
            "fingerprint": items_fingerprint(items),
        },
        "capture": {
            "sites": [site.name for site in sites],
            "dtype": dtype,
            "batch_size": batch_size,
            "block_items": block_items,
            "respond": respond,
            "max_new_tokens": max_new_tokens,
            "with_answer": with_answer,
            "seed": seed,
            "on_error": on_error,
        },
    }


def stored_dtype(model: Model, dtype: str = "auto") -> str:
    """Return the type in which activations of a model are stored; "auto" keeps its own type without loss.

    Raises:
        InputError: no such type.
    """
    own = str(model.dtype).removeprefix("torch.")
    if dtype == "auto":
        dtype = own if own in ("float16", "bfloat16") else "float32"
    check_dtype(dtype)
    return dtype


def items_fingerprint(items: ItemSource) -> str:
    """Return the fingerprint of items, hashed: that of a subset lists every index."""
    return hashlib.sha256(items.fingerprint().encode()).hexdigest()[:16]


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line per field that makes another run of it: "capture.batch_size: the run has 16, asked for 8"."""
    lines = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted({*before, *after}):
            had, asked = before.get(name), after.get(name)
            if had == asked or (name == "reads" and had is None):  # a run from before this was recorded
                continue
            if (section, name, had, asked) == ("capture", "on_error", "raise", "skip"):
                continue  # what is there has no item left out, so that the rest may
            if name == "reads":
                lines.append(
                    "model: it makes something else of the first item than when the run was made (another grid or "
                    "layout, preprocessing, tokenizer or prompt format)"
                )
                continue
            if isinstance(had, list) and isinstance(asked, list):
                lines.append(f"{section}.{name}: {_list_difference(had, asked)}")
            else:
                lines.append(f"{section}.{name}: the run has {had!r}, asked for {asked!r}")
    return lines


def _list_difference(had: list[Any], asked: list[Any]) -> str:
    lacks = [x for x in asked if x not in had]
    more = [x for x in had if x not in asked]
    parts = []
    for what, names in (("the run lacks", lacks), ("the run also has", more)):
        if names:
            rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
            parts.append(f"{what} {', '.join(map(str, names[:4]))}{rest}")
    return "; ".join(parts) or "the same names in another order"


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"vlascope": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "numpy", "pyarrow", "pillow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: str) -> dict[str, Any]:
    """Return what the capture ran on."""
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
