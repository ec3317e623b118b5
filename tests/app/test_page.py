"""What a person does with the page, in a real browser: open, scrub, click, change layer and K, label, copy the link."""

from __future__ import annotations

import re

import pytest
from app_runs import AXE, cut_of, make_run

pytestmark = pytest.mark.browser


def test_open_scrub_click_and_change(drive, books):
    (book,) = books
    d = drive(books)
    assert d.value("item") == "0" and d.value("site") == "vision.1"
    assert "NCut" in d.status()
    d.press("o", "s")  # colours off and on again below; smooth
    assert d.value("mix") == "0" and d.value("smooth") == "1"
    d.press("o", "s", "ArrowRight", "ArrowRight")
    assert d.value("item") == "2" and "frame 3 of 7" in d.page.locator("#time output").inner_text()
    d.press("ArrowUp")
    assert d.value("site") == "vision.0"
    d.press("k")
    assert d.value("color") == "groups"
    ks = [d.value("k")]
    d.press("k")
    ks.append(d.value("k"))
    assert sorted(ks) == ["3", "5"]
    assert d.page.locator("#legend .swatch").count() == int(ks[-1])
    d.press("p", "]")
    assert d.value("color") == "palette" and d.value("item") == "7"


def test_the_picture_has_the_colours_of_the_cut_where_the_patches_lie(drive, books):
    (book,) = books
    d = drive(books)
    d.page.locator('input[aria-label^="Opacity"]').evaluate(
        "(e) => { e.value = 100; e.dispatchEvent(new Event('input')); }"
    )
    d.settle()
    from vlascope.views.tokens import TokenIndex

    (grid,) = (g for g in TokenIndex(book.cut).patches("vision.1", 0) if g.camera == 0)
    height, width = book.run.items[0].image_sizes[0]
    x0, y0, x1, y1 = grid.frame
    for row, col in [(0, 0), (0, 4), (2, 0), (1, 3)]:  # 3 rows, 5 columns
        x = (x0 + (col + 0.5) / grid.cols * (x1 - x0)) / width
        y = (y0 + (row + 0.5) / grid.rows * (y1 - y0)) / height
        expected = book.cut.rgb[grid.index_rc[row, col]].tolist()
        assert max(abs(a - b) for a, b in zip(d.pixel(x, y), expected, strict=True)) <= 2, (row, col)


def test_a_click_darkens_what_is_unlike_and_escape_clears(drive, books):
    d = drive(books)
    before = [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]
    d.click(0.5, 0.5)
    d.until("document.querySelector('#status').textContent.startsWith('Bright is similar')")
    after = [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]
    sums = [(sum(a), sum(b)) for a, b in zip(before, after, strict=True)]
    assert abs(sums[7][0] - sums[7][1]) <= 6  # the clicked patch, in the middle, keeps its colour
    assert sum(b < 0.5 * a for a, b in sums) >= 3
    assert d.value("q").split("%3A")[0] == "0" and d.page.evaluate("window.vlascope.clickMs") > 0
    assert "similarity 1.00" in d.page.locator("#inspect").inner_text()
    d.press("m")
    d.until("document.querySelector('#status').textContent.includes('cosine of activations')")
    d.press("Escape")
    assert d.value("q") == "" and "NCut" in d.status()
    assert before == [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]


def test_positive_and_negative_clicks_make_a_mask(drive, books):
    d = drive(books)
    d.click(0.1, 0.2)
    d.click(0.9, 0.8, modifiers=["Alt"])
    d.until("document.querySelector('#status').textContent.startsWith('Mask:')")
    assert d.page.locator("#stage .mark.in").count() >= 1 and d.page.locator("#stage .mark.out").count() >= 1
    d.click(0.5, 0.2, modifiers=["Shift"])
    assert len(re.findall(r"[#&]in=", d.address())) == 2 and len(re.findall(r"[#&]out=", d.address())) == 1


def test_a_word_can_be_clicked(drive, books):
    d = drive(books)
    assert d.page.locator(".word").all_inner_texts()[:2] == ["pick", "up"]
    d.page.locator(".word").first.click()
    d.until("document.querySelector('#status').textContent.startsWith('Bright is similar')")
    assert "language.0" in d.value("q")
    assert d.page.locator('.word[aria-pressed="true"]').all_inner_texts() == ["pick"]


