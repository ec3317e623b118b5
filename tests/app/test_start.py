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
