"""The tables of a run: items, tokens and responses, as Arrow schemas and as rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_atomic
from ..items.item import Box, Item, Scalar
from ..models.layout import KINDS, TokenLayout

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ItemRow:
    """What a run knows about one item; its pixels are read with `run.image(index)`.

    Attributes:
        index: Row of the item in the run, 0 <= index < run.n_items.
        source_index: Index of the item in the source that was captured (differs once items were skipped).
        item_id: Unique within its source.
        cameras: One name per image.
        image_sizes: (height, width) of each camera's image in pixels.
        prompt: Instruction or question; None when there was none.
        labels: Known facts.
        mask_names: For each stored mask the meaning of its integers.
        episode, step, time_secs: Place in an episode or video; None for stand-alone images.
        state, action: float32 vectors of the dataset; None when unknown.
        source: File that the first image came from; None for arrays.
        boxes: Labelled rectangles in the first image, in its pixels.
        pose: Camera-to-world matrix of the first camera, float64 [4, 4] (see `Item.pose`); None when unknown.
        intrinsics: Pinhole matrix of the first camera in pixels, float64 [3, 3]; None when unknown.
    """

    index: int
    source_index: int
    item_id: str
    cameras: tuple[str, ...]
    image_sizes: tuple[tuple[int, int], ...]
    prompt: str | None = None
    labels: Mapping[str, Scalar] = field(default_factory=dict)
    mask_names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    episode: int | None = None
    step: int | None = None
    time_secs: float | None = None
    state: NDArray[np.float32] | None = None
    action: NDArray[np.float32] | None = None
    source: str | None = None
    boxes: tuple[Box, ...] = ()
    pose: NDArray[np.float64] | None = None
    intrinsics: NDArray[np.float64] | None = None
    media: tuple[str, ...] = ()
    mask_media: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ResponseRow:
    """What the model answered to one item.

    Attributes:
        item: Row of the item in the run.
        text: The decoded answer; None for models without text output.
        token_ids: Generated ids.
        token_texts: One string per generated id.
        action: float32 [dof] in physical units; None when the answer is no action.
        action_names: One name per entry of `action`.
        action_chunk: float32 [H, dof], the actions of the next H steps, the first of them `action`; None for
            models that plan one step.
        action_ids: The ids that encode the action.
        action_bins: Their bins, 0 for the lowest values.
        flags: Warnings of the decoder, e.g. an answer cut short.
    """

    item: int
    text: str | None
    token_ids: tuple[int, ...] = ()
    token_texts: tuple[str, ...] = ()
    action: NDArray[np.float32] | None = None
    action_names: tuple[str, ...] = ()
    action_ids: tuple[int, ...] = ()
    action_chunk: NDArray[np.float32] | None = None
    action_bins: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()


def _to_numpy(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """Return a column of numbers without gaps; pyarrow's own `to_numpy` imports pandas, a third of a second."""
    values = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return np.from_dlpack(values)  # type: ignore[arg-type]


class TokenTable:
    """The tokens of one layout, one row per token in the order of `run.acts(site)`.

    Attributes:
        item: int32 [n], row of the item in the run.
        position: int32 [n], place in the item's token sequence.
        kind: int8 [n], index into `vlascope.models.layout.KINDS`.
        row, col: int16 [n], place in the patch grid; -1 where it is no patch.
        camera, tile: int16 [n]; -1 for text and the like.
        box: float32 [n, 4], x0, y0, x1, y1 in pixels of the original image; NaN where it is no patch.
    """

    def __init__(self, table: pa.Table) -> None:
        def column(name: str) -> NDArray[Any]:
            return _to_numpy(table.column(name))

        self.item: NDArray[np.int32] = column("item")
        self.position: NDArray[np.int32] = column("position")
        self.kind: NDArray[np.int8] = column("kind")
        self.row: NDArray[np.int16] = column("row")
        self.col: NDArray[np.int16] = column("col")
        self.camera: NDArray[np.int16] = column("camera")
        self.tile: NDArray[np.int16] = column("tile")
        self.box: NDArray[np.float32] = np.stack([column(name) for name in _BOX], axis=1)
        words = table.column("text").combine_chunks()
        if not hasattr(
            words, "dictionary"
        ):  # as written; a run reads it encoded already (see Run._read_table)
            words = words.dictionary_encode()
        words = words.combine_chunks() if hasattr(words, "combine_chunks") else words
        self._words: list[str] = words.dictionary.to_pylist()
        self._word: NDArray[np.int32] = _to_numpy(words.indices)

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def text(self) -> list[str]:
        """The word or word piece of each token; "" for patches."""
        return [self._words[i] for i in self._word]

    def select(self, kinds: Iterable[str]) -> NDArray[np.int64]:
        """Return the rows of the tokens whose kind is one of `kinds`, in order.

        Raises:
            InputError: an entry is no token kind.
        """
        kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise InputError(f"unknown token kind {unknown[0]!r}; kinds are {', '.join(KINDS)}.")
        return np.flatnonzero(np.isin(self.kind, [KINDS.index(kind) for kind in kinds]))

    def rows_of(self, item: int) -> slice:
        """Return the rows of one item (they are contiguous)."""
        return slice(
            int(np.searchsorted(self.item, item)), int(np.searchsorted(self.item, item, side="right"))
        )

    def layout_of(self, item: int) -> TokenLayout:
        """Return the tokens of one item as the layout that the model gave."""
        rows = self.rows_of(item)
        return TokenLayout(
            kind=self.kind[rows],
            row=self.row[rows],
            col=self.col[rows],
            camera=self.camera[rows],
            tile=self.tile[rows],
            text=tuple(self._words[i] for i in self._word[rows]),
            box=self.box[rows],
        )

    def __repr__(self) -> str:
        counts = np.bincount(self.kind, minlength=len(KINDS))
        text = ", ".join(f"{n} {kind}" for kind, n in zip(KINDS, counts, strict=True) if n)
        return f"TokenTable(n={len(self)}: {text})"


