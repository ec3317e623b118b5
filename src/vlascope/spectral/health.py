"""What a cut says about its own quality."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

NEAR_ONE = 0.999
"""Eigenvalues from here on count as a component of their own."""

MIN_REACH = 0.01
"""A token whose largest affinity to any landmark is below this (3 sigma away) is out of reach."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Read-outs that tell a sound graph from a saturated or a shattered one.

    Attributes:
        mode: "exact", "nystrom" or "constant" (all rows coincide: only the trivial eigenvector means something).
        n: Tokens in the cut.
        n_landmarks: Points that stood for them (n in exact mode).
        sigma: Scale of the affinity in the units of the features; None for a custom affinity.
        mean_affinity: Mean affinity between two different tokens, over all tokens. Near 1 the graph is
            saturated (everything alike), near 0 it is shattered.
        lambda2: Second eigenvalue. Near 1: two parts hardly connected; near 0: no structure.
        n_components: Eigenvalues >= 0.999 among those computed: parts that are nearly disconnected.
        far_share: Share of tokens that are farther than 3 sigma from every landmark, in [0, 1].
        notes: Sentences about what is unusual; empty when all is well.
    """

    mode: str
    n: int
    n_landmarks: int
    sigma: float | None
    mean_affinity: float
    lambda2: float
    n_components: int
    far_share: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the read-outs as a JSON-able dictionary."""
        return {**asdict(self), "notes": list(self.notes)}


def notes_for(
    *, mean_affinity: float, lambda2: float, n_components: int, far_share: float
) -> tuple[str, ...]:
    """Return the sentences that go with unusual read-outs."""
    notes = []
    if mean_affinity > 0.8:
        notes.append(
            f"mean affinity {mean_affinity:.2f}: the graph is saturated; use a smaller scale or density."
        )
    if n_components > 1:
        notes.append(
            f"{n_components} parts are nearly disconnected (outliers, or a scale that is too small)."
        )
    if lambda2 < 0.05:
        notes.append(f"second eigenvalue {lambda2:.3f}: hardly any cluster structure at this scale.")
    if far_share > 0.01:
        notes.append(f"{far_share:.1%} of the tokens are far from every landmark; use more landmarks.")
    return tuple(notes)
