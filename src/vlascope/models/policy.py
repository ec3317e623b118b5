"""A model as a controller: one image and one instruction in, one action out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items.item import Item
from .model import Model


class VLAPolicy:
    """Calls a model that acts through action tokens, for closed-loop use.

    Args:
        model: A model whose configuration says how to decode actions (`norm_stats`).
        malformed: What to return where a reply is no action: "nan" leaves NaN in the dimensions that have no
            action token, for the caller to decide; "hold" stands still instead (no motion in any dimension,
            the gripper as last commanded). Both are flagged, and counted in `n_malformed`.

    Attributes:
        n_calls: Actions asked for so far.
        n_malformed: How many replies of them had a dimension without an action token.

    Raises:
        InputError: the model has no actions.
    """

    def __init__(self, model: Model, *, malformed: Literal["nan", "hold"] = "nan") -> None:
        if malformed not in ("nan", "hold"):
            raise InputError(f"got malformed={malformed!r}; need 'nan' or 'hold'.")
        bins = getattr(model._family, "bins", None)
        if bins is None:
            raise InputError(
                f"model '{model.name}' cannot act: its configuration has no norm_stats. Use a robot model, such "
                "as 'mini-vla'."
            )
        self.model, self.bins, self.malformed = model, bins, malformed
        self.n_calls, self.n_malformed = 0, 0
        names = [name.lower() for name in bins.names] or [""] * bins.dof
        # OpenVLA's convention puts the gripper last; it is absolute, all other dimensions are motions.
        self._gripper = next((i for i, name in enumerate(names) if "grip" in name), bins.dof - 1)
        self._last_grip = 0.0

    def reset(self) -> None:
        """Forget the gripper's last command (start of an episode, gripper open)."""
        self._last_grip = 0.0

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
            float32 [dof] in physical units, and facts about the reply: "text", "token_ids", "action_ids",
            "flags" (empty for a well-formed reply), "held" (whether "hold" replaced the action).

        Cost: one pass over image and prompt, one short pass per further action token.
        """
        item = Item(item_id="now", images=(rgb,), prompt=instruction)
        reply = self.model.respond([item], max_new_tokens=self.bins.dof)[0]
        action, flags = reply.action, reply.flags
        if action is None:
            action = np.full(self.bins.dof, np.nan, np.float32)
            flags = ("no_action", *(flag for flag in flags if flag != "length_limit"))
        self.n_calls += 1
        is_malformed = bool(np.isnan(action).any())
        self.n_malformed += is_malformed
        if is_malformed and self.malformed == "hold":
            action = np.zeros(self.bins.dof, np.float32)
            action[self._gripper] = self._last_grip
        elif not np.isnan(action[self._gripper]):
            self._last_grip = float(action[self._gripper])
        return action, {
            "text": reply.text,
            "token_ids": reply.token_ids,
            "action_ids": reply.action_ids,
            "flags": flags,
            "held": is_malformed and self.malformed == "hold",
        }
