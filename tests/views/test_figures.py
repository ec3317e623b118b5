"""Measures as the page shows them: headings, axes, rows on one scale."""

from __future__ import annotations

import pytest

from vlascope.measure import Finding, Result
from vlascope.measure.findings import LayerSeries, Row
from vlascope.views.figures import LAYER_WIDTH, MAX_ROWS, ROW_WIDTH, finding_view, layer_chart

SITES = ("vision.0", "vision.1", "language.0")


def finding(title: str, *, verdict: str = "it is there", n_rows: int = 1) -> Finding:
    one = Result(name="a", value=0.5, unit="R²", n=7, over="episode", n_units=5, interval=(0.25, 0.75),
                 controls={"mean": 0.0, "unknown": float("nan")}, p=0.02)  # fmt: skip
    return Finding(
        measure="probe", title=title, verdict=verdict, rows=(Row(site="vision.0", result=one),) * n_rows
    )


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("region of segmentation", "Region of segmentation"),
        ("target_colour", "target_colour"),
        ("mini-vla", "mini-vla"),
        ("state.0 + state.1", "state.0 + state.1"),
    ],
)
def test_names_keep_their_case_in_headings(title, shown):
    found = finding_view(finding(title, verdict="words, all of them, point there"))
    assert found.title == shown and found.verdict.startswith("Words, all")


def test_rows_lie_on_one_scale_and_the_others_are_folded():
    found = finding_view(finding("t", n_rows=MAX_ROWS + 3))
    assert (len(found.rows), len(found.more)) == (MAX_ROWS, 3)
    row = found.rows[0]
    assert row.ends_x is not None and row.value_x == pytest.approx(sum(row.ends_x) / 2, abs=0.1)
    assert 0 <= row.zero_x < row.ends_x[0] < row.ends_x[1] <= ROW_WIDTH
    assert row.controls_x == (row.zero_x,) and row.interval == "0.250 – 0.750" and row.found


def test_axes_begin_at_zero_unless_values_lie_below():
    def ticks(*values: float | None, control: tuple[float, ...] = ()) -> list[str]:
        series = LayerSeries(name="CKA", unit="CKA", sites=SITES, values=values, control=control)
        chart = layer_chart(series)
        assert all(0 <= x <= LAYER_WIDTH for x, _, _ in chart.dots)
        return [text for _, text in chart.y_ticks]

    assert ticks(None, 0.95, 0.98) == ["0", "0.5", "1"]
    assert ticks(None, 0.95, 0.98, control=(0.0, -0.00218, 0.001)) == ["0", "0.5", "1"]
    assert ticks(-0.5, 0.2, 0.5) == ["-0.5", "0", "0.5"]
    gap = layer_chart(LayerSeries(name="CKA", unit="CKA", sites=SITES, values=(0.9, None, 0.8)))
    assert len(gap.dots) == 2 and len(gap.curves) == 2, "no line over a layer without a value"
