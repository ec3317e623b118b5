"""Large models: spread over devices by accelerate, or with weights of 4 or 8 bits by bitsandbytes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InputError, missing_extra

QUANTIZE = ("4bit", "8bit")


def placement(
    *,
    device_map: str | Mapping[str, Any] | None,
    quantize: str | None,
    device: str | torch.device,
    compute: torch.dtype,
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that spread or shrink a model; {} when neither is asked for.

    Args:
        device_map: "auto", another strategy of accelerate, or {module path: device}; None for one device.
        quantize: "4bit", "8bit" or None.
        device: What `load` was given; it must be left at "auto" beside a device map.
        compute: What quantized weights are turned into for computing.

    Raises:
        InputError: unknown value, or a device beside a device map.
        MissingExtraError: accelerate or bitsandbytes is not installed.
    """
    if quantize is not None and quantize not in QUANTIZE:
        raise InputError(
            f"got quantize='{quantize}'; need {' or '.join(map(repr, QUANTIZE))}, or leave it out."
        )
    if device_map is None and quantize is None:
        return {}
    if device_map is not None and device != "auto":
        raise InputError(
            f"got device='{device}' and device_map={device_map!r}; give one of them. A device map says itself where "
            "each part goes."
        )
    wanted = f"quantize='{quantize}'" if quantize else f"device_map={device_map!r}"
    for package in ("accelerate", "bitsandbytes") if quantize else ("accelerate",):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, extra="large", needed_for=wanted)
    out: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    if quantize:
        from transformers import BitsAndBytesConfig

        if quantize == "4bit":
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)
        else:
            config = BitsAndBytesConfig(load_in_8bit=True)
        out["quantization_config"] = config
        # Quantized weights cannot be moved afterwards: they are put in place while they are read.
        out.setdefault("device_map", {"": str(torch.device(_one_device(device)))})
    return out


def check_accepts(family: Any, chosen: Mapping[str, Any]) -> None:
    """Raise `InputError` when a family that loads its checkpoints in its own way cannot place them."""
    if chosen and "placement" not in inspect.signature(family.load_module).parameters:
        raise InputError(
            f"models of the family '{family.name}' load in a way of their own, which takes no {', '.join(chosen)}. "
            "Leave device_map and quantize out, or load the module yourself and give it to vlascope.load()."
        )


def input_device(module: nn.Module) -> torch.device:
    """Return where the inputs of a spread model go: where its first weights are."""
    return next(p.device for p in module.parameters() if p.device.type != "meta")


def _one_device(device: str | torch.device) -> str | torch.device:
    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"
