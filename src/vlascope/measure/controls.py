"""Runs that stand beside a run: they must hold the same items, and a control with random weights another network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..runs import Run


def same_items(run: Run, other: Run) -> None:
    """Raise unless two runs hold the same items in the same order.

    Raises:
        InputError: they do not.
    """
    if run is other:
        return
    if run.n_items != other.n_items:
        raise InputError(
            f"'{other.path}' has {other.n_items} items, '{run.path}' {run.n_items}; capture the same items."
        )
    for a, b in zip(run.items, other.items, strict=True):
        if a.item_id != b.item_id:
            raise InputError(
                f"'{other.path}' has the item '{b.item_id}' where '{run.path}' has '{a.item_id}'; capture the same "
                "items."
            )


def check_random(run: Run, random_run: Run | None) -> None:
    """Raise unless a run can be the control "random weights" of another: the same items, other weights.

    Every measure that takes such a run calls this first. None, no control, passes.

    Raises:
        InputError: other items, or a network with the very weights of the run.
    """
    if random_run is None:
        return
    same_items(run, random_run)
    mine, other = (one.config["model"]["fingerprint"] for one in (run, random_run))
    if mine == other:
        raise InputError(
            f"'{random_run.path}' was captured with the same weights as '{run.path}' (fingerprint {mine}); the control "
            "needs the same network with random weights."
        )
