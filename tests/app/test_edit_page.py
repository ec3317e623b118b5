"""The panel of edits in a real browser: choose, try, read, stop, and be told what cannot be done."""

from __future__ import annotations

import pytest
from app_runs import AXE

pytestmark = pytest.mark.browser


def choose(d, field, value):
    d.page.locator(f'[data-field="{field}"]').select_option(value)
    d.settle()


def finished(d):
    d.until(
        "document.querySelector('#edits > div:not(.result) .error') || "
        "(document.querySelector('#try').disabled === false && document.querySelector('#edits .result h3'))"
    )
    assert d.page.locator("#edits > div:not(.result) .error").all_inner_texts() == []
    d.settle()


def test_steer_to_what_was_clicked_and_see_before_and_after(drive, vla_book):
    d = drive([vla_book])
    d.press("ArrowRight", "d")
    assert d.value("panel") == "edit" and "Click a patch" in d.page.locator("#edits form").inner_text()
    assert not d.page.locator("#layers").is_visible()
    d.click(0.5, 0.5)
    assert "1 clicked at vision.5" in d.page.locator("#edits form").inner_text()
    d.page.locator('[data-field="strength"]').evaluate(
        "(e) => { e.value = 3; e.dispatchEvent(new Event('input')); }"
    )
    choose(d, "frames", "1|episode")
    d.page.locator("#try").click()
    finished(d)
    text = d.page.locator("#edits .result").inner_text()
    assert "1 clicked token × 3" in text and "random directions of the same length" in text
    cells = d.page.locator("#edits tbody tr").first.locator("td").all_inner_texts()
    assert cells[0] == "x (cm)" and len(cells) == 5 and cells[4].startswith("±")
    captions = d.page.locator("#stage figcaption").all_inner_texts()
    assert captions == ["input", "before", "after: 1 clicked token × 3"]
    d.press("Escape")  # no longer only what is like the click
    places = [((c + 0.5) / 7, (r + 0.5) / 7) for r in range(7) for c in range(7)]
    before = [d.pixel(*at, number=1) for at in places]
    after = [d.pixel(*at, number=2) for at in places]
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= 7
    d.press("ArrowRight")  # the edit was tried on another frame
    assert d.page.locator("#stage figcaption").all_inner_texts() == ["input", "concepts"]
    d.press("ArrowLeft")
    d.page.get_by_role("button", name="Clear", exact=True).last.click()
    d.settle()
    assert d.page.locator("#stage figcaption").all_inner_texts() == ["input", "concepts"]


def test_the_curve_of_dose_and_response_stands_beside_its_controls(drive, vla_book):
    d = drive([vla_book])
    d.page.goto("about:blank")
    link = "#item=1&panel=edit&edit.kind=group&edit.group=1&edit.strength=3&edit.frames=1&edit.curve=true"
    d.open(d.url + link)
    assert d.page.locator('[data-field="curve"]').is_checked() and d.value("edit.curve") == "true"
    d.page.locator("#try").click()
    finished(d)
    curve = d.page.locator("#edits svg.dose")
    assert "at strength 4.5 it moves" in curve.get_attribute("aria-label")
    assert "controls of the same length at most" in curve.get_attribute("aria-label")
    assert curve.locator("circle").count() == 6  # five strengths, and nothing at 0
    box, panel = curve.bounding_box(), d.page.locator("#edits").bounding_box()
    assert panel["x"] <= box["x"] and box["x"] + box["width"] <= panel["x"] + panel["width"]
    heights = [float(c.get_attribute("cy")) for c in curve.locator("circle").all()]
    assert max(heights) == heights[2] and min(heights) < max(heights) - 20  # 0 moves nothing, the others do
    assert curve.locator(".band").bounding_box()["height"] > 2


