"""Two runs in one cut: one palette, one set of labels, items matched by id."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from app_runs import cut_of, make_run

from vlascope.app import open_books
from vlascope.app.wire import unpack
from vlascope.errors import InputError
from vlascope.runs import Run


def test_the_same_capture_twice_has_the_same_colours_and_labels(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("compare-*"))
    first, second = open_books([run, Run.open(tmp_path / "copy")])
    for site in first.cut.sites:
        a, b = first.cut.parts[site].rows, second.cut.parts[site].rows
        assert a != b
        patches = (
            np.asarray(run.tokens(first.cut.parts[site].layout).kind)[first.cut.parts[site].token_rows] == 0
        )
        same = (first.cut.labels[5][a] == second.cut.labels[5][b])[patches]
        if len(same):
            assert same.mean() > 0.99
            gap = np.abs(first.cut.rgb[a].astype(int) - second.cut.rgb[b].astype(int))[patches]
            assert gap.mean() < 2


def test_arrays_are_shared_and_rows_are_not(pair):
    first, second = pair
    assert first.cut.eigvecs is second.cut.eigvecs and first.key != second.key
    spans = sorted((p.rows.start, p.rows.stop) for b in pair for p in b.cut.parts.values())
    assert spans[0][0] == 0 and spans[-1][1] == len(first.cut.rgb)
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_a_click_in_one_run_is_answered_in_both(pair_client, pair):
    first, second = pair
    state = pair_client.get("/api/state").json()
    assert state["compared"] and state["shared_items"] == list(range(8))
    for method in ("concepts", "features"):
        url = f"/api/similar?run={first.key}&site=vision.1&token=17&method={method}&n_eig=6&sites=vision.1"
        header, arrays = unpack(pair_client.get(url).content)
        assert [p["run"] for p in header["parts"]] == [first.key, second.key]
        assert [len(a) for a in arrays] == [len(b.cut.parts["vision.1"].token_rows) for b in pair]
    # By features, the second run is asked for its own token at the same place.
    assert np.frombuffer(arrays[1], np.uint8)[17] == 255


def test_runs_without_a_common_item_are_refused(run, tmp_path):
    other = make_run(tmp_path / "other", n_items=3, version="c")
    cut_of(other)
    for row in range(3):
        object.__setattr__(other.items[row], "item_id", f"elsewhere {row}")
    with pytest.raises(InputError, match="share no item"):
        open_books([run, other])


def test_one_or_two_runs(run):
    with pytest.raises(InputError, match="3 runs"):
        open_books([run, run, run])