_BOX = ("x0", "y0", "x1", "y1")


def items_schema() -> pa.Schema:
    """Return the schema of items.parquet."""
    import pyarrow as pa

    return pa.schema(
        [
            ("item", pa.int32()),
            ("source_index", pa.int32()),
            ("item_id", pa.string()),
            ("prompt", pa.string()),
            ("episode", pa.int32()),
            ("step", pa.int32()),
            ("time_secs", pa.float64()),
            ("state", pa.list_(pa.float32())),
            ("action", pa.list_(pa.float32())),
            ("cameras", pa.list_(pa.string())),
            ("heights", pa.list_(pa.int32())),
            ("widths", pa.list_(pa.int32())),
            ("media", pa.list_(pa.string())),
            ("labels", pa.string()),
            ("mask_names", pa.string()),
            ("mask_media", pa.string()),
            ("source", pa.string()),
            ("boxes", pa.string()),
            ("pose", pa.list_(pa.float64())),
            ("intrinsics", pa.list_(pa.float64())),
        ]
    )


def tokens_schema() -> pa.Schema:
    """Return the schema of tokens.<layout>.parquet."""
    import pyarrow as pa

    return pa.schema(
        [
            ("item", pa.int32()),
            ("position", pa.int32()),
            ("kind", pa.int8()),
            ("row", pa.int16()),
            ("col", pa.int16()),
            ("camera", pa.int16()),
            ("tile", pa.int16()),
            ("text", pa.string()),
            *((name, pa.float32()) for name in _BOX),
        ]
    )


