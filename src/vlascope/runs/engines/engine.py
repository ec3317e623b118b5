"""What every engine can do: capture blocks of a run, and map a function over blocks of anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from ...items.item import ItemSource
    from ...models import Model

B = TypeVar("B")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class CaptureJob:
    """All that a worker needs to know to capture any block of a run, besides the model and the items.

    Attributes:
        out: Run directory; absolute, and seen by every worker under this path.
        n_items: Items of the whole run.
        settings: The part "capture" of config.json.
        site_layouts: Token layout of each site, in the order of the sites.
        model_fingerprint, items_fingerprint: What the worker's model and items have to be.
        n_threads: Threads of one forward pass; another number may round differently.
    """

    out: Path
    n_items: int
    settings: Mapping[str, Any]
    site_layouts: Mapping[str, str]
    model_fingerprint: str
    items_fingerprint: str
    n_threads: int

    def span(self, block: int) -> range:
        """Return the indices of a block's items in the source."""
        size = self.settings["block_items"]
        return range(block * size, min(self.n_items, (block + 1) * size))


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """Progress of a capture: items and activation bytes since the last report, and what had to be warned of.

    Attributes:
        n_items: Items of the source that were dealt with, also those that could not be read.
        n_bytes: Bytes of activations.
        warnings: One line each.
    """

    n_items: int = 0
    n_bytes: int = 0
    warnings: tuple[str, ...] = ()


class Engine(ABC):
    """Does the work of a run, block by block. A context manager: leaving it frees what it holds.

    Blocks are idempotent and their commit markers are the truth, so an engine may lose a worker at any moment: the
    block is simply done again, with the same bits.
    """

    name: str

    @abstractmethod
    def capture_blocks(
        self,
        model: Model,
        items: ItemSource,
        job: CaptureJob,
        blocks: Sequence[int],
        *,
        report: Callable[[BlockReport], None],
    ) -> None:
        """Capture and commit blocks of a run; returns when all of them are committed.

        Raises:
            Whatever the model, the items or the disk raise; blocks that were committed before stay.
        """

    @abstractmethod
    def map_blocks(self, fn: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        """Yield fn(block) for each block, in their order.

        Args:
            fn: A pure function of its argument; it may be called again when a worker dies.
            blocks: What to call it with, for example slices of rows.
        """

    def close(self) -> None:  # noqa: B027 (nothing to free is a fine answer)
        """Free what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
