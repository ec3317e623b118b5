"""What goes into one forward pass (`Batch`) and what a model answers (`Response`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .layout import TokenLayout

Rows = tuple[tuple[int, int, int], ...]
"""Where an item's tokens lie in a site's [b, t, d] tensor: (batch row, first token, past the last token)."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a model answered to one item. `text` is None for models that answer nothing.

    Attributes:
        text: The answer, without special tokens.
        token_ids: Ids of the answer's tokens, without the end-of-text token.
        token_texts: The text of each.
        action: float32 [dof] in the units of the training data; NaN where the reply had no action token;
            None when the answer is no action.
        action_names: Names of the dimensions.
        action_chunk: float32 [H, dof], the actions of the next H steps, for models that plan several at once;
            `action` is then the first of them. None for others.
        action_ids: The ids that are action tokens, in order.
        action_bins: Their bins, 0 for the lowest values.
        flags: What is wrong with an action reply ("word_in_action:2", "too_few_tokens:3"),
            "normalized_units" when the checkpoint does not say how to get back to physical units, and
            "length_limit" when the answer was cut at `max_new_tokens`.
    """

    text: str | None = None
    token_ids: tuple[int, ...] = ()
    token_texts: tuple[str, ...] = ()
    action: NDArray[np.float32] | None = None
    action_names: tuple[str, ...] = ()
    action_chunk: NDArray[np.float32] | None = None
    action_ids: tuple[int, ...] = ()
    action_bins: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Batch:
    """Items ready for a forward pass.

    Attributes:
        inputs: Keyword arguments of the model's forward, on its device.
        layouts: For each layout name one `TokenLayout` per item.
        rows: For each layout name and item where its tokens lie in a site's tensor; padding is left out.
        item_ids: One per item.
        prompts: What was asked; None for models that read no text.
        answers: The answers that the language tokens include, when they were asked for.
        lengths: Padded sequence length of layouts that are filled up beyond their longest item.
        n_rows: Batch rows of layouts whose last ones belong to no item (cameras that an item lacks).
    """

    inputs: dict[str, Tensor]
    layouts: Mapping[str, list[TokenLayout]]
    rows: Mapping[str, list[Rows]]
    item_ids: tuple[str, ...]
    prompts: tuple[str | None, ...] = ()
    answers: tuple[Response, ...] | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)
    n_rows: Mapping[str, int] = field(default_factory=dict)
    source: tuple = field(default=(), repr=False)  # the items, so that answers can be added later

    def __len__(self) -> int:
        return len(self.item_ids)

    def digest(self) -> str:
        """Return a hash of all that the model is given, and of what its tokens are said to be."""
        found = hashlib.sha256()
        for name, value in sorted(self.inputs.items()):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, layouts in sorted(self.layouts.items()):
            found.update(f"{name} {self.rows[name]}".encode())
            for one in layouts:
                for column in (one.kind, one.row, one.col, one.camera, one.tile, one.box):
                    found.update(np.ascontiguousarray(column).tobytes())
                found.update("\0".join(one.text).encode())
        return found.hexdigest()[:16]

    def to(self, device: torch.device) -> Batch:
        """Move the inputs to `device`, in place."""
        self.inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return self
