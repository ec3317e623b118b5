from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vlascope.views.chart import _fitting, _nice_step, _spread, episode_chart
from vlascope.views.robot import action_text, episode_track, signed
from vlascope.views.story import (
    episode_concepts,
    held_spans,
    named_region,
    object_regions,
    patches_inside,
    region_title,
)
from vlascope.views.tokens import TokenIndex

REGIONS = ("red fragile object", "blue rigid object", "blue fragile object")


@pytest.mark.parametrize(
    ("prompt", "labels", "expected"),
    [
        ("pick up the red object", {}, ("red fragile object", "instruction")),
        ("pick up the rigid object", {}, ("blue rigid object", "instruction")),
        ("pick up the blue object", {}, (None, "")),  # two fit equally well: none is named
        ("pick it up", {"target": "blue rigid object"}, ("blue rigid object", "label")),
        ("pick it up", {"target": 1, "target_colour": "blue", "target_material": "fragile"},
         ("blue fragile object", "label")),
        (None, {}, (None, "")),
    ],
)  # fmt: skip
def test_which_object_is_named(prompt, labels, expected):
    assert named_region(prompt, labels, REGIONS) == expected


def test_titles_do_not_repeat_object():
    assert region_title("red fragile") == region_title("red fragile object") == "red fragile object"


def test_patches_inside_a_region():
    region = np.zeros((30, 50), bool)
    region[10:20, 10:26] = True  # covers patch (1, 1) wholly, (1, 2) by 6 of 10 columns
    inside = patches_inside(region, frame=(0, 0, 50, 30), shape=(3, 5))
    expected = np.zeros((3, 5), bool)
    expected[1, 1:3] = True
    np.testing.assert_array_equal(inside, expected)
    region[10:20, 24:26] = False  # now 4 of 10
    expected[1, 2] = False
    np.testing.assert_array_equal(patches_inside(region, frame=(0, 0, 50, 30), shape=(3, 5)), expected)


