"""What an episode says about the robot, in words and physical units: actions, gripper, events, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..items.item import vector_names

if TYPE_CHECKING:
    from ..items.item import Scalar
    from ..runs import Run

MOVES = ("dx", "dy", "dz")
MAX_STATES = 8
"""Curves of a state that are drawn."""

_GRIP_NAMES = ("grip", "gripper", "gripper_close", "gripper_position")
_EVENT_PREFIXES = ("event/", "event.", "event_")


@dataclass(frozen=True, kw_only=True)
class EpisodeTrack:
    """The time line of one episode.

    Attributes:
        episode: Its index.
        items: Rows of the run, in order of their steps.
        steps: Step of each item.
        times: Seconds of each item; NaN where unknown.
        prompt: The instruction; None when there was none.
        action: float32 [n_items, dof], what was done: the dataset's own action, or where it has none the model's
            answer; None when neither is known.
        action_names: A name per column of `action`.
        source: "recorded" or "answered by the model".
        events: What happened and at which step, in order of time; what happened at one step is joined by commas.
        labels: Facts about the episode (of its last frame).
    """

    episode: int
    items: tuple[int, ...]
    steps: tuple[int, ...]
    times: tuple[float, ...]
    prompt: str | None
    action: NDArray[np.float32] | None
    action_names: tuple[str, ...]
    source: str
    events: tuple[tuple[str, int], ...]
    labels: Mapping[str, Scalar]

    def column(self, *names: str) -> NDArray[np.float32] | None:
        """Return the first action column of one of these names; None where there is none."""
        if self.action is None:
            return None
        for name in names:
            if name in self.action_names:
                return self.action[:, self.action_names.index(name)]
        return None

    @property
    def moves_cm(self) -> NDArray[np.float32] | None:
        """The commanded move (x, y, z) of each step in cm, [n_items, 3]; None for other kinds of action."""
        columns = [self.column(name) for name in MOVES]
        if any(c is None for c in columns):
            return None
        return np.stack([c for c in columns if c is not None], axis=1) * 100

    @property
    def gripper(self) -> NDArray[np.float32] | None:
        """The commanded gripper of each step, 1 is closed, NaN unknown; None for other kinds of action."""
        return self.column(*_GRIP_NAMES)

    @property
    def gripper_closed(self) -> NDArray[np.bool_] | None:
        """Whether each step is known to command a closed gripper; None for other kinds of action."""
        return None if self.gripper is None else self.gripper > 0.5

    @property
    def fps(self) -> float | None:
        """Frames per second of the recording; None when the times are not known."""
        gaps = np.diff(np.asarray(self.times))
        gaps = gaps[np.isfinite(gaps) & (gaps > 0)]
        return float(1 / np.median(gaps)) if len(gaps) else None


def episode_track(run: Run, *, episode: int, items: Sequence[int]) -> EpisodeTrack:
    """Return the time line of one episode.

    Args:
        run: Where it was captured.
        episode: Its index.
        items: Rows of the run that belong to it, in order of their steps.
    """
    rows = [run.items[i] for i in items]
    answers = {r.item: r for r in run.responses}
    said = [answers.get(i) for i in items]
    answered = [r.action for r in said if r is not None and r.action is not None]
    names: tuple[str, ...] = next((r.action_names for r in said if r is not None and r.action_names), ())
    recorded = [row.action for row in rows if row.action is not None]
    action, source = None, ""
    if len(recorded) == len(rows):
        action, source = np.stack(recorded), "recorded"
    elif len(answered) == len(rows):
        action, source = np.stack(answered), "answered by the model"
    if action is not None and len(names) != action.shape[1]:
        names = (
            (*MOVES, "grip")
            if action.shape[1] == 4 and _is_own_simulator(run)
            else vector_names(run.action_names, action.shape[1], what="action ")
        )
    return EpisodeTrack(
        episode=episode,
        items=tuple(items),
        steps=tuple(int(row.step if row.step is not None else i) for i, row in enumerate(rows)),
        times=tuple(float("nan") if row.time_secs is None else float(row.time_secs) for row in rows),
        prompt=rows[0].prompt,
        action=None if action is None else action.astype(np.float32),
        action_names=names if action is not None else (),
        source=source,
        events=_events(rows[-1].labels),
        labels=dict(rows[-1].labels),
    )


def _is_own_simulator(run: Run) -> bool:
    """Whether the items come from `vlascope.sim`, whose four action columns are known."""
    return "sim_task" in run.items[0].labels


def _events(labels: Mapping[str, Scalar]) -> tuple[tuple[str, int], ...]:
    found = []
    for key, value in labels.items():
        prefix = next((p for p in _EVENT_PREFIXES if key.startswith(p)), None)
        if prefix is None or isinstance(value, bool | str | None):
            continue
        if value >= 0:
            found.append((key[len(prefix) :].replace("_", " "), int(value)))
    at: dict[int, list[str]] = {}
    for name, step in sorted(found):
        at.setdefault(step, []).append(name)
    return tuple((", ".join(names), step) for step, names in sorted(at.items()))


def action_pieces(track: EpisodeTrack, index: int) -> list[str]:
    """Return the action of one frame as short pieces: ["x +1.2", "y −0.4", "z −2.5 cm", "gripper closed"].

    A number that is not known (NaN) is a dash, a gripper that is not known is said to be so.
    """
    if track.action is None:
        return []
    moves = track.moves_cm
    if moves is None:
        pairs = zip(track.action_names, track.action[index], strict=True)
        return [f"{name} {signed(v, digits=3)}" for name, v in pairs]
    pieces = [f"{axis} {signed(v)}" for axis, v in zip("xyz", moves[index], strict=True)]
    known = [i for i, value in enumerate(moves[index]) if np.isfinite(value)]
    if known:
        pieces[known[-1]] += " cm"
    grip = track.gripper
    if grip is not None:
        pieces.append(f"gripper {_gripper_text(float(grip[index]))}")
    return pieces


def _gripper_text(value: float) -> str:
    if not np.isfinite(value):
        return "unknown"
    return "closed" if value > 0.5 else "open"


def action_text(track: EpisodeTrack, index: int) -> str:
    """Return the action of one frame in one line: "x +1.2  y −0.4  z −2.5 cm  gripper closed"."""
    return "  ".join(action_pieces(track, index))


def signed(value: float, *, digits: int = 1) -> str:
    """Return a number with its sign and a true minus, e.g. "+1.2" or "−0.4"; a dash for one that is not finite."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = " " + text[1:]
    return text.replace("-", "−")


def answer_text(run: Run, item: int) -> str | None:
    """Return what the model answered to an item: its words, or its action in physical units."""
    response = run.response(item)
    if response is None:
        return None
    if response.action is not None:
        return episode_action(response.action, response.action_names)
    return response.text


def episode_action(action: NDArray[np.float32], names: Sequence[str]) -> str:
    """Return one action vector in words, with centimetres where the names say that it is a move."""
    track = EpisodeTrack(
        episode=0,
        items=(0,),
        steps=(0,),
        times=(0.0,),
        prompt=None,
        action=np.asarray(action, np.float32)[None],
        action_names=vector_names(names, len(action), what="action "),
        source="",
        events=(),
        labels={},
    )
    return action_text(track, 0)