def test_knock_out_by_a_link_and_stop(drive, vla_book):
    d = drive([vla_book])
    link = d.url + "#item=2&panel=edit&edit.kind=attention&edit.source=patch&edit.reader=action&edit.frames=1"
    d.page.goto("about:blank")
    d.open(link)
    assert d.page.locator('[data-field="source"]').input_value() == "patch"
    d.page.locator("#try").click()
    finished(d)
    assert "patch → action cut at language.*" in d.page.locator("#edits .result").inner_text()
    assert d.value("edit.kind") == "attention" and "edit.where" not in d.address()
    # Stopped before it is done: the last result stays.
    choose(d, "kind", "group")
    choose(d, "frames", "48|run")
    d.page.locator("#try").click()
    d.page.locator("#stop").click()
    d.until("document.querySelector('#edits').textContent.includes('Stopped.')")
    assert "patch → action" in d.page.locator("#edits .result").inner_text()


def test_what_cannot_be_done_is_said_in_the_panel(drive, books, run):
    """The small fake model of these tests cannot be loaded by its name."""
    d = drive(books)
    d.press("d")
    choose(d, "kind", "words")
    assert d.page.locator('[data-field="from"]').is_visible()
    d.page.locator('[data-field="from"]').fill("pick")
    d.page.locator('[data-field="to"]').fill("<b>put</b>")
    d.page.locator('[data-field="to"]').press("Enter")  # typing moves no frame, Enter tries
    d.until("document.querySelector('#edits .error')")
    said = d.page.locator("#edits .error").inner_text()
    assert "'fake', cannot be loaded" in said and "/" not in said.split("by its name")[0]
    assert d.value("item") == "0" and d.page.locator("#edits b").count() == 0
    assert d.page.locator("#try").is_enabled()


def test_what_the_form_no_longer_says_is_marked_or_gone(drive, vla_book):
    d = drive([vla_book])
    d.page.goto("about:blank")
    d.open(d.url + "#item=2&panel=edit&edit.kind=attention&edit.frames=1")
    d.page.locator("#try").click()
    finished(d)
    older = d.page.locator("#edits .older")
    assert not older.is_visible()
    said = d.page.locator("#edits .result").inner_text()
    assert "Before and after: the action of frame 3 of 6 of episode 0." in said and "this frame" not in said
    d.press("ArrowRight")  # the form asks for the same, the result is still of the third frame
    assert not older.is_visible() and "frame 3 of 6" in d.page.locator("#edits .result").inner_text()
    choose(d, "source", "text")
    assert "earlier edit" in older.inner_text()
    choose(d, "source", "patch")
    assert not older.is_visible()
    choose(d, "kind", "words")
    assert older.is_visible()
    d.page.locator("#try").click()  # names no words
    d.until("document.querySelector('#edits > div:not(.result) .error')")
    d.page.locator('[data-field="from"]').fill("pick")
    d.until("!document.querySelector('#edits > div:not(.result) .error')")


def test_words_are_steered_at_a_layer_that_has_them(drive, vla_book):
    d = drive([vla_book])
    d.page.goto("about:blank")
    link = "#item=1&site=vision.5&panel=edit&edit.kind=words&edit.from=pick&edit.to=put&edit.frames=1&edit.where=text"
    d.open(d.url + link)
    assert "language.5 (the last with words; vision.5 has none)" in d.page.locator("#edits form").inner_text()
    d.page.locator("#try").click()
    finished(d)
    assert "pick to put" in d.page.locator("#edits .result").inner_text()
    d.page.get_by_role("slider", name="Layer").press("ArrowRight")
    d.settle()
    assert "language.2 (the shown layer)" in d.page.locator("#edits form").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_panel(drive, vla_book, scheme):
    if not AXE.is_file():
        pytest.skip("no axe-core here: `npm ci` in web/ gets it, .ci/run does so")
    d = drive([vla_book], scheme=scheme)
    d.press("d")
    choose(d, "kind", "attention")
    choose(d, "frames", "1|episode")
    d.page.locator("#try").click()
    finished(d)
    choose(d, "kind", "group")
    d.page.locator('[data-field="curve"]').check()
    d.page.locator("#try").click()
    d.until("document.querySelector('#edits svg.dose')")
    for kind in ("attention", "group", "words", "module"):
        choose(d, "kind", kind)
        assert d.axe() == [], kind
    assert d.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
