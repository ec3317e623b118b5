"""One process's share of a capture: from the first run.json to the last, whoever computes the blocks."""

from __future__ import annotations

import datetime
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ItemError, RunIncompleteError, StorageError
from ..files import storage_errors, write_json
from ..items.item import ItemSource
from . import paths
from .arrays import group_metadata, site_folder, write_metadata
from .block import block_problems, drop_block, read_marker
from .config import hardware, versions
from .engines import BlockReport, CaptureJob, Engine
from .finish import content_sha256, fact_hashes, finish_run, flush_disk, remove_parts, write_index
from .meter import CaptureProgress, Meter
from .plan import Plan
from .verify import VerifyReport

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


class Session:
    """One process's share of a capture: from the first run.json to the last."""

    def __init__(
        self,
        model: Model,
        items: ItemSource,
        *,
        out: Path,
        config: dict[str, Any],
        plan: Plan,
        engine: Engine,
        quiet: bool,
        on_progress: Callable[[CaptureProgress], None] | None,
        command: Sequence[str] | None,
    ) -> None:
        self.model, self.items, self.out, self.config, self.plan = model, items, out, config, plan
        self.engine, self.quiet, self.on_progress, self.command = engine, quiet, on_progress, command
        self.settings = config["capture"]
        self.info: dict[str, Any] = {}
        self._started = time.monotonic()
        self._n_captured = 0

    def pending(self) -> list[int]:
        """Return the blocks of an unfinished run that are still to be done; damaged ones are taken back.

        Cost: reads the finished blocks once, to compare checksums.
        """
        shutil.rmtree(self.out / paths.WORK_NAME, ignore_errors=True)
        pending = []
        for block in range(self.plan.n_blocks):
            marker, problems = self._checked(block)
            if problems:
                log.warning("block %d is damaged and captured again: %s", block, "; ".join(problems))
                drop_block(self.out, block, marker)
            if marker is None or problems:
                pending.append(block)
        return pending

    def _checked(self, block: int) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the marker of a block of an unfinished run (None when it is not there), and what is damaged."""
        try:
            marker = read_marker(self.out, block)
        except RunIncompleteError as error:
            return None, [str(error)]
        if marker is None:
            return None, []
        return marker, block_problems(self.out, marker, checksums=True, with_parts=True)

    def run(self, sites: Sequence[Site], pending: Sequence[int], *, resumed: bool) -> None:
        """Capture the pending blocks and finish the run."""
        with self._stopping():
            self._start(sites, resumed=resumed)
            self._capture(pending)
            self._finish()

    def repair(self, report: VerifyReport) -> None:
        """Capture the damaged blocks of a complete run again; the rest stays as it is.

        Blocks come out with the same bits, so that the tables of the whole run stay true. When they do not (another
        version of a package, another machine), or when such a table is itself damaged, all blocks are captured.
        """
        n_blocks = self.plan.n_blocks
        self.info = {**paths.read_info(self.out), "schema_version": paths.SCHEMA_VERSION}
        before = {block: _marker_or_none(self.out, block) for block in range(n_blocks)}
        blocks = list(range(n_blocks)) if report.bad_tables else list(report.bad_blocks)
        self._warn(f"mended {len(blocks)} of {n_blocks} blocks: {'; '.join(report.problems[:5])}")
        if aside := _move_aside(self.out / "derived"):
            self._warn(
                f"what was derived from the run may come from damaged blocks and was moved to {aside.name}/; it is "
                "made again when it is asked for"
            )
        with self._stopping():
            self._write_facts()
            if report.bad_tables:
                self._redo(blocks)
                return
            self._capture(blocks)
            content = content_sha256(self.out, n_blocks=n_blocks)
            if content != self.info["content_sha256"]:
                changed = [b for b in blocks if not _same_tokens(before[b], read_marker(self.out, b))]
                if changed:
                    log.warning(
                        "block %d came out with other tables; all blocks are captured again", changed[0]
                    )
                    self._redo([b for b in range(n_blocks) if b not in blocks])
                    return
                self._warn(
                    "mended blocks differ in bits from those before: other versions or another machine"
                )
            write_index(self.out, n_blocks=n_blocks)
            facts = fact_hashes(self.out, self.info["sites"])
            self.info = {**self.info, "content_sha256": content, "facts": facts}
            flush_disk(self.out)
            self._save_info()
            remove_parts(self.out, n_blocks=n_blocks)

    def _redo(self, blocks: Sequence[int]) -> None:
        """Make a complete run an unfinished one, capture blocks, and finish it."""
        self.info = {**self.info, "status": "running"}
        self._save_info()
        self._capture(blocks)
        self._finish()

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Say in run.json how the session ended when it did not end well."""
        try:
            yield
        except KeyboardInterrupt:
            self._stop(status="interrupted")
            n_done = len(list((self.out / "blocks").glob("*.ok")))
            raise CaptureInterrupted(
                out=self.out,
                n_done=n_done,
                n_blocks=self.plan.n_blocks,
                command=paths.resume_command(self.command, self.out),
            ) from None
        except BaseException:
            self._stop(status="failed")
            raise

    def _start(self, sites: Sequence[Site], *, resumed: bool) -> None:
        """Write the first run.json, then config.json and the Zarr groups.

        This order makes the directory a run from its first file on: a crash in between leaves a run without
        configuration, which the next capture clears.
        """
        out, settings = self.out, self.settings
        if resumed:
            before = paths.read_info(out)
            self.info = {
                **before,
                "schema_version": paths.SCHEMA_VERSION,
                "status": "running",
                "versions": versions(),
            }
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
                "names": {"state": list(self.items.state_names), "action": list(self.items.action_names)},
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
            with storage_errors(out):
                write_json(out / paths.CONFIG_NAME, self.config)  # on_error may have changed
            return
        self._write_facts()
        flush_disk(out)

    def _write_facts(self) -> None:
        """Write the metadata of the array groups and the configuration."""
        out = self.out
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
            write_json(out / paths.CONFIG_NAME, self.config)

    def _capture(self, blocks: Sequence[int]) -> None:
        import torch

        job = CaptureJob(
            out=self.out,
            n_items=self.plan.n_items,
            settings=self.settings,
            site_layouts={name: site["layout"] for name, site in self.info["sites"].items()},
            model_fingerprint=self.config["model"]["fingerprint"],
            items_fingerprint=self.config["items"]["fingerprint"],
            n_threads=torch.get_num_threads(),
        )
        n_items = sum(len(job.span(block)) for block in blocks)
        with Meter(n_items, quiet=self.quiet, on_progress=self.on_progress) as meter:

            def report(done: BlockReport) -> None:
                self._n_captured += done.n_items
                for text in done.warnings:
                    self._warn(text)
                meter.add(done.n_items, n_bytes=done.n_bytes)

            if blocks:
                self.engine.capture_blocks(self.model, self.items, job, blocks, report=report)

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

    def _stop(self, *, status: str) -> None:
        """Drop the blocks in the making, and say in run.json how it ended. A complete run stays one."""
        shutil.rmtree(self.out / paths.WORK_NAME, ignore_errors=True)
        if not self.info:  # stopped before anything was written
            return
        if self.info["status"] == "running":
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


def _move_aside(folder: Path) -> Path | None:
    """Give a folder another name, in which nobody looks for results, and return that; None when it is not there."""
    if not folder.is_dir():
        return None
    names = (folder.with_name(f"{folder.name}.before-repair-{i}") for i in itertools.count(1))
    target = next(name for name in names if not name.exists())
    with storage_errors(folder):
        folder.rename(target)
    return target


def _marker_or_none(out: Path, block: int) -> dict[str, Any] | None:
    try:
        return read_marker(out, block)
    except RunIncompleteError:
        return None


def _same_tokens(before: dict[str, Any] | None, after: dict[str, Any] | None) -> bool:
    """Return whether a block's tables and shapes are those that the tables of the whole run were made of."""
    if before is None or after is None:
        return False
    shapes = [
        {site: entry["shape"] for site, entry in marker["arrays"].items()} for marker in (before, after)
    ]
    same = all(before[key] == after[key] for key in ("n_items", "rows", "tables", "failures"))
    return same and shapes[0] == shapes[1]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
