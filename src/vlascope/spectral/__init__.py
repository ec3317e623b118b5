"""How it is cut: Normalized Cut embeddings, k-way labels, hierarchy, alignment across layers."""

from __future__ import annotations

from .affinity import density_sigma
from .agree import Agreement, agreement, agreement_matrix, cka, subspace_overlap
from .align import relative_affinity
from .click import ClickMask, click
from .exact import MAX_EXACT_NODES
from .health import Health
from .kway import KWay, kway
from .nystrom import NystromNCut, OutOfReachWarning
from .rows import as_rows, flatten_maps

__all__ = [
    "MAX_EXACT_NODES",
    "Agreement",
    "ClickMask",
    "Health",
    "KWay",
    "NystromNCut",
    "OutOfReachWarning",
    "agreement",
    "agreement_matrix",
    "as_rows",
    "cka",
    "click",
    "density_sigma",
    "flatten_maps",
    "kway",
    "relative_affinity",
    "subspace_overlap",
]
