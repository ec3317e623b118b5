"""The last step of a capture: merge the tables of the blocks, take stock, declare the run complete."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import file_hash, write_json, write_text
from . import paths
from .arrays import site_folder
from .block import read_marker
from .tables import items_schema, responses_schema, tokens_schema, write_tables

TEMP_PATTERN = ".*.tmp"
"""Names that `vlascope.files.write_atomic` gives to files in the making."""


def flush_disk(folder: Path) -> None:
    """Wait until everything written to the file system of `folder` is on the disk.

    One call instead of an `fsync` per file: a run has many thousands of files, at about 4 ms each.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):  # not Linux
        os.sync()
        return
    handle_no = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(handle_no) != 0:
            error_no = ctypes.get_errno()
            raise OSError(error_no, os.strerror(error_no), str(folder))
    finally:
        os.close(handle_no)


def finish_run(run_dir: Path, info: Mapping[str, Any], *, n_blocks: int) -> dict[str, Any]:
    """Merge the blocks' tables into the run's own and return run.json with status "complete" (not yet written).

    Every file is replaced atomically and depends on the blocks only, so a crash in between is mended by doing it
    again. Memory: one block's tables.
    """
    widths: dict[str, int] = {}
    failures: list[dict[str, Any]] = []
    for block in range(n_blocks):
        marker = read_marker(run_dir, block)
        assert marker is not None, f"block {block} was committed by this process or checked by it"
        for site, entry in marker["arrays"].items():
            n_rows, width = entry["shape"]
            if n_rows and widths.setdefault(site, width) != width:
                raise InputError(
                    f"site '{site}' has {widths[site]} channels in the first blocks but {width} in block {block}; "
                    "the width of a site must not change from item to item."
                )
        failures += marker["failures"]

    index = write_index(run_dir, n_blocks=n_blocks)
    n_items = index["n_items"]
    tables: dict[str, str] = {}
    schemas = {
        "items": items_schema(),
        "responses": responses_schema(),
        **{f"tokens.{layout}": tokens_schema() for layout in index["rows"]},
    }
    for name, schema in schemas.items():
        path = run_dir / f"{name}.parquet"
        write_tables(path, _shifted_parts(run_dir, name, n_items, schema), schema=schema)
        tables[path.name] = file_hash(path)
    if failures:
        write_text(
            run_dir / paths.FAILURES_NAME,
            "".join(json.dumps(f, sort_keys=True, ensure_ascii=False) + "\n" for f in failures),
        )
    sites = {name: {**site, "width": widths.get(name, site["width"])} for name, site in info["sites"].items()}
    return {
        **info,
        "status": "complete",
        "n_items": sum(n_items),
        "n_failed": len(failures),
        "sites": sites,
        "tables": tables,
        "facts": fact_hashes(run_dir, sites),
        "content_sha256": content_sha256(run_dir, n_blocks=n_blocks),
    }


def fact_hashes(run_dir: Path, sites: Iterable[str]) -> dict[str, str]:
    """Return the checksums of the files that say what a run is: its configuration and the metadata of its arrays."""
    places = [paths.CONFIG_NAME, "acts.zarr/zarr.json"]
    places += [f"acts.zarr/{site_folder(site)}/zarr.json" for site in sites]
    return {place: file_hash(run_dir / place) for place in places}


def write_index(run_dir: Path, *, n_blocks: int) -> dict[str, Any]:
    """Write how many items and tokens each block has, as their markers say, and return it."""
    n_items: list[int] = []
    rows: dict[str, list[int]] = {}
    for block in range(n_blocks):
        marker = read_marker(run_dir, block)
        assert marker is not None, f"block {block} was committed by this process or checked by it"
        n_items.append(marker["n_items"])
        for layout, count in marker["rows"].items():
            rows.setdefault(layout, []).append(count)
    index = {"n_items": n_items, "rows": rows}
    write_json(run_dir / "blocks" / paths.INDEX_NAME, index)
    return index


def content_sha256(run_dir: Path, *, n_blocks: int) -> str:
    """Return the checksum of a run's content: that of its commit markers, which hold the checksums of all files."""
    content = hashlib.sha256()
    for block in range(n_blocks):
        content.update(json.dumps(read_marker(run_dir, block), sort_keys=True).encode())
    return content.hexdigest()


def _shifted_parts(run_dir: Path, name: str, n_items: list[int], schema: Any) -> Iterator[Callable[[], Any]]:
    """Yield readers of each block's part of a table, with item numbers counted from the start of the run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    for block, count in enumerate(n_items):

        def read(block: int = block, first: int = first) -> Any:
            table = pq.read_table(paths.parts_dir(run_dir, block) / f"{name}.parquet")
            for (
                field
            ) in schema:  # a run that an older version began lacks the newer columns, all of them nullable
                if field.name not in table.column_names:
                    table = table.append_column(field, pa.nulls(len(table), field.type))
            table = table.select(schema.names)
            shifted = table.column("item").to_numpy() + first
            return table.set_column(0, table.schema.field("item"), pa.array(shifted, pa.int32()))

        yield read
        first += count


def remove_parts(run_dir: Path, *, n_blocks: int) -> None:
    """Remove what only an unfinished run needs, and temporary files of writers that were killed."""
    for folder in (run_dir, run_dir / "blocks"):
        for path in folder.glob(TEMP_PATTERN):
            path.unlink(missing_ok=True)
    shutil.rmtree(run_dir / paths.WORK_NAME, ignore_errors=True)
    for block in range(n_blocks):
        shutil.rmtree(paths.parts_dir(run_dir, block), ignore_errors=True)
