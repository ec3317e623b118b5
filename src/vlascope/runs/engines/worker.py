"""Capturing blocks of items: the pipeline that one process runs, whoever asked for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ...errors import InputError, ItemError, ItemNotFoundError
from ...items.item import Item, ItemSource
from ..block import BlockWriter
from ..forward import Forward
from ..prefetch import Helpers, Prefetch, WriteBehind
from .engine import BlockReport, CaptureJob

if TYPE_CHECKING:
    from ...models import Model

log = logging.getLogger(__name__)


class BlockWorker:
    """Captures one block after the other: decodes ahead, computes, writes behind.

    A context manager. `feed` names blocks whose items may be decoded already; they must then be captured in that
    order. `wait` returns once everything is committed. `report` hears of every batch.

    Memory: about three batches.
    """

    def __init__(
        self, model: Model, items: ItemSource, job: CaptureJob, *, report: Callable[[BlockReport], None]
    ) -> None:
        self._job, self._report = job, report
        self._forward = Forward(
            model, settings=job.settings, on_warning=lambda text: report(BlockReport(warnings=(text,)))
        )
        self._decoded = Prefetch(items, depth=job.settings["batch_size"])
        self._writer = WriteBehind(job.out)
        self._helpers = Helpers()
        self._fed: list[int] = []

    def __enter__(self) -> Self:
        self._decoded.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoded.__exit__(kind, error, trace)
        self._writer.close()
        self._helpers.close()

    def feed(self, block: int) -> None:
        """Let the items of a block be decoded as soon as there is room; a block that was fed is not fed again."""
        if block not in self._fed:
            self._fed.append(block)
            self._decoded.feed(self._job.span(block))

    def capture(self, block: int) -> None:
        """Capture a block; its last writes and its commit may still be under way on return."""
        job, span = self._job, self._job.span(block)
        self.feed(block)
        assert self._fed.pop(0) == block, "blocks are captured in the order in which they were fed"
        writing = BlockWriter(
            job.out,
            block,
            start=span.start,
            stop=span.stop,
            site_layouts=job.site_layouts,
            dtype=job.settings["dtype"],
            helpers=self._helpers,
        )
        for batch in self._batches(span, writing):
            write, n_bytes = self._forward.job(batch, writing)
            self._writer.submit(write)
            self._report(BlockReport(n_items=len(batch), n_bytes=n_bytes))
        self._writer.submit(writing.commit)

    def wait(self) -> None:
        """Wait until all that was captured is committed."""
        self._writer.wait()

    def _batches(self, span: range, writing: BlockWriter) -> Iterator[list[tuple[int, Item]]]:
        """Yield the readable items of one block in batches; the others are recorded or raised."""
        batch: list[tuple[int, Item]] = []
        for expected in span:
            index, item = next(self._decoded)
            assert index == expected, "the decoding thread keeps the order"
            if isinstance(item, BaseException):
                self._failed(index, item, writing)
                continue
            batch.append((index, item))
            if len(batch) == self._job.settings["batch_size"]:
                yield batch
                batch = []
        if batch:
            yield batch

    def _failed(self, index: int, error: BaseException, writing: BlockWriter) -> None:
        is_about_item = isinstance(error, ItemError | ItemNotFoundError | InputError)
        if not is_about_item:
            raise error
        if self._job.settings["on_error"] == "raise":
            raise type(error)(
                f"{str(error).rstrip('. ')}. To go on without items that cannot be read: --resume --on-error skip."
            ) from error
        log.warning("item %d is skipped: %s", index, error)
        writing.fail(index, error)
        self._report(BlockReport(n_items=1))
