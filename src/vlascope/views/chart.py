"""The time line of an episode as SVG: commanded moves in cm, gripper, events, shares of concepts, changes, anomaly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .measured import EpisodeMeasures
from .robot import EpisodeTrack, signed

WIDTH, LEFT, RIGHT = 960, 72, 72
_LABEL_LENGTH = 22  # characters of a label at the end of a curve
_BOLD_WIDTH = 7.4  # a generous estimate for 12 px type
_PLOT_TOP, _PLOT_HEIGHT, _GRIP_HEIGHT = 48, 150, 14
_SHARES_HEIGHT, _CHANGES_HEIGHT, _ANOMALY_HEIGHT, _BAND_GAP = 40, 12, 36, 10
_LABEL_STEP = 14  # pixels between two labels on top of one another

LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
"""Okabe and Ito's colour-blind-safe colours, in an order that keeps neighbours apart."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve with the label at its end.

    Attributes:
        name: Of the curve.
        color: CSS.
        points: The corners of each stretch without a gap.
        values: Its numbers.
        label: Name and colour of each curve that the label at its end is for: curves that coincide have one label,
            at the last of them; () at the others.
        label_y: Where that label stands.
    """

    name: str
    color: str
    points: tuple[str, ...]
    values: str
    label: tuple[tuple[str, str], ...] = ()
    label_y: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A tick at a position along an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class EventMark:
    """An event, or several that are too near one another for names of their own.

    Attributes:
        name: Their names, in order of time.
        left: Where the text begins.
        at: Where each of them happened.
    """

    name: str
    left: float
    at: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A strip under the curves: its name stands to its left, a note to its right.

    Attributes:
        areas: (colour, corners) of each area; no colour is that of quiet things.
        marks: Left corner of a triangle at each change.
        line_y: Where a line runs across it, e.g. at a threshold; None without one.
        alarm_x: Where a first alarm is marked; None without one.
    """

    name: str
    note: str
    y: float
    height: int
    areas: tuple[tuple[str | None, str], ...] = ()
    marks: tuple[str, ...] = ()
    line_y: float | None = None
    alarm_x: float | None = None


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
    bands: tuple[Band, ...]
    events: tuple[EventMark, ...]
    n_frames: int
    summary: str


def episode_chart(
    track: EpisodeTrack,
    *,
    shares: NDArray[np.float32] | None = None,
    share_colors: Sequence[str] = (),
    measures: EpisodeMeasures | None = None,
) -> Chart | None:
    """Return the time line of an episode; None where nothing is known about it.

    Args:
        track: Actions and events.
        shares: float32 [n_frames, k], how much of each frame every concept takes.
        share_colors: CSS colours of the k concepts.
        measures: Changes of course and anomaly score.
    """
    measures = measures or EpisodeMeasures()
    if track.action is None and not track.events and shares is None and not measures:
        return None
    n = len(track.items)
    moves = track.moves_cm
    if moves is not None:
        series, names, y_title = moves, ["x", "y", "z"], "move per step, cm"
    elif track.action is not None:
        series, names, y_title = track.action[:, :7], list(track.action_names[:7]), "action"
        if track.action.shape[1] > 7:
            y_title = f"action, 7 of {track.action.shape[1]} numbers"
    else:
        series, names, y_title = np.zeros((n, 0), np.float32), [], ""
    series = np.where(np.isfinite(series), series, np.nan)
    bottom = _PLOT_TOP + (_PLOT_HEIGHT if names else 0)
    y_ticks: tuple[Tick, ...] = ()
    zero_y = None
    heights = np.zeros((n, 0))
    if names:
        known = series[np.isfinite(series)]
        low, high = float(known.min(initial=0.0)), float(known.max(initial=0.0))
        step = _nice_step(high - low)
        low, high = np.floor(low / step) * step, np.ceil(high / step) * step
        span = max(high - low, 1e-9)

        def y_of(value: float) -> float:
            return round(float(_PLOT_TOP + _PLOT_HEIGHT * (1 - (value - low) / span)), 2)

        heights = np.round(_PLOT_TOP + _PLOT_HEIGHT * (1 - (series - low) / span), 1)
        marks = np.arange(round((high - low) / step) + 1) * step + low
        digits = max(0, int(np.ceil(-np.log10(step))))
        y_ticks = tuple(Tick(at=y_of(v), text=signed(v, digits=digits).strip()) for v in marks)
        zero_y = y_of(0.0)
    labels = _labels(names, heights)
    wide = max([0, *(sum(len(text) for text, _ in label) for label, _ in labels.values())])
    right = WIDTH - max(RIGHT, round(18 + _BOLD_WIDTH * wide))
    x_of = np.linspace(LEFT, right, n) if n > 1 else np.array([(LEFT + right) / 2])
    lines = tuple(
        Line(
            name=name,
            color=LINE_COLORS[j % len(LINE_COLORS)],
            points=tuple(
                " ".join(f"{x_of[i]:.1f},{heights[i, j]:.1f}" for i in range(a, b + 1))
                for a, b in _stretches(np.isfinite(heights[:, j]))
            ),
            values=" ".join(f"{v:.2f}" for v in series[:, j]),
            label=labels[j][0] if j in labels else (),
            label_y=labels[j][1] if j in labels else 0.0,
        )
        for j, name in enumerate(names)
    )
    closed = track.gripper_closed
    half = (x_of[1] - x_of[0]) / 2 if n > 1 else 10.0
    grip_y = bottom + 18
    stretches = _stretches(closed) if closed is not None else []
    bottom_of_all = grip_y + (_GRIP_HEIGHT if closed is not None else 0)
    bands = _bands(x_of, shares, share_colors, measures, top=bottom_of_all + _BAND_GAP, right=right)
    if bands:
        bottom_of_all = bands[-1].y + bands[-1].height
    return Chart(
        width=WIDTH,
        height=int(bottom_of_all + 40),
        left=LEFT,
        right=right,
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
                float(round(min(x_of[b] + half, right) - max(x_of[a] - half, LEFT), 1)),
            )
            for a, b in stretches
        ),
        has_grip=closed is not None,
        bands=bands,
        events=_event_marks(track, x_of),
        n_frames=n,
        summary=_summary(track, measures),
    )


