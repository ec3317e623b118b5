"""Greedy decoding with a key-value cache: what `generate` computes, without its overhead per token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from .hooks import Hooks

Step = Callable[..., tuple[Tensor, Any]]
"""step(input_ids, attention_mask=, position_ids=, past_key_values=, last=) -> (logits [b, vocab], cache).

`last` is the index of the token per row whose logits are wanted."""


def greedy(
    step: Step,
    *,
    input_ids: Tensor,
    lengths: Sequence[int],
    hooks: Hooks,
    eos_ids: Collection[int],
    max_new_tokens: int,
    layout: str = "language",
) -> list[list[int]]:
    """Return the most likely continuation of each row, token by token.

    Prompts are padded on the right: row i's answer continues at position `lengths[i]`, and its padding stays
    masked for ever. Without padding no mask is built at all.

    Args:
        step: One forward pass; the first call gets the prompts, each later call one token per row.
        input_ids: int64 [b, t], padded on the right.
        lengths: Number of true tokens per row.
        hooks: Told the position of each new token, so that edits of single tokens stay where they belong.
        eos_ids: Ids that end an answer (kept as its last id).
        max_new_tokens: At most so many new tokens, >= 1.
        layout: Name of the layout of the sequence.

    Returns:
        New ids per row; the last one is in `eos_ids` unless the limit cut the answer.

    Cost: one pass over the prompts and one short pass per further token.
    """
    device, (n_rows, n_prompt) = input_ids.device, input_ids.shape
    length = torch.tensor(list(lengths), device=device)
    ragged = bool((length != n_prompt).any())
    mask = (torch.arange(n_prompt, device=device)[None] < length[:, None]).long() if ragged else None
    answers: list[list[int]] = [[] for _ in range(n_rows)]
    open_rows = set(range(n_rows))
    hooks.grows = layout
    try:
        logits, cache = step(
            input_ids, attention_mask=mask, position_ids=None, past_key_values=None, last=length - 1
        )
        for n_new in range(1, max_new_tokens + 1):
            token = logits.argmax(-1)
            for row, token_id in enumerate(token.tolist()):
                if row in open_rows:
                    answers[row].append(token_id)
                    if token_id in eos_ids:
                        open_rows.discard(row)
            if not open_rows or n_new == max_new_tokens:
                break
            hooks.positions = length + (n_new - 1)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(n_rows, 1)], dim=1)
            logits, cache = step(
                token[:, None],
                attention_mask=mask,
                position_ids=hooks.positions[:, None] if ragged else None,
                past_key_values=cache,
                last=torch.zeros_like(length),
            )
    finally:
        hooks.positions = hooks.grows = None
    return answers
