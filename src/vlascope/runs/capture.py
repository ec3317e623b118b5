"""Capturing a model's activations on a collection of items into a run directory that survives any crash."""

from __future__ import annotations

import datetime
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ItemError, ItemNotFoundError, RunExistsError, StorageError
from ..files import read_json, storage_errors, write_json
from ..items.item import Item, ItemSource
from ..progress import progress
from . import paths
from .arrays import group_metadata, site_folder, write_metadata
from .block import BlockWriter, block_problems, drop_block, read_marker
from .config import capture_config, differing_fields, hardware, versions
from .finish import TEMP_PATTERN, finish_run, flush_disk, remove_parts
from .forward import Forward
from .lock import LOCK_NAME, write_lock
from .plan import Plan, make_plan
from .prefetch import Prefetch, WriteBehind
from .run import Run

if TYPE_CHECKING:
    from ..models import Model, Site

log = logging.getLogger(__name__)


class CaptureInterrupted(KeyboardInterrupt):
    """Ctrl-C during a capture. The run can be resumed; the message says how.

    Attributes:
        n_done: Blocks that are safe on disk.
        n_blocks: Blocks of the whole run.
        command: What to type to go on.
    """

    def __init__(self, *, out: Path, n_done: int, n_blocks: int, command: str) -> None:
        self.n_done, self.n_blocks, self.command = n_done, n_blocks, command
        super().__init__(
            f"interrupted; {n_done} of {n_blocks} blocks are safe in '{out}'. Go on with:\n  {command}"
        )


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
        resume: Go on with an unfinished run.
        force: Delete what is at `out`, if and only if it is a run, and start again.
        respond: Also save what the model answers: "auto" for items that have a prompt, True for all, False.
        max_new_tokens: Longest answer.
        with_answer: Also capture the tokens of the model's own answer.
        seed: For models that draw noise; recorded in the run.
        on_error: "raise" stops at an item that cannot be read; "skip" records it in failures.jsonl.
        quiet: No progress bar.
        command: The shell command that asked for this, for run.json and for the resume line.

    Raises:
        InputError: a bad argument; NaN or infinite activations (names item and site).
        ItemError: an item cannot be read and `on_error` is "raise"; no items at all.
        SiteNotFoundError: the model has no such site.
        HookNotFiredError: a site was not reached by the forward pass.
        RunExistsError: `out` holds another run or something else, or another process is writing it.
        StorageError: no permission; the disk is too small, full or read-only.
        CaptureInterrupted: Ctrl-C.

    Cost: the forward passes; memory of about three batches, whatever the number of items.
    """
    out = Path(out)
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
    if _check_out(out, config, resume=resume, force=force, command=command) == "complete":
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
            stack.callback(_remove_if_empty, out)
        stack.enter_context(write_lock(out))
        # Once more, now that nobody else can write: another process may have been faster.
        status = _check_out(out, config, resume=resume, force=force, command=command)
        if status == "complete":
            return Run.open(out)
        resumed = status == "resume"
        pending = _pending_blocks(out, plan.n_blocks) if resumed else list(range(plan.n_blocks))
        freed_bytes = _size_bytes(out) if status == "clear" else 0
        plan.check_space(out, share=len(pending) / plan.n_blocks, freed_bytes=freed_bytes)
        if status == "clear":
            _clear(out)
        session = _Session(model, items, out=out, config=config, plan=plan, quiet=quiet, command=command)
        session.run(chosen, pending, resumed=resumed)
    return Run.open(out)


def _check_out(
    out: Path, config: Mapping[str, Any], *, resume: bool, force: bool, command: Sequence[str] | None
) -> str:
    """Return what to do with the place: "new", "resume", "clear" or "complete"; raise if it must not be touched."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"'{out}' is a file; a run is a directory. Choose another place with -o.")
    if not out.exists() or all(p.name == LOCK_NAME or p.name.startswith(".") for p in out.iterdir()):
        return "new"
    if not paths.is_run(out):
        raise RunExistsError(
            f"'{out}' holds other files and is not a run, so nothing there is touched (not even with --force). "
            "Choose another place with -o."
        )
    if (
        force or not (out / paths.CONFIG_NAME).exists()
    ):  # the latter: killed while it was being made or cleared
        return "clear"
    ways_out = "Three ways out: {resume}--force to delete it and capture again, or another place with -o."
    info = paths.read_info(out)
    known = read_json(out / paths.CONFIG_NAME)
    differences = differing_fields(known, config)
    if differences:
        raise RunExistsError(
            f"'{out}' holds a run with another configuration:\n  "
            + "\n  ".join(differences)
            + "\n"
            + ways_out.format(resume="the run's own settings with --resume, ")
        )
    if info["status"] == "complete":
        return "complete"
    if resume:
        return "resume"
    raise RunExistsError(
        f"'{out}' holds an unfinished run of this very configuration. "
        + ways_out.format(resume=f"go on with `{paths.resume_command(command, out)}`, ")
    )


