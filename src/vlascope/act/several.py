"""Several knock-outs side by side: how far each moves the action and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..measure.means import mean_result
from ..measure.result import Result
from ..progress import progress
from .edits import ModelEdit
from .effects import Baseline, effect

if TYPE_CHECKING:
    from ..models import Model


def knockouts(
    model: Model, base: Baseline, edits: Sequence[ModelEdit], *, seed: int = 0, quiet: bool = True
) -> list[Result]:
    """Return for each edit how far it moves the answers of a baseline.

    Args:
        model: The model.
        base: Items with answers, see `baseline`.
        edits: Knock-outs, or any other edits.
        seed: Seeds the bootstrap.
        quiet: No progress bar.

    Returns:
        Per edit: the share of items with another answer, the divergence of the answer's distribution, and for models
        that act the mean absolute movement of each degree of freedom, in its own unit; intervals over items.

    Cost: one answer and one forward pass per item and edit.
    """
    out = []
    for edit in progress(list(edits), desc="knock-outs", unit="edit", quiet=quiet):
        found = effect(model, edit, base)
        changed = found.changed.astype(float)
        out.append(
            mean_result(f"{edit.name} / other answer", changed, base.units, unit="share of items", seed=seed)
        )
        out.append(mean_result(f"{edit.name} / KL", found.kl, base.units, unit="nats per token", seed=seed))
        for j, dof in enumerate(base.names):
            out.append(
                mean_result(
                    f"{edit.name} / |{dof}|",
                    np.abs(found.moved[:, j]),
                    base.units,
                    unit="movement of the action",
                    seed=seed,
                    controls={"no edit": 0.0},
                )
            )
    return out