def _bands(
    x_of: NDArray[np.floating],
    shares: NDArray[np.float32] | None,
    share_colors: Sequence[str],
    measures: EpisodeMeasures,
    *,
    top: float,
    right: float,
) -> tuple[Band, ...]:
    """Return the strips under the curves, from the top."""
    bands: list[Band] = []
    half = (x_of[1] - x_of[0]) / 2 if len(x_of) > 1 else 10.0
    edges = np.clip(np.append(x_of - half, x_of[-1] + half), LEFT, right)
    if shares is not None:
        above = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
        areas = []
        for concept in np.flatnonzero(shares.max(axis=0) > 0):
            ends = top + _SHARES_HEIGHT * above[:, [concept, concept + 1]]
            areas.append((share_colors[int(concept)], _steps(edges, ends[:, 0], ends[:, 1])))
        note = f"K = {shares.shape[1]}"
        bands.append(Band(name="concepts", note=note, y=top, height=_SHARES_HEIGHT, areas=tuple(areas)))
        top += _SHARES_HEIGHT + _BAND_GAP
    if measures.changes is not None:
        size = _CHANGES_HEIGHT
        marks = tuple(
            f"{x:.1f},{top:.1f} {x - size / 2:.1f},{top + size:.1f} {x + size / 2:.1f},{top + size:.1f}"
            for x in x_of[list(measures.changes)]
        )
        note = measures.changes_site if marks else "none found"
        bands.append(Band(name="changes", note=note, y=top, height=size, marks=marks))
        top += size + _BAND_GAP
    if measures.anomaly is not None:
        score = np.nan_to_num(measures.anomaly, nan=0.0)
        low = min(0.0, float(score.min()))
        high = max(float(score.max()), measures.threshold or 0.0, low + 1e-9)
        y = top + _ANOMALY_HEIGHT * (1 - (score - low) / (high - low))
        limit = measures.threshold
        bands.append(
            Band(
                name="anomaly",
                note=measures.anomaly_site,
                y=top,
                height=_ANOMALY_HEIGHT,
                areas=((None, _steps(edges, y, np.full(len(y), top + _ANOMALY_HEIGHT))),),
                line_y=None
                if limit is None
                else round(top + _ANOMALY_HEIGHT * (1 - (limit - low) / (high - low)), 1),
                alarm_x=None if measures.alarm is None else round(float(x_of[measures.alarm]), 1),
            )
        )
    return tuple(bands)


def _steps(edges: NDArray[np.floating], upper: NDArray[np.floating], lower: NDArray[np.floating]) -> str:
    """Return the corners of an area between two step curves; `edges` has one entry more than they have."""
    there = [f"{x:.1f},{y:.1f}" for i, y in enumerate(upper) for x in edges[i : i + 2]]
    back = [f"{x:.1f},{y:.1f}" for i, y in reversed(list(enumerate(lower))) for x in edges[i : i + 2][::-1]]
    return " ".join([*there, *back])


