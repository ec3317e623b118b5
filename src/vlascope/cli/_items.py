"""What verbs that try something on a model and some items share: their options, and how both are opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ._common import Common, Device, ModelName, OptionalText

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model


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


def open_both(args: OnItems) -> tuple[Model, list[Item]]:
    """Return the model, and the items that were asked for."""
    from .. import api
    from .cut import spread

    model = api.load(args.model, device=args.device)
    source = api.items(args.data, prompt=args.prompt)
    return model, [source[i] for i in spread(len(source), args.items)]
