"""The first picture waits for nothing heavy, and what is slow is asked for after it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="needs the extra `app`")

CODE = """
import sys
from starlette.testclient import TestClient
from vlascope.app import create_app, open_books

(book,) = books = open_books([sys.argv[1]])
client = TestClient(create_app(books), base_url="http://127.0.0.1:8899")
state = client.get("/api/state").json()["runs"][0]
key, site = state["key"], state["default_site"]
layout = next(s["layout"] for s in state["sites"] if s["name"] == site)
for path in (
    "items", "episodes/0", f"layout?name={layout}", "images/0/0", f"labels?site={site}&k={state['ks'][0]}",
    f"colors?site={site}&method={state['method']}&n_eig={state['n_eig']}",
):
    answer = client.get(f"/api/runs/{key}/{path}")
    assert answer.status_code == 200, (path, answer.text)
print(*sorted({"torch", "transformers", "pandas", "sklearn", "scipy", "matplotlib"} & set(sys.modules)))
"""


def test_nothing_heavy_is_imported_before_the_first_picture(run):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(run.path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


CLICKS = """
app = client.app
app.prepare_all()
for method in ("features", "concepts"):
    answer = client.get(f"/api/similar?run={key}&site={site}&token=3&method={method}&n_eig=3")
    assert answer.status_code == 200, answer.text
assert client.get(f"/api/runs/{key}/episodes/0/measured").status_code == 200
print(*sorted({"torch", "sklearn"} & set(sys.modules)))
"""


def test_measuring_sites_and_answering_clicks_needs_no_torch(run):
    pytest.importorskip("numba", reason="numba is not installed; torch computes the cosines")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE + CLICKS, str(run.path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_sites_are_measured_after_the_first_colours(monkeypatch):
    import importlib
    import threading

    serve = importlib.import_module("vlascope.app.serve")  # the package offers a function of that name

    monkeypatch.setattr(serve, "IDLE_SECS", 60.0)
    monkeypatch.setattr(serve, "SETTLE_SECS", 0.0)
    prepared = threading.Event()

    class App:
        shown = threading.Event()
        prepare_all = prepared.set

    thread = threading.Thread(target=serve._prepare, args=(App(),), daemon=True)
    thread.start()
    assert not prepared.wait(0.05)
    App.shown.set()
    assert prepared.wait(5)


def test_one_message_holds_all_of_the_first_picture(client, books):
    from vlascope.app.wire import unpack

    (book,) = books
    header, arrays = unpack(client.get("/api/first").content)
    assert header["state"] == client.get("/api/state").json()
    assert header["items"] == [client.get(f"/api/runs/{book.key}/items").json()]
    (layout,), (episode,), (colors,) = header["layouts"], header["episodes"], header["colors"]
    assert layout["value"] == client.get(f"/api/runs/{book.key}/layout?name={layout['name']}").json()
    assert episode["value"] == client.get(f"/api/runs/{book.key}/episodes/0").json()
    assert colors == {"run": 0, "site": "vision.1", "method": "pca", "n_eig": 6}
    assert arrays[0] == book.cut.rgb[book.cut.parts["vision.1"].rows].tobytes()
    assert [(one["item"], one["camera"]) for one in header["images"]] == [(0, 0), (0, 1)]
    assert arrays[1:] == [client.get(f"/api/runs/{book.key}/images/0/{c}").content for c in (0, 1)]


def test_the_page_and_its_first_picture_wait_for_no_framework():
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from vlascope.app.front import Front

    said, sent, asked = [], [], []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    async def api(scope, receive, send):
        asked.append(scope["path"])

    def build():
        said.append("routes")
        return api

    front = Front(build, lambda: b"first", shown=lambda: said.append("shown"))

    async def ask(path, method="GET"):
        await front({"type": "http", "path": path, "method": method}, receive, send)

    async def go():
        await ask("/")  # answered although nothing is loaded
        waits = [asyncio.ensure_future(ask("/api/first")), asyncio.ensure_future(ask("/api/state"))]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in waits) and said == []
        await asyncio.to_thread(front.load)
        await asyncio.gather(*waits)
        await ask("/", "POST")
        await ask("/static/../server.py")

    with ThreadPoolExecutor(1) as pool:  # a browser that other tests have open runs a loop in this thread
        pool.submit(asyncio.run, go()).result()
    assert b"<!doctype html>" in sent[1]["body"] and sent[3]["body"] == b"first"
    assert asked == ["/api/state", "/", "/static/../server.py"] and sorted(said) == ["routes", "shown"]


def test_a_damaged_run_is_said_by_the_route(books, tmp_path):
    from app_runs import client_of

    from vlascope.app import create_app
    from vlascope.app.state import State
    from vlascope.errors import RunIncompleteError

    def damaged(self):
        raise RunIncompleteError("the table is damaged")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "first", damaged)
        answer = client_of(create_app(books, table=tmp_path / "labels.csv")).get("/api/first")
    assert answer.status_code == 503 and answer.json() == {"error": "the table is damaged"}


def test_the_command_imports_nothing_heavy_and_ends_in_the_middle_of_a_click(run, tmp_path):
    """A signal ends the server within seconds although an answer is still being computed."""
    import json
    import signal
    import threading
    import time
    import urllib.request

    code = """
