"""What the server's addresses share: the runs, which are asked together, and one heavy question at a time."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._version import __version__
from ..errors import InputError, SiteNotFoundError, StorageError, VlascopeError
from ..palette import METHODS
from .book import RunBook, shared_items
from .job import Jobs
from .media import image_bytes
from .memory import give_back
from .similarity import EXACT_BYTES, Stopping, to_bytes
from .wire import pack
from .workers import each

FEW_SITES = 4
"""So many sites are always compared exactly, whatever their size: those on the page."""

_LOG = logging.getLogger(__name__)
_PLACE = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+([^\s'\"/\\]*)")
"""A path from the root (or home) on: all but its last part is nobody's business. No URL, no "and/or"."""


class State:
    """What the addresses share: the runs, which are asked together, and one heavy question at a time."""

    def __init__(self, books: Sequence[RunBook]) -> None:
        self.books = list(books)
        # One at a time: memory stays bounded, and each gets all cores. A page asks for one thing at a time anyway.
        self._heavy = threading.Lock()
        self._error: str | None = None
        self.shown = threading.Event()
        self.jobs: Jobs | None = None
        self._exact: tuple[Any, ...] = ()

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

    def first(self) -> bytes:
        """Return one message with all that the page's first picture needs, so that it has to ask only once.

        Header: `state` (see `describe`), `items` and, where the first picture has any, `layouts`, `episodes`,
        `colors` and `images`, each naming what it is; the arrays are those of `colors`, then of `images`.
        """
        told = self.describe()
        shared = told["shared_items"]
        item = 0 if shared is None else next((i for i in shared if i >= 0), 0)
        colors, layouts, episodes, images, arrays = [], [], [], [], []
        for number, (book, one) in enumerate(zip(self.books, told["runs"], strict=True)):
            site = one["default_site"]
            layout = book.cut.parts[site].layout
            layouts.append({"run": number, "name": layout, "value": book.layout(layout)})
            colors.append({"run": number, "site": site, "method": one["method"], "n_eig": one["n_eig"]})
            arrays.append(book.colors.rgb(site, method=one["method"], n_eig=one["n_eig"]))
        book = self.books[0]
        episode = book.run.items[item].episode
        if episode is not None:
            episodes.append({"run": 0, "number": episode, "value": book.episode(episode)})
        for camera in range(len(book.run.items[item].cameras)):
            try:
                data, kind = image_bytes(book.run, item, camera)
            except VlascopeError:
                continue  # the page asks for it again by itself, and says what is wrong with it
            images.append({"run": 0, "item": item, "camera": camera, "type": kind})
            arrays.append(np.frombuffer(data, np.uint8))
        header = {"state": told, "items": [book.items for book in self.books], "layouts": layouts,
                  "episodes": episodes, "colors": colors, "images": images}  # fmt: skip
        return pack(header, arrays)

    def stop(self) -> None:
        """Let whatever is being computed end soon: the server is shutting down."""
        for book in self.books:
            book.stopping.set()
        if self.jobs is not None:
            self.jobs.stop()

    def prepare_all(self) -> None:
        """Measure all sites, those first that are shown first; meant for a thread beside the server."""
        for book in self.books:
            for features in book.features.values():
                features.compile()
        for book in self.books:
            first = book.describe()["default_site"]
            for site in sorted(book.features, key=lambda name: name != first):
                try:
                    book.features[site].prepare()
                    give_back()
                except Stopping:
                    return
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
                book.concepts.norms(n_eig)  # once, before the threads ask for them
                arrays = each(
                    lambda one: book.concepts.alike(row, n_eig=n_eig, rows=one[0].cut.parts[one[1]].rows),
                    wanted,
                )
                return {"method": method, "exact": True, "parts": _parts(wanted)}, arrays
            return self._similar_features(book, site, token, wanted)

    def _similar_features(
        self, book: RunBook, site: str, token: int, wanted: list[tuple[RunBook, str]]
    ) -> tuple[dict[str, Any], list[Any]]:
        if self._error:
            raise StorageError(self._error)
        place = book.place(site, token)
        is_few = len(wanted) <= FEW_SITES
        is_exact = is_few or sum(b.features[s].n_bytes for b, s in wanted) <= EXACT_BYTES
        asked, pending, missing = [], [], []
        for other, name in wanted:
            found = token if (other, name) == (book, site) else other.token_at(place, name)
            if found is None:
                missing.append({"run": other.key, "site": name})
            elif is_few or other.features[name].is_ready:
                asked.append((other, name, int(other.cut.parts[name].token_rows[found])))
            else:
                pending.append({"run": other.key, "site": name})

        def answer(one: tuple[RunBook, str, int]) -> tuple[Any, float | None]:
            other, name, row = one
            features = other.features[name]
            rank = None
            if is_exact or (other, name) == (book, site):
                values = to_bytes(self._exactly(other, name, row))
            else:
                values, rank = features.sketched_bytes(row), features.sketch_rank(row)
            rows = other.cut.parts[name].token_rows
            return (
                values if len(rows) == len(values) else values[rows]
            ), rank  # rows are in order, each once

        # Exact products use all cores by themselves; sketches are too small for that.
        if is_exact:
            answers = [answer(one) for one in asked]
        else:
            for one in asked:
                if one[:2] == (book, site):
                    self._exactly(*one)  # not in one of the threads that it needs
            answers = each(answer, asked)
        arrays = [values for values, _ in answers]
        ranks = [rank for _, rank in answers if rank is not None]
        rank = round(min(ranks), 4) if ranks else None
        parts = [(other, name) for other, name, _ in asked]
        return {
            "method": "features",
            "exact": rank is None,
            "rank": rank,
            "parts": _parts(parts),
            "pending": pending,
            "missing": missing,
        }, arrays

    def _exactly(self, book: RunBook, site: str, row: int) -> Any:
        """Return `exact` of a site; the last answer is kept, as a click asks for the shown layer, then for all."""
        if self._exact[:3] != (book, site, row):
            self._exact = (book, site, row, book.features[site].exact(row))
        return self._exact[3]

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
