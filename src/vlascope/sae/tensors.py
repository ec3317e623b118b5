"""Writing safetensors straight from memory to disk: no second copy, and the system's own errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ..files import write_atomic

_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write contiguous CPU tensors atomically as a safetensors file.

    Args:
        path: Final place.
        tensors: float32, float64 or int64, by name.
        metadata: Text by name, kept in the header.

    Raises:
        StorageError: no permission, read-only or full disk; a file that was there before is unchanged.

    References: https://github.com/huggingface/safetensors (format: 8 bytes of header length, JSON, raw values).
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        header[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(handle: IO[bytes]) -> None:
        handle.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            assert value.is_contiguous() and value.device.type == "cpu"
            handle.write(value.detach().reshape(-1).numpy().data)

    return write_atomic(path, write)