def test_the_link_opens_the_same_view(drive, books):
    d = drive(books)
    d.press("ArrowRight", "ArrowUp", "k", "t")
    d.click(0.3, 0.3)
    link, picture = d.address(), d.pane().screenshot()
    d.page.mouse.move(5, 5)
    picture = d.pane().screenshot()
    d.page.goto("about:blank")
    d.open(link)
    d.until("window.vlascope.allMs > 0")
    d.settle()
    assert d.address() == link and d.pane().screenshot() == picture
    d.page.goto("about:blank")
    d.open(d.url + "#item=99999&site=nowhere&k=-1&q=0:999999:vision.0&in=x&palette=%3Cscript%3E&mix=1e9")
    assert d.value("item") == "0" and d.value("site") == "vision.1" and d.value("q") == ""


def test_with_the_keyboard_alone(drive, books):
    d = drive(books)
    for _ in range(60):  # Tab reaches the image
        d.page.keyboard.press("Tab")
        if d.page.evaluate("document.activeElement.closest('#stage') !== null"):
            break
    else:
        raise AssertionError("Tab does not reach the image")
    d.press("ArrowRight", "ArrowDown")
    assert "row 2, column 2" in d.page.locator("#inspect").inner_text()
    assert d.value("item") == "0"  # in the image, arrows move over patches
    d.press("Enter")
    d.until("document.querySelector('#status').textContent.startsWith('Bright is similar')")
    d.press("ArrowRight", "x")
    d.until("document.querySelector('#status').textContent.startsWith('Mask:')")
    d.press("Escape", "?")
    assert d.page.locator("#help").is_visible()
    d.press("Escape")
    assert not d.page.locator("#help").is_visible()


def test_labels_by_key_are_saved(drive, books, tmp_path):
    d = drive(books)
    d.page.locator(".review input").fill("slipped, <b>twice</b>")
    d.page.locator(".review input").press("Tab")
    d.press("2")
    d.until("document.querySelector('.chip') !== null")
    assert d.page.locator(".chip").first.inner_text() == "failure"
    assert "failure" in (tmp_path / "labels.csv").read_text()
    assert d.page.locator(".list b").count() == 0


def test_a_reason_stays_with_the_episode_it_was_typed_for(drive, run, tmp_path):
    from vlascope.app import open_books

    books = open_books([run.path])
    for row in books[0].run.items:  # in the made-up items all episodes have one name
        object.__setattr__(row, "item_id", f"ep{row.episode:04d}/{row.step:06d}")
    d = drive(books)
    why, pressed = d.page.locator(".review input"), d.page.locator('.verdict[aria-pressed="true"]')
    why.fill("slipped")
    d.page.locator(".unit").nth(1).click()
    d.settle()
    assert why.input_value() == ""
    d.press("1")
    d.until("document.querySelector('.chip') !== null")
    assert "slipped" not in (tmp_path / "labels.csv").read_text()
    assert pressed.all_inner_texts() == ["Success\n1"]
    d.page.locator(".unit").first.click()
    d.settle()
    assert why.input_value() == "slipped" and pressed.count() == 0
    d.press("2")
    d.until("document.querySelectorAll('.chip').length === 2")
    assert "slipped" in (tmp_path / "labels.csv").read_text().splitlines()[-1]
    d.page.locator(".unit").nth(1).click()
    d.settle()
    assert why.input_value() == ""
    d.page.locator(".unit").first.click()  # what is saved is shown again
    d.settle()
    assert why.input_value() == "slipped" and pressed.all_inner_texts() == ["Failure\n2"]


def test_labels_of_images_are_listed_and_found(drive, run):
    from vlascope.app import open_books

    books = open_books([run.path])
    for row in books[0].run.items:
        object.__setattr__(row, "episode", None)
        object.__setattr__(row, "item_id", f"{row.index}.jpg")
    d = drive(books)
    assert d.page.locator(".unit .label").all_inner_texts()[:3] == ["colour: red", "n: 0", "speed: 0.5"]
    d.page.get_by_role("searchbox", name="Find").fill("n: 7")
    assert d.page.locator(".unit .title").all_inner_texts() == ["7.jpg"]


