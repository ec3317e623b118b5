"""What answers while the rest of the server is still being imported: the page's files and its first picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from importlib.resources import files
from typing import Any

from ..errors import VlascopeError
from .security import AsgiApp, Receive, Scope, Send

FIRST = "/api/first"

_STATIC = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/static/app.js": ("app.js", b"text/javascript; charset=utf-8"),
    "/static/app.css": ("app.css", b"text/css; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", b"image/svg+xml"),
}


class Front:
    """An ASGI application: files and the first picture from here, everything else from the routes once they stand.

    FastAPI takes longer to import than a browser needs to ask for the page; nobody waits for it this way.

    Args:
        build: Makes the application with the routes.
        first: Makes the message of `FIRST` (see `State.first`).
        shown: Called once that message was sent.
    """

    def __init__(
        self, build: Callable[[], AsgiApp], first: Callable[[], bytes], *, shown: Callable[[], None]
    ) -> None:
        self._build, self._make_first, self._shown = build, first, shown
        self._api: Future[AsgiApp] = Future()
        self._first: Future[bytes] = Future()
        for future in (self._api, self._first):
            future.set_running_or_notify_cancel()  # a client that goes away cancels nothing for the others

    def load(self) -> AsgiApp:
        """Prepare the first picture, then the routes; return those. Called once, beside the server or before it."""
        _settle(self._first, self._make_first)
        _settle(self._api, self._build)
        return self._api.result()

    def openapi(self) -> dict[str, Any]:
        """Return the description of the routes; waits for them."""
        api: Any = self._api.result()
        return api.openapi()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        path = scope.get("path", "")
        is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if is_read and path in _STATIC:
            name, kind = _STATIC[path]
            await _send(send, static_bytes(name), kind, b"no-cache", is_head=scope["method"] == "HEAD")
            return
        if is_read and path == FIRST and scope["method"] == "GET":
            try:
                message = await asyncio.wrap_future(self._first)
            except VlascopeError:
                pass  # the route makes it again, and says what is wrong with the run
            else:
                await _send(send, message, b"application/octet-stream", b"no-store")
                self._shown()
                return
        api = await asyncio.wrap_future(self._api)
        await api(scope, receive, send)


def _settle(future: Future[Any], make: Callable[[], Any]) -> None:
    try:
        future.set_result(make())
    except Exception as error:  # whoever asks is told
        future.set_exception(error)


async def _send(send: Send, body: bytes, kind: bytes, keep: bytes, *, is_head: bool = False) -> None:
    headers = [
        (b"content-type", kind),
        (b"cache-control", keep),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


def static_bytes(name: str) -> bytes:
    """Return a file of the built page."""
    return (files("vlascope.app") / "static" / name).read_bytes()
