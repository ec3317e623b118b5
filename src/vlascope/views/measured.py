"""What was measured about an episode, frame by frame: shares of concepts, changes of course, anomaly score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..measure import Finding
    from ..runs import Run
    from .tokens import TokenIndex


FINDINGS = "measures"
"""Where a run keeps them, in `derived`; the name is that of `vlascope.measure.findings`."""


def saved_findings(run: Run) -> list[Finding]:
    """Return `vlascope.measure.saved` of a run, without importing that (torch with it) where nothing was measured."""
    if not (run.path / "derived" / FINDINGS).is_dir():
        return []
    from ..measure import saved

    return saved(run)


@dataclass(frozen=True, kw_only=True)
class EpisodeMeasures:
    """What the saved measures of a run say about the frames of one episode.

    Attributes:
        changes: Frames at which the concepts change their course; None where nobody looked for any.
        changes_site: The layer at which they do.
        anomaly: float32 [n_frames], oddity of each frame, NaN where it was not scored; None where nobody scored.
        anomaly_site: The layer that was scored.
        threshold: Oddity that raises the alarm; None where there is none.
        alarm: Frame of the first alarm; None without one.
    """

    changes: tuple[int, ...] | None = None
    changes_site: str = ""
    anomaly: NDArray[np.float32] | None = None
    anomaly_site: str = ""
    threshold: float | None = None
    alarm: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return self.changes is not None or self.anomaly is not None


def episode_measures(
    findings: Sequence[Finding], *, episode: int, items: Sequence[int], site: str | None = None
) -> EpisodeMeasures:
    """Return what saved measures (`vlascope.measure.saved`) say about an episode.

    Where several measures looked for the same, those of `site` come first, then the last one in the list.

    Args:
        findings: The saved measures of the run.
        episode: Number of the episode.
        items: Rows of the run that are its frames, in order.
        site: The layer that is looked at.
    """
    found: EpisodeMeasures = EpisodeMeasures()
    frame_of = {int(item): frame for frame, item in enumerate(items)}
    told = [one for finding in findings for one in finding.episodes if one.episode == episode]
    for one in sorted(told, key=lambda series: series.site == site):
        step_frame = {
            step: frame_of[i] for i, step in zip(one.items, one.steps, strict=True) if i in frame_of
        }
        facts = dict(vars(found))
        if one.change_points is not None:
            frames = tuple(sorted(step_frame[step] for step in one.change_points if step in step_frame))
            facts.update(changes=frames, changes_site=one.site)
        if one.anomaly:
            score = np.full(len(items), np.nan, np.float32)
            for item, value in zip(one.items, one.anomaly, strict=True):
                if item in frame_of:
                    score[frame_of[item]] = np.nan if value is None else value
            alarm = None if one.alarm is None else step_frame.get(one.alarm)
            facts.update(anomaly=score, anomaly_site=one.site, threshold=one.threshold, alarm=alarm)
        found = EpisodeMeasures(**facts)
    return found


def concept_shares(index: TokenIndex, items: Sequence[int], *, site: str, k: int) -> NDArray[np.float32]:
    """Return the share of each frame's patches that belong to each concept, float32 [n_frames, k]; rows sum to 1.

    Args:
        index: Looks up the tokens of the cut.
        items: Frames with patches at `site`.
        site: A site of the cut.
        k: One of its numbers of clusters.
    """
    labels = index.cut.labels[k]
    out = np.zeros((len(items), k), np.float32)
    for frame, item in enumerate(items):
        rows = [grid.index_rc[grid.index_rc >= 0] for grid in index.patches(site, item)]
        known = labels[np.concatenate(rows)] if rows else labels[:0]
        counts = np.bincount(known[known >= 0], minlength=k)
        out[frame] = counts / max(1, counts.sum())
    return out