def _nice_step(span: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that divides `span` into at most six."""
    if span <= 0:
        return 1.0
    raw = span / 6
    power = 10.0 ** np.floor(np.log10(raw))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999))


def _labels(
    names: Sequence[str], heights_nj: NDArray[np.floating]
) -> dict[int, tuple[tuple[tuple[str, str], ...], float]]:
    """Return the labels at the ends of the curves, (texts with their colours, y), by the curve that each stands at.

    Labels neither touch one another nor leave the plot. Curves that coincide share one, at the last of them.

    Args:
        names: Of the curves.
        heights_nj: Where each is drawn at each frame, NaN where it is not.
    """
    groups: dict[tuple[float, ...], list[int]] = {}
    for j in range(len(names)):
        if np.isfinite(heights_nj[:, j]).any():
            groups.setdefault(tuple(np.nan_to_num(heights_nj[:, j], nan=-1.0).tolist()), []).append(j)
    ends = [next(y for y in reversed(column) if y >= 0) for column in groups]
    placed = _spread(ends, low=_PLOT_TOP, high=_PLOT_TOP + _PLOT_HEIGHT)
    found = {}
    for members, y in zip(groups.values(), placed, strict=True):
        texts = _fitting([names[j] for j in members], most=_LABEL_LENGTH)
        colors = [LINE_COLORS[j % len(LINE_COLORS)] for j in members]
        found[members[-1]] = (tuple(zip(texts, colors, strict=False)), y)
    return found


def _fitting(names: Sequence[str], *, most: int) -> list[str]:
    """Return what a label of these names says, one text per name that it has room for: "action 2", ", 3", " +4"."""
    texts = [names[0], *(f", {_new_part(name, after=names[0])}" for name in names[1:])]
    for kept in range(len(texts), 0, -1):
        more = f" +{len(texts) - kept}" if kept < len(texts) else ""
        if sum(map(len, texts[:kept])) + len(more) <= most:
            return [*texts[: kept - 1], texts[kept - 1] + more]
    more = f" +{len(texts) - 1}" if len(texts) > 1 else ""
    return [_middle(names[0], most=most - len(more)) + more]


def _new_part(name: str, *, after: str) -> str:
    """Return a name without the words that it shares with the one before: of "action 2" after "action 1" the 2."""
    head, _, tail = name.rpartition(" ")
    return tail if head and after.rpartition(" ")[0] == head else name


def _middle(text: str, *, most: int) -> str:
    """Return a text of at most `most` characters: a longer one loses its middle."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


def _spread(wanted: Sequence[float], *, low: float, high: float) -> list[float]:
    """Return label positions near the wanted ones, a label's height apart, in the same order, within the bounds.

    Where they have no room they stand closer: as far apart as the bounds allow.
    """
    if not wanted:
        return []
    gap = min(_LABEL_STEP, (high - low) / max(1, len(wanted) - 1))
    order = [int(i) for i in np.argsort(wanted, kind="stable")]
    placed = [min(max(float(y), low), high) for y in wanted]
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + gap)
    limit = high
    for i in reversed(order):  # what was pushed out at the bottom comes back, and pushes those above it
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return [round(y, 1) for y in placed]


def _stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _time_ticks(track: EpisodeTrack, x_of: np.ndarray) -> tuple[Tick, ...]:
    """Return ticks at round times (or steps, where the times are not known), evenly spaced."""
    times, steps = np.asarray(track.times, np.float64), np.asarray(track.steps, np.float64)
    has_time = bool(np.isfinite(times).all() and (np.diff(times) > 0).all())
    values = times if has_time else steps
    if not has_time and not (np.diff(steps) > 0).all():
        values = np.arange(len(steps), dtype=np.float64)
    step = _nice_step(float(values[-1] - values[0]))
    step = step if has_time else max(1.0, step)
    marks = np.arange(np.ceil(values[0] / step - 1e-6), np.floor(values[-1] / step + 1e-6) + 1) * step + 0.0
    if len(values) == 1:
        marks = values
    digits = max(0, int(np.ceil(-np.log10(step) - 1e-9))) if len(values) > 1 else 1
    return tuple(
        Tick(
            at=round(float(np.interp(v, values, x_of)), 1),
            text=f"{v:.{digits}f} s" if has_time else f"step {v:.0f}",
        )
        for v in marks
    )


def _event_marks(track: EpisodeTrack, x_of: np.ndarray) -> tuple[EventMark, ...]:
    """Return the events of an episode; names that would touch are joined, so that all stand on one line."""
    marks: list[EventMark] = []
    for name, step in track.events:
        if step not in track.steps:
            continue
        mark = _placed(name, (round(float(x_of[track.steps.index(step)]), 1),))
        while marks and mark.left < marks[-1].left + _text_width(marks[-1].name) + 12:
            last = marks.pop()
            mark = _placed(f"{last.name} · {mark.name}", (*last.at, *mark.at))
        marks.append(mark)
    return tuple(marks)


def _placed(name: str, at: tuple[float, ...]) -> EventMark:
    width = _text_width(name)
    left = min(max(float(LEFT), (at[0] + at[-1] - width) / 2), WIDTH - 4 - width)
    return EventMark(name=name, left=round(left, 1), at=at)


def _text_width(text: str) -> float:
    return 6.6 * len(text)  # a generous estimate for 12 px type


def _summary(track: EpisodeTrack, measures: EpisodeMeasures) -> str:
    events = ", ".join(f"{name} at step {step}" for name, step in track.events)
    parts = [f"Time line of episode {track.episode}, {len(track.items)} steps", events]
    if measures.changes:
        steps = ", ".join(str(track.steps[f]) for f in measures.changes)
        parts.append(f"concepts change their course at {measures.changes_site} at steps {steps}")
    if measures.alarm is not None:
        parts.append(f"first alarm at {measures.anomaly_site} at step {track.steps[measures.alarm]}")
    return "; ".join(part for part in parts if part)
