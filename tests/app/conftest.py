"""A small run of a real model-shaped fake, cut, opened and served."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `app_runs`, whatever the import mode

from app_runs import Driver, client_of, cut_of, make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    made = make_run(tmp_path_factory.mktemp("app") / "first")
    cut_of(made)
    return made


@pytest.fixture(scope="session")
def second_run(tmp_path_factory):
    """Eight of the first run's nine items, seen by other weights."""
    made = make_run(tmp_path_factory.mktemp("app") / "second", n_items=8, weights="w2", version="b")
    cut_of(made)
    return made


@pytest.fixture(scope="session")
def books(run):
    from vlascope.app import open_books

    return open_books([run])


@pytest.fixture(scope="session")
def pair(run, second_run):
    from vlascope.app import open_books

    return open_books([run, second_run])


@pytest.fixture(scope="session")
def mini_vla():
    import vlascope as vs

    return vs.load("mini-vla", device="cpu")


@pytest.fixture(scope="session")
def vla_items():
    import vlascope as vs

    return vs.items("demo:pick", limit=6)


@pytest.fixture(scope="session")
def vla_book(mini_vla, vla_items, tmp_path_factory):
    """Six frames of one episode, seen by the embedded model, with the model at hand."""
    import vlascope as vs
    from vlascope.app import open_books

    sites = ["vision.5", "language.2", "language.5"]
    path = tmp_path_factory.mktemp("app") / "vla"
    made = vs.capture(mini_vla, vla_items, sites=sites, out=path, quiet=True)
    vs.cut(made, sites=sites, n_eig=6, k=(4,), color="pca")
    return open_books([made], models=[mini_vla])[0]


@pytest.fixture
def client(books, tmp_path):
    pytest.importorskip("fastapi", reason="needs the extra `app`")
    from vlascope.app import create_app

    return client_of(create_app(books, table=tmp_path / "labels.csv"))


@pytest.fixture
def pair_client(pair, tmp_path):
    pytest.importorskip("fastapi", reason="needs the extra `app`")
    from vlascope.app import create_app

    return client_of(create_app(pair, table=tmp_path / "labels.csv"))


@pytest.fixture
def serving(tmp_path):
    """Start a server for some books in this process and give its address; it ends with the test."""
    import uvicorn

    from vlascope.app import create_app
    from vlascope.app.serve import _bind

    started = []

    def start(books):
        app = create_app(books, table=tmp_path / "labels.csv")
        bound = _bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        started.append((server, thread, bound))
        threading.Thread(target=app.prepare_all, daemon=True).start()
        return f"http://127.0.0.1:{bound.getsockname()[1]}/"

    yield start
    for server, thread, bound in started:
        server.should_exit = True
        thread.join(timeout=10)
        bound.close()


@pytest.fixture
def drive(browser, serving):
    """Open a page for some books; afterwards it must have complained of nothing and asked nobody else."""
    pages = []

    def start(books, *, width=1280, height=800, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        pages.append(Driver(context.new_page(), serving(books)))
        return pages[-1]

    yield start
    for one in pages:
        one.page.context.close()
        one.check()
