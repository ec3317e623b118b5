"""One batch through the model: activations in the stored type, layouts and answers, ready to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import InputError
from ..items.item import Item
from ..models.layout import TokenLayout
from .arrays import to_stored
from .block import BlockWriter

if TYPE_CHECKING:
    from ..models import Batch, Model

_Result = tuple[dict[str, list[TokenLayout]], dict[str, list[NDArray[Any]]], dict[int, Any]]


class Forward:
    """Runs batches; halves them for good when the device runs out of memory, and says so once per halving."""

    def __init__(
        self, model: Model, *, settings: Mapping[str, Any], on_warning: Callable[[str], None]
    ) -> None:
        self._model, self._settings, self._warn = model, settings, on_warning
        self._sites: list[str] = list(settings["sites"])
        self._limit: int = settings["batch_size"]

    def job(
        self, items: Sequence[Item], batch: Sequence[tuple[int, Item]], writing: BlockWriter
    ) -> Callable[[], None]:
        """Run the items of a batch now; return the job that writes the result."""
        layouts, acts, responses = self._run(items)
        return partial(writing.append, batch, layouts=layouts, acts=acts, responses=responses)

    def _run(self, items: Sequence[Item]) -> _Result:
        import torch

        if len(items) > self._limit:
            return _joined(
                self._run(items[at : at + self._limit]) for at in range(0, len(items), self._limit)
            )
        try:
            return self._run_once(items)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
        # Outside the handler: its traceback would keep the tensors of the failed pass alive.
        self._limit = max(1, len(items) // 2)
        self._warn(f"the device ran out of memory: batches of {len(items)} were halved to {self._limit}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._run(items)

    def _run_once(self, items: Sequence[Item]) -> _Result:
        settings, model = self._settings, self._model
        batch = model.prepare(items)
        answers = self._answers(items, batch)
        if settings["with_answer"]:
            batch = model.prepare(items, answers=[answers[i] for i in range(len(items))])
        tensors = model.capture(batch, self._sites)
        acts = {}
        for site in self._sites:
            if len(tensors[site]) != len(items):
                raise InputError(f"site '{site}' gave {len(tensors[site])} arrays for {len(items)} items.")
            acts[site] = [
                to_stored(values, settings["dtype"], what=f"item '{item.item_id}', site '{site}'")
                for item, values in zip(items, tensors[site], strict=True)
            ]
        return {name: list(layouts) for name, layouts in batch.layouts.items()}, acts, answers

    def _answers(self, items: Sequence[Item], batch: Batch) -> dict[int, Any]:
        """Return the answers by place in the batch.

        Items without a prompt are asked the model's default question only when `respond` is True or the answer's
        own tokens are wanted.
        """
        settings = self._settings
        if settings["respond"] is False or not self._model.answers:
            return {}
        ask_all = settings["respond"] is True or settings["with_answer"]
        asked = [i for i, item in enumerate(items) if ask_all or item.prompt is not None]
        if not asked:
            return {}
        question = batch if len(asked) == len(items) else [items[i] for i in asked]
        given = self._model.respond(question, max_new_tokens=settings["max_new_tokens"])
        return dict(zip(asked, given, strict=True))


def _joined(results: Any) -> _Result:
    """Return the results of parts of a batch as one."""
    layouts: dict[str, list[TokenLayout]] = {}
    acts: dict[str, list[NDArray[Any]]] = {}
    answers: dict[int, Any] = {}
    first = 0
    for part_layouts, part_acts, part_answers in results:
        n_items = len(next(iter(part_acts.values())))
        for name, values in part_layouts.items():
            layouts.setdefault(name, []).extend(values)
        for name, values in part_acts.items():
            acts.setdefault(name, []).extend(values)
        answers.update({first + i: response for i, response in part_answers.items()})
        first += n_items
    return layouts, acts, answers
