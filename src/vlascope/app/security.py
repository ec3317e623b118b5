"""Who may ask: pages of this server only, under a name that is this machine's, with a token when others could ask."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY_BYTES = 65_536
MAX_TARGET_BYTES = 8_192

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Guard:
    """Lets a request through to `app` only when it may pass; adds headers that keep the page to itself.

    - `Host` must name this machine: a page elsewhere whose name was made to point here (DNS rebinding) does not.
    - `Origin`, where a browser sends one, must be this server; requests that a browser marks as cross-site are
      refused.
    - With a token, every request needs it: first in the URL (`/?token=...`), from then on in a cookie.
    - Bodies and URLs are limited in size before anything reads them.

    Args:
        app: The application.
        token: Needed when the server can be reached from other machines; None on loopback.
        cookie: Name of the cookie that carries the token.
    """

    def __init__(self, app: AsgiApp, *, token: str | None = None, cookie: str = "vlascope") -> None:
        self.app, self.token, self.cookie = app, token, cookie
        self.prepare_all: Callable[[], None] = lambda: None
        self.stop: Callable[[], None] = lambda: None
        self.shown = threading.Event()
        self.openapi: Callable[[], dict[str, Any]] = dict
        self.names = set(LOOPBACK) if token is None else {*LOOPBACK, *_own_names()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no WebSockets
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(send, *refusal)
            return
        if self.token is not None and not self._has_cookie(headers):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                await _answer(
                    send, 401, "this server needs its token: open the address that `vlascope app` printed"
                )
                return
            if scope["path"] == "/":  # keep the token out of the address bar from now on
                cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                await _answer(send, 303, "", ((b"location", b"/"), (b"set-cookie", cookie.encode())))
                return
        await self.app(scope, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET_BYTES:
            return 414, "the address is too long"
        if not self._is_own(headers.get("host", "")):
            return (
                421,
                "this server answers under its own name only; open the address that `vlascope app` printed",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit_netloc(origin) != headers["host"].lower():
            return 403, "requests from other pages are refused"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # A link on another page may open the app; nothing else may ask.
            if scope["path"] != "/" or headers.get("sec-fetch-mode") != "navigate":
                return 403, "requests from other pages are refused"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, "the request is too large"
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.token is not None and _is_address(name))

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie and hmac.compare_digest(value.encode(), (self.token or "").encode()):
                return True
        return False


def urlsplit_netloc(url: str) -> str:
    """Return host and port of a URL in lower case; "" for anything else, such as "null"."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_names() -> set[str]:
    return {name.lower() for name in (socket.gethostname(), socket.getfqdn()) if name}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, text: str, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    import json

    body = json.dumps({"error": text}).encode()
    headers = [
        *_HEADERS,
        *extra,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _limited(receive: Receive) -> Receive:
    """Cut a body without a length (chunked) off at the limit: the client is treated as gone."""
    seen = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > MAX_BODY_BYTES else message

    return limited


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await send(message)

    return sending
