"""A model as a controller: one image and one instruction in, one action out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items.item import Item
from .model import Model


class VLAPolicy:
    """Calls a model that acts through action tokens, for closed-loop use.

    Args:
        model: A model whose configuration says how to decode actions (`norm_stats`).

    Raises:
        InputError: the model has no actions.
    """

    def __init__(self, model: Model) -> None:
        bins = getattr(model._family, "bins", None)
        if bins is None:
            raise InputError(
                f"model '{model.name}' cannot act: its configuration has no norm_stats. Use a robot model, such "
                "as 'mini-vla'."
            )
        self.model, self.bins = model, bins

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action's dimensions."""
        return self.bins.names or tuple(f"a{i}" for i in range(self.bins.dof))

    def __call__(
        self, rgb: NDArray[np.uint8], instruction: str
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the action for one camera image.

        Args:
            rgb: uint8 [h, w, 3].
            instruction: What the robot is told to do.

        Returns:
            float32 [dof] in physical units, NaN in the dimensions for which the model gave no action token
            (the caller decides what to do then; nothing is guessed), and facts about the reply: "text",
            "token_ids", "action_ids", "flags" (empty for a well-formed reply).

        Cost: one pass over image and prompt, one short pass per further action token.
        """
        item = Item(item_id="now", images=(rgb,), prompt=instruction)
        reply = self.model.respond([item], max_new_tokens=self.bins.dof)[0]
        action, flags = reply.action, reply.flags
        if action is None:
            action = np.full(self.bins.dof, np.nan, np.float32)
            flags = ("no_action", *(flag for flag in flags if flag != "length_limit"))
        return action, {
            "text": reply.text,
            "token_ids": reply.token_ids,
            "action_ids": reply.action_ids,
            "flags": flags,
        }
