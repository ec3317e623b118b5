"""Results show themselves in a notebook, and what they hold is shown and not run."""

from __future__ import annotations

import importlib.util
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vlascope.card import MAX_ROWS, card


class Cells(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_text_is_escaped_and_long_tables_say_so():
    html = card("<script>", [("a<b", "<img>")], head=["<th>"], rows=[(i, "<x>") for i in range(MAX_ROWS + 3)])
    cells = Cells(html)
    assert set(cells.tags) <= {"div", "b", "table", "tr", "td", "th", "span"}
    assert cells.tags.count("tr") == 1 + 1 + MAX_ROWS and "3 more rows" in cells.text
    assert {"<script>", "a<b", "<img>", "<th>", "<x>"} <= set(cells.text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = Path(__file__).parent / "app" / "app_runs.py"
    spec = importlib.util.spec_from_file_location("card_runs", place)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    run = made.make_run(tmp_path_factory.mktemp("card") / "first", n_items=5)
    return run, made.cut_of(run)


def test_runs_and_cuts(run):
    from vlascope.api import Cut

    made, cut = run
    html = made._repr_html_()
    assert "vision.0" in html and "5" in Cells(html).text and str(made.path.parent) not in html
    html = cut._repr_html_()
    assert "3, 5" in html and "vision.1" in html
    assert "data:image/png;base64," in Cut(cut)._repr_html_() and "3, 5" in Cut(cut)._repr_html_()


def test_measures_and_cards(tmp_path):
    from vlascope.measure import Finding, Result, Row
    from vlascope.sae import Cards

    result = Result(
        name="vision.1 / colour", value=0.75, unit="accuracy", n=8, controls={"shuffled labels": 0.25}
    )
    assert "0.750 accuracy" in result._repr_html_() and "shuffled labels 0.250" in result._repr_html_()
    html = Finding(measure="probe", title="t", verdict="readable", rows=(Row(result=result),))._repr_html_()
    assert "readable" in html and "0.750 accuracy" in html
    one = {"latent": 7, "level": 8, "density": 0.125, "mean": 1.0, "p99": 2.5, "units": 1, "examples": [],
           "parents": [], "children": [{"latent": 9, "share": 0.5}]}  # fmt: skip
    facts = {"site": "vision.1", "levels": [8], "n_tokens": 64, "over": "item", "n_units": 2, "cards": [one]}
    assert (
        "12.5 %" in Cards(tmp_path, facts)._repr_html_()
        and "9" in Cells(Cards(tmp_path, facts)._repr_html_()).text
    )