def responses_schema() -> pa.Schema:
    """Return the schema of responses.parquet."""
    import pyarrow as pa

    return pa.schema(
        [
            ("item", pa.int32()),
            ("text", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("token_texts", pa.list_(pa.string())),
            ("action", pa.list_(pa.float32())),
            ("action_names", pa.list_(pa.string())),
            ("action_ids", pa.list_(pa.int32())),
            ("action_chunk", pa.list_(pa.list_(pa.float32()))),
            ("action_bins", pa.list_(pa.int32())),
            ("flags", pa.list_(pa.string())),
        ]
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _labels_json(item: Item) -> str:
    labels: dict[str, Scalar] = {}
    for name, value in item.labels.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(
                f"item '{item.item_id}': label '{name}' is {value}; leave an unknown label out or set it to None."
            )
        if not isinstance(value, str | int | float | bool | None):
            raise InputError(
                f"item '{item.item_id}': label '{name}' is a {type(value).__name__}; need text, number, bool or None."
            )
        labels[name] = value
    return _json(labels)


def _boxes_json(item: Item) -> str | None:
    entries = []
    for box in item.boxes:
        corners = {name: float(getattr(box, name)) for name in _BOX}
        if not all(math.isfinite(value) for value in corners.values()):
            raise InputError(
                f"item '{item.item_id}': the box of '{box.name}' is {corners}; need finite numbers, or leave it out."
            )
        entries.append({"name": box.name, **corners, "flags": list(box.flags)})
    return _json(entries) if entries else None


def item_record(
    item: Item, *, index: int, source_index: int, media: Sequence[str], mask_media: Mapping[str, str]
) -> dict[str, Any]:
    """Return the row of items.parquet for an item whose pixels were stored at `media` (paths in the run)."""
    return {
        "item": index,
        "source_index": source_index,
        "item_id": item.item_id,
        "prompt": item.prompt,
        "episode": item.episode,
        "step": item.step,
        "time_secs": item.time_secs,
        "state": None if item.state is None else np.asarray(item.state, np.float32).reshape(-1),
        "action": None if item.action is None else np.asarray(item.action, np.float32).reshape(-1),
        "cameras": list(item.cameras),
        "heights": [image.shape[0] for image in item.images],
        "widths": [image.shape[1] for image in item.images],
        "media": list(media),
        "labels": _labels_json(item),
        "mask_names": _json(
            {m: {str(k): v for k, v in names.items()} for m, names in item.mask_names.items()}
        ),
        "mask_media": _json(dict(mask_media)),
        "source": item.source,
        "boxes": _boxes_json(item),
        "pose": None if item.pose is None else np.asarray(item.pose, np.float64).reshape(-1),
        "intrinsics": None
        if item.intrinsics is None
        else np.asarray(item.intrinsics, np.float64).reshape(-1),
    }


def row_from_record(record: Mapping[str, Any]) -> ItemRow:
    """Return the `ItemRow` of one row of items.parquet."""

    def vector(value: Sequence[float] | None) -> NDArray[np.float32] | None:
        return None if value is None else np.asarray(value, np.float32)

    def square(value: Sequence[float] | None, n: int) -> NDArray[np.float64] | None:
        return None if value is None else np.asarray(value, np.float64).reshape(n, n)

    return ItemRow(
        index=record["item"],
        source_index=record["source_index"],
        item_id=record["item_id"],
        cameras=tuple(record["cameras"]),
        image_sizes=tuple(zip(record["heights"], record["widths"], strict=True)),
        prompt=record["prompt"],
        labels=json.loads(record["labels"]),
        mask_names={
            m: {int(k): v for k, v in d.items()} for m, d in json.loads(record["mask_names"]).items()
        },
        episode=record["episode"],
        step=record["step"],
        time_secs=record["time_secs"],
        state=vector(record["state"]),
        action=vector(record["action"]),
        source=record["source"],
        boxes=tuple(_box(entry) for entry in json.loads(record.get("boxes") or "[]")),  # absent in older runs
        pose=square(record.get("pose"), 4),
        intrinsics=square(record.get("intrinsics"), 3),
        media=tuple(record["media"]),
        mask_media=json.loads(record["mask_media"]),
    )


def _box(entry: Mapping[str, Any]) -> Box:
    return Box(**{**entry, "flags": tuple(entry["flags"])})


def response_record(response: Any, *, index: int) -> dict[str, Any]:
    """Return the row of responses.parquet for a `vlascope.models.Response`."""
    chunk = getattr(response, "action_chunk", None)
    return {
        "item": index,
        "text": response.text,
        "token_ids": [int(i) for i in response.token_ids or ()],
        "token_texts": list(response.token_texts or ()),
        "action": None if response.action is None else np.asarray(response.action, np.float32).reshape(-1),
        "action_names": list(response.action_names or ()),
        "action_ids": [int(i) for i in (() if response.action_ids is None else response.action_ids)],
        "action_chunk": None if chunk is None else np.asarray(chunk, np.float32).tolist(),
        "action_bins": [int(i) for i in getattr(response, "action_bins", ())],
        "flags": list(response.flags or ()),
    }


def response_from_record(record: Mapping[str, Any]) -> ResponseRow:
    """Return the `ResponseRow` of one row of responses.parquet."""
    action, chunk = record["action"], record.get("action_chunk")  # absent in runs of the first version
    return ResponseRow(
        item=record["item"],
        text=record["text"],
        token_ids=tuple(record["token_ids"]),
        token_texts=tuple(record["token_texts"]),
        action=None if action is None else np.asarray(action, np.float32),
        action_names=tuple(record["action_names"]),
        action_ids=tuple(record["action_ids"]),
        action_chunk=None if chunk is None else np.asarray(chunk, np.float32),
        action_bins=tuple(record.get("action_bins") or ()),
        flags=tuple(record["flags"]),
    )


def table_from_records(records: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as an Arrow table of `schema`."""
    import pyarrow as pa

    columns = [pa.array([r[f.name] for r in records], type=f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def table_from_layouts(layouts: Sequence[TokenLayout], *, first_item: int) -> pa.Table:
    """Return the token rows of consecutive items, the first of which has index `first_item`."""
    import pyarrow as pa

    lengths = np.array([len(x) for x in layouts], np.int64)
    n_tokens = int(lengths.sum())
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    box = np.concatenate([x.box for x in layouts]) if layouts else np.empty((0, 4), np.float32)
    values: dict[str, Any] = {
        "item": np.repeat(np.arange(first_item, first_item + len(layouts)), lengths),
        "position": np.arange(n_tokens) - starts,
        "text": [word for x in layouts for word in x.text],
        **{name: np.ascontiguousarray(box[:, i]) for i, name in enumerate(_BOX)},
    }
    for name in ("kind", "row", "col", "camera", "tile"):
        values[name] = (
            np.concatenate([getattr(x, name) for x in layouts]) if layouts else np.empty(0, np.int16)
        )
    schema = tokens_schema()
    return pa.Table.from_arrays([pa.array(values[f.name], type=f.type) for f in schema], schema=schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Write one table plainly; the caller flushes the disk. The bytes depend on the content only."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def write_tables(path: Path, parts: Iterable[Callable[[], pa.Table]], *, schema: pa.Schema) -> None:
    """Write parts as the row groups of one file, atomically, with one part in memory at a time."""
    import pyarrow.parquet as pq

    def write(handle: Any) -> None:
        with pq.ParquetWriter(handle, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(part())

    write_atomic(path, write)
