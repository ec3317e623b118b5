"""Activation arrays on disk: one uncompressed Zarr v3 array per site and block, readable as a memory map.

The metadata is written by hand because it is ten lines, needs no event loop, and the array data can then be
appended batch by batch. A test opens the result with the zarr package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RunIncompleteError
from .checksum import Crc32c

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
"""Types in which activations can be stored."""

_STORED = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
_BF16_NAN = 0x7FC0  # NumPy has no bfloat16: its bits are stored as uint16, and an attribute says so


def site_folder(site_name: str) -> str:
    """Return the folder name of a site: its own name, with characters unfit for a path escaped."""
    return quote(site_name, safe="._-+=@,()[]")


def chunk_path(array_dir: Path) -> Path:
    """Return the file that holds the values of a single-chunk [n, d] array."""
    return array_dir / "c" / "0" / "0"


def itemsize(dtype: str) -> int:
    """Return the bytes of one stored value."""
    return _STORED[dtype].itemsize


def check_dtype(dtype: str) -> None:
    """Raise `InputError` unless activations can be stored as `dtype`."""
    if dtype not in DTYPES:
        raise InputError(f"activations cannot be stored as '{dtype}'; choose one of {', '.join(DTYPES)}.")


def to_stored(values: torch.Tensor | NDArray[Any], dtype: str, *, what: str) -> NDArray[Any]:
    """Return activations of one item at one site in the stored type, contiguous and on the CPU.

    Args:
        values: float [t, d], any device and float type.
        dtype: One of `DTYPES`.
        what: Names the item and the site, for the error message.

    Returns:
        [t, d] float32 or float16, or uint16 that holds bfloat16 bits.

    Raises:
        InputError: not [t, d]; NaN or infinite values; values too large for `dtype`.
    """
    import torch

    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 2:
        raise InputError(f"{what}: activations have shape {tuple(tensor.shape)}; need [tokens, channels].")
    stored = tensor.to(device="cpu", dtype=getattr(torch, dtype)).contiguous()
    bits = stored.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else stored.numpy()
    if not _all_finite(bits, dtype):
        if torch.isfinite(tensor).all():
            raise InputError(
                f"{what}: values up to {tensor.abs().max().item():.3g} do not fit into {dtype}; "
                "capture with dtype='float32' or 'bfloat16'."
            )
        n_bad = int((~torch.isfinite(tensor)).any(dim=1).sum())
        raise InputError(
            f"{what}: {n_bad} of {len(tensor)} tokens have NaN or infinite activations. Check the image and the "
            "weights, or load the model in float32."
        )
    return bits


def _all_finite(stored: NDArray[Any], dtype: str) -> bool:
    """Return whether stored values are finite; by NumPy, for torch's threads would wait for one another at each item.

    Cost: 197 tokens of width 768 take 0.02 ms of one core.
    """
    if dtype == "float32":
        return bool(np.isfinite(stored).all())
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80}[dtype]  # all ones: infinite, or no number
    magnitude = stored.view(np.uint16) & np.uint16(0x7FFF)
    return not magnitude.size or int(magnitude.max()) < exponent


def from_stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return stored values as floats: bfloat16 bits become float32 (exactly), the rest is returned as is."""
    if dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


class ArrayWriter:
    """Appends rows to one array in a folder that no reader looks at yet; `close` makes it a Zarr array."""

    def __init__(self, array_dir: Path, *, dtype: str) -> None:
        self.dir, self.dtype = array_dir, dtype
        self.n_rows, self.width = 0, None
        self._digest = Crc32c()

    def append(self, rows: list[NDArray[Any]]) -> None:
        """Append arrays [t_i, d] of the stored type. Opens and closes the file: hundreds of sites may be written."""
        path = chunk_path(self.dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            for part in rows:
                if self.width is not None and part.shape[1] != self.width:
                    raise InputError(
                        f"site array '{self.dir.name}' has {self.width} channels, then {part.shape[1]}; the width "
                        "of a site must not change from item to item."
                    )
                self.width = part.shape[1]
                data = part.reshape(-1).view(np.uint8)
                handle.write(data.data)
                self._digest.update(data)
                self.n_rows += len(part)

    def close(self, *, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Write the metadata and return the array's entry for the commit marker; the caller flushes the disk."""
        width = self.width or 0
        self.dir.mkdir(parents=True, exist_ok=True)
        if not self.n_rows:
            chunk_path(self.dir).unlink(missing_ok=True)  # an empty Zarr array has no chunks
        write_metadata(self.dir, array_metadata((self.n_rows, width), self.dtype, attributes))
        return {
            "shape": [self.n_rows, width],
            "dtype": self.dtype,
            "crc32c": self._digest.hexdigest(),
            "finite": self.n_rows * width,  # all of them: `to_stored` refuses anything else
        }


def write_metadata(node_dir: Path, metadata: Mapping[str, Any]) -> None:
    """Write zarr.json plainly: whoever makes the node visible (a rename, a marker) flushes the disk first."""
    node_dir.mkdir(parents=True, exist_ok=True)
    (node_dir / "zarr.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def array_metadata(shape: tuple[int, int], dtype: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Zarr v3 metadata of a single-chunk, uncompressed, little-endian [n, d] array.

    References: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
    """
    is_bf16 = dtype == "bfloat16"
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "uint16" if is_bf16 else dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _BF16_NAN if is_bf16 else "NaN",  # a lost chunk must never read as zeros
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {**attributes, "dtype": dtype},
        "dimension_names": ["token", "channel"],
    }


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Zarr v3 metadata of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def open_array(array_dir: Path, *, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Return a read-only memory map of the stored values.

    Raises:
        RunIncompleteError: the file is missing or has another size than the commit marker says.
    """
    path = chunk_path(array_dir)
    n_bytes = shape[0] * shape[1] * itemsize(dtype)
    if n_bytes == 0:
        return np.empty(shape, _STORED[dtype])
    actual = path.stat().st_size if path.exists() else None
    if actual != n_bytes:
        found = "is missing" if actual is None else f"has {actual} bytes"
        raise RunIncompleteError(
            f"'{path}' {found}; its commit marker says {n_bytes} bytes. The run is damaged: "
            "see which blocks with `vlascope verify RUN`, and mend them with --repair."
        )
    return np.memmap(path, dtype=_STORED[dtype], mode="r", shape=shape)
