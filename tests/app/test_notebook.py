"""The page in a notebook: the same answers without a server, live with anywidget and still without."""

from __future__ import annotations

import json
import sys

import pytest

from vlascope.errors import InputError, MissingExtraError

pytest.importorskip("fastapi", reason="needs the extra `app`")


@pytest.fixture
def explorer(books, tmp_path):
    from vlascope.app import Explorer

    return Explorer(books, table=tmp_path / "labels.csv")


def test_answers_are_those_of_the_server(explorer, client, books):
    key = books[0].key
    for path in (f"/api/runs/{key}/items", f"/api/runs/{key}/images/0/0", "/api/state",
                 f"/api/runs/{key}/labels?site=vision.1&k=3", f"/api/runs/{key}/labels?site=nowhere&k=3"):  # fmt: skip
        status, kind, body = explorer.ask(path)
        told = client.get(path)
        assert (status, kind, body) == (told.status_code, told.headers["content-type"], told.content), path
    clicks = {"clicks": [{"run": key, "site": "vision.1", "token": 3, "positive": True}], "n_eig": 4}
    status, _, body = explorer.ask("/api/mask", method="POST", body=json.dumps(clicks))
    assert status == 200 and len(body) > 100


def test_a_widget_hands_questions_to_the_kernel(explorer, books, monkeypatch):
    pytest.importorskip("anywidget", reason="needs the extra `notebook`")
    widget = explorer.widget
    assert (
        "vlascopeNotebook = true" in widget.page and "/static/" not in widget.page and "render" in widget._esm
    )
    answers = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: answers.append((content, buffers)))
    widget._handle_custom_msg({"id": "7", "url": f"/api/runs/{books[0].key}/items", "method": "GET"}, [])
    widget._handle_custom_msg({"what": "is not a question"}, [])
    ((content, (body,)),) = answers
    assert content == {"id": "7", "status": 200, "type": "application/json"}
    assert len(json.loads(body)["items"]) == books[0].run.n_items
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "<img" in data["text/html"]


def test_without_anywidget_a_still_picture(explorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and "data:image/png;base64," in bundle["text/html"]
    with pytest.raises(MissingExtraError, match=r"vlascope\[notebook\]"):
        _ = explorer.widget


def test_bad_arguments(run):
    from vlascope.app import explore

    with pytest.raises(InputError, match="height"):
        explore(run, height=20)
    with pytest.raises(InputError, match="0 runs"):
        explore()


HOST = """<!doctype html><meta charset="utf-8"><title>notebook</title><div id="cell"></div><script type="module">
import widget from "/nb/notebook.js";
const page = await (await fetch("/nb/page")).text();
let listener;
const model = {
  get: (name) => ({ page, height: 700 })[name],
  on: (name, f) => { listener = f; },
  off: () => {},
  send: async ({ id, url, method, body }) => {
    window.asked = (window.asked || 0) + 1;
    const init = method === "GET" ? {} : { method, body, headers: { "content-type": "application/json" } };
    const answer = await fetch(url, init);
    const data = await answer.arrayBuffer();
    listener({ id, status: answer.status, type: answer.headers.get("content-type") }, [new DataView(data)]);
  },
};
window.close_cell = widget.render({ model, el: document.getElementById("cell") });
</script>"""


@pytest.mark.browser
def test_the_page_works_in_the_frame_of_a_cell(browser, serving, books):
    from vlascope.app.front import static_bytes
    from vlascope.app.notebook import notebook_page

    url = serving(books)
    context = browser.new_context(viewport={"width": 1280, "height": 760})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.route("**/nb/host", lambda r: r.fulfill(body=HOST, content_type="text/html"))
    page.route("**/nb/page", lambda r: r.fulfill(body=notebook_page(), content_type="text/plain"))
    page.route(
        "**/nb/notebook.js",
        lambda r: r.fulfill(body=static_bytes("notebook.js"), content_type="text/javascript"),
    )
    page.goto(f"{url}nb/host")
    frame = None
    for _ in range(400):
        frame = next((f for f in page.frames if f.url.startswith("blob:")), None)
        if frame and frame.evaluate("Boolean(window.vlascope && window.vlascope.firstPicture > 0)"):
            break
        page.wait_for_timeout(50)
    assert frame is not None, complaints
    canvas = frame.locator("#stage canvas").nth(1)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    for _ in range(200):
        if frame.evaluate("document.querySelector('#status').textContent.startsWith('Bright is similar')"):
            break
        page.wait_for_timeout(50)
    assert frame.evaluate("document.querySelector('#status').textContent").startswith("Bright is similar")
    assert frame.locator(".unit img").first.evaluate("(i) => i.complete && i.naturalWidth > 0")
    assert page.evaluate("window.asked") >= 6
    page.evaluate("window.close_cell()")
    assert page.locator("iframe").count() == 0
    context.close()
    assert complaints == []
