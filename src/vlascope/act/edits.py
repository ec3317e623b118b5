"""What every edit of a model is here, and which tokens it touches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, nearest_text
from ..models.layout import KINDS

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model, Site, TokenLayout

WHERE = ("all", "last", "answer", "readout", *KINDS)
"""Names of token sets: every token; the last one of the prompt; the tokens of the answer; `last` and `answer` together
(what the answer is read from); or the prompt's tokens of a kind."""

MAX_ANSWER = 256

Where = str | Callable[["TokenLayout"], NDArray[np.bool_]]


@runtime_checkable
class ModelEdit(Protocol):
    """A change of what a model computes: steering, a knock-out, a patch.

    Everything in this room takes any of them. They are plain values: the same one may be used on several copies of a
    model, and can be sent to other processes.
    """

    @property
    def name(self) -> str:
        """Short name, for tables."""
        ...

    def on(self, model: Model) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which every forward pass of the model is changed."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return what it does as JSON types."""
        ...


class Nothing:
    """The edit that changes nothing."""

    name = "no edit"

    def on(self, model: Model) -> contextlib.AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return contextlib.nullcontext(model)

    def to_json(self) -> dict[str, Any]:
        """Return its name."""
        return {"name": self.name}


class Together:
    """Several edits at once, applied in order."""

    def __init__(self, edits: Sequence[ModelEdit]) -> None:
        if not edits:
            raise InputError("got no edits to apply together; give at least one.")
        self.edits = tuple(edits)
        self.name = " + ".join(edit.name for edit in self.edits)

    @contextlib.contextmanager
    def on(self, model: Model) -> Iterator[Model]:
        """Apply all of them."""
        with contextlib.ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.on(model))
            yield model

    def to_json(self) -> dict[str, Any]:
        """Return all of them."""
        return {"name": self.name, "edits": [edit.to_json() for edit in self.edits]}


def check_where(where: Where) -> None:
    """Raise `InputError` for a name of tokens that does not exist."""
    if isinstance(where, str) and where not in WHERE:
        raise InputError(
            f"got tokens '{where}'; known are {', '.join(WHERE)}.{nearest_text(where, WHERE)} "
            "Or give a function of the layout."
        )


def check_batch_size(batch_size: int) -> None:
    """Raise `InputError` for a batch of nothing."""
    if batch_size < 1:
        raise InputError(f"got batch_size={batch_size}; need at least 1 item per forward pass.")


def tokens_at(model: Model, where: Where, *, layout_name: str) -> Callable[[TokenLayout], Any] | None:
    """Return what `Model.edit(tokens=...)` takes to change the tokens that `where` names.

    In a pass over prompt and answer together the kinds mean the prompt's tokens only, as they do while an answer is
    decoded, so that both kinds of pass are edited alike.

    Args:
        model: The model; asked for the batch under way.
        where: Tokens.
        layout_name: Layout of the site.
    """
    check_where(where)
    if where == "all":
        return None

    def choose(layout: TokenLayout) -> NDArray[Any]:
        n_answer = _answer_length(model, layout, layout_name)
        n_prompt = len(layout) - n_answer
        if callable(where):
            mask = np.asarray(where(layout), bool).copy()
            mask[n_prompt:] = False
            return mask
        rows = np.arange(len(layout))
        if where in ("last", "answer", "readout"):
            grows = model._hooks.grows == layout_name
            end = len(layout) + (MAX_ANSWER if grows else 0)
            first = n_prompt if where == "answer" else n_prompt - 1
            return np.arange(first, n_prompt if where == "last" else end)
        return rows[layout.is_kind(where) & (rows < n_prompt)]

    return choose


def check_has_tokens(model: Model, where: Where, *, site: Site, items: Sequence[Item]) -> None:
    """Raise where a site has the tokens of `where` for none of the items: an edit there would change nothing.

    Raises:
        InputError: it has none; the message names the kinds that it has.

    Cost: one item prepared, unless the first ones lack them.
    """
    choose = tokens_at(model, where, layout_name=site.layout)
    if choose is None or (where == "answer" and site.layout == "language"):
        return  # prompts hold no token of the answer, but the language model will
    seen: dict[str, None] = {}
    for item in items:
        (layout,) = model.prepare([item]).layouts[site.layout]
        rows = choose(layout)
        if rows.any() if rows.dtype == bool else len(rows):
            return
        seen |= dict.fromkeys(kind for kind in KINDS if layout.is_kind(kind).any())
    what = f"'{where}' tokens" if isinstance(where, str) else "tokens that the function chooses"
    raise InputError(
        f"{site.name} has no {what} in any of {len(items)} items, so that nothing would be changed; it has "
        f"{', '.join(seen) or 'none at all'}. Choose other tokens or another site."
    )


def _answer_length(model: Model, layout: TokenLayout, layout_name: str) -> int:
    batch = model._hooks.batch
    if batch is None or batch.answers is None or layout_name != "language":
        return 0
    at = next((i for i, one in enumerate(batch.layouts[layout_name]) if one is layout), None)
    return 0 if at is None else len(batch.answers[at].token_ids)
