"""The engine that is a Ray cluster: one worker per GPU or node, each with its own model, blocks handed out one by one.

A worker that dies only means that its blocks are done again: a block counts by its commit marker alone. Every node
needs the same environment and the run directory, the model and the data under the same paths.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...errors import InputError, StorageError, WorkerError
from ..paths import INFO_NAME
from .cluster import import_ray, join_cluster
from .engine import B, BlockReport, CaptureJob, Engine, R
from .worker import BlockWorker

if TYPE_CHECKING:
    from ...items.item import ItemSource
    from ...models import Model

log = logging.getLogger(__name__)

MAX_LOSSES = 3
"""So many workers may die on one block before it is taken to be the block's fault."""

START_SECS = 300.0
"""Longest wait for a first worker."""


class RayEngine(Engine):
    """Works on a Ray cluster: the one that RAY_ADDRESS (or `address`) names, else one started on this machine.

    Args:
        n_workers: Workers, each with a model of its own; None takes one per GPU for a model on a GPU, else one per
            node.
        address: Address of a cluster; None takes RAY_ADDRESS, or starts one here.
        make_model: Makes the model on a worker, e.g. `functools.partial(vlascope.load, "openvla/openvla-7b")`; None
            sends the model of the caller, which suits small ones.
        make_items: Makes the items on a worker; None sends the source of the caller.
    """

    name = "ray"

    def __init__(
        self,
        *,
        n_workers: int | None = None,
        address: str | None = None,
        make_model: Callable[[], Model] | None = None,
        make_items: Callable[[], ItemSource] | None = None,
    ) -> None:
        if n_workers is not None and n_workers < 1:
            raise InputError(f"got {n_workers} workers; need at least 1.")
        self.n_workers, self.address = n_workers, address
        self.make_model, self.make_items = make_model, make_items
        self._is_ours = False

    def close(self) -> None:
        """Leave the cluster; stop it when this engine started it."""
        if self._is_ours:
            import_ray("the engine 'ray'").shutdown()
            self._is_ours = False

    def capture_blocks(
        self,
        model: Model,
        items: ItemSource,
        job: CaptureJob,
        blocks: Sequence[int],
        *,
        report: Callable[[BlockReport], None],
    ) -> None:
        """Capture blocks on the workers; see `Engine.capture_blocks`.

        Raises:
            WorkerError: no worker could be started, or workers died again and again on one block.
        """
        ray = self._connect()
        has_gpu = str(model.device).startswith("cuda")
        job = replace(job, out=job.out.absolute())
        shared = [
            _put(ray, self.make_model or model, what="model", option="make_model"),
            _put(ray, self.make_items or items, what="items", option="make_items"),
        ]
        made = [self.make_model is not None, self.make_items is not None]
        actor = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=1 if has_gpu else 0, max_restarts=0, scheduling_strategy="SPREAD"
        )

        def start() -> Any:
            return actor.remote(job, *shared, *made)

        count = min(self.n_workers or self._default_workers(ray, has_gpu), len(blocks))
        pool = _Pool(ray, start=start, n_workers=count, report=report)
        try:
            pool.run(blocks)
        finally:
            pool.close()

    def map_blocks(self, fn: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        """Yield fn(block) for each block, in their order; a bounded number is under way."""
        import torch

        ray = self._connect()
        shared = _put(ray, fn, what="function", option="another function")
        task = ray.remote(_apply).options(num_cpus=1, max_retries=MAX_LOSSES, scheduling_strategy="SPREAD")
        n_ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        n_threads = torch.get_num_threads()
        waiting: deque[Any] = deque()
        for block in blocks:
            waiting.append(task.remote(shared, block, n_threads))
            if len(waiting) >= n_ahead:
                yield _get(ray, waiting.popleft())
        while waiting:
            yield _get(ray, waiting.popleft())

    def _connect(self) -> Any:
        ray = import_ray("the engine 'ray'")
        self._is_ours = join_cluster(ray, self.address, n_workers=self.n_workers) or self._is_ours
        return ray

    @staticmethod
    def _default_workers(ray: Any, has_gpu: bool) -> int:
        if has_gpu:
            return max(1, int(ray.cluster_resources().get("GPU", 0)))
        return sum(1 for node in ray.nodes() if node["Alive"])


class _Worker:
    """A Ray actor: a model, the items and the pipeline."""

    def __init__(self, job: CaptureJob, model: Any, items: Any, makes_model: bool, makes_items: bool) -> None:
        self._job, self._model, self._items = job, model, items
        self._makes_model, self._makes_items = makes_model, makes_items

    def ready(self) -> None:
        """Load the model and compare it with that of the run."""  # an error in `__init__` would count as a death
        import torch

        from ..config import items_fingerprint

        job, node = self._job, os.uname().nodename
        torch.set_num_threads(job.n_threads)
        if not (job.out / INFO_NAME).exists():
            raise StorageError(
                f"node '{node}' does not see the run directory '{job.out}'; all nodes need it under the same path "
                "(a shared file system)."
            )
        model = self._model() if self._makes_model else self._model
        items = self._items() if self._makes_items else self._items
        for what, got, wanted in (
            ("model", model.fingerprint(), job.model_fingerprint),
            ("items", items_fingerprint(items), job.items_fingerprint),
        ):
            if got != wanted:
                raise InputError(
                    f"the {what} on node '{node}' differ from those of the run (fingerprint {got}, need {wanted}); "
                    "give all nodes the same files."
                )
        self._reports: list[BlockReport] = []
        self._worker = BlockWorker(model, items, job, report=self._reports.append)
        self._worker.__enter__()

    def capture(self, block: int, then: int | None) -> BlockReport:
        """Capture and commit a block; the items of the block `then` are decoded meanwhile."""
        self._worker.feed(block)
        if then is not None:
            self._worker.feed(then)
        self._worker.capture(block)
        self._worker.wait()
        reports, self._reports[:] = list(self._reports), []
        return BlockReport(
            n_items=sum(r.n_items for r in reports),
            n_bytes=sum(r.n_bytes for r in reports),
            warnings=tuple(text for r in reports for text in r.warnings),
        )


@dataclass(eq=False)
class _Lane:
    """A worker and the blocks that it holds; `blocks[0]` is the one that it works on."""

    actor: Any
    ref: Any
    is_ready: bool = False
    blocks: deque[int] = field(default_factory=deque)


class _Pool:
    """Hands blocks to workers, two each so that decoding never waits, and starts new workers for dead ones."""

    def __init__(
        self, ray: Any, *, start: Callable[[], Any], n_workers: int, report: Callable[[BlockReport], None]
    ) -> None:
        self._ray, self._start, self._report = ray, start, report
        self._lanes = [self._lane() for _ in range(n_workers)]
        self._losses: Counter[int] = Counter()
        self._n_failed_starts = 0

    def run(self, blocks: Sequence[int]) -> None:
        """Return when every block is committed."""
        self._todo = deque(blocks)
        started = time.monotonic()
        while self._todo or any(lane.blocks for lane in self._lanes):
            by_ref = {lane.ref: lane for lane in self._lanes if lane.ref is not None}
            done, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=10.0)
            for ref in done:
                self._take(by_ref[ref])
            is_stuck = not any(lane.is_ready for lane in self._lanes)
            if is_stuck and time.monotonic() - started > START_SECS:
                raise WorkerError(
                    f"no worker could be started within {START_SECS:.0f} s; the cluster has "
                    f"{self._ray.available_resources()} free, and a worker needs 1 CPU (and 1 GPU for a model on a "
                    "GPU). Free some, or use the engine 'local'."
                )

    def close(self) -> None:
        """End all workers."""
        for lane in self._lanes:
            self._ray.kill(lane.actor)

    def _lane(self) -> _Lane:
        actor = self._start()
        return _Lane(actor=actor, ref=actor.ready.remote())

    def _take(self, lane: _Lane) -> None:
        """Deal with what a worker returned and give it more to do."""
        try:
            result = _get(self._ray, lane.ref)
        except _deaths(self._ray) as death:
            self._replace(lane, death)
            return
        if lane.is_ready:
            lane.blocks.popleft()
            self._report(result)
        lane.is_ready = True
        self._give(lane)

    def _replace(self, lane: _Lane, death: BaseException) -> None:
        self._ray.kill(lane.actor)  # a worker behind a broken connection may still write
        if lane.blocks:
            self._losses[lane.blocks[0]] += 1
            if self._losses[lane.blocks[0]] >= MAX_LOSSES:
                raise WorkerError(
                    f"{MAX_LOSSES} workers died on block {lane.blocks[0]}; is there enough memory? What is done is "
                    f"safe, go on with --resume. The last said: {_first_line(death)}"
                ) from death
            again = ", ".join(map(str, lane.blocks))
            self._report(
                BlockReport(
                    warnings=(f"a worker died ({_first_line(death)}); blocks {again} are done again",)
                )
            )
            self._todo.extendleft(reversed(lane.blocks))
        else:
            self._n_failed_starts += 1
            if self._n_failed_starts >= MAX_LOSSES * len(self._lanes):
                raise WorkerError(
                    f"{self._n_failed_starts} workers died before they had loaded the model; is there enough memory? "
                    f"The last said: {_first_line(death)}"
                ) from death
        self._lanes[self._lanes.index(lane)] = self._lane()
        for other in self._lanes:  # a worker without work takes over what the dead one held
            if self._todo and other.is_ready and other.ref is None:
                self._give(other)

    def _give(self, lane: _Lane) -> None:
        """Let a worker go on: with its next block, or with none when all are given out."""
        while self._todo and len(lane.blocks) < 2:
            lane.blocks.append(self._todo.popleft())
        then = lane.blocks[1] if len(lane.blocks) > 1 else None
        lane.ref = lane.actor.capture.remote(lane.blocks[0], then) if lane.blocks else None


def _apply(fn: Callable[[Any], Any], block: Any, n_threads: int) -> Any:
    import torch

    torch.set_num_threads(n_threads)
    return fn(block)


def _put(ray: Any, value: Any, *, what: str, option: str) -> Any:
    try:
        return ray.put(value)
    except TypeError as error:  # what Ray raises for things that cannot be sent
        raise InputError(
            f"the {what} cannot be sent to workers ({_first_line(error)}). Give RayEngine({option}=...), a function "
            "that makes it there."
        ) from error


def _get(ray: Any, ref: Any) -> Any:
    """Return a result; an error of our own code comes out as it was raised on the worker."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, Exception):
            raise cause from error
        raise


def _deaths(ray: Any) -> tuple[type[BaseException], ...]:
    known = ray.exceptions
    return (known.RayActorError, known.WorkerCrashedError, known.NodeDiedError, known.ObjectLostError)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
