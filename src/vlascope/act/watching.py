"""A saved monitor in a closed loop: who watches each episode, and what is said afterwards about what was stopped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .monitor_store import MONITOR_NAME, load_monitor
from .monitor_thresholds import Rate, Rule

if TYPE_CHECKING:
    from ..models import Model
    from .monitor import Monitor
    from .monitor_watch import MonitorWatcher
    from .rollout import ClosedLoop


@dataclass(frozen=True)
class SavedMonitor:
    """Makes a watcher per episode from a monitor's folder, so that other processes can make theirs too.

    Attributes:
        path: Folder of the monitor, absolute.
        detector: What scores the tokens: "sae", "sae-fall", "mahalanobis" or "pca".
        rule: Which limit counts.
    """

    path: Path
    detector: str = "sae"
    rule: Rule = "frame"

    @property
    def monitor(self) -> Monitor:
        """The monitor, read once per process."""
        return _read(self.path, (self.path / MONITOR_NAME).stat().st_mtime_ns)

    def __call__(self, episode: int) -> MonitorWatcher:
        """Return the watcher of an episode."""
        return self.monitor.watcher(detector=self.detector, rule=self.rule)


def saved_monitor(
    path: Path | str, *, model: Model, detector: str = "sae", rule: Rule = "frame"
) -> SavedMonitor:
    """Return what `closed_loop(watcher=...)` needs for a saved monitor.

    Raises:
        RunNotFoundError: no monitor there.
        InputError: it was fitted on other weights, or has no such detector.
    """
    monitor = load_monitor(path)
    monitor.check_model(model.name, model.fingerprint())
    monitor.use(detector)
    return SavedMonitor(Path(path).resolve(), detector, rule)


@lru_cache(maxsize=4)
def _read(path: Path, stamp: int) -> Monitor:
    return load_monitor(path)


@dataclass(frozen=True)
class WatchReport:
    """What a monitor stopped in a closed loop, beside what it had promised.

    Attributes:
        stopped: Episodes that it stopped.
        rows: Per stopped episode its number, the step and the reason.
        stated: Share of clean episodes that may be stopped; None for the rule that promises nothing.
        fitted: Share of clean episodes that raised an alarm when it was fitted.
        is_clean: Whether the scenes, pictures and model were those that it was fitted for.
    """

    stopped: Rate
    rows: tuple[tuple[str, ...], ...]
    stated: float | None
    fitted: Rate
    is_clean: bool

    @property
    def is_trusted(self) -> bool:
        """False when it stopped more clean episodes than stated, beyond chance."""
        return not self.is_clean or self.stated is None or self.stopped.holds(self.stated)

    def lines(self) -> list[str]:
        """Return the counts as text, and a warning where they are more than stated."""
        promise = "no rate is stated" if self.stated is None else f"stated for clean ones: {self.stated:.1%}"
        kind = "clean" if self.is_clean else "changed"
        lines = [
            f"stopped    {self.stopped.text()} of the {kind} episodes ({promise}; realised when fitted: "
            f"{self.fitted.text()})"
        ]
        if not self.is_trusted:
            lines.append(
                "that is more than stated: do not trust this monitor on these scenes before fitting it on them"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "clean": self.is_clean,
            "stopped": self.stopped.to_json(),
            "stated_false_alarms": self.stated,
            "realised_false_alarms_when_fitted": self.fitted.to_json(),
            "trusted": self.is_trusted,
        }


WATCH_HEAD = ("episode", "step", "why")


def watch_report(loop: ClosedLoop, *, watched_by: SavedMonitor, is_clean: bool) -> WatchReport:
    """Return what a monitor stopped.

    Args:
        loop: Episodes that it watched.
        watched_by: The monitor.
        is_clean: Whether nothing was changed about scenes, pictures and model.
    """
    monitor = watched_by.monitor
    rows = tuple(
        (str(i), str(veto.details["step"]), veto.reason)
        for i, veto in enumerate(loop.vetoes)
        if veto is not None
    )
    return WatchReport(
        stopped=Rate(alarms=len(rows), n=loop.n),
        rows=rows,
        stated=monitor.stated(watched_by.rule),
        fitted=monitor.use(watched_by.detector).rate(watched_by.rule),
        is_clean=is_clean,
    )
