"""What a capture would read and write, before it starts: items, sites, shapes, bytes, time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ItemError, ItemNotFoundError, StorageError
from ..files import storage_errors
from .arrays import itemsize

if TYPE_CHECKING:
    from ..items.item import Item, ItemSource
    from ..models import Model, Site

TOKEN_BYTES = 24
"""Upper estimate of one row of a token table (compressed)."""

N_SAMPLED = 3
"""Items looked at to estimate the tokens per item (texts and image sizes may differ)."""


@dataclass(frozen=True, kw_only=True)
class PlanSite:
    """One site of a plan: its layout, channels, estimated tokens in all, and bytes."""

    name: str
    layout: str
    width: int
    tokens_per_item: float
    n_tokens: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a capture would do. Sizes are estimates from a few items; `print(plan)` shows a table.

    Attributes:
        model: Name of the model.
        items: Name of the source.
        n_items: Items to be captured.
        n_blocks: Blocks that they are written in; a crash loses at most one.
        dtype: Type in which activations are stored.
        sites: One entry per site.
        acts_bytes: Activations on disk.
        other_bytes: Upper estimate of images, masks and tables.
        free_bytes: Free space where the run would lie; None when no place was named.
        estimated_secs: Time that one process would take, from a timed batch; None when none was timed.
    """

    model: str
    items: str
    n_items: int
    n_blocks: int
    dtype: str
    sites: tuple[PlanSite, ...]
    acts_bytes: int
    other_bytes: int
    free_bytes: int | None
    estimated_secs: float | None = None

    @property
    def size_bytes(self) -> int:
        """Estimated size of the run."""
        return self.acts_bytes + self.other_bytes

    def check_space(self, out: Path | str, *, share: float = 1.0, freed_bytes: int = 0) -> None:
        """Raise `StorageError` when the disk is too small for the run (5 % are kept as reserve).

        Args:
            out: Where the run would lie, for the message.
            share: Part of the run that is still to be written, 0..1.
            freed_bytes: Space that is freed before the start.
        """
        if self.free_bytes is None:
            return
        needed, free = int(self.size_bytes * share * 1.05), self.free_bytes + freed_bytes
        if needed > free:
            raise StorageError(
                f"the run needs about {human_bytes(needed)} but the disk of '{out}' has {human_bytes(free)} "
                "free. Capture fewer sites or items (--sites, --limit, --stride), store them in half the size "
                "(--store float16), free some space, or choose another place with -o."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able values."""
        return {**asdict(self), "size_bytes": self.size_bytes}

    def __str__(self) -> str:
        width = max([4, *(len(site.name) for site in self.sites)])
        lines = [
            f"{self.n_items} items of '{self.items}' through {self.model}, in {self.n_blocks} blocks",
            f"{'site':<{width}}  {'layout':<10} {'tokens/item':>11} {'channels':>8} {'size':>9}",
        ]
        for s in self.sites:
            lines.append(
                f"{s.name:<{width}}  {s.layout:<10} {s.tokens_per_item:>11.6g} {s.width:>8} "
                f"{human_bytes(s.size_bytes):>9}"
            )
        total = f"about {human_bytes(self.size_bytes)}: {human_bytes(self.acts_bytes)} activations ({self.dtype}), "
        total += f"up to {human_bytes(self.other_bytes)} images and tables"
        if self.free_bytes is not None:
            total += f"; {human_bytes(self.free_bytes)} free"
        if self.estimated_secs is not None:
            total += f"; about {human_secs(self.estimated_secs)}"
        return "\n".join([*lines, total])


def human_bytes(n_bytes: float) -> str:
    """Return a size for people, e.g. "1.3 GB" (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def human_secs(secs: float) -> str:
    """Return a duration for people, e.g. "40 s", "12 min", "3.5 h"."""
    if secs < 99.5:
        return f"{max(1, round(secs))} s"
    if secs < 5970:
        return f"{round(secs / 60)} min"
    return f"{secs / 3600:.1f} h" if secs < 172_800 else f"{secs / 86400:.1f} days"


def make_plan(
    model: Model,
    items: ItemSource,
    *,
    sites: Sequence[Site],
    dtype: str,
    batch_size: int,
    block_items: int,
    on_error: str = "raise",
    with_answer_tokens: int = 0,
    out: Path | str | None = None,
) -> Plan:
    """Return the plan of a capture. Reads three items and prepares them for the model.

    There is no forward pass, except for sites whose width only a forward pass can tell.

    Args:
        model: The model.
        items: What would be captured; at least one item.
        sites: Resolved sites.
        dtype: Stored type.
        batch_size: Items per forward pass.
        block_items: Items per block.
        on_error: With "skip", items that cannot be read are passed over in the sample.
        with_answer_tokens: Upper number of answer tokens per item that are captured as well.
        out: Where the run would lie, to look up the free space.

    Raises:
        ItemError: the source is empty, or no sampled item can be read.
    """
    n_items = len(items)
    sample = sample_items(items, on_error=on_error)
    layouts = model.prepare(sample).layouts
    widths = _widths(model, sites, sample[0])
    plan_sites = []
    for site in sites:
        if site.layout not in layouts:
            raise InputError(
                f"site '{site.name}' needs {site.layout} tokens, but the items of '{items.name}' have none for "
                f"{model.name}. Give them a prompt, or choose other sites."
            )
        per_item = sum(len(x) for x in layouts[site.layout]) / len(sample)
        if site.layout == "language":
            per_item += with_answer_tokens
        n_tokens = round(per_item * n_items)
        plan_sites.append(
            PlanSite(
                name=site.name,
                layout=site.layout,
                width=widths[site.name],
                tokens_per_item=per_item,
                n_tokens=n_tokens,
                size_bytes=n_tokens * widths[site.name] * itemsize(dtype),
            )
        )
    n_token_rows = {site.layout: site.n_tokens for site in plan_sites}
    pixel_bytes = sum(image.nbytes for item in sample for image in item.images) / len(sample)
    return Plan(
        model=str(model.name),
        items=items.name,
        n_items=n_items,
        n_blocks=-(-n_items // block_items),
        dtype=dtype,
        sites=tuple(plan_sites),
        acts_bytes=sum(site.size_bytes for site in plan_sites),
        other_bytes=int(pixel_bytes * n_items) + TOKEN_BYTES * sum(n_token_rows.values()),
        free_bytes=None if out is None else shutil.disk_usage(_existing_parent(Path(out))).free,
    )


def timed(plan: Plan, model: Model, items: ItemSource, *, settings: Mapping[str, Any]) -> Plan:
    """Return the plan with the time that one process would take, from a batch that is captured into a temporary folder.

    Args:
        plan: The plan.
        model: The model.
        items: What would be captured.
        settings: The part "capture" of `capture_config`.

    Raises:
        Whatever the capture itself would raise at these items; StorageError when there is no room for one batch.

    Cost: two batches through the model, the first of which is not timed, and their files.
    """
    from .engines.engine import BlockReport, CaptureJob
    from .engines.worker import BlockWorker

    n_timed = min(plan.n_items, settings["batch_size"])
    job_settings = {**settings, "block_items": n_timed}
    with tempfile.TemporaryDirectory(prefix="vlascope-plan-") as folder, storage_errors(folder):
        job = CaptureJob(
            out=Path(folder),
            n_items=plan.n_items,
            settings=job_settings,
            site_layouts={site.name: site.layout for site in plan.sites},
            model_fingerprint="",
            items_fingerprint="",
            n_threads=0,
        )
        done: list[BlockReport] = []
        with BlockWorker(model, items, job, report=done.append) as worker:
            secs = 0.0
            for block in (0, plan.n_items // n_timed - 1):  # where there is one batch only, it is taken twice
                started = time.perf_counter()
                worker.capture(block)
                worker.wait()
                secs = time.perf_counter() - started
    return replace(plan, estimated_secs=secs * plan.n_items / n_timed)


def sample_items(items: ItemSource, *, on_error: str = "raise") -> list[Item]:
    """Return a few items, first, middle and last; a quick look whether a source can be read at all.

    Args:
        items: The source.
        on_error: With "skip", items that cannot be read are passed over; when none of the three can be read, the
            first that can is returned.

    Raises:
        ItemError: the source is empty, a sampled item cannot be read, or, with "skip", none at all can.
    """
    return list(_sample(items, on_error=on_error))


def first_item(items: ItemSource, *, on_error: str = "raise") -> Item:
    """Return the first readable item of the sample; raises as `sample_items` does."""
    return next(_sample(items, on_error=on_error))


def _sample(items: ItemSource, *, on_error: str) -> Iterator[Item]:
    """Yield a few readable items: first, middle, last; when none of them can be read, the first that can."""
    n_items = len(items)
    if not n_items:
        raise ItemError(f"'{items.name}' has no items; there is nothing to capture.")
    wanted = sorted({round(i * (n_items - 1) / max(1, N_SAMPLED - 1)) for i in range(N_SAMPLED)})
    n_found, last_error = 0, None
    for index in [*wanted, *(i for i in range(n_items) if i not in wanted)]:
        if n_found and index not in wanted:
            return
        try:
            item = items[index]
        except (ItemError, ItemNotFoundError) as error:
            if on_error == "raise":
                raise
            last_error = error
            continue
        n_found += 1
        yield item
    if not n_found:
        raise ItemError(
            f"none of the {n_items} items of '{items.name}' can be read; the last says: {last_error}"
        )


def _widths(model: Model, sites: Sequence[Site], item: Item) -> dict[str, int]:
    """Return the channels of each site."""
    unknown = [site.name for site in sites if not site.width]
    seen = model.capture(model.prepare([item]), unknown) if unknown else {}
    return {site.name: site.width or int(seen[site.name][0].shape[1]) for site in sites}


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
