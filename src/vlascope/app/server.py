"""The server's addresses: what the page may ask, checked before it is answered.

Annotations are evaluated here (no `from __future__ import annotations`): FastAPI reads them from functions that are
defined inside `create_app`, where it is imported.
"""

import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

from .._version import __version__
from ..errors import InputError, SiteNotFoundError, VlascopeError, missing_extra
from .book import RunBook
from .front import FIRST, Front
from .security import Guard
from .state import State
from .wire import pack

_BINARY = "application/octet-stream"
_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}


def create_app(
    books: Sequence[RunBook],
    *,
    table: FilePath | None = None,
    token: str | None = None,
    background: bool = False,
) -> Guard:
    """Return the ASGI application for one or two opened runs.

    Args:
        books: What `open_books` returned.
        table: CSV file that labels of episodes and images are written to; None takes labels.csv in the first run.
        token: Needed by every request when given (the server can then be reached from other machines).
        background: Return at once, with the routes still being made in a thread; requests wait for what they need.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    if find_spec("fastapi") is None:
        raise missing_extra("fastapi", extra="app", needed_for="vlascope app")
    state = State(books)
    front = Front(lambda: _routes(state, table=table), state.first, shown=state.shown.set)
    guard = Guard(front, token=token)
    guard.prepare_all, guard.shown, guard.stop = state.prepare_all, state.shown, state.stop
    if background:
        threading.Thread(target=front.load, name="vlascope-routes", daemon=True).start()
    else:
        front.load()
    guard.openapi = front.openapi
    return guard


def _routes(state: State, *, table: FilePath | None) -> Any:
    """Return the FastAPI application behind the front."""
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from ..items import ReviewTable
    from .edit_routes import add_edit_routes
    from .media import image_bytes
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

    books = state.books
    by_key = {book.key: book for book in books}
    reviews = ReviewTable(books[0].run.path / "labels.csv" if table is None else table)
    api = FastAPI(title="vlascope", version=__version__, docs_url=None, redoc_url=None)

    def book_of(key: str) -> RunBook:
        if key not in by_key:
            raise HTTPException(404, "there is no such run here; reload the page")
        return by_key[key]

    def binary(header: dict[str, Any], arrays: Sequence[Any], *, keep: bool = False) -> Response:
        headers = _FOREVER if keep else {"cache-control": "no-store"}
        return Response(pack(header, arrays), media_type=_BINARY, headers=headers)

    @api.get(FIRST, response_class=Response)
    def get_first() -> Response:
        """Return all that the page's first picture needs: what /api/state says, items, layouts, colours, images."""
        return Response(state.first(), media_type=_BINARY, headers={"cache-control": "no-store"})

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
        """Return the cluster of every token of a site, uint8 (uint16 above k = 256) [n], and the clusters' colours."""
        book = book_of(key)
        values = book.labels(book.site(site), k)
        header = {"site": site, "k": k, "bytes": values.itemsize, "colors": book.group_colors(k)}
        return binary(header, [values], keep=True)

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

    state.jobs = add_edit_routes(api, book_of, clean=state.without_paths)

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

    return api
