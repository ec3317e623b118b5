"""The server's addresses: what the page may ask, checked before it is answered.

Annotations are evaluated here (no `from __future__ import annotations`): FastAPI reads them from functions that are
defined inside `create_app`, where it is imported.
"""

import logging
import re
import threading
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from .._version import __version__
from ..errors import (
    InputError,
    SiteNotFoundError,
    StorageError,
    VlascopeError,
    missing_extra,
)
from ..items import ReviewTable
from ..palette import METHODS
from .book import RunBook, shared_items
from .edit_routes import add_edit_routes
from .media import image_bytes
from .security import Guard
from .similarity import EXACT_BYTES, rank_correlation, to_bytes
from .wire import pack

_BINARY = "application/octet-stream"
_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}
_STATIC = {
    "app.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_LOG = logging.getLogger(__name__)
_PLACE = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+([^\s'\"/\\]*)")
"""A path from the root (or home) on: all but its last part is nobody's business. No URL, no "and/or"."""


def create_app(books: Sequence[RunBook], *, table: FilePath | None = None, token: str | None = None) -> Any:
    """Return the ASGI application for one or two opened runs.

    Args:
        books: What `open_books` returned.
        table: CSV file that labels of episodes and images are written to; None takes labels.csv in the first run.
        token: Needed by every request when given (the server can then be reached from other machines).

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse
        from starlette.exceptions import HTTPException

        from .questions import (
            Camera,
            K,
            Key,
            Likeness,
            Mask,
            NEig,
            Number,
            PaletteMethod,
            SiteName,
            SiteNames,
            Verdict,
        )
    except ImportError as error:
        raise missing_extra("fastapi", extra="app", needed_for="vlascope app") from error

    by_key = {book.key: book for book in books}
    reviews = ReviewTable(books[0].run.path / "labels.csv" if table is None else table)
    state = _State(books)
    api = FastAPI(title="vlascope", version=__version__, docs_url=None, redoc_url=None)

    def book_of(key: str) -> RunBook:
        if key not in by_key:
            raise HTTPException(404, "there is no such run here; reload the page")
        return by_key[key]

    def binary(header: dict[str, Any], arrays: Sequence[Any], *, keep: bool = False) -> Response:
        headers = _FOREVER if keep else {"cache-control": "no-store"}
        return Response(pack(header, arrays), media_type=_BINARY, headers=headers)

    @api.get("/", include_in_schema=False)
    def page() -> Response:
        return Response(
            static_bytes("index.html"),
            media_type="text/html; charset=utf-8",
            headers={"cache-control": "no-cache"},
        )

    @api.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404, "there is no such file")
        return Response(static_bytes(name), media_type=_STATIC[name], headers={"cache-control": "no-cache"})

    @api.get("/api/state")
    def get_state() -> JSONResponse:
        """Return the runs, their sites, numbers of clusters, colours and parameters."""
        return JSONResponse(state.describe(), headers={"cache-control": "no-store"})

    @api.get("/api/runs/{key}/items")
    def get_items(key: Key) -> JSONResponse:
        """Return the items of a run, without pixels."""
        return JSONResponse(book_of(key).items, headers=_FOREVER)

    @api.get("/api/runs/{key}/episodes/{number}")
    def get_episode(key: Key, number: Number) -> JSONResponse:
        """Return the time line of an episode."""
        return JSONResponse(book_of(key).episode(number), headers=_FOREVER)

    @api.get("/api/runs/{key}/episodes/{number}/measured")
    def get_measured(key: Key, number: Number) -> JSONResponse:
        """Return what was measured about an episode: changes of course, anomaly score."""
        return JSONResponse(book_of(key).measured(number), headers={"cache-control": "no-store"})

    @api.get("/api/runs/{key}/layout")
    def get_layout(key: Key, name: SiteName) -> JSONResponse:
        """Return where the tokens of a layout lie."""
        return JSONResponse(book_of(key).layout(name), headers=_FOREVER)

    @api.get("/api/runs/{key}/images/{item}/{camera}", response_class=Response)
    def get_image(key: Key, item: Number, camera: Camera) -> Response:
        """Return the pixels that the model saw, reduced for the page."""
        data, kind = image_bytes(book_of(key).run, item, camera)
        return Response(data, media_type=kind, headers=_FOREVER)

    @api.get("/api/runs/{key}/colors", response_class=Response)
    def get_colors(
        key: Key,
        site: SiteName,
        method: PaletteMethod,
        n_eig: NEig,
    ) -> Response:
        """Return a colour for every token of a site, uint8 [n, 3]."""
        book = book_of(key)
        rgb = book.colors.rgb(book.site(site), method=method, n_eig=n_eig)
        state.shown.set()
        return binary({"site": site}, [rgb], keep=True)

    @api.get("/api/runs/{key}/labels", response_class=Response)
    def get_labels(key: Key, site: SiteName, k: K) -> Response:
        """Return the cluster of every token of a site, uint8 (uint16 above k = 256) [n]."""
        book = book_of(key)
        values = book.labels(book.site(site), k)
        return binary({"site": site, "k": k, "bytes": values.itemsize}, [values], keep=True)

    @api.get("/api/runs/{key}/words", response_class=Response)
    def get_word_colors(key: Key, site: SiteName) -> Response:
        """Return the colours of a site's tokens in a cut of the words alone, uint8 [n, 3]; none where there is none."""
        book = book_of(key)
        rgb = book.word_rgb(book.site(site))
        return binary({"site": site, "own": rgb is not None}, [] if rgb is None else [rgb], keep=True)

    @api.get("/api/similar", response_class=Response)
    def get_similar(
        run: Key,
        site: SiteName,
        token: Number,
        method: Likeness = "concepts",
        n_eig: NEig = 20,
        sites: SiteNames = "*",
    ) -> Response:
        """Return how much every token of some sites is like a clicked one, uint8 [n] per site (0 unlike, 255 alike)."""
        started = time.perf_counter()
        book = book_of(run)
        book.row_at(book.site(site), token)
        header, arrays = state.similar(
            book, site, token, method=method, n_eig=n_eig, wanted=state.targets(sites)
        )
        header["ms"] = round(1000 * (time.perf_counter() - started), 1)
        return binary(header, arrays)

    @api.post("/api/mask", response_class=Response)
    def post_mask(body: Mask) -> Response:
        """Return the mask that clicked tokens describe, uint8 [n] per site: above 128 is in, by how much."""
        started = time.perf_counter()
        clicks = []
        for one in body.clicks:
            book = book_of(one.run)
            clicks.append((book.row_at(book.site(one.site), one.token), one.positive))
        header, arrays = state.mask(
            clicks, n_eig=body.n_eig, threshold=body.threshold, wanted=state.targets(body.sites)
        )
        header["ms"] = round(1000 * (time.perf_counter() - started), 1)
        return binary(header, arrays)

    @api.get("/api/reviews")
    def get_reviews() -> JSONResponse:
        """Return the label that counts for each episode or image."""
        found = {r.id: {"review": r.review, "reason": r.reason} for r in reviews.current().values()}
        return JSONResponse(
            {"table": reviews.path.name, "reviews": found}, headers={"cache-control": "no-store"}
        )

    @api.post("/api/reviews")
    def post_review(body: Verdict) -> JSONResponse:
        """Record what a person says about an episode or image; every word is kept, the last one counts."""
        known = sorted({row["unit"] for row in books[0].items["items"]})
        reviews.add([body.id], review=body.review, reason=body.reason, known=known)
        return get_reviews()

    add_edit_routes(api, book_of, clean=state.without_paths)

    @api.exception_handler(VlascopeError)
    def on_error(request: Request, error: VlascopeError) -> JSONResponse:
        if isinstance(error, SiteNotFoundError):
            status = 404
        else:
            status = 400 if isinstance(error, InputError) else 503
        return JSONResponse({"error": state.without_paths(str(error))}, status_code=status)

    @api.exception_handler(RequestValidationError)
    def on_nonsense(request: Request, error: RequestValidationError) -> JSONResponse:
        # Said in words only: what was sent is not echoed (it may be large, or no JSON, such as NaN).
        first = error.errors()[0]
        where = ".".join(str(part) for part in first.get("loc", ()))[:200]
        return JSONResponse(
            {"error": f"{where}: {first.get('msg', 'cannot be used')}"[:400]}, status_code=422
        )

    @api.exception_handler(HTTPException)
    def on_refusal(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)

    @api.exception_handler(Exception)
    def on_bug(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(
            {"error": "this is a bug in vlascope; the server's log has the report"}, status_code=500
        )

    guard = Guard(api, token=token)
    guard.prepare_all = state.prepare_all
    guard.shown = state.shown
    guard.openapi = api.openapi
    return guard


class _State:
    """What the addresses share: the runs, which are asked together, and one heavy question at a time."""

    def __init__(self, books: Sequence[RunBook]) -> None:
        self.books = list(books)
        # One at a time: memory stays bounded, and each gets all cores. A page asks for one thing at a time anyway.
        self._heavy = threading.Lock()
        self._error: str | None = None
        self.shown = threading.Event()

    def describe(self) -> dict[str, Any]:
        shared = None
        if len(self.books) == 2:
            shared = shared_items(self.books[0].run, self.books[1].run).tolist()
        return {
            "version": __version__,
            "runs": [book.describe() for book in self.books],
            "compared": len(self.books) == 2,
            "shared_items": shared,
            "methods": list(METHODS),
        }

    def prepare_all(self) -> None:
        """Measure all sites, those first that are shown first; meant for a thread beside the server."""
        for book in self.books:
            first = book.describe()["default_site"]
            for site in sorted(book.features, key=lambda name: name != first):
                try:
                    book.features[site].prepare()
                except VlascopeError as error:
                    self._error = str(error)
                    _LOG.warning("%s", error)
                    return

    def targets(self, text: str) -> list[tuple[RunBook, str]]:
        """Return the sites that "*" or "vision.3,language.4" means, in all runs that have them."""
        every = [(book, site) for book in self.books for site in book.cut.sites]
        if text == "*":
            return every
        names = set(text.split(","))
        found = [(book, site) for book, site in every if site in names]
        if not found:
            raise SiteNotFoundError(f"this cut has no site '{text[:80]}'.")
        return found

    def similar(
        self,
        book: RunBook,
        site: str,
        token: int,
        *,
        method: str,
        n_eig: int,
        wanted: list[tuple[RunBook, str]],
    ) -> tuple[dict[str, Any], list[Any]]:
        """Return the header and one uint8 array per site that could be compared."""
        with self._heavy:
            if method == "concepts":
                row = book.row_at(site, token)
                arrays = [
                    to_bytes(book.concepts.cosine(row, n_eig=n_eig, rows=b.cut.parts[s].rows))
                    for b, s in wanted
                ]
                return {"method": method, "exact": True, "parts": _parts(wanted)}, arrays
            return self._similar_features(book, site, token, wanted)

    def _similar_features(
        self, book: RunBook, site: str, token: int, wanted: list[tuple[RunBook, str]]
    ) -> tuple[dict[str, Any], list[Any]]:
        if self._error:
            raise StorageError(self._error)
        place = book.place(site, token)
        n_bytes = sum(b.features[s].n_bytes for b, s in wanted)
        rank = None
        arrays, parts, pending, missing = [], [], [], []
        for other, name in wanted:
            found = token if (other, name) == (book, site) else other.token_at(place, name)
            if found is None:
                missing.append({"run": other.key, "site": name})
                continue
            features, part = other.features[name], other.cut.parts[name]
            is_own = (other, name) == (book, site)
            if not (features.is_ready or len(wanted) <= 4):
                pending.append({"run": other.key, "site": name})
                continue
            row = int(part.token_rows[found])
            is_exact = is_own or n_bytes <= EXACT_BYTES or len(wanted) <= 4
            values = features.exact(row) if is_exact else features.sketched(row)
            if is_own and not (n_bytes <= EXACT_BYTES or len(wanted) <= 4):
                rank = round(rank_correlation(values, features.sketched(row)), 4)
            arrays.append(to_bytes(values[part.token_rows]))
            parts.append((other, name))
        return {
            "method": "features",
            "exact": rank is None,
            "rank": rank,
            "parts": _parts(parts),
            "pending": pending,
            "missing": missing,
        }, arrays

    def mask(
        self,
        clicks: list[tuple[int, bool]],
        *,
        n_eig: int,
        threshold: float,
        wanted: list[tuple[RunBook, str]],
    ) -> tuple[dict[str, Any], list[Any]]:
        """Return the header and one uint8 array per site; above 128 is in the mask."""
        from ..spectral.click import click

        cut = self.books[0].cut
        if not 1 <= n_eig <= cut.eigvecs.shape[1]:
            raise InputError(f"got {n_eig} eigenvectors; the cut has 1 to {cut.eigvecs.shape[1]}.")
        with self._heavy:
            rows = np.array([row for row, _ in clicks])
            signs = np.array([sign for _, sign in clicks])
            if np.intersect1d(rows[signs], rows[~signs]).size:
                raise InputError("a token is clicked as positive and as negative; choose one.")
            maker = click(
                np.array(cut.eigvecs[rows, :n_eig]),
                np.flatnonzero(signs),
                np.flatnonzero(~signs),
                eigenvalues=np.array(cut.eigenvalues[:n_eig]),  # not the memory map: torch warns of it
                threshold=threshold,
            )
            arrays, n_in = [], 0
            for book, site in wanted:
                scores = maker.scores(np.array(book.cut.eigvecs[book.cut.parts[site].rows, :n_eig]))
                n_in += int((scores > 0).sum())
                step = np.round(np.nan_to_num(scores, nan=-1.0) * 127)
                step = np.where(scores > 0, np.maximum(step, 1), np.minimum(step, 0))
                arrays.append(np.clip(128 + step, 0, 255).astype(np.uint8))
            return {"parts": _parts(wanted), "n_in": n_in}, arrays

    def without_paths(self, text: str) -> str:
        """Return a message without places on this machine: of the runs, or of anything else."""
        for book in self.books:
            for path in {str(book.run.path.resolve()), str(book.run.path)}:
                if "/" in path:
                    text = text.replace(path, book.run.path.name)
        return _PLACE.sub(r"\1", text)


def _parts(wanted: list[tuple[RunBook, str]]) -> list[dict[str, str]]:
    return [{"run": book.key, "site": site} for book, site in wanted]


def static_bytes(name: str) -> bytes:
    """Return a file of the built page."""
    return (files("vlascope.app") / "static" / name).read_bytes()
