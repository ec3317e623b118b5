"""Measures as the page shows them: a value with its interval and controls on one scale, and curves over the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .grid import split_names

if TYPE_CHECKING:
    from ..measure import Finding, LayerSeries, Result

MAX_ROWS = 12
"""Rows of one measure that are shown at once; the others are folded away."""

BARELY = 0.05
"""Share of an axis."""
ROW_WIDTH, ROW_HEIGHT = 220, 20
LAYER_WIDTH, LAYER_HEIGHT = 520, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 14, 40


@dataclass(frozen=True, kw_only=True)
class RowView:
    """One number: what stands in the columns, and where it lies on the scale of its unit (0..`ROW_WIDTH`)."""

    name: str
    value: str
    interval: str
    sample: str
    p: str
    found: bool
    reason: str
    controls: tuple[tuple[str, str], ...]
    value_x: float | None
    ends_x: tuple[float, float] | None
    controls_x: tuple[float, ...]
    zero_x: float


@dataclass(frozen=True, kw_only=True)
class LayerTick:
    """A layer under a chart."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class LayerChart:
    """A number per layer as SVG, in the units of its view box."""

    title: str
    unit: str
    curves: tuple[str, ...]  # corners of each unbroken stretch
    dots: tuple[tuple[float, float, str], ...]  # x, y, words
    area: tuple[str, ...]
    control: tuple[str, ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[LayerTick, ...]
    groups: tuple[tuple[float, float, str], ...]  # from, to, name
    summary: str


@dataclass(frozen=True, kw_only=True)
class FindingView:
    """One measure as the page shows it."""

    measure: str
    title: str
    verdict: str
    rows: tuple[RowView, ...]
    more: tuple[RowView, ...]
    charts: tuple[LayerChart, ...]
    settings: str


def finding_view(finding: Finding) -> FindingView:
    """Return a measure ready for the template: tests that stand out first, in the order that they were kept in."""
    results = [row.result for row in finding.rows]
    scales = _scales(results)
    rows = tuple(_row(r, scales.get(r.unit, (0.0, 1.0))) for r in results)
    settings = ", ".join(
        f"{name} {_plain(value)}" for name, value in finding.settings.items() if value is not None
    )
    return FindingView(
        measure=finding.measure,
        title=_as_heading(finding.title),
        verdict=_as_heading(finding.verdict),
        rows=rows[:MAX_ROWS],
        more=rows[MAX_ROWS:],
        charts=tuple(layer_chart(one) for one in finding.layers if any(v is not None for v in one.values)),
        settings=settings,
    )


def _as_heading(text: str) -> str:
    """Return the text with a capital, unless it begins with a name such as that of a layer, a label or a model."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.strip(",;:").isalpha() else text


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_plain(v) for v in value) or "none"
    if isinstance(value, Mapping):
        return " ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scales(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Return the ends of one scale per unit, 0 within."""
    found: dict[str, list[float]] = {}
    for result in results:
        values = [result.value, *(result.interval or ()), *result.controls.values()]
        found.setdefault(result.unit, []).extend(v for v in values if v is not None and math.isfinite(v))
    scales = {}
    for unit, values in found.items():
        low, high = min([0.0, *values]), max([0.0, *values])
        if low >= 0 and 0.3 < high <= 1:
            high = 1.0
        scales[unit] = (low, high if high > low else low + 1)
    return scales


def _row(result: Result, scale: tuple[float, float]) -> RowView:
    from ..measure.result import number_text

    def x(value: float) -> float:
        return round(4 + (ROW_WIDTH - 8) * (value - scale[0]) / (scale[1] - scale[0]), 1)

    p = result.p if result.p_adjusted is None else result.p_adjusted
    known = [v for v in result.controls.values() if math.isfinite(v)]
    return RowView(
        name=result.name,
        value="cannot say" if result.value is None else f"{number_text(result.value)} {result.unit}".strip(),
        interval="" if result.interval is None else " – ".join(number_text(v) for v in result.interval),
        sample=f"{result.n:,}" + (f" ({result.n_units} {result.over}s)" if result.n_units else ""),
        p="" if p is None else f"{p:.2g}",
        found=result.found,
        reason=result.reason if result.value is None else "",
        controls=tuple((name, number_text(v)) for name, v in result.controls.items()),
        value_x=None if result.value is None or not math.isfinite(result.value) else x(result.value),
        ends_x=None if result.interval is None else (x(result.interval[0]), x(result.interval[1])),
        controls_x=tuple(x(v) for v in known),
        zero_x=x(0.0),
    )


def layer_chart(series: LayerSeries) -> LayerChart:
    """Return a number per layer as a curve with its interval and its control."""
    from ..measure.result import number_text

    n = len(series.sites)
    every = [*series.values, *series.low, *series.high, *series.control]
    known = [v for v in every if v is not None and math.isfinite(v)]
    low, high = min([0.0, *known]), max([0.0, *known])
    if low > -BARELY and 0.5 < high <= 1:
        high = 1.0
    high = high if high > low else low + 1
    lowest = (
        low if low < -BARELY * (high - low) else 0.0
    )  # a control that is barely negative is no place for a tick
    right, bottom = LAYER_WIDTH - _RIGHT, LAYER_HEIGHT - _BOTTOM
    step = (right - _LEFT) / n

    def x(i: int) -> float:
        return round(_LEFT + step * (i + 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - _TOP) * (value - low) / (high - low), 1)

    def stretches(values: Sequence[float | None]) -> list[list[int]]:
        out: list[list[int]] = []
        for i, value in enumerate(values):
            if value is None or not math.isfinite(value):
                continue
            if out and out[-1][-1] == i - 1:
                out[-1].append(i)
            else:
                out.append([i])
        return out

    def curve(values: Sequence[float | None]) -> tuple[str, ...]:
        return tuple(" ".join(f"{x(i)},{y(values[i] or 0.0)}" for i in run) for run in stretches(values))

    area = []
    both = [a if b is not None else None for a, b in zip(series.low, series.high, strict=False)]
    for run in stretches(both):
        corners = [f"{x(i)},{y(series.high[i] or 0.0)}" for i in run]
        corners += [f"{x(i)},{y(series.low[i] or 0.0)}" for i in reversed(run)]
        area.append(" ".join(corners))
    groups, columns = split_names(series.sites)
    spans: list[list[float | str]] = []
    for i, group in enumerate(groups):
        if spans and spans[-1][2] == group:
            spans[-1][1] = x(i) + step / 2
        else:
            spans.append([x(i) - step / 2, x(i) + step / 2, group])
    every_nth = max(1, math.ceil(max(7 * max(len(c) for c in columns) + 6, 18) / step)) if n else 1
    best = [(v, s) for v, s in zip(series.values, series.sites, strict=True) if v is not None]
    return LayerChart(
        title=series.name,
        unit=series.unit,
        curves=curve(series.values),
        dots=tuple(
            (x(i), y(v), f"{site}: {number_text(v)} {series.unit}".strip())
            for i, (v, site) in enumerate(zip(series.values, series.sites, strict=True))
            if v is not None and math.isfinite(v)
        ),
        area=tuple(area),
        control=curve(series.control),
        y_ticks=tuple(
            (y(v), number_text(v).rstrip("0").rstrip(".")) for v in (lowest, (lowest + high) / 2, high)
        ),
        x_ticks=tuple(LayerTick(x=x(i), text=columns[i]) for i in range(0, n, every_nth)),
        groups=tuple((float(a) + 2, float(b) - 2, str(name)) for a, b, name in spans if name),
        summary=f"{series.name}, layer by layer"
        + (f"; highest at {max(best)[1]} ({number_text(max(best)[0])})" if best else ""),
    )
