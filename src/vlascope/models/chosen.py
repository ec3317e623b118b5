"""Which tokens an edit changes: rows of a site's layout, per item, found again in the tensor of a batch.

A site's tensor may hold one row per item, one per image of an item (several cameras), items in several spans with
filling between them, or, while an answer is decoded, one new token per item. `Batch.rows` says which; what the caller
counts are always the rows of an item's `TokenLayout`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, nearest_text
from .layout import TokenLayout

if TYPE_CHECKING:
    from .batch import Batch
    from .sites import Site

Numbers = Sequence[int] | Sequence[bool] | np.ndarray | Tensor
Choice = Numbers | Callable[[TokenLayout], Numbers]
Tokens = Choice | Mapping[int, Choice] | Mapping[str, Choice] | None
"""Row numbers or a bool mask; a function of an item's layout that returns either; or one of these per item, by its
place in the batch or by its `item_id` (other items are left alone). None means all tokens."""


class Chosen:
    """The tokens that one edit changes.

    Args:
        tokens: See `Tokens`.
        site: Where.

    Raises:
        InputError: numbers that are no rows.
    """

    def __init__(self, tokens: Choice | Mapping[int, Choice] | Mapping[str, Choice], *, site: Site) -> None:
        self.site = site
        self.tokens = tokens
        parts = tokens.values() if isinstance(tokens, Mapping) else [tokens]
        for part in parts:
            if not callable(part):
                _numbers(part, site=site)  # complain before the pass, not in the middle of it
        self._known: tuple[Mapping, list[NDArray[np.int64]]] | None = None
        given = tokens if isinstance(tokens, Mapping) else {}
        self._unmet = {key for key in given if isinstance(key, str)}  # items that no batch had so far
        self._seen: set[str] = set()  # items of the batches, kept while any is unmet

    def check_items(self) -> None:
        """Raise `InputError` when batches were run and none of them had an item that `tokens` names."""
        if self._unmet and self._seen:
            wrong = sorted(self._unmet)[0]
            there = ", ".join(repr(one) for one in sorted(self._seen)[:3])
            raise InputError(
                f"tokens of site '{self.site.name}' are given for item '{wrong}', but no batch that was run had it, "
                f"so that nothing was changed there.{nearest_text(wrong, self._seen) or f' There were {there}.'}"
            )

    def mask(
        self, shape: tuple[int, int], *, batch: Batch | None, positions: Tensor | None, grows: bool, call: int
    ) -> NDArray[np.bool_]:
        """Return bool [rows, t]: the tokens to change in a tensor of that shape.

        Args:
            shape: (rows, t) of the tensor.
            batch: What is being run; None for a pass that vlascope does not run itself: tokens are then counted
                through each row, and have to be numbers.
            positions: While an answer is decoded: the place of the new token in each row, int64 [rows].
            grows: Whether later passes append tokens to these, so that numbers past the end are no mistake.
            call: How often the module has been called in this pass, for modules that run once per camera.

        Raises:
            InputError: tokens that an item does not have, or a tensor that does not fit its layout.
        """
        if batch is None:
            return self._by_row(shape, positions)
        site = self.site
        if site.layout not in batch.rows:
            raise InputError(
                f"site '{site.name}' has no tokens in this batch (it has {', '.join(batch.rows)})."
            )
        rows = self._per_item(batch)
        out = np.zeros(shape, bool)
        if positions is not None:
            return self._one_new_token(out, rows, batch, positions.tolist())
        if not grows:
            self._check(rows, batch)
        first_row = call * shape[0] if site.repeats == "images" else 0
        for wanted, places in zip(rows, batch.rows[site.layout], strict=True):
            n_before = 0
            for row, first, end in places:
                inside = wanted[(wanted >= n_before) & (wanted < n_before + end - first)] - n_before + first
                n_before += end - first
                row -= first_row
                if not len(inside) or (site.repeats == "images" and not 0 <= row < shape[0]):
                    continue  # another call of this module has it
                if row >= shape[0] or inside[-1] >= shape[1]:
                    raise InputError(
                        f"site '{site.name}' gives {shape[0]} x {shape[1]} tokens, fewer than its layout "
                        f"'{site.layout}' has. Declare the right grid and prefix, or name another module."
                    )
                out[row, inside] = True
        return out

    def _by_row(self, shape: tuple[int, int], positions: Tensor | None) -> NDArray[np.bool_]:
        if callable(self.tokens) or isinstance(self.tokens, Mapping):
            raise InputError(
                f"tokens of site '{self.site.name}' depend on the item, but the model was called directly, not by "
                "model.capture() or model.respond(). Give row numbers, or use these."
            )
        wanted = _numbers(self.tokens, site=self.site, lengths=None if positions is not None else {shape[1]})
        here = np.arange(shape[1])[None]
        here = here if positions is None else here + np.asarray(positions.tolist())[:, None]
        if positions is None and len(wanted) and wanted[-1] >= shape[1]:
            raise self._missing(int(wanted[-1]), "", shape[1])
        return np.broadcast_to(np.isin(here, wanted), shape).copy()  # torch takes no read-only array

    def _one_new_token(
        self, out: NDArray[np.bool_], rows: list[NDArray[np.int64]], batch: Batch, positions: list[int]
    ) -> NDArray[np.bool_]:
        layout = self.site.layout
        for wanted, places, item in zip(rows, batch.rows[layout], batch.layouts[layout], strict=True):
            row, _, end = places[-1]
            out[row, 0] = len(item) + positions[row] - end in wanted
        return out

    def _check(self, rows: list[NDArray[np.int64]], batch: Batch) -> None:
        layouts = batch.layouts[self.site.layout]
        for wanted, layout, item_id in zip(rows, layouts, batch.item_ids, strict=True):
            if len(wanted) and wanted[-1] >= len(layout):
                raise self._missing(int(wanted[-1]), f" in item '{item_id}'", len(layout))

    def _missing(self, token: int, where: str, n_tokens: int) -> InputError:
        return InputError(
            f"token {token} of site '{self.site.name}' does not exist{where}; it has {n_tokens} tokens. Where "
            "items differ, choose by a function of the layout (tokens=lambda layout: layout.is_kind('patch')) or "
            "per item (tokens={0: [3], 1: [5]})."
        )

    def _per_item(self, batch: Batch) -> list[NDArray[np.int64]]:
        """Return the sorted rows per item; kept until another batch is run."""
        layouts = batch.layouts
        if self._known is not None and self._known[0] is layouts:
            return self._known[1]
        if self._unmet:
            self._unmet -= set(batch.item_ids)
            self._seen |= set(batch.item_ids)
        choices: list[Choice | None] = [None] * len(batch)
        if isinstance(self.tokens, Mapping):
            for key, choice in self.tokens.items():
                for index in self._places(key, batch):
                    choices[index] = choice
        else:
            choices = [self.tokens] * len(batch)
        found = []
        for i, (choice, layout) in enumerate(zip(choices, layouts[self.site.layout], strict=True)):
            lengths = {len(layout)}
            if not callable(choice) and batch.answers is not None and self.site.layout == _ANSWERED:
                # A mask that was written down before the model answered means the prompt's tokens.
                lengths.add(len(layout) - len(batch.answers[i].token_ids))
            given = choice(layout) if callable(choice) else [] if choice is None else choice
            found.append(_numbers(given, site=self.site, lengths=lengths, item_id=batch.item_ids[i]))
        self._known = (layouts, found)
        return found

    def _places(self, key: int | str, batch: Batch) -> list[int]:
        if isinstance(key, str):
            return [i for i, item_id in enumerate(batch.item_ids) if item_id == key]
        if not 0 <= key < len(batch):
            raise InputError(
                f"tokens of site '{self.site.name}' are given for item {key}; the batch has items "
                f"0..{len(batch) - 1}. Name items by their item_id where batches differ."
            )
        return [key]


_ANSWERED = "language"  # the layout that answers are appended to


def _numbers(
    tokens: Numbers, *, site: Site, lengths: Collection[int] | None = None, item_id: str | None = None
) -> NDArray[np.int64]:
    """Return sorted row numbers, each once; `lengths` are those that a mask may have, None for any."""
    given = np.asarray(tokens.detach().cpu() if isinstance(tokens, Tensor) else tokens)
    if given.ndim != 1:
        raise InputError(
            f"tokens for site '{site.name}' must be one-dimensional; got an array of shape {given.shape}."
        )
    if given.dtype == bool:
        if lengths is not None and len(given) not in lengths:
            raise InputError(
                f"the token mask for site '{site.name}' has {len(given)} entries; the item "
                f"{f'{item_id!r} ' if item_id else ''}has {max(lengths)} tokens. Where items differ, give a function "
                "of the layout or a mask per item."
            )
        return np.flatnonzero(given)
    if not len(given):
        return np.zeros(0, np.int64)
    if given.dtype.kind not in "iu" or (given < 0).any():
        raise InputError(
            f"tokens for site '{site.name}' must be a bool mask or row numbers >= 0, one-dimensional."
        )
    return np.unique(given.astype(np.int64))


def masked(mask: NDArray[np.bool_], *, like: Tensor) -> Tensor:
    """Return the mask [rows, t] as a tensor [rows, t, 1] on the device of `like`."""
    return torch.from_numpy(mask).to(like.device)[..., None]
