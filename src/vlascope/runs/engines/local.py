"""The engine that is this process: decoding, forward pass and writing overlap in three threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from .engine import B, BlockReport, CaptureJob, Engine, R
from .worker import BlockWorker

if TYPE_CHECKING:
    from ...items.item import ItemSource
    from ...models import Model


class LocalEngine(Engine):
    """Works in this process, one block after the other."""

    name = "local"

    def capture_blocks(
        self,
        model: Model,
        items: ItemSource,
        job: CaptureJob,
        blocks: Sequence[int],
        *,
        report: Callable[[BlockReport], None],
    ) -> None:
        """Capture blocks; see `Engine.capture_blocks`. Memory of about three batches."""
        with BlockWorker(model, items, job, report=report) as worker:
            for block in blocks:
                worker.feed(block)
            for block in blocks:
                worker.capture(block)
            worker.wait()

    def map_blocks(self, fn: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        """Yield fn(block) for each block, in their order."""
        return map(fn, blocks)