def _remove_if_empty(out: Path) -> None:
    """Remove the directory that we made when an error came before the first file."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()


def _clear(out: Path) -> None:
    """Delete a run's files but keep its lock. run.json goes last: a crash leaves what is still seen as a run."""
    assert paths.is_run(out), "checked by _check_out"
    with storage_errors(out):
        for path in sorted(out.iterdir(), key=lambda p: p.name == paths.INFO_NAME):
            if path.name == LOCK_NAME:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _size_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _open_tidy(out: Path) -> Run:
    """Open a complete run; when its capture was killed at the very last step, take that step."""
    run = Run.open(out)
    n_blocks = run.info["n_blocks"]
    parts = (paths.parts_dir(out, block) for block in range(n_blocks))
    if (out / paths.WORK_NAME).exists() or any(out.glob(TEMP_PATTERN)) or any(p.exists() for p in parts):
        with write_lock(out):
            remove_parts(out, n_blocks=n_blocks)
    return run


def _pending_blocks(out: Path, n_blocks: int) -> list[int]:
    """Return the blocks of an unfinished run that are still to be done; damaged ones are taken back.

    Cost: reads the finished blocks once, to compare checksums.
    """
    shutil.rmtree(out / paths.WORK_NAME, ignore_errors=True)
    pending = []
    for block in range(n_blocks):
        marker = read_marker(out, block)
        if marker is not None:
            problems = block_problems(out, marker, checksums=True, with_parts=True)
            if not problems:
                continue
            log.warning("block %d is damaged and captured again: %s", block, "; ".join(problems))
            drop_block(out, marker)
        pending.append(block)
    return pending


