"""A model as a controller: images, an instruction and perhaps the robot's state in, one action out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items.item import Item
from .actions import ActionBins
from .batch import Response
from .flow import FlowFamily
from .model import Model


class VLAPolicy:
    """Calls a model that acts, through action tokens or chunks of actions, for closed-loop use.

    Args:
        model: A model whose configuration says how to decode actions (`norm_stats`), or one that plans chunks.
        malformed: What to return where a reply is no action: "nan" leaves NaN in the dimensions that have no
            action token, for the caller to decide; "hold" stands still instead (no motion in any dimension,
            the gripper as last commanded). Both are flagged, and counted in `n_malformed`.
        n_action_steps: For models that plan chunks: actions of a chunk to play before the model is asked again.
        dataset: Whose statistics to use; needed where the model knows several.

    Attributes:
        n_calls: Actions asked for so far.
        n_malformed: How many replies of them had a dimension without an action token.

    Raises:
        InputError: the model has no actions.
    """

    def __init__(
        self,
        model: Model,
        *,
        malformed: Literal["nan", "hold"] = "nan",
        n_action_steps: int = 1,
        dataset: str | None = None,
    ) -> None:
        if malformed not in ("nan", "hold"):
            raise InputError(f"got malformed={malformed!r}; need 'nan' or 'hold'.")
        if n_action_steps < 1:
            raise InputError(f"got n_action_steps={n_action_steps}; need at least 1.")
        if dataset is not None:
            model.use_dataset(dataset)
        family = model._family
        bins: ActionBins | None = getattr(family, "bins", None)
        if isinstance(family, FlowFamily):
            self.dof, names = family.n_actions, ()
        elif bins is not None:
            self.dof, names = bins.dof, bins.names
        else:
            raise InputError(
                f"model '{model.name}' cannot act: its configuration has no norm_stats (or those of several "
                "datasets, of which dataset= has to name one). Use a robot model, such as 'mini-vla'."
            )
        self.model, self.bins, self.malformed = model, bins, malformed
        self.n_calls, self.n_malformed = 0, 0
        self._names = tuple(names) or tuple(f"a{i}" for i in range(self.dof))
        # OpenVLA's convention puts the gripper last; it is absolute, all other dimensions are motions.
        found = (i for i, name in enumerate(self._names) if "grip" in name.lower())
        self._gripper = next(found, self.dof - 1)
        self._last_grip = 0.0
        self.n_action_steps = n_action_steps
        self._queue: list[NDArray[np.float32]] = []

    def reset(self) -> None:
        """Forget the gripper's last command and planned actions (start of an episode, gripper open)."""
        self._last_grip = 0.0
        self._queue = []

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action's dimensions."""
        return self._names

    def __call__(
        self,
        rgb: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        instruction: str,
        *,
        state: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the action for one camera image.

        Args:
            rgb: uint8 [h, w, 3], or one per camera.
            instruction: What the robot is told to do.
            state: The robot's state, for policies that read it.

        Returns:
            float32 [dof] in physical units, and facts about the reply: "text", "token_ids", "action_ids",
            "flags" (empty for a well-formed reply), "held" (whether "hold" replaced the action).

        Cost: one pass over image and prompt, one short pass per further action token.
        """
        if self._queue:
            return self.planned()
        item = self.item(rgb, instruction, state=state)
        return self.decide(self.model.respond([item], max_new_tokens=self.dof)[0])

    @property
    def has_plan(self) -> bool:
        """Whether an action of the last chunk is left to play, so that the model need not be asked."""
        return bool(self._queue)

    def planned(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the next action of the last chunk, with the facts that `__call__` returns."""
        facts: dict[str, Any] = {"text": None, "token_ids": (), "action_ids": (), "flags": (), "held": False}
        return self._queue.pop(0), facts

    def item(
        self,
        rgb: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        instruction: str,
        *,
        state: NDArray[np.floating] | None = None,
        name: str = "now",
    ) -> Item:
        """Return what the model is asked at this moment, for callers that ask about several robots at once."""
        images = (rgb,) if isinstance(rgb, np.ndarray) else tuple(rgb)
        return Item(
            item_id=name,
            images=images,
            cameras=tuple(f"camera{i}" for i in range(len(images))),
            prompt=instruction,
            state=None if state is None else np.asarray(state, np.float32),
        )

    def decide(self, reply: Response) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the action for the model's reply to `item(...)`, and the facts that `__call__` returns."""
        if reply.action_chunk is not None:
            self._queue = list(reply.action_chunk[1 : self.n_action_steps])
        action, flags = reply.action, reply.flags
        if action is None:
            action = np.full(self.dof, np.nan, np.float32)
            flags = ("no_action", *(flag for flag in flags if flag != "length_limit"))
        self.n_calls += 1
        is_malformed = bool(np.isnan(action).any())
        self.n_malformed += is_malformed
        if is_malformed and self.malformed == "hold":
            action = np.zeros(self.dof, np.float32)
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
