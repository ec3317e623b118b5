"""Capturing a model's activations on a collection of items into a run directory that survives any crash."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files import storage_errors
from ..items.item import ItemSource
from . import paths
from .config import capture_config
from .engines import Engine, open_engine
from .finish import TEMP_PATTERN, remove_parts
from .listing import size_bytes
from .lock import write_lock
from .meter import CaptureProgress
from .place import check_out, clear, remove_if_empty
from .plan import make_plan
from .run import Run
from .session import Session
from .verify import verify_run

if TYPE_CHECKING:
    from ..models import Model

log = logging.getLogger(__name__)


def capture(
    model: Model,
    items: ItemSource,
    *,
    sites: str | Sequence[str],
    out: Path | str,
    batch_size: int = 16,
    block_items: int = 32,
    dtype: str = "auto",
    resume: bool = False,
    force: bool = False,
    respond: bool | str = "auto",
    max_new_tokens: int = 16,
    with_answer: bool = False,
    seed: int = 0,
    on_error: str = "raise",
    quiet: bool = False,
    command: Sequence[str] | None = None,
    engine: str | Engine = "local",
    n_workers: int | None = None,
    on_progress: Callable[[CaptureProgress], None] | None = None,
) -> Run:
    """Run a model over items and keep the activations of some sites; return the finished run.

    Items are decoded ahead of the forward pass and written behind it, block by block. A block counts once its commit
    marker is there, so after a crash, `kill -9` or Ctrl-C, `resume=True` does what is missing, with the very same
    bits: blocks and batches are cut by item index only. An existing complete run of the same configuration is
    returned as it is.

    Args:
        model: From `vlascope.load` or `vlascope.wrap`.
        items: From `vlascope.items`.
        sites: Names or patterns, e.g. ["vision.*", "language.4.v"].
        out: The run directory.
        batch_size: Items per forward pass; halved when the device runs out of memory.
        block_items: Items per block: what a crash can lose, and one array file per site.
        dtype: Stored type, "float32", "float16" or "bfloat16"; "auto" keeps the model's own without loss.
        resume: Go on with an unfinished run; of a complete one, verify every byte and capture damaged blocks again.
        force: Delete what is at `out`, if and only if it is a run, and start again.
        respond: Also save what the model answers: "auto" for items that have a prompt, True for all, False.
        max_new_tokens: Longest answer.
        with_answer: Also capture the tokens of the model's own answer.
        seed: For models that draw noise; recorded in the run.
        on_error: "raise" stops at an item that cannot be read; "skip" records it in failures.jsonl.
        quiet: No progress bar.
        command: The shell command that asked for this, for run.json and for the resume line.
        engine: "local" (this process), "ray" (a cluster, see `RayEngine`), or an engine. The bits are the same on
            machines of the same kind.
        n_workers: Workers of the engine "ray".
        on_progress: Called with the progress, at most every two seconds, instead of drawing a bar.

    Raises:
        InputError: a bad argument; NaN or infinite activations (names item and site).
        ItemError: an item cannot be read and `on_error` is "raise"; no items at all.
        SiteNotFoundError: the model has no such site.
        HookNotFiredError: a site was not reached by the forward pass.
        RunExistsError: `out` holds another run or something else, or another process is writing it.
        StorageError: no permission; the disk is too small, full or read-only.
        WorkerError: the workers of a cluster died again and again.
        CaptureInterrupted: Ctrl-C.

    Cost: the forward passes; memory of about three batches, whatever the number of items.
    """
    out = Path(out)
    if model.edited and engine != "local":
        raise InputError(
            f"{', '.join(model.edited)} of the model is being edited, and the workers of engine {engine!r} have models "
            "of their own, without the edit. Capture with engine='local', or outside of `model.edit`."
        )
    if not isinstance(items, ItemSource):
        raise InputError(f"items are a {type(items).__name__}; make an item source with vlascope.items(...).")
    chosen = model.resolve(sites)
    config = capture_config(
        model,
        items,
        sites=chosen,
        batch_size=batch_size,
        block_items=block_items,
        dtype=dtype,
        respond=respond,
        max_new_tokens=max_new_tokens,
        with_answer=with_answer,
        seed=seed,
        on_error=on_error,
    )
    if check_out(out, config, resume=resume, force=force, command=command) == "complete" and not resume:
        log.info("'%s' already holds this capture", out)
        return _open_tidy(out)
    settings = config["capture"]
    plan = make_plan(
        model,
        items,
        sites=chosen,
        dtype=settings["dtype"],
        batch_size=batch_size,
        block_items=block_items,
        on_error=on_error,
        with_answer_tokens=max_new_tokens if with_answer else 0,
        out=out,
    )
    with ExitStack() as stack:
        made_dir = not out.exists()
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        if made_dir:
            stack.callback(remove_if_empty, out)
        stack.enter_context(write_lock(out))
        workers = stack.enter_context(_opened(engine, n_workers))
        # Once more, now that nobody else can write: another process may have been faster.
        status = check_out(out, config, resume=resume, force=force, command=command)
        session = Session(
            model,
            items,
            out=out,
            config=config,
            plan=plan,
            engine=workers,
            quiet=quiet,
            on_progress=on_progress,
            command=command,
        )
        if status == "complete":
            remove_parts(out, n_blocks=plan.n_blocks)
            if resume and not (report := verify_run(out, paths.read_info(out))).ok:
                session.repair(report)
            return Run.open(out)
        pending = session.pending() if status == "resume" else list(range(plan.n_blocks))
        freed_bytes = size_bytes(out) if status == "clear" else 0
        plan.check_space(out, share=len(pending) / plan.n_blocks, freed_bytes=freed_bytes)
        if status == "clear":
            clear(out)
        session.run(chosen, pending, resumed=status == "resume")
    return Run.open(out)


def _opened(engine: str | Engine, n_workers: int | None) -> AbstractContextManager[Engine]:
    """Return a context that gives the engine; one that the caller made is the caller's to close."""
    opened = open_engine(engine, n_workers=n_workers)
    return nullcontext(opened) if opened is engine else opened


def _open_tidy(out: Path) -> Run:
    """Open a complete run; when its capture was killed at the very last step, take that step."""
    run = Run.open(out)
    n_blocks = run.info["n_blocks"]
    parts = (paths.parts_dir(out, block) for block in range(n_blocks))
    if (out / paths.WORK_NAME).exists() or any(out.glob(TEMP_PATTERN)) or any(p.exists() for p in parts):
        with write_lock(out):
            remove_parts(out, n_blocks=n_blocks)
    return run
