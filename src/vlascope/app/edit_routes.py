"""The addresses behind the panel of edits: what can be tried, try it, how far it is, stop it, what it did.

Annotations are evaluated here, as in `server`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..errors import InputError
from ..views.choose import episodes_of
from .book import RunBook
from .job import Jobs

_NO_STORE = {"cache-control": "no-store"}
_MAX_WORDS = 200


def add_edit_routes(api: Any, book_of: Callable[[str], RunBook], *, clean: Callable[[str], str]) -> Jobs:
    """Add them to the application and return the jobs that they start.

    Args:
        api: The FastAPI application.
        book_of: Finds a run by its key, or refuses.
        clean: Takes places on this machine out of a message.
    """
    from fastapi import Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from .questions import EditAsk, Key, Number
    from .wire import pack

    jobs = Jobs(clean=clean)

    @api.get("/api/runs/{key}/edits")
    def get_choices(key: Key) -> JSONResponse:
        """Return what the panel offers: kinds of tokens, words of the prompts, modules, dictionaries."""
        return JSONResponse(edit_choices(book_of(key)), headers=_NO_STORE)

    @api.post("/api/edits", status_code=202)
    def post_edit(body: EditAsk) -> JSONResponse:
        """Start trying an edit; one at a time."""
        from .trial import try_edit

        book = book_of(body.run)
        if body.site and body.kind in ("tokens", "group"):
            book.site(body.site)
        if body.kind == "words":
            word_site(book, body.site)
        if any(c.run != body.run or c.site != body.site for c in body.clicks):
            raise InputError("the clicks are at another layer; steer at theirs, or click at this one.")
        items = edit_items(book, body.item, frames=body.frames, scope=body.scope)
        job = jobs.start(partial(_work, book, body, items, try_edit))
        if job is None:
            raise HTTPException(409, "another edit is being tried; wait for it, or stop it")
        return JSONResponse(job.to_json(), status_code=202, headers=_NO_STORE)

    @api.get("/api/edits/{number}")
    def get_edit(number: Number) -> JSONResponse:
        """Return how far a job is."""
        return JSONResponse(job_of(number).to_json(), headers=_NO_STORE)

    @api.post("/api/edits/{number}/stop")
    def stop_edit(number: Number) -> JSONResponse:
        """Ask a job to stop; it does so between two modules of the model."""
        job = job_of(number)
        job.cancel()
        return JSONResponse(job.to_json(), headers=_NO_STORE)

    @api.get("/api/edits/{number}/result", response_class=Response)
    def get_result(number: Number) -> Response:
        """Return what an edit did: facts, and int32 [t] per site, the token that each of the item's has become like."""
        job = job_of(number)
        if job.state != "done":
            raise HTTPException(409, f"this edit is {job.state}")
        sites = list(job.result.nearest)
        message = pack({"facts": job.result.facts, "sites": sites}, [job.result.nearest[s] for s in sites])
        return Response(message, media_type="application/octet-stream", headers=_NO_STORE)

    def job_of(number: int) -> Any:
        job = jobs.find(number)
        if job is None:
            raise HTTPException(404, "there is no such edit; another one was tried since")
        return job

    return jobs


def _work(book: RunBook, ask: Any, items: list[int], try_edit: Any, job: Any) -> Any:
    return try_edit(book, book.model, ask, items=items, job=job)


def edit_choices(book: RunBook) -> dict[str, Any]:
    """Return what can be tried on a run's model, as far as the run tells without loading it."""
    from .edits import dictionary_folders, token_kinds

    run = book.run
    words = dict.fromkeys(word.strip(".,?!") for p in book.items["prompts"] if p for word in p.split())
    blocks = [name for name in run.sites if name.split(".")[-1].isdigit()]
    return {
        "kinds": token_kinds(book),
        "words": list(words)[:_MAX_WORDS],
        "modules": [f"{name}.{part}" for name in blocks for part in ("attn", "mlp")],
        "dictionaries": [folder.name for folder in dictionary_folders(book)],
        "answers": bool(run.responses),
    }


def word_site(book: RunBook, site: str) -> None:
    """Refuse to steer between words at a layer of the cut that has none, before the model is loaded.

    Raises:
        InputError: the layer has no words; names the last one that has.
    """
    if site not in book.cut.parts or book.index.has_words(site):
        return
    fit = [name for name in book.cut.sites if book.index.has_words(name)]
    advice = f"choose one that has, such as {fit[-1]}" if fit else "no layer of this run has any"
    raise InputError(f"{site} has no words; {advice}.")


def edit_items(book: RunBook, item: int, *, frames: int, scope: str) -> list[int]:
    """Return the items that an edit is tried on: the given one first, the others spread over its episode or the run.

    Raises:
        InputError: no such item.
    """
    if not 0 <= item < book.run.n_items:
        raise InputError("there is no such item in this run.")
    held = episodes_of(book.run)
    episode = book.run.items[item].episode
    pool = list(held[episode]) if scope == "episode" and episode in held else list(range(book.run.n_items))
    pool = [one for one in pool if one != item]
    chosen = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), frames - 1)).round().astype(int))
    return [item, *(pool[i] for i in chosen)] if pool else [item]
