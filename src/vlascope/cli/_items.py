"""What verbs that try something on a model and some items share: their options, and how both are opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ._common import Common, Device, ModelName, OptionalText

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model

LOOKS = 20
"""Items that are looked at for each that will do."""


@dataclass(frozen=True, kw_only=True)
class OnItems(Common):
    """Options of a verb on a model and items with prompts."""

    model: ModelName
    """embedded model (mini-vla), Hugging Face name or folder"""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """items with prompts, as for `vlascope capture`"""
    items: int = 24
    """items to use, spread evenly over the data"""
    prompt: OptionalText = None
    """prompt of every item, where the data has none"""
    device: Device = "auto"
    """where to compute"""
    batch_size: int = 16
    """items per forward pass"""
    seed: int = 0
    """seed of everything random"""


def open_both(args: OnItems, *, keep: Callable[[Item], bool] | None = None) -> tuple[Model, list[Item]]:
    """Return the model, and the items that were asked for.

    Args:
        args: The verb's options.
        keep: Which items will do. Others are replaced by some of the rest of the data, as far as a search through
            `LOOKS` times as many finds any; where none will do at all, all are returned.
    """
    import numpy as np

    from .. import api
    from .cut import spread

    model = api.load(args.model, device=args.device)
    source = api.items(args.data, prompt=args.prompt)
    rows = spread(len(source), args.items)
    chosen = {i: source[i] for i in rows}
    if keep is not None:
        found = {i: item for i, item in chosen.items() if keep(item)}
        rest = np.setdiff1d(np.arange(len(source)), rows)
        for i in np.random.default_rng([args.seed, 31]).permutation(rest)[: LOOKS * len(rows)].tolist():
            if len(found) == len(rows):
                break
            if keep(item := source[i]):
                found[i] = item
        chosen = found or chosen
    return model, [chosen[i] for i in sorted(chosen)]