def test_small_actions_have_a_scale_and_the_time_an_axis(drive, run):
    import numpy as np

    from vlascope.app import open_books

    books = open_books([run.path])
    for row in books[0].run.items:
        moves = np.array([0.02 * (-1) ** row.index, 0.004, -0.006, 0.001], np.float32)
        object.__setattr__(row, "action", moves)
    d = drive(books)
    d.page.add_init_script(RECORD_TEXTS)
    d.page.goto("about:blank")
    d.open(d.url)
    texts = d.page.evaluate("[...new Set(window.texts)]")
    assert {"−0.01", "0.00", "0.01"} <= set(texts), texts
    assert {"seconds", "0.0", "0.1", "0.6"} <= set(texts) and "0.00" in texts
    values = d.page.locator("#time .legend b").all_inner_texts()
    assert values[:3] == ["+0.020", "+0.0040", "−0.0060"]


def test_the_layers_follow_the_camera_that_is_pointed_at(drive, tmp_path):
    from vlascope.app import open_books

    seen = make_run(tmp_path / "both", n_items=3, sees_wrist=True)
    cut_of(seen)
    d = drive(open_books([seen]))
    note = d.page.locator("#layers .head .note")
    assert note.inner_text() == "camera main"
    before = d.page.locator("#layers canvas").first.evaluate("e => e.style.aspectRatio")
    d.click(0.5, 0.5, number=3)  # the tokens of the wrist's image
    assert note.inner_text() == "camera wrist" and d.value("camera") == "1"
    assert d.page.locator("#layers canvas").first.evaluate("e => e.style.aspectRatio") != before
    assert d.page.locator("#layers .cursor:not([hidden])").count() >= 2
    d.pane(1).hover()
    d.settle()
    assert note.inner_text() == "camera main" and d.value("camera") == ""
    names = [c.get_attribute("aria-label") for c in d.page.locator("#stage canvas").all()]
    assert len(set(names)) == len(names) == 4
    assert "concepts, camera wrist, layer vision.1" in names


def test_what_is_under_a_resting_pointer_follows_the_view(drive, books):
    d = drive(books)
    said = d.page.locator("#inspect")
    assert said.get_attribute("aria-live") == "polite"
    d.pane(1).hover()
    d.settle()
    assert said.inner_text().startswith("vision.1 · row 2, column 3")
    d.press("ArrowUp")
    assert said.inner_text().startswith("vision.0 · row 2, column 3")
    d.page.locator(".word").nth(1).focus()
    assert "language.0 · “up”" in said.inner_text()
    d.press("]")  # other words
    assert "“up”" not in said.inner_text()


def test_hover_and_click_name_the_same_patch(drive, books):
    d = drive(books)
    box = d.pane(1).bounding_box()
    x0, edge = box["x"], box["x"] + box["width"] / 5  # between the first and the second column
    for offset in (-0.6, -0.3, -0.1, 0.1, 0.3, 0.6):
        x, y = edge + offset, box["y"] + box["height"] / 2
        d.page.mouse.move(x0 + 2, y)
        d.page.mouse.move(x, y)
        hovered = d.page.locator("#inspect").inner_text().split(" · ")[1]
        d.page.mouse.click(x, y)
        d.until("document.querySelector('#status').textContent.startsWith('Bright is similar')")
        token = int(d.value("q").split("%3A")[1])
        assert hovered.endswith(f"column {token % 5 + 1}"), (offset, token, hovered)
        d.press("Escape")


def test_a_group_is_pinned_by_its_swatch(drive, books):
    d = drive(books)
    d.press("k")
    swatch = d.page.locator("#legend .swatch").first
    swatch.click()
    d.page.mouse.move(5, 5)
    d.settle()
    assert swatch.get_attribute("aria-pressed") == "true" and d.value("pin") == "0"
    assert "on" in swatch.get_attribute("class")
    pinned = [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]
    d.press("Escape")
    assert swatch.get_attribute("aria-pressed") == "false" and d.value("pin") == ""
    assert pinned != [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]


def test_the_line_at_the_bottom_says_what_is_shown(drive, books):
    d = drive(books)
    assert "vision.1 · NCut" in d.status() and "colours pca" in d.status()
    d.press("k")
    assert f"colours {d.value('k')} groups" in d.status()
    d.press("ArrowUp", "p")
    assert "vision.0 · NCut" in d.status() and "colours pca" in d.status()
    assert "in the colours of the cut" in d.page.locator("#time .legend .own").inner_text()
    d.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    d.press("l")
    d.until("document.querySelector('#status').textContent.startsWith('Link copied')")
    d.until("document.querySelector('#status').textContent.includes('NCut')", secs=4)


RECORD_TEXTS = """window.texts = [];
const draw = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
  window.texts.push(text);
  return draw.call(this, text, ...at);
};"""


