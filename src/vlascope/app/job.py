"""Work that takes longer than an answer: one job at a time in a thread, with progress, and a way to stop it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import VlascopeError

_LOG = logging.getLogger(__name__)


class Cancelled(Exception):
    """The job was asked to stop."""


@dataclass
class Job:
    """One job. Its work calls `step` as it goes on, and `check` wherever it may stop.

    Attributes:
        number: Counts the jobs of a server, from 1 on.
        state: "running", "done", "failed" or "cancelled".
        text: What it is doing, or why it failed.
        done, total: Steps; total is 0 until it is known.
        result: What the work returned, once done.
    """

    number: int
    state: str = "running"
    text: str = "starting"
    done: int = 0
    total: int = 0
    result: Any = None
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def step(self, text: str, *, done: int | None = None, total: int | None = None) -> None:
        """Say what comes next; without `done` one more step is behind us.

        Raises:
            Cancelled: the job shall stop.
        """
        self.check()
        self.text = text
        self.done = self.done + 1 if done is None else done
        self.total = self.total if total is None else total

    def check(self, *_: Any) -> None:
        """Raise `Cancelled` when the job shall stop. Takes anything, so that it may be a hook."""
        if self._stop.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Ask it to stop; it does so at its next `check`."""
        self._stop.set()

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows of it; `left_secs` is None until a step has been timed."""
        now = time.perf_counter() if self.ended is None else self.ended
        secs = now - self.started
        known = self.state == "running" and self.total and self.done
        return {
            "job": self.number,
            "state": self.state,
            "text": self.text,
            "done": self.done,
            "total": self.total,
            "secs": round(secs, 2),
            "left_secs": round(secs / self.done * (self.total - self.done), 1) if known else None,
        }


class Jobs:
    """At most one job at a time, each in a thread of its own; the last one's result is kept.

    Args:
        clean: Applied to messages before anybody reads them.
    """

    def __init__(self, *, clean: Callable[[str], str] = str) -> None:
        self._clean = clean
        self._lock = threading.Lock()
        self.last: Job | None = None

    def start(self, work: Callable[[Job], Any]) -> Job | None:
        """Start `work(job)` and return the job; None while another one runs."""
        with self._lock:
            if self.last is not None and self.last.state == "running":
                return None
            job = self.last = Job(number=1 if self.last is None else self.last.number + 1)
        threading.Thread(target=self._run, args=(job, work), name="vlascope-job", daemon=True).start()
        return job

    def stop(self) -> None:
        """Ask the running job to stop, if there is one."""
        if self.last is not None:
            self.last.cancel()

    def find(self, number: int) -> Job | None:
        """Return the job of that number if it is the last one, else None."""
        return self.last if self.last is not None and self.last.number == number else None

    def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        state, text = "done", ""
        try:
            job.result = work(job)
        except Cancelled:
            state, text = "cancelled", "stopped"
        except VlascopeError as error:
            state, text = "failed", self._clean(str(error))
        except Exception:  # shown as what it is; the thread has nobody above it
            _LOG.exception("a job of the page failed")
            state, text = "failed", "this is a bug in vlascope; the server's log has the report"
        job.ended, job.text, job.state = time.perf_counter(), text, state
