"""Prompts into token ids, and token ids into words that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError
from .layout import KINDS, TokenLayout, plain_tokens


class Words:
    """A tokenizer with what vlascope needs of it. Costs nothing until used."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special_ids = frozenset(int(i) for i in tokenizer.all_special_ids)
        # Bounded by the vocabulary; turning ids into text one by one is slow.
        self.text = lru_cache(maxsize=None)(self._text)

    def _text(self, token_id: int) -> str:
        """The word or word piece of one id; a leading space where the tokenizer marks the start of a word."""
        token = self.tokenizer.convert_ids_to_tokens(int(token_id))
        if token is None:
            return f"<{int(token_id)}>"
        if int(token_id) in self.special_ids:
            return str(token)
        starts_word = token.startswith(("\u2581", "\u0120"))
        body = self.tokenizer.convert_tokens_to_string([token]).strip(" ").removesuffix("</w>")
        return f" {body}" if starts_word else body

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt with the tokenizer's special tokens, the first of them only once."""
        bos = self.tokenizer.bos_token
        add_special = not (bos and text.startswith(bos))
        return list(self.tokenizer(text, add_special_tokens=add_special)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def layout(self, ids: Sequence[int], *, kind: str = "text") -> TokenLayout:
        """Return the layout of tokens that lie nowhere in an image; special ids get the kind "special"."""
        layout = plain_tokens(kind, [self.text(int(i)) for i in ids])
        special = np.array([int(i) in self.special_ids for i in ids], dtype=bool)
        layout.kind[special] = KINDS.index("special")
        return layout


def fill_template(template: str, prompt: str) -> str:
    """Return `template` with the prompt put in place of {prompt} (or {instruction})."""
    # No str.format: prompts and templates may hold other braces.
    for key in ("{prompt}", "{instruction}"):
        if key in template:
            return template.replace(key, prompt)
    raise InputError(f"the prompt template {template!r} has no {{prompt}} in it.")


def pad_right(rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None = None) -> np.ndarray:
    """Return int64 [b, t]: the rows, filled up on the right."""
    width = length or max(len(row) for row in rows)
    out = np.full((len(rows), width), pad_id, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
