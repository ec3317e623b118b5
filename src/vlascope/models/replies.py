"""From the ids that a model generated to a `Response`: words, or an action in physical units."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .actions import ActionBins
from .batch import Response
from .text import Words


def action_reply(
    ids: Sequence[int], *, words: Words, bins: ActionBins | None, eos_ids: Collection[int]
) -> Response:
    """Return what a model that may act through action tokens replied.

    A reply without any action token is words; one with too few, too many or other tokens among them is an action
    with flags, and NaN where it has none.

    Args:
        ids: As decoded, with the token that ended the reply if there was one.
        words: The tokenizer.
        bins: How actions are coded; None for a model that answers in words alone.
        eos_ids: Ids that end a reply.
    """
    ended = bool(ids) and ids[-1] in eos_ids
    ids = list(ids[:-1] if ended else ids)
    action, flags, action_ids, names = None, (), (), ()
    if bins is not None:
        action_ids = tuple(int(i) for i in np.asarray(ids, np.int64)[bins.is_action(ids)])
        if action_ids:
            reply = bins.decode(ids)
            action, flags, names = reply.values, reply.problems, bins.dimension_names
    if not ended and (action is None or flags):
        flags = (*flags, "length_limit")
    return Response(
        text=words.decode(ids),
        token_ids=tuple(ids),
        token_texts=tuple(words.text(i) for i in ids),
        action=action,
        action_names=names,
        action_ids=action_ids,
        action_bins=bins.numbers(action_ids) if bins is not None else (),
        flags=flags,
    )
