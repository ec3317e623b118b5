"""Nobody but the page's own machine, nothing but the given runs, and text is text."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from app_runs import cut_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlascope.errors import InputError, VlascopeError
from vlascope.runs import Run

pytest.importorskip("fastapi", reason="needs the extra `app`")


def client_of(books, tmp_path, *, token=None, host="127.0.0.1:8899"):
    from starlette.testclient import TestClient

    from vlascope.app import create_app

    app = create_app(books, table=tmp_path / "labels.csv", token=token)
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False, follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:8899", "localhost:1234", "[::1]:8899", "localhost"])
def test_own_names_are_answered(books, tmp_path, host):
    assert client_of(books, tmp_path).get("/api/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8899", "localhost.evil.example", "", "[", "10.0.0.7"]
)
def test_a_name_that_was_made_to_point_here_is_refused(books, tmp_path, host):
    for path in ("/", "/api/state", "/static/app.js"):
        answer = client_of(books, tmp_path).get(path, headers={"host": host})
        assert answer.status_code == 421 and "vision" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},  # another server of this machine is another page
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_other_pages_may_not_ask(books, tmp_path, headers):
    client = client_of(books, tmp_path)
    assert client.get("/api/state", headers=headers).status_code == 403
    body = {"id": "ep0000", "review": "drop"}
    assert client.post("/api/reviews", json=body, headers=headers).status_code == 403
    assert not (tmp_path / "labels.csv").exists()


def test_own_page_and_a_link_to_it_may(books, tmp_path):
    client = client_of(books, tmp_path)
    own = {"origin": "http://127.0.0.1:8899", "sec-fetch-site": "same-origin"}
    assert client.get("/api/state", headers=own).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


def test_a_form_of_another_page_writes_nothing(books, tmp_path):
    """A browser sends forms as text/plain without asking first."""
    body = json.dumps({"id": "ep0000", "review": "drop"})
    answer = client_of(books, tmp_path).post(
        "/api/reviews", content=body, headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 422 and not (tmp_path / "labels.csv").exists()


def test_token_is_needed_when_others_can_reach_the_server(books, tmp_path):
    client = client_of(books, tmp_path, token="right-token", host="10.0.0.7:8899")
    for path in ("/", "/api/state", "/static/app.js", "/?token=wrong", "/?token=", "/?token=right-toke"):
        assert client.get(path).status_code == 401
    answer = client.get("/?token=right-token")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=Strict" in answer.headers["set-cookie"]
    assert client.get("/api/state").status_code == 200  # by the cookie
    other = client_of(books, tmp_path, token="right-token")
    assert other.get("/api/state", headers={"cookie": "vlascope=wrong"}).status_code == 401
    assert other.get("/api/state?token=right-token", headers={"host": "evil.example"}).status_code == 421


def test_pages_carry_a_policy(client):
    for path in ("/", "/api/state", "/nowhere"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"].split("style-src")[0]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static/build.json",
        "/api/runs/../state",
        "/run.json",
        "/api/runs/000000000000/items",
        "/docs",
    ],
)
def test_nothing_but_the_given_runs_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422) or answer.url.path == "/api/state"
    assert "import" not in answer.text


def test_images_outside_the_run_are_refused(run, tmp_path):
    from vlascope.app import RunBook

    secret = tmp_path / "secret.png"
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    shutil.copy(run.media_path(0), secret)
    book = RunBook(cut_of(Run.open(copy)))
    client = client_of([book], tmp_path)
    assert client.get(f"/api/runs/{book.key}/images/0/0").status_code == 200
    place = book.run.media_path(0)
    place.unlink()
    place.symlink_to(secret)
    answer = client.get(f"/api/runs/{book.key}/images/0/0")
    assert answer.status_code == 400 and str(tmp_path) not in answer.text
    place.unlink()  # a link to a folder on the way is no better
    os.rename(place.parent, tmp_path / "moved")
    place.parent.symlink_to(tmp_path / "moved")
    assert client.get(f"/api/runs/{book.key}/images/1/0").status_code == 400
    object.__setattr__(book.run.items[2], "media", ("../../../secret.png", "x.png"))
    assert client.get(f"/api/runs/{book.key}/images/2/0").status_code == 400


def test_errors_do_not_say_where_things_are(books, tmp_path, monkeypatch):
    client = client_of(books, tmp_path)
    place = str(books[0].run.path)

    def broken(number):
        raise VlascopeError(f"'{place}/derived' is broken")

    monkeypatch.setattr(books[0], "episode", broken)
    answer = client.get(f"/api/runs/{books[0].key}/episodes/0")
    assert answer.status_code == 503 and place not in answer.text and "first/derived" in answer.text

    def bug(number):
        raise RuntimeError(place)

    monkeypatch.setattr(books[0], "episode", bug)
    answer = client.get(f"/api/runs/{books[0].key}/episodes/0")
    assert answer.status_code == 500 and place not in answer.text


def test_large_requests_are_cut_off(client):
    assert client.post("/api/mask", content=b" " * 70_000).status_code == 413
    assert client.get("/api/similar?sites=" + "a" * 9000).status_code == 414

    def endless():
        for _ in range(100):
            yield b" " * 1000

    assert client.post("/api/mask", content=endless()).status_code >= 400
    clicks = [{"run": "0" * 12, "site": "vision.0", "token": 1}] * 65
    assert client.post("/api/mask", json={"clicks": clicks}).status_code == 422


WORDS = st.one_of(
    st.text(max_size=30), st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["vision.0", "*", "../..", "%00", "NaN", "vision.0,language.0", "concepts", "features"]),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["colors", "labels", "words", "layout", "images", "episodes", "similar"]),
    names=st.lists(
        st.sampled_from(["site", "token", "n_eig", "k", "method", "sites", "name", "run"]), unique=True
    ),
    words=st.lists(WORDS, min_size=8, max_size=8),
    number=st.one_of(st.integers(-3, 99), WORDS),
)
def test_odd_questions_get_an_answer_and_break_nothing(client, books, path, names, words, number):
    from urllib.parse import quote

    params = dict(zip(names, words, strict=False))
    if path == "similar":
        url = "/api/similar"
        params = {"run": books[0].key, "site": "vision.0", **params}
    elif path in ("images", "episodes"):
        url = f"/api/runs/{books[0].key}/{path}/{quote(str(number), safe='')}" + (
            "/0" if path == "images" else ""
        )
    else:
        url = f"/api/runs/{books[0].key}/{path}"
    answer = client.get(url, params=params)
    assert answer.status_code in (200, 400, 404, 422), answer.text
    assert str(books[0].run.path) not in answer.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["clicks", "run", "site", "token", "n_eig", "id", "review", "item", "kind"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["mask", "reviews", "edits"]), body=JSON | st.binary(max_size=50))
def test_odd_bodies_get_an_answer_and_write_nothing(client, tmp_path, path, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()  # with NaN, which is not JSON
    answer = client.post(f"/api/{path}", headers={"content-type": "application/json"}, content=content)
    assert answer.status_code in (400, 404, 422) and set(answer.json()) == {"error"}, answer.text
    assert not (tmp_path / "labels.csv").exists()


def test_many_at_once(client, books):
    book = books[0]

    def ask(i):
        return client.get(f"/api/similar?run={book.key}&site=vision.0&token={i % 60}&n_eig=6").content

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(64)))
    assert [len(a) for a in answers] == [len(ask(i)) for i in range(64)]


def test_text_of_the_run_is_data_never_markup(run, tmp_path):
    from vlascope.app import RunBook

    book = RunBook(cut_of(Run.open(run.path)))
    object.__setattr__(book.run.items[0], "prompt", "<script>alert(1)</script>")
    client = client_of([book], tmp_path)
    answer = client.get(f"/api/runs/{book.key}/items")
    assert answer.headers["content-type"] == "application/json"
    assert "<script>" not in client.get("/").text.replace(
        '<script type="module" src="/static/app.js"></script>', ""
    )


def test_a_port_in_use_is_said(books):
    from vlascope.app.serve import _bind

    first = _bind("127.0.0.1", 0)
    number = first.getsockname()[1]
    try:
        with pytest.raises(InputError, match=f"port {number}"):
            _bind("127.0.0.1", number)
        with pytest.raises(InputError, match="cannot bind"):
            _bind("127.0.0.1", 99999)
    finally:
        first.close()


def test_no_odd_request_crashes_the_server_or_learns_a_path(books, serving):
    """The short version of `python -m benchmarks.app --fuzz 5000`: raw bytes, eight connections at once."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "_app_fuzz.py"
    spec = importlib.util.spec_from_file_location("app_fuzz", path)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    url = serving(books)
    found = tool.odd(url, n=150, hide=str(books[0].run.path.parent), seed=1)
    assert found["leaks"] == found["server_errors"] == 0, found
    assert sum(found["answers"].values()) == 150 and found["answers"].get("400", 0) > 10, found
    assert tool.alive(url)
