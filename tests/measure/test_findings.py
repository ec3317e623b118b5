"""What was measured is kept in the run and read back as it was; damage and other captures are told apart."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vlascope.errors import RunIncompleteError, RunVersionError
from vlascope.measure import EpisodeSeries, Finding, Result, Row, cannot_say, keep, saved
from vlascope.measure.findings import layer_series


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(path=tmp_path, info={"content_sha256": "aa"})


def finding(**changes) -> Finding:
    one = Result(
        name="vision.1 / colour", value=0.75, unit="R²", n=31, over="episode", n_units=7, interval=(0.5, 0.9),
        controls={"shuffled labels": 0.1, "raw pixels": 0.25}, p=0.01, details={"folds": 5},
    )  # fmt: skip
    none = cannot_say("vision.3 / colour", "constant features", unit="R²", n=31)
    facts = {
        "measure": "probe",
        "title": "colour",
        "verdict": "colour is readable at vision.1",
        "rows": (Row(site="vision.1", result=one), Row(site="vision.3", result=none)),
        "layers": (layer_series("probe", [("vision.1", one), ("vision.3", none), ("vision.5", None)]),),
        "episodes": (
            EpisodeSeries(
                episode=3, site="vision.1", items=(5, 6, 7), steps=(0, 2, 4), change_points=(2,), events={"grasp": 4},
                occupancy=((0.25, 0.75), (0.5, 0.5), (1.0, 0.0)), anomaly=(0.1, 0.2, 0.7), threshold=0.5, alarm=4,
            ),
            EpisodeSeries(episode=4, site="vision.1", items=(8,), steps=(0,)),
        ),
        "settings": {"seed": 0, "targets": ["colour"]},
    }  # fmt: skip
    return Finding(**{**facts, **changes})


def test_what_is_kept_is_read_back(run):
    assert saved(run) == []
    path = keep(run, finding())
    assert path.parent == run.path / "derived" / "measures"
    (back,) = saved(run)
    assert back == Finding(**{**vars(finding()), "name": path.stem})
    assert back.rows[0].result.found and back.rows[1].result.reason == "constant features"
    assert back.layers[0].values == (0.75, None, None) and back.layers[0].control == (0.1, None, None)
    assert back.layers[0].low == (0.5, None, None)


def test_the_same_question_replaces_its_answer_and_another_stands_beside_it(run):
    first = keep(run, finding())
    assert keep(run, finding(verdict="colour is not readable")) == first
    keep(run, finding(measure="debug"))
    keep(run, finding(settings={"seed": 1}))
    assert [one.measure for one in saved(run)] == ["debug", "probe", "probe"]
    assert "colour is not readable" in {one.verdict for one in saved(run)}


def test_findings_of_another_capture_are_left_out(run):
    keep(run, finding())
    run.info["content_sha256"] = "bb"
    assert saved(run) == []


def test_damaged_and_newer_files_are_errors_in_words(run):
    path = keep(run, finding())
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "schema": 99}))
    with pytest.raises(RunVersionError, match="newer vlascope"):
        saved(run)
    del facts["rows"][0]["value"]
    for text in (json.dumps(facts), "{", '{"schema": 1}'):
        path.write_text(text)
        with pytest.raises(RunIncompleteError, match="delete that file"):
            saved(run)
