"""The page in a notebook: the same front end, in a frame that asks the kernel instead of a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import InputError, missing_extra
from .book import RunBook, open_books
from .front import static_bytes
from .server import create_app

if TYPE_CHECKING:
    from ..models import Model
    from ..runs import Run

TIMEOUT_SECS = 120.0
MIN_HEIGHT, MAX_HEIGHT = 400, 4000


def explore(
    *runs: Run | Path | str,
    height: int = 760,
    table: Path | str | None = None,
    seed: int = 0,
    model: Model | Sequence[Model] | None = None,
) -> Explorer:
    """Return the page of `vlascope app` for a notebook cell: one run, or two that are compared.

    Args:
        runs: One or two runs, or their paths; a run without a cut is cut first.
        height: Of the page, CSS pixels, 400..4000.
        table: CSV file of labels; None takes labels.csv in the first run.
        seed: Seed of a cut that is made here.
        model: The run's model (or one per run), for the panel of edits; None loads it by the name that the run keeps.

    Raises:
        MissingExtraError: FastAPI is not installed (`pip install "vlascope[app]"`).
        InputError: no run or more than two, or a height out of range.
    """
    if not MIN_HEIGHT <= height <= MAX_HEIGHT:
        raise InputError(f"got a height of {height} pixels; need {MIN_HEIGHT} to {MAX_HEIGHT}.")
    models = tuple(model) if isinstance(model, Sequence) else (model,)
    return Explorer(
        open_books(runs, seed=seed, models=models),
        height=height,
        table=None if table is None else Path(table),
    )


class Explorer:
    """One or two runs in a notebook. Shows itself: live with anywidget, as a still picture without.

    Attributes:
        books: The opened runs.
        height: CSS pixels.
    """

    def __init__(self, books: Sequence[RunBook], *, height: int = 760, table: Path | None = None) -> None:
        self.books, self.height = list(books), height
        self._app = create_app(self.books, table=table)

    def __repr__(self) -> str:
        return f"Explorer({', '.join(book.run.path.name for book in self.books)})"

    @cached_property
    def widget(self) -> Any:
        """The live page, an `anywidget.AnyWidget`.

        Raises:
            MissingExtraError: anywidget is not installed.
        """
        try:
            import anywidget
            import traitlets
        except ImportError as error:
            raise missing_extra(
                "anywidget", extra="notebook", needed_for="the live page in a notebook"
            ) from error

        class Page(anywidget.AnyWidget):
            _esm = static_bytes("notebook.js").decode()
            page = traitlets.Unicode().tag(sync=True)
            height = traitlets.Int().tag(sync=True)

        made = Page(page=notebook_page(), height=self.height)
        made.on_msg(self._answer)
        # What is slow the first time is done while the page is being looked at.
        threading.Thread(target=self._app.prepare_all, daemon=True).start()
        return made

    def _answer(self, widget: Any, question: Any, buffers: Any) -> None:
        """Answer a question of the page, as the server would."""
        if not isinstance(question, Mapping) or not {"id", "url", "method"} <= set(question):
            return
        status, kind, body = self.ask(
            str(question["url"]), method=str(question["method"]), body=str(question.get("body") or "")
        )
        widget.send({"id": question["id"], "status": status, "type": kind}, [body])

    def ask(self, url: str, *, method: str = "GET", body: str = "") -> tuple[int, str, bytes]:
        """Return status, media type and bytes of what the server would answer to a question of the page."""
        future = asyncio.run_coroutine_threadsafe(_call(self._app, url, method, body.encode()), self._loop)
        return future.result(TIMEOUT_SECS)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """An event loop of its own: that of the notebook is busy with the cell."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="vlascope-notebook", daemon=True).start()
        return loop

    def still(self) -> str:
        """Return a picture of the first run as HTML, for places that run no widgets."""
        import base64

        from ..errors import VlascopeError
        from ..views import grid

        book = self.books[0]
        title = escape(f"{book.describe()['model']} · {book.run.path.name}")
        how = f"Live: pip install 'vlascope[notebook]', or vlascope app {escape(str(book.run.path.name))}"
        try:
            png = base64.b64encode(grid(book.cut, n_items=3).to_png()).decode()
        except VlascopeError as error:  # a run of words alone has no picture; say so instead of showing none
            return f"<p><b>{title}</b><br>{escape(str(error))}<br>{how}</p>"
        image = f'<img style="max-width:100%" src="data:image/png;base64,{png}" alt="{title}">'
        return f"<p><b>{title}</b><br>{how}</p>{image}"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        try:
            import anywidget  # noqa: F401
        except ImportError:
            return {"text/html": self.still(), "text/plain": repr(self)}
        found = self.widget._repr_mimebundle_(**options)
        data, metadata = found if isinstance(found, tuple) else (found, {})
        return {**data, "text/html": self.still(), "text/plain": repr(self)}, metadata


def notebook_page() -> str:
    """Return the page with its styles and its script inside, told that it stands in a notebook."""
    page = static_bytes("index.html").decode()
    script, style = static_bytes("app.js").decode(), static_bytes("app.css").decode()
    for old, new in (
        ('<link rel="preload" href="/api/first" as="fetch" crossorigin>', ""),
        ('<link rel="icon" href="/static/icon.svg" type="image/svg+xml">', ""),
        ('<link rel="stylesheet" href="/static/app.css">', f"<style>{style}</style>"),
        (
            '<script type="module" src="/static/app.js"></script>',
            f'<script>window.vlascopeNotebook = true</script><script type="module">{script}</script>',
        ),
    ):
        assert page.count(old) == 1, f"index.html lacks {old}"
        page = page.replace(old, new)
    return page


async def _call(app: Any, url: str, method: str, body: bytes) -> tuple[int, str, bytes]:
    """Ask an ASGI application and return status, media type and bytes."""
    parts = urlsplit(url)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"),
               (b"content-length", str(len(body)).encode())]  # fmt: skip
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": parts.path, "raw_path": parts.path.encode(), "query_string": parts.query.encode(),
             "root_path": "", "headers": headers, "client": None, "server": ("localhost", 80)}  # fmt: skip
    sent = False
    status, kind, pieces = 500, "application/octet-stream", []

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, kind
        if message["type"] == "http.response.start":
            status = message["status"]
            kind = dict(message["headers"]).get(b"content-type", kind.encode()).decode()
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, kind, b"".join(pieces)