def test_concept_shares_are_counts_of_patches(cut):
    """Labels set by hand: the red object is half concept 1 and half concept 2, the blue one wholly concept 2."""
    from fakes import FakeCut

    labels = np.zeros(len(cut.rgb), np.int16)
    made = FakeCut(**{**cut.__dict__, "labels": {5: labels}})
    index = TokenIndex(made)
    items = [8, 9]
    totals = {4: 0, 5: 0}
    for item in items:
        (grid,) = index.patches("vision.1", item)
        for value in totals:
            rows = grid.index_rc[
                patches_inside(cut.run.mask(item) == value, frame=grid.frame, shape=(12, 14))
            ]
            totals[value] += len(rows)
            labels[rows] = 2
            if value == 4:
                labels[rows[: len(rows) // 2]] = 1
    result = episode_concepts(
        index, items, named="red fragile", others=("blue rigid",), k=5, sites=("vision.1",)
    )
    red, blue = (result.layers[0].regions[n] for n in ("red fragile", "blue rigid"))
    assert red.n_patches == totals[4] and blue.n_patches == totals[5]
    assert blue.shares == ((2, 1.0),)
    share_of_2 = dict(red.shares)[2]
    assert blue.shared_with_named == pytest.approx(share_of_2) and red.shared_with_named is None
    assert 0.4 < share_of_2 < 0.6
    assert sum(s for _, s in red.shares) == pytest.approx(1)


def test_objects_and_what_was_held(cut):
    items = list(range(8))
    regions = object_regions(cut.run, items)
    assert regions == ("red fragile", "blue rigid")  # the gripper is no object
    assert held_spans(cut.run, items, regions) == [("blue rigid", 5, 7)]


def test_track_in_physical_units(cut):
    track = episode_track(cut.run, episode=0, items=range(8))
    assert track.action_names == ("dx", "dy", "dz", "grip") and track.source == "recorded"
    assert action_text(track, 3) == "x +3.0  y −2.0  z −2.5 cm  gripper open"
    assert action_text(track, 6).endswith("gripper closed")
    assert track.events == (("grasp", 4),) and track.fps == pytest.approx(10)
    assert signed(-0.01) == " 0.0" and signed(-1.26) == "−1.3"


def test_chart_follows_the_numbers(cut):
    chart = episode_chart(episode_track(cut.run, episode=0, items=range(8)))
    assert chart is not None
    assert [line.name for line in chart.lines] == ["x", "y", "z"]
    xs, ys = np.array([p.split(",") for p in chart.lines[0].points[0].split()], float).T
    assert (np.diff(xs) > 0).all() and (
        np.diff(ys) < 0
    ).all()  # x rises by 1 cm a step: upwards in the picture
    (mark,) = chart.events
    assert mark.name == "grasp" and mark.at == pytest.approx((xs[4],), abs=0.1)
    ((start, width),) = chart.closed
    assert xs[4] < start < xs[5] and start + width == pytest.approx(chart.right, abs=0.2)
    gaps = np.diff(sorted(line.label_y for line in chart.lines if line.label))
    assert (gaps >= 14).all()  # labels at the ends never overlap


def test_names_of_events_never_touch(cut):
    track = episode_track(cut.run, episode=0, items=range(8))
    for steps in ([0, 1, 2, 7], [0, 0, 0, 0], [1, 4, 6, 7], [5, 6, 7, 7]):
        names = ["open the drawer", "grasp", "lift", "put it down gently"]
        chart = episode_chart(replace(track, events=tuple(zip(names, steps, strict=True))))
        assert chart is not None
        assert " · ".join(mark.name for mark in chart.events) == " · ".join(names)
        ends = [(mark.left, mark.left + 6.6 * len(mark.name)) for mark in chart.events]
        assert all(b[0] >= a[1] + 12 for a, b in zip(ends, ends[1:], strict=False))
        assert ends[0][0] >= 0 and ends[-1][1] <= chart.width
        assert sum(len(mark.at) for mark in chart.events) == 4


def test_chart_helpers():
    assert _nice_step(24) == 5 and _nice_step(0.5) == pytest.approx(0.1) and _nice_step(0) == 1
    assert _spread([50, 50, 10], low=0, high=100) == [50, 64, 10]
    assert _spread([98, 90, 100], low=0, high=100) == [86, 72, 100]
    assert _fitting(["x", "y", "z"], most=22) == ["x", ", y", ", z"]
    assert _fitting([f"action {i}" for i in range(9)], most=22) == ["action 0", ", 1", ", 2", ", 3 +5"]
    assert _fitting(["left_shoulder_pan.position", "b"], most=13) == ["left…ition +1"]
    crowded = _spread([5.0] * 11, low=0, high=100)
    assert crowded == pytest.approx(np.linspace(0, 100, 11))


def test_labels_of_curves_stay_in_the_plot_and_are_told_apart(cut):
    """All curves end at the bottom, two of them coincide; names of a dataset may be long."""
    track = episode_track(cut.run, episode=0, items=range(8))
    action = np.zeros((8, 7), np.float32)
    action[:, 2:] = -np.arange(1, 6) * 1e-3
    action[0] = 1.0
    names = ("a", "b", "left_shoulder_pan.position", "d", "e", "f", "g")
    chart = episode_chart(replace(track, action=action, action_names=names))
    assert chart is not None and chart.zero_y is not None
    labels = [line for line in chart.lines if line.label]
    assert ["".join(name for name, _ in line.label) for line in labels][0] == "a, b"
    ys = sorted(line.label_y for line in labels)
    assert ys[0] >= 48 and ys[-1] <= 198 and (np.diff(ys) >= 14).all()
    assert chart.right < chart.width - 72  # room for the long name


def test_numbers_that_are_not_known_are_dashes_and_gaps(cut):
    track = episode_track(cut.run, episode=0, items=range(8))
    assert track.action is not None
    action = track.action.copy()
    action[3, 1], action[4] = np.nan, np.nan
    holed = replace(track, action=action)
    assert action_text(holed, 3) == "x +3.0  y –  z −2.5 cm  gripper open"
    assert action_text(holed, 4) == "x –  y –  z –  gripper unknown"
    assert signed(float("nan")) == signed(float("inf")) == "–"
    chart = episode_chart(holed)
    assert chart is not None and "nan" not in "".join(p for line in chart.lines for p in line.points)
    assert [len(line.points) for line in chart.lines] == [2, 2, 2]
    nothing = episode_chart(replace(track, action=np.full_like(action, np.nan)))
    assert nothing is not None and all(line.points == () for line in nothing.lines)


@pytest.mark.parametrize(
    ("times", "steps", "expected"),
    [
        (np.arange(10) / 10, range(10), ["0.0 s", "0.2 s", "0.4 s", "0.6 s", "0.8 s"]),
        ([np.nan] * 10, range(10), ["step 0", "step 2", "step 4", "step 6", "step 8"]),
        ([np.nan] * 3, range(40, 55, 5), ["step 40", "step 42", "step 44", "step 46", "step 48", "step 50"]),
        (np.arange(10) * 3.0, range(10), ["0 s", "5 s", "10 s", "15 s", "20 s", "25 s"]),
        ([0.3], [3], ["0.3 s"]),
    ],
)
def test_ticks_are_round_and_evenly_spaced(cut, times, steps, expected):
    n = len(steps)
    track = episode_track(cut.run, episode=0, items=range(8))
    assert track.action is not None
    chart = episode_chart(
        replace(
            track,
            items=tuple(range(n)),
            times=tuple(times),
            steps=tuple(steps),
            action=np.zeros((n, 4), np.float32),
        )
    )
    assert chart is not None and [tick.text for tick in chart.x_ticks] == expected
    gaps = np.diff([tick.at for tick in chart.x_ticks])
    assert np.ptp(gaps) <= 0.2 if len(gaps) else chart.x_ticks[0].at == pytest.approx(480)