def test_groups_light_up_everywhere_under_the_pointer(drive, books):
    d = drive(books)
    d.press("k")
    before = [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]
    d.page.locator("#legend .swatch").first.hover()
    d.settle()
    after = [d.pixel((c + 0.5) / 5, (r + 0.5) / 3) for r in range(3) for c in range(5)]
    changed = {i for i in range(15) if before[i] != after[i]}
    place = books[0].cut.labels[int(d.value("k"))][books[0].cut.parts["vision.1"].rows][:16]
    kinds = [int(v) for v in place if v >= 0][:15]
    assert changed == {i for i, group in enumerate(kinds) if group != 0}


def test_two_runs_side_by_side(drive, pair):
    d = drive(pair, width=1440, height=900)
    assert d.page.locator("#layers .column").count() == 2
    d.click(0.5, 0.5)
    d.until("document.querySelector('#status').textContent.startsWith('Bright is similar')")
    d.page.locator("#layers .column").nth(1).locator("button").first.click()
    d.settle()
    assert d.value("site2") == "vision.0" and d.value("site") == "vision.1"
    captions = d.page.locator("#stage figcaption").all_inner_texts()
    assert "first: concepts · vision.1" in captions and "second: concepts · vision.0 ≠ vision.1" in captions
    assert d.page.locator("#stage figcaption.odd").count() == 2  # one for each camera
    d.press("]", "ArrowRight")  # item 8 is in the first run alone
    assert d.value("item") == "8" and d.page.locator(".pane.absent").count() == 2


def test_text_of_a_prompt_is_shown_and_not_run(drive, run):
    from vlascope.app import RunBook
    from vlascope.runs import Run

    book = RunBook(cut_of(Run.open(run.path)))
    text = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    object.__setattr__(book.run.items[0], "prompt", text)
    d = drive([book])
    assert text in d.page.locator("#answer").inner_text()
    assert d.page.locator("#answer img, #answer script, .list script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(drive, books, scheme):
    if not AXE.is_file():
        pytest.skip("no axe-core here: `npm ci` in web/ gets it, .ci/run does so")
    d = drive(books, scheme=scheme)
    d.press("k")
    d.click(0.5, 0.5)
    for view in ("page", "help"):
        if view == "help":
            d.press("Escape", "?")
        assert d.axe() == [], view


@pytest.mark.parametrize("width", [800, 1024, 1280, 1920])
def test_nothing_is_cut_off_or_hidden_behind_another(drive, books, width):
    d = drive(books, width=width, height=800)
    assert d.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("#controls", "#stage", "#words", "#time", "#layers", "#items", "footer"):
        box = d.page.locator(name).bounding_box()
        assert (
            box and box["x"] >= 0 and box["x"] + box["width"] <= width + 1 and box["y"] + box["height"] <= 801
        ), name
    panes = [d.page.locator(".pane").nth(i).bounding_box() for i in range(d.page.locator(".pane").count())]
    assert all(p["height"] >= 120 for p in panes)
    d.press("d")
    assert d.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    main, edits = (d.page.locator(name).bounding_box() for name in ("main", "#edits"))
    assert main["x"] + main["width"] <= edits["x"] + 1 or edits["x"] + edits["width"] <= main["x"] + 1
    assert edits["width"] >= 300 and edits["x"] + edits["width"] <= width + 1
    inside = d.page.evaluate(INSIDE_MAIN)
    assert inside["right"] <= main["x"] + main["width"] + 1, inside


INSIDE_MAIN = """[...document.querySelectorAll("main *")].map((e) => ({ right: e.getBoundingClientRect().right,
  html: e.outerHTML.slice(0, 80) })).reduce((a, b) => (a.right > b.right ? a : b))"""


def test_k_is_a_slider(drive, books):
    d = drive(books)
    slider = d.page.get_by_role("slider", name="K: number of groups")
    slider.focus()
    d.press("Home")
    assert (d.value("color"), d.value("k")) == ("groups", "3")
    assert slider.get_attribute("aria-valuetext") == "3 groups"
    d.press("ArrowRight")
    assert d.value("k") == "5" and d.page.locator("#legend .swatch").count() == 5
    d.press("ArrowRight")  # the last one kept
    assert d.value("k") == "5"
    d.page.get_by_role("combobox", name="Colours").select_option("pca")
    d.settle()
    assert d.value("color") == "palette"
    d.page.get_by_role("combobox", name="Colours").select_option("groups")
    d.settle()
    assert (d.value("color"), d.value("k")) == ("groups", "5")
