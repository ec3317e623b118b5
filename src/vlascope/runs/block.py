"""A block of items: put together aside, moved into place, and only then marked as there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import InputError, RunIncompleteError
from ..files import file_hash, read_json, write_json
from ..items.item import Item
from ..models.layout import TokenLayout
from . import paths
from .arrays import ArrayWriter, chunk_path, itemsize, site_folder
from .checksum import is_intact
from .media import encode_item
from .prefetch import Helpers
from .tables import (
    item_record,
    items_schema,
    response_record,
    responses_schema,
    table_from_layouts,
    table_from_records,
    write_table,
)

MARKER_VERSION = 2


class BlockWriter:
    """Writes the items start .. stop-1 of a source as one block.

    Nothing counts before `commit`: files grow in a work folder, are renamed into place, and the commit marker, which
    lists every file with its checksum, comes last. A killed process leaves either a whole block or none. A power cut
    may also lose data that the system had not yet written; resuming finds that by the checksums, which is far
    cheaper than waiting for the disk after each of a block's hundreds of files.

    Memory: one batch of activations, and the token layouts of the block.
    """

    def __init__(
        self,
        run_dir: Path,
        block: int,
        *,
        start: int,
        stop: int,
        site_layouts: Mapping[str, str],
        dtype: str,
        helpers: Helpers,
    ) -> None:
        self.run_dir, self.block, self.start, self.stop = run_dir, block, start, stop
        self.site_layouts, self.dtype, self._helpers = dict(site_layouts), dtype, helpers
        self._work = paths.work_dir(run_dir, block)
        shutil.rmtree(self._work, ignore_errors=True)
        (self._work / "media").mkdir(parents=True)
        self._arrays = {
            s: ArrayWriter(self._work / "acts" / site_folder(s), dtype=dtype) for s in site_layouts
        }
        self._layouts: dict[str, list[TokenLayout]] = {
            name: [] for name in sorted(set(site_layouts.values()))
        }
        self._items: list[dict[str, Any]] = []
        self._responses: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []
        self._media: dict[str, str] = {}

    def append(
        self,
        batch: Sequence[tuple[int, Item]],
        *,
        layouts: Mapping[str, Sequence[TokenLayout]],
        acts: Mapping[str, Sequence[NDArray[Any]]],
        responses: Mapping[int, Any],
    ) -> None:
        """Append items with all that the model said about them.

        Args:
            batch: (index in the source, item) in order.
            layouts: For each layout one `TokenLayout` per item of the batch.
            acts: For each site one stored array [t, d] per item of the batch.
            responses: Response by place in the batch, where there is one.
        """
        for site, layout in self.site_layouts.items():
            for (_, item), rows, tokens in zip(batch, acts[site], layouts[layout], strict=True):
                if len(rows) != len(tokens):
                    raise InputError(
                        f"item '{item.item_id}': site '{site}' gave {len(rows)} rows, but its layout '{layout}' names "
                        f"{len(tokens)} tokens; the model's layout is wrong (for vs.wrap: check rows, cols, prefix)."
                    )
        self._helpers.each(lambda site: self._arrays[site].append(list(acts[site])), self.site_layouts)
        for name, known in self._layouts.items():
            known.extend(layouts[name])
        written = self._helpers.each(self._write_media, batch)
        for place, ((source_index, item), (hashes, media, mask_media)) in enumerate(
            zip(batch, written, strict=True)
        ):
            index = len(self._items)
            self._media |= hashes
            self._items.append(
                item_record(item, index=index, source_index=source_index, media=media, mask_media=mask_media)
            )
            if place in responses:
                self._responses.append(response_record(responses[place], index=index))

    def _write_media(self, one: tuple[int, Item]) -> tuple[dict[str, str], list[str], dict[str, str]]:
        """Write the pictures and masks of an item; return their checksums and names (see `encode_item`)."""
        source_index, item = one
        files, media, mask_media = encode_item(item, stem=f"{source_index:07d}")
        for name, data in files.items():
            (self._work / "media" / name).write_bytes(data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return hashes, media, mask_media

    def fail(self, source_index: int, error: BaseException) -> None:
        """Record an item that could not be read."""
        self._failures.append({"index": source_index, "error": type(error).__name__, "message": str(error)})

    def commit(self) -> dict[str, Any]:
        """Make the block final and return its marker."""
        arrays = {
            site: writer.close(attributes={"site": site, "layout": self.site_layouts[site]})
            for site, writer in self._arrays.items()
        }
        parts = self._work / "parts"
        tables = {
            "items": table_from_records(self._items, items_schema()),
            "responses": table_from_records(self._responses, responses_schema()),
            **{f"tokens.{name}": table_from_layouts(x, first_item=0) for name, x in self._layouts.items()},
        }
        for name, table in tables.items():
            write_table(parts / f"{name}.parquet", table)

        for site in self._arrays:
            _move(self._work / "acts" / site_folder(site), paths.array_dir(self.run_dir, site, self.block))
        _move(self._work / "media", paths.media_dir(self.run_dir, self.block))
        parts_home = paths.parts_dir(self.run_dir, self.block)
        _move(parts, parts_home)
        marker = {
            "version": MARKER_VERSION,
            "block": self.block,
            "items": [self.start, self.stop],
            "n_items": len(self._items),
            "failures": self._failures,
            "rows": {name: sum(len(t) for t in x) for name, x in self._layouts.items()},
            "arrays": arrays,
            "tables": {name: file_hash(parts_home / f"{name}.parquet") for name in tables},
            "media": self._media,
        }
        write_json(paths.marker_path(self.run_dir, self.block), marker)
        shutil.rmtree(self._work, ignore_errors=True)
        return marker


def _move(source: Path, target: Path) -> None:
    """Move a folder into place; what a crash left there without a marker is removed first."""
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)


def read_marker(run_dir: Path, block: int) -> dict[str, Any] | None:
    """Return the commit marker of a block; None when it is not committed.

    Raises:
        RunIncompleteError: the marker is there but damaged.
    """
    path = paths.marker_path(run_dir, block)
    try:
        marker = read_json(path) if path.exists() else None
        if marker is not None and not (
            isinstance(marker, dict) and "arrays" in marker and "tables" in marker
        ):
            raise ValueError("it is no commit marker")
        return marker
    except ValueError as error:
        raise RunIncompleteError(
            f"'{path}' is damaged ({error}); mend it with --resume, or with `vlascope verify RUN --repair`."
        ) from error


def block_problems(
    run_dir: Path, marker: Mapping[str, Any], *, checksums: bool, with_parts: bool
) -> list[str]:
    """Return what is wrong with a committed block, one line per problem; an empty list when it is whole.

    Args:
        run_dir: The run.
        marker: Its commit marker.
        checksums: Read every byte and compare; otherwise only look at file sizes.
        with_parts: Expect the block's own tables (they are merged and removed when a run is complete).
    """
    block = marker["block"]
    problems = []

    def compare(path: Path, entry: Mapping[str, Any], n_bytes: int | None = None) -> None:
        shown = path.relative_to(run_dir)
        if not path.exists():
            problems.append(f"block {block}: {shown} is missing")
        elif n_bytes is not None and path.stat().st_size != n_bytes:
            problems.append(f"block {block}: {shown} has {path.stat().st_size} bytes, expected {n_bytes}")
        elif checksums and not is_intact(path, entry):
            problems.append(f"block {block}: {shown} has changed (checksum differs)")

    for site, entry in marker["arrays"].items():
        n_bytes = entry["shape"][0] * entry["shape"][1] * itemsize(entry["dtype"])
        folder = paths.array_dir(run_dir, site, block)
        if n_bytes:
            compare(chunk_path(folder), entry, n_bytes)
        if not (folder / "zarr.json").exists():
            problems.append(f"block {block}: {(folder / 'zarr.json').relative_to(run_dir)} is missing")
    for name, sha256 in marker["media"].items():
        compare(paths.media_dir(run_dir, block) / name, {"sha256": sha256})
    if with_parts:
        for name, sha256 in marker["tables"].items():
            compare(paths.parts_dir(run_dir, block) / f"{name}.parquet", {"sha256": sha256})
    return problems


def drop_block(run_dir: Path, block: int, marker: Mapping[str, Any] | None) -> None:
    """Take a damaged block back: the marker goes first, so that a crash leaves no marked block without data.

    Without a marker (it is damaged itself) the arrays stay until the block is written again.
    """
    paths.marker_path(run_dir, block).unlink()
    for site in marker["arrays"] if marker else ():
        shutil.rmtree(paths.array_dir(run_dir, site, block), ignore_errors=True)
    shutil.rmtree(paths.media_dir(run_dir, block), ignore_errors=True)
    shutil.rmtree(paths.parts_dir(run_dir, block), ignore_errors=True)
