"""The time line of an episode as SVG: commanded moves in cm, gripper, events; drawn in the page's own colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .robot import EpisodeTrack, signed

WIDTH, LEFT, RIGHT = 960, 56, 72
_PLOT_TOP, _PLOT_HEIGHT, _GRIP_HEIGHT = 58, 150, 14
_LABEL_STEP = 14  # pixels between two labels on top of one another

LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
"""Okabe and Ito's colour-blind-safe colours, in an order that keeps neighbours apart."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve with the label at its end."""

    name: str
    color: str
    points: str
    label_y: float
    values: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A tick at a position along an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class EventMark:
    """A labelled event; `row` counts the label lines from the top."""

    x: float
    name: str
    row: int
    anchor: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """All that the template draws. Positions are in the units of the SVG's view box."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: float
    zero_y: float | None
    y_title: str
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    grip_y: float
    grip_height: int
    closed: tuple[tuple[float, float], ...]  # x, width
    has_grip: bool
    events: tuple[EventMark, ...]
    n_frames: int
    summary: str


def episode_chart(track: EpisodeTrack) -> Chart | None:
    """Return the time line of an episode; None where neither its actions nor any event are known."""
    if track.action is None and not track.events:
        return None
    n = len(track.items)
    x_of = np.linspace(LEFT, WIDTH - RIGHT, n) if n > 1 else np.array([(LEFT + WIDTH - RIGHT) / 2])
    moves = track.moves_cm
    if moves is not None:
        series, names, y_title = moves, ["x", "y", "z"], "move per step, cm"
    elif track.action is not None:
        series, names, y_title = track.action[:, :7], list(track.action_names[:7]), "action"
    else:
        series, names, y_title = np.zeros((n, 0), np.float32), [], ""
    bottom = _PLOT_TOP + (_PLOT_HEIGHT if names else 0)
    lines: tuple[Line, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    zero_y = None
    if names:
        low, high = min(0.0, float(series.min())), max(0.0, float(series.max()))
        step = _nice_step(high - low)
        low, high = np.floor(low / step) * step, np.ceil(high / step) * step
        span = max(high - low, 1e-9)

        def y_of(value: float) -> float:
            return round(_PLOT_TOP + _PLOT_HEIGHT * (1 - (value - low) / span), 2)

        marks = np.arange(round((high - low) / step) + 1) * step + low
        digits = max(0, int(np.ceil(-np.log10(step))))
        y_ticks = tuple(Tick(at=y_of(v), text=signed(v, digits=digits).strip()) for v in marks)
        zero_y = y_of(0.0)
        label_y = _spread([y_of(series[-1, j]) for j in range(len(names))])
        lines = tuple(
            Line(
                name=name,
                color=LINE_COLORS[j % len(LINE_COLORS)],
                points=" ".join(f"{x:.1f},{y_of(v):.1f}" for x, v in zip(x_of, series[:, j], strict=True)),
                label_y=label_y[j],
                values=" ".join(f"{v:.2f}" for v in series[:, j]),
            )
            for j, name in enumerate(names)
        )
    closed = track.gripper_closed
    half = (x_of[1] - x_of[0]) / 2 if n > 1 else 10.0
    grip_y = bottom + 18
    stretches = _stretches(closed) if closed is not None else []
    bottom_of_all = grip_y + (_GRIP_HEIGHT if closed is not None else 0)
    return Chart(
        width=WIDTH,
        height=int(bottom_of_all + 40),
        left=LEFT,
        right=WIDTH - RIGHT,
        top=_PLOT_TOP,
        bottom=bottom_of_all,
        zero_y=zero_y,
        y_title=y_title,
        y_ticks=y_ticks,
        x_ticks=_time_ticks(track, x_of),
        lines=lines,
        grip_y=grip_y,
        grip_height=_GRIP_HEIGHT,
        closed=tuple(
            (
                float(round(max(x_of[a] - half, LEFT), 1)),
                float(round(min(x_of[b] + half, WIDTH - RIGHT) - max(x_of[a] - half, LEFT), 1)),
            )
            for a, b in stretches
        ),
        has_grip=closed is not None,
        events=_event_marks(track, x_of),
        n_frames=n,
        summary=_summary(track),
    )


def _nice_step(span: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that divides `span` into at most six."""
    if span <= 0:
        return 1.0
    raw = span / 6
    power = 10.0 ** np.floor(np.log10(raw))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999))


def _spread(wanted: list[float]) -> list[float]:
    """Return label positions near the wanted ones, at least one label height apart, in the same order."""
    order = [int(i) for i in np.argsort(wanted, kind="stable")]
    placed = list(wanted)
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + _LABEL_STEP)
    return [round(float(y), 1) for y in placed]


def _stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _time_ticks(track: EpisodeTrack, x_of: np.ndarray) -> tuple[Tick, ...]:
    n = len(track.items)
    chosen = np.unique(np.round(np.linspace(0, n - 1, min(n, 7))).astype(int))
    has_time = np.isfinite(track.times).all()
    return tuple(
        Tick(
            at=round(float(x_of[i]), 1),
            text=f"{track.times[i]:.1f} s" if has_time else f"step {track.steps[i]}",
        )
        for i in chosen
    )


def _event_marks(track: EpisodeTrack, x_of: np.ndarray) -> tuple[EventMark, ...]:
    marks: list[EventMark] = []
    ends: list[float] = []  # right end of the last label on each line
    for name, step in track.events:
        if step not in track.steps:
            continue
        x = float(x_of[track.steps.index(step)])
        width = 7.0 * len(name)  # a generous estimate for 12 px type
        anchor = "middle"
        left = x - width / 2
        if left < LEFT:
            anchor, left = "start", x
        elif x + width / 2 > WIDTH - 4:
            anchor, left = "end", x - width
        row = next((r for r, end in enumerate(ends) if left > end + 8), len(ends))
        if row == len(ends):
            ends.append(0.0)
        ends[row] = left + width
        marks.append(EventMark(x=round(x, 1), name=name, row=min(row, 2), anchor=anchor))
    return tuple(marks)


def _summary(track: EpisodeTrack) -> str:
    events = ", ".join(f"{name} at step {step}" for name, step in track.events)
    return f"Time line of episode {track.episode}, {len(track.items)} steps" + (
        f"; {events}" if events else ""
    )