import sys, time
import vlascope.cli.app as command
from vlascope.app import similarity
from vlascope.cli import main
similarity.SiteFeatures.exact = lambda self, row: time.sleep(60)
give = command.give
def told(*args, **how):
    heavy = {"torch", "transformers", "pandas", "sklearn", "scipy", "matplotlib"} & set(sys.modules)
    print(*sorted(heavy), file=sys.stderr, flush=True)
    give(*args, **how)
command.give = told
sys.exit(main(["app", sys.argv[1], "--json", "-q", "--table", sys.argv[2]]))
"""
    words = [sys.executable, "-W", "ignore", "-c", code, str(run.path), str(tmp_path / "labels.csv")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        guard = threading.Timer(60, process.kill)
        guard.start()
        told = ""
        while not told.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        assert process.stderr.readline().split() == []
        url = json.loads(told)["url"]
        with urllib.request.urlopen(f"{url}api/state") as answer:
            key = json.load(answer)["runs"][0]["key"]
        ask = f"{url}api/similar?run={key}&site=vision.0&token=3&method=features&sites=vision.0"

        def click():
            with pytest.raises(OSError):
                urllib.request.urlopen(ask, timeout=60)

        thread = threading.Thread(target=click)
        thread.start()
        time.sleep(1.0)
        started = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait()
        guard.cancel()
        took = time.perf_counter() - started
        thread.join(timeout=20)
    assert took < 10 and process.returncode in (143, -15)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_address_says_how_to_come_from_elsewhere_and_needs_its_token_there(run, tmp_path, host):
    import json
    import re
    import socket
    import threading
    import urllib.error
    import urllib.request

    words = [sys.executable, "-m", "vlascope", "app", str(run.path), "--json", "-q", "--host", host]
    with subprocess.Popen(
        [*words, "--table", str(tmp_path / "labels.csv")], stdout=subprocess.PIPE, text=True
    ) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        try:
            told = ""
            while not told.rstrip().endswith("}"):
                assert process.stdout
                line = process.stdout.readline()
                assert line
                told += line
            said = json.loads(told)
            port = int(re.findall(r":(\d+)/", said["url"])[0])
            assert said["ssh"] == f"ssh -L {port}:localhost:{port} {socket.gethostname()}"
            here = f"http://127.0.0.1:{port}"
            if host == "127.0.0.1":
                assert said["token"] is None and said["url"] == f"{here}/"
                assert urllib.request.urlopen(f"{here}/api/state").status == 200
                return
            assert said["url"].endswith(f"/?token={said['token']}") and len(said["token"]) >= 24
            for query in ("", "?token=", f"?token={said['token'][:-1]}"):
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    urllib.request.urlopen(f"{here}/api/state{query}")
            assert urllib.request.urlopen(f"{here}/api/state?token={said['token']}").status == 200
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            page = opener.open(f"{here}/?token={said['token']}")
            assert page.url == f"{here}/" and b"app.js" in page.read()  # the token has left the address
            assert opener.open(f"{here}/api/state").status == 200
        finally:
            guard.cancel()
            process.terminate()
            process.wait()
