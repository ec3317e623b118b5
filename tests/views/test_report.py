from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vlascope.errors import InputError, SiteNotFoundError
from vlascope.views import report
from vlascope.views import report as report_function
from vlascope.views.tokens import TokenIndex


@pytest.fixture(scope="module")
def page(cut):
    return report(cut, n_items=4, n_videos=2)


class Reader(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_comes_from_outside(page):
    for tag, attributes in Reader(page.html).tags:
        for name in ("src", "href", "poster", "srcset", "data"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), (tag, name, value[:60])
    assert not re.search(r"url\((?!data:)", page.html)
    assert "@import" not in page.html
    assert "default-src 'none'" in page.html


def test_begins_with_what_was_run_then_the_failure(page):
    order = [page.html.index(text) for text in ("<h1>", 'id="failure"', 'id="concepts"', 'id="layers"', 'id="words"',
             'id="episodes"', 'id="measures"', 'id="warnings"', 'id="reproduce"')]  # fmt: skip
    assert order == sorted(order)
    text = " ".join(" ".join(Reader(page.html).text).split())
    assert "failure: wrong object" in text
    assert "The instruction names the red fragile object" in text
    assert "the blue rigid object in steps 5–7" in text
    assert "k-means on raw pixels" in text and "no interval: 2 independent episodes, need 5" in text
    assert "far from every landmark" in text  # the health note of the cut
    assert "vlascope cut" in text and "--seed 0" in text


def test_same_cut_gives_the_same_page(cut, page):
    assert report_function(cut, n_items=4, n_videos=2).html == page.html


def test_a_success_needs_no_story(tmp_path):
    from fakes import make_cut

    html = report(make_cut(tmp_path, n_episodes=1, n_steps=3, n_vision=1, n_language=1), n_videos=0).html
    assert 'id="failure"' not in html and 'id="concepts"' in html


def test_photographs_without_masks_or_words(tmp_path):
    from dataclasses import replace

    from fakes import make_cut

    made = make_cut(tmp_path, n_episodes=1, n_steps=3, n_vision=2, n_language=0)
    made.run.items = [
        replace(row, item_id=f"{i}.jpg", episode=None, step=None, time_secs=None, prompt=None, labels={},
                mask_names={}, action=None, state=None) for i, row in enumerate(made.run.items)
    ]  # fmt: skip
    made.run.masks, made.run.responses = None, []
    html = report(made).html
    assert "1.jpg" in html and 'id="measures"' not in html and "<video" not in html


def test_both_cameras_are_shown(tmp_path):
    from fakes import make_cut

    made = make_cut(tmp_path, n_steps=2, n_vision=2, n_language=0, cameras=("front", "wrist"))
    html = report(made, n_items=2, n_videos=0).html
    where = [a["data-where"] for tag, a in Reader(html).tags if "data-where" in a]
    first = [w for w in where if w.startswith("vision.1 · episode 0, step 1, ")]
    assert {w.split(", ")[-1] for w in first} == {"camera 1 of 2: front", "camera 2 of 2: wrist"}
    images = re.findall(r"^\.im(\d+)\{background-image:url\((.*?)\)", html, re.M)
    assert len({number for number, _ in images}) == len(images) and len({uri for _, uri in images}) >= 4


def test_nothing_says_nan(tmp_path):
    from fakes import make_cut

    made = make_cut(tmp_path, n_steps=3, n_vision=1, n_language=1)
    missing = np.array([0.01, np.nan, 0.02, np.nan], np.float32)
    made.run.responses = [dataclasses.replace(r, action=missing) for r in made.run.responses]
    made.run.items = [dataclasses.replace(row, action=None) for row in made.run.items]
    html = report(made, n_items=2, n_videos=0).html
    text = " ".join(Reader(html).text)
    assert "x +1.0 y – z +2.0 cm gripper unknown" in " ".join(text.split())
    assert not re.search(r"[+ ,]nan\b", text + " ".join(re.findall(r'points="[^"]*"', html)))


def test_text_is_shown_and_not_run(tmp_path):
    from fakes import make_cut

    made = make_cut(
        tmp_path, n_steps=2, n_vision=1, n_language=1, prompt="</script><script>alert(1)</script>"
    )
    made.run.config["model"]["name"] = "<img src=x onerror=alert(2)>"
    html = report(made).html
    assert "<script>alert" not in html and "<img src=x" not in html


def test_packed_tokens_give_the_cosine_similarity(cut, page):
    data = json.loads(re.search(r'<script id="tokens"[^>]*>(.*?)</script>', page.html, re.S).group(1))  # type: ignore[union-attr]
    vectors = np.frombuffer(base64.b64decode(data["vectors"]), np.int8).reshape(data["n"], data["n_eig"])
    grids = [a for tag, a in Reader(page.html).tags if tag == "div" and "data-o" in a]
    where = [a["data-where"] for tag, a in Reader(page.html).tags if "data-where" in a]
    number = where.index("language.1 · episode 0, step 0")
    assert len(grids) == len(where)
    rows, cols, offset = (int(grids[number][k]) for k in ("data-r", "data-c", "data-o"))
    (grid,) = TokenIndex(cut).patches("language.1", 0)
    assert (rows, cols) == (grid.rows, grid.cols)
    exact = cut.eigvecs[grid.index_rc.reshape(-1)]
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    packed = vectors[offset : offset + rows * cols].astype(float) / 127
    assert np.abs(packed @ packed.T - exact @ exact.T).max() < 0.03


def test_warns_of_images_without_structure_and_lost_items(tmp_path):
    from fakes import make_cut

    made = make_cut(tmp_path, n_steps=2, n_episodes=1, n_vision=1, n_language=0)
    made.labels[max(made.labels)][:] = 3
    made.run.info["n_failed"] = 2
    first, second = made.run.responses[:2]
    made.run.responses[:2] = [
        dataclasses.replace(first, flags=("too_many_tokens:6",)),
        dataclasses.replace(second, flags=("too_many_tokens:6", "of_its_own")),
    ]
    warnings = report(made, n_videos=0).warnings
    assert (
        "2 answers of the model are not as expected: of_its_own — in 1 answer (episode 0, step 1); 6 tokens, more than "
        "an action has numbers — in 2 answers (episode 0, step 0; episode 0, step 1)." in warnings
    )
    assert any("all patches are one concept" in w for w in warnings)
    assert any("2 items could not be read" in w for w in warnings)


def test_too_large_a_page_becomes_a_folder_that_needs_nothing_else(cut, page, monkeypatch, tmp_path):
    import sys

    monkeypatch.setattr(sys.modules["vlascope.views.report"], "MAX_BYTES", 50_000)
    made = report(cut, n_items=4, n_videos=2)
    assert "tokens.js" in made.files and any(name.endswith(".mp4") for name in made.files)
    path = made.save(tmp_path / "report.html")
    assert path == tmp_path / "report" / "index.html" and not (tmp_path / "report.html").exists()
    html = path.read_text()
    named = set(re.findall(r"media/[0-9a-f]+\.\w+", html))
    assert named == {name for name in made.files if name.startswith("media/")}
    assert all((path.parent / name).read_bytes() == made.files[name] for name in made.files)
    assert made.size_bytes < len(page.html)  # base64 takes a third more
    assert "folder" in made._repr_html_()
    stale = path.parent / "media" / "0123.jpg"
    stale.write_bytes(b"of an earlier page")
    made.save(tmp_path / "report.html")
    assert not stale.exists()


def test_bad_arguments(cut, page, tmp_path):
    with pytest.raises(SiteNotFoundError):
        report(cut, site="vision.99")
    with pytest.raises(InputError, match="K=3"):
        report(cut, k=3)
    with pytest.raises(InputError, match=r"\.html"):
        page.save(tmp_path / "report.pdf")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run with saved measures and cards of a dictionary, and its page."""
    from fakes import make_cut

    from vlascope.files import write_json
    from vlascope.measure import EpisodeSeries, Finding, Result, Row, cannot_say, keep
    from vlascope.measure.findings import layer_series

    made = make_cut(tmp_path_factory.mktemp("told"), n_steps=4, n_vision=2, n_language=1)
    made.run.info["content_sha256"] = "aa"
    found = Result(name="vision.1 / <b>colour</b>", value=0.75, unit="accuracy", n=8, over="episode", n_units=2,
                   interval=(0.5, 0.875), controls={"shuffled labels": 0.25}, p=0.01)  # fmt: skip
    none = cannot_say("vision.0 / pose", "constant features", unit="R²", n=8)
    series = EpisodeSeries(episode=1, site="vision.1", items=(4, 5, 6, 7), steps=(0, 1, 2, 3), change_points=(2,),
                           anomaly=(0.0, 0.2, 0.9, 0.4), threshold=0.5, alarm=2)  # fmt: skip
    keep(made.run, Finding(measure="probe", title="colour", verdict="colour is readable", rows=(Row(result=found),
         Row(result=none)), layers=(layer_series("readable", [("vision.0", None), ("vision.1", found)]),),
         episodes=(series,), settings={"seed": 0}))  # fmt: skip
    values = [[None, 0.0, 1.0] + [0.0] * 11] * 12
    example = {"item": 5, "item_id": "ep0001/000001", "value": 2.0, "position": 3, "kind": "patch", "row": 1, "col": 2,
               "camera": 0, "text": "", "maps": [{"camera": 0, "tile": 0, "values": values}]}  # fmt: skip
    card = {"latent": 7, "level": 8, "density": 0.125, "mean": 1.0, "p99": 2.5, "units": 1, "examples": [example],
            "episode": {"episode": 1, "items": [4, 5], "steps": [0, 1], "strongest": [0.5, 2.0]}, "parents": [],
            "children": [{"latent": 9, "share": 0.5, "lift": 3.0}]}  # fmt: skip
    write_json(made.run.path / "derived" / "sae-cards-1" / "cards.json", {"schema": 1, "model": "m", "site": "vision.1",
               "dictionary": "/secret/place/sae-1", "levels": [8, 16], "n_tokens": 64, "over": "episode", "n_units": 2,
               "cards": [card]})  # fmt: skip
    made.run.site = lambda name: type("Site", (), {"layout": "vision"})  # type: ignore[method-assign]
    return report(made, n_items=4, n_videos=1)


def test_measures_stand_with_their_intervals_and_controls(told):
    text = " ".join(" ".join(Reader(told.html).text).split())
    assert "0.750 accuracy" in text and "0.500 – 0.875" in text and "shuffled labels 0.250" in text
    assert "cannot say: constant features" in text and "8 (2 episodes)" in text
    assert "<b>colour</b>" in text and "<b>colour" not in told.html  # shown, not run
    scale = re.search(r'<svg class="scale".*?</svg>', told.html, re.S).group(0)  # type: ignore[union-attr]
    value = next(a for t, a in Reader(scale).tags if t == "circle" and a.get("class") == "value")
    assert float(value["cx"]) == pytest.approx(4 + 212 * 0.75)  # on a scale from 0 to 1


def test_the_time_line_has_concepts_changes_and_anomaly(told):
    chart = re.search(r'<svg class="chart".*?</svg>', told.html, re.S).group(0)  # type: ignore[union-attr]
    for word in ("concepts", "changes", "anomaly", "alarm", "K = 10"):
        assert word in chart
    assert "concepts change their course at vision.1 at steps 2" in chart
    assert chart.count('class="change"') == 1
    areas = re.findall(r'<polygon points="([^"]+)" fill="#', chart)
    at_first = [
        [float(y) for x, y in (pair.split(",") for pair in points.split()) if float(x) == 72.0]
        for points in areas
    ]
    assert sum(max(y) - min(y) for y in at_first) == pytest.approx(
        40, abs=0.3
    )  # the shares of a frame sum to one


def test_cards_of_the_dictionary(told):
    text = " ".join(" ".join(Reader(told.html).text).split())
    assert (
        "Latent 7" in text and "12 % of tokens" in text and "1 of 2 episodes" in text and "9 (50 %)" in text
    )
    assert "row 2, column 3" in text and "/secret/place" not in told.html
    heat = re.search(r'<div class="heat"[^>]*><img src="data:image/png;base64,([^"]+)"', told.html).group(1)  # type: ignore[union-attr]
    import io

    from PIL import Image

    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat))))[..., 3]
    assert (
        alpha.shape == (12, 14) and alpha[3, 2] == round(255 * 0.7 * 0.5) and alpha[3, 1] == round(255 * 0.7)
    )