class _Session:
    """One process's share of a capture: from the first run.json to the last."""

    def __init__(
        self,
        model: Model,
        items: ItemSource,
        *,
        out: Path,
        config: dict[str, Any],
        plan: Plan,
        quiet: bool,
        command: Sequence[str] | None,
    ) -> None:
        self.model, self.items, self.out, self.config, self.plan = model, items, out, config, plan
        self.quiet, self.command = quiet, command
        self.settings = config["capture"]
        self.info: dict[str, Any] = {}
        self._started = time.monotonic()
        self._n_captured = 0

    def run(self, sites: Sequence[Site], pending: Sequence[int], *, resumed: bool) -> None:
        """Capture the pending blocks and finish the run."""
        writer = WriteBehind(self.out)
        try:
            self._start(sites, resumed=resumed)
            self._capture(pending, writer)
            self._finish()
        except KeyboardInterrupt:
            self._stop(writer, status="interrupted")
            n_done = len(list((self.out / "blocks").glob("*.ok")))
            raise CaptureInterrupted(
                out=self.out,
                n_done=n_done,
                n_blocks=self.plan.n_blocks,
                command=paths.resume_command(self.command, self.out),
            ) from None
        except BaseException:
            self._stop(writer, status="failed")
            raise
        writer.close()

    def _start(self, sites: Sequence[Site], *, resumed: bool) -> None:
        """Write the first run.json, then config.json and the Zarr groups.

        This order makes the directory a run from its first file on: a crash in between leaves a run without
        configuration, which the next capture clears.
        """
        out, settings = self.out, self.settings
        if resumed:
            before = paths.read_info(out)
            self.info = {**before, "status": "running", "versions": versions()}
            if self.command:
                self.info["command"] = list(self.command)
            if before["versions"] != self.info["versions"]:
                self._warn(
                    f"resumed with other versions than {before['versions']}; its blocks may differ in bits"
                )
        else:
            self.info = {
                "format": paths.FORMAT,
                "schema_version": paths.SCHEMA_VERSION,
                "status": "running",
                "command": None if self.command is None else list(self.command),
                "created": _now(),
                "versions": versions(),
                "hardware": hardware(str(self.model.device)),
                "seed": settings["seed"],
                "n_blocks": self.plan.n_blocks,
                "sites": {
                    s.name: {"layout": s.layout, "width": planned.width, "dtype": settings["dtype"]}
                    for s, planned in zip(sites, self.plan.sites, strict=True)
                },
                "timings": {"capture_secs": 0.0, "n_sessions": 0},
                "warnings": [],
                "parents": [],
            }
        self._save_info()
        if resumed:
            return
        with storage_errors(out):
            write_metadata(out / "acts.zarr", group_metadata({"format": paths.FORMAT}))
            for name, site in self.info["sites"].items():
                attributes = {
                    "site": name,
                    "layout": site["layout"],
                    "dtype": site["dtype"],
                    "model": self.config["model"]["name"],
                    "revision": self.config["model"]["revision"],
                }
                write_metadata(out / "acts.zarr" / site_folder(name), group_metadata(attributes))
            flush_disk(out)
            write_json(out / paths.CONFIG_NAME, self.config)

    def _capture(self, pending: Sequence[int], writer: WriteBehind) -> None:
        settings = self.settings
        n_items, per_block = self.plan.n_items, settings["block_items"]
        ranges = {block: range(block * per_block, min(n_items, (block + 1) * per_block)) for block in pending}
        indices = [index for block in pending for index in ranges[block]]
        site_layouts = {name: site["layout"] for name, site in self.info["sites"].items()}
        forward = Forward(self.model, settings=settings, on_warning=self._warn)
        with Prefetch(self.items, indices, depth=settings["batch_size"]) as decoded:
            stream = progress(decoded, desc="capture", total=len(indices), unit="item", quiet=self.quiet)
            for block, span in ranges.items():
                writing = BlockWriter(
                    self.out,
                    block,
                    start=span.start,
                    stop=span.stop,
                    site_layouts=site_layouts,
                    dtype=settings["dtype"],
                )
                for batch in _batches(
                    stream, span, batch_size=settings["batch_size"], failed=self._failed(writing)
                ):
                    append = forward.job([item for _, item in batch], batch, writing)
                    writer.submit(append)
                    self._n_captured += len(batch)
                writer.submit(writing.commit)
            writer.wait()
            for _ in stream:  # lets the bar end itself
                pass

    def _failed(self, writing: BlockWriter) -> Callable[[int, BaseException], None]:
        def record(index: int, error: BaseException) -> None:
            is_about_item = isinstance(error, ItemError | ItemNotFoundError | InputError)
            if self.settings["on_error"] == "raise" or not is_about_item:
                raise error
            log.warning("item %d is skipped: %s", index, error)
            writing.fail(index, error)

        return record

    def _finish(self) -> None:
        """Merge the tables, declare the run complete, tidy up."""
        with storage_errors(self.out):
            done = finish_run(self.out, self.info, n_blocks=self.plan.n_blocks)
            if not done["n_items"]:
                raise ItemError(
                    f"none of the {self.plan.n_items} items of '{self.items.name}' could be read."
                )
            self.info = done
            self._add_time()
            self.info["finished"] = _now()
            flush_disk(self.out)  # "complete" must stay true after a power cut
            self._save_info()
            remove_parts(self.out, n_blocks=self.plan.n_blocks)

    def _stop(self, writer: WriteBehind, *, status: str) -> None:
        """End the writing thread, drop the block in the making, and say in run.json how it ended."""
        writer.close()
        shutil.rmtree(self.out / paths.WORK_NAME, ignore_errors=True)
        if not self.info:  # stopped before anything was written
            return
        self.info = {**self.info, "status": status}
        self._add_time()
        try:
            self._save_info()
        except StorageError:  # the disk is full: run.json still says "running", which resumes just as well
            log.warning("could not update %s", self.out / paths.INFO_NAME)

    def _add_time(self) -> None:
        timings = self.info["timings"]
        secs = time.monotonic() - self._started
        self.info["timings"] = {
            "capture_secs": round(timings["capture_secs"] + secs, 3),
            "n_sessions": timings["n_sessions"] + 1,
            "items_per_sec": round(self._n_captured / secs, 3),
        }

    def _warn(self, text: str) -> None:
        log.warning(text)
        self.info["warnings"] = [*self.info["warnings"], text]

    def _save_info(self) -> None:
        with storage_errors(self.out):
            write_json(self.out / paths.INFO_NAME, self.info)


def _batches(
    stream: Iterator[tuple[int, Item | BaseException]],
    span: range,
    *,
    batch_size: int,
    failed: Callable[[int, BaseException], None],
) -> Iterator[list[tuple[int, Item]]]:
    """Yield the readable items of one block in batches; `failed(index, error)` hears of the others."""
    batch: list[tuple[int, Item]] = []
    for expected in span:
        index, item = next(stream)
        assert index == expected, "the prefetch thread keeps the order"
        if isinstance(item, BaseException):
            failed(index, item)
            continue
        batch.append((index, item))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
