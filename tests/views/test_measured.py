"""Saved measures land on the right frames, and shares of concepts are those of the labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from vlascope.measure import EpisodeSeries, Finding
from vlascope.views.measured import concept_shares, episode_measures
from vlascope.views.tokens import TokenIndex


def finding(*episodes):
    return Finding(measure="temporal", title="t", verdict="v", rows=(), episodes=episodes)


def series(**changes):
    facts = {"episode": 3, "site": "vision.1", "items": (5, 7, 9), "steps": (0, 4, 8)}
    return EpisodeSeries(**{**facts, **changes})


def test_steps_become_frames_of_the_items_that_are_shown():
    told = series(change_points=(4, 8), anomaly=(0.1, 0.5, 0.9), threshold=0.6, alarm=8)
    found = episode_measures([finding(told)], episode=3, items=[7, 8, 9])
    assert found.changes == (0, 2) and found.alarm == 2 and found.threshold == 0.6
    np.testing.assert_allclose(found.anomaly, [0.5, np.nan, 0.9], rtol=1e-6)
    assert not episode_measures([finding(told)], episode=4, items=[7, 8, 9])
    assert not episode_measures([], episode=3, items=[7])


def test_the_shown_layer_comes_first_and_nothing_found_is_not_nothing_known():
    here, there = series(change_points=()), series(site="language.2", change_points=(4,))
    for order in ([here, there], [there, here]):
        found = episode_measures([finding(*order)], episode=3, items=[5, 7, 9], site="vision.1")
        assert found.changes == () and found.changes_site == "vision.1" and found
    found = episode_measures([finding(here), finding(there)], episode=3, items=[5, 7, 9], site="projector")
    assert found.changes == (1,)


def test_findings_are_read_where_the_measures_keep_them(tmp_path, monkeypatch):
    from vlascope import measure
    from vlascope.measure import findings
    from vlascope.views import measured

    assert measured.FINDINGS == findings.FOLDER
    monkeypatch.setattr(measure, "saved", lambda run: [run])
    run: Any = SimpleNamespace(path=tmp_path)
    assert measured.saved_findings(run) == []
    (tmp_path / "derived" / measured.FINDINGS).mkdir(parents=True)
    assert measured.saved_findings(run) == [run]


def test_shares_are_those_of_the_labels(cropped):
    items, site, k = [0, 2], "vision.1", 5
    shares = concept_shares(TokenIndex(cropped), items, site=site, k=k)
    part = cropped.parts[site]
    item_of = np.asarray(cropped.run.tokens(part.layout).item)[part.token_rows]
    for frame, item in enumerate(items):
        labels = cropped.labels[k][part.rows][item_of == item]
        np.testing.assert_allclose(shares[frame], np.bincount(labels, minlength=k) / len(labels), rtol=1e-6)
