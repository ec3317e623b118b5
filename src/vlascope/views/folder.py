"""A page that is too large for one file, taken apart: its pictures, videos and tokens become files beside it."""

from __future__ import annotations

import base64
import hashlib
import re

MIN_BYTES = 4096
"""Smaller pictures stay in the page."""

_DATA_URI = re.compile(r"data:(image/jpeg|image/png|video/mp4);base64,([A-Za-z0-9+/]+=*)")
_SUFFIX = {"image/jpeg": "jpg", "image/png": "png", "video/mp4": "mp4"}
_TOKENS = re.compile(r'<script id="tokens" type="application/json">(.*?)</script>', re.DOTALL)


def take_apart(html: str) -> tuple[str, dict[str, bytes]]:
    """Return a page that refers to files beside it, and those files by name; both work from a folder, without a server.

    Args:
        html: A page that carries everything as data: URIs, and its tokens as JSON in the script "tokens".

    Cost: a pass over the page.
    """
    files: dict[str, bytes] = {}

    def out(found: re.Match[str]) -> str:
        if len(found[2]) < MIN_BYTES:
            return found[0]
        data = base64.b64decode(found[2])
        name = f"media/{hashlib.sha256(data).hexdigest()[:16]}.{_SUFFIX[found[1]]}"
        files[name] = data
        return name

    page = _DATA_URI.sub(out, html)
    tokens = _TOKENS.search(page)
    if tokens:
        files["tokens.js"] = f"window.vlascopeTokens = {tokens[1]};\n".encode()
        page = page[: tokens.start()] + '<script src="tokens.js"></script>' + page[tokens.end() :]
    # A page read from a disk has no origin of its own: what lies beside it is "file:".
    for rule in ("img-src", "media-src"):
        page = page.replace(f"{rule} data:", f"{rule} data: 'self' file:")
    page = page.replace("script-src 'unsafe-inline'", "script-src 'unsafe-inline' 'self' file:")
    return page, files
