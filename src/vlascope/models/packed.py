"""Packed tensors: the tokens of a batch's items in an order of the model's own.

Models that cut an image into tiles put each tile into a row of the batch. Qwen-VL's vision tower packs images of
any shape one after another into one [n, d] tensor, patches of one merged token side by side, and (in 2.5) the
windows of its attention side by side. What a site shows is one row per item, in the order of its layout, so that
tokens are counted in edits as in layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError


class Packing:
    """How a packed tensor is laid out; the family sets it before each forward pass.

    Shared by all sites of one tower, so that it is state and no value: two packings are never equal.

    Attributes:
        is_flat: Whether the tensor is [n, d] with all images in one row, and not [rows, t, d].
    """

    def __init__(self, *, is_flat: bool = False) -> None:
        self.is_flat = is_flat
        self._index: Tensor | None = None

    def set(self, orders: Sequence[Tensor]) -> None:
        """Say where tokens lie.

        Args:
            orders: Per item int64 [t]: where each token of its layout lies in the tensor, whose rows and tokens
                are counted through. Together they name every place once.
        """
        longest = max(len(order) for order in orders)
        index = torch.full((len(orders), longest), -1, dtype=torch.long)
        for item, order in enumerate(orders):
            index[item, : len(order)] = order
        self._index = index

    def unfold(self, packed: Tensor) -> Tensor:
        """Return [items, longest, d], a copy, of [n, d] or [rows, t, d]; short items are filled up with zeros.

        Raises:
            InputError: the tensor is not packed in this way.
        """
        index = self._checked(packed)
        rows = packed.reshape(-1, packed.shape[-1])[index.clamp(min=0)]
        return rows.masked_fill((index < 0)[..., None], 0)

    def fold(self, items: Tensor, *, into: Tensor) -> Tensor:
        """Return a packed tensor like `into` with the tokens of `items` [items, longest, d]."""
        index = self._checked(into)
        is_token = index >= 0
        out = into.new_empty(int(is_token.sum()), into.shape[-1])
        out[index[is_token]] = items[is_token]
        return out.view(into.shape)

    def _checked(self, packed: Tensor) -> Tensor:
        if self._index is None:
            raise InputError("a packed site was read outside a forward pass of its family.")
        n_tokens = int((self._index >= 0).sum())
        if packed.ndim not in (2, 3) or packed.shape[:-1].numel() != n_tokens:
            raise InputError(
                f"got a tensor of shape {tuple(packed.shape)}; the items of this batch have {n_tokens} tokens at "
                "this place. Name another module."
            )
        return self._index.to(packed.device)


def one_after_another(orders: Sequence[Tensor]) -> list[Tensor]:
    """Return the orders of parts, each counted from 0, as places in a tensor that holds them in a row."""
    starts = [0]
    for order in orders:
        starts.append(starts[-1] + len(order))
    return [order + start for order, start in zip(orders, starts, strict=False)]
