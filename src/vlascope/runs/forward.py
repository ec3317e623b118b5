"""One batch through the model: activations in the stored type, layouts and answers, ready to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import InputError, VlascopeError
from ..items.item import Item
from ..models.layout import TokenLayout
from .arrays import to_stored
from .block import BlockWriter

if TYPE_CHECKING:
    from ..models import Batch, Model
    from ..models.copies import CopyPool

_Result = tuple[dict[str, list[TokenLayout]], dict[str, list[NDArray[Any]]], dict[int, Any]]


class Forward:
    """Runs batches; halves them for good when the device runs out of memory, and says so once per halving."""

    def __init__(
        self, model: Model, *, settings: Mapping[str, Any], on_warning: Callable[[str], None]
    ) -> None:
        self._model, self._settings, self._warn = model, settings, on_warning
        self._sites: list[str] = list(settings["sites"])
        self._limit: int = settings["batch_size"]
        self._pool = _new_pool()

    def job(self, batch: Sequence[tuple[int, Item]], writing: BlockWriter) -> tuple[Callable[[], None], int]:
        """Run a batch of (index, item) now; return the job that writes the result, and its bytes of activations."""
        layouts, acts, responses = self._run([item for _, item in batch])
        n_bytes = sum(rows.nbytes for parts in acts.values() for rows in parts)
        copies = self._pool.take_lent()

        def write() -> None:
            writing.append(batch, layouts=layouts, acts=acts, responses=responses)
            self._pool.give_back(copies)

        return write, n_bytes

    def _run(self, items: Sequence[Item]) -> _Result:
        import torch

        # A part may halve the limit once more: the parts of this batch are cut by the one it began with.
        if len(items) > (size := self._limit):
            return _joined(self._run(items[at : at + size]) for at in range(0, len(items), size))
        try:
            return self._run_once(items)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(items) == 1:
                raise InputError(
                    f"item '{items[0].item_id}' alone does not fit into the memory of {self._model.device} "
                    f"({error}). Capture fewer sites, load the model in a smaller type (dtype 'bfloat16'), or use "
                    "another device."
                ) from error
        # Outside the handler: its traceback would keep the tensors of the failed pass alive.
        self._pool.clear()
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
        tensors = model.capture(batch, self._sites, copy=self._pool.copy)
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


def _new_pool() -> CopyPool:
    from ..models.copies import CopyPool

    return CopyPool()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device, or the machine, ran out of memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Older drivers, Apple's backend and the CPU allocator raise plain RuntimeErrors.
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, VlascopeError)
        and any(x in text for x in said)
    )


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
