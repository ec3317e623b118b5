"""How it is cut: Normalized Cut embeddings, k-way labels, hierarchy, alignment across layers."""

from __future__ import annotations

from .affinity import density_sigma
from .agree import Agreement, agreement, agreement_matrix, cka, subspace_overlap
from .align import relative_affinity
from .click import ClickMask, click
from .exact import MAX_EXACT_NODES
from .gradients import Attribution, attribute_channels, spectral_projector
from .graphs import attention_affinity, neighbour_affinity
from .health import Health
from .joint import JointCut, joint_cut, joint_run
from .kway import KWay, kway
from .nystrom import NystromNCut, OutOfReachWarning
from .rows import as_rows, flatten_maps

__all__ = [
    "MAX_EXACT_NODES",
    "Agreement",
    "Attribution",
    "ClickMask",
    "Health",
    "JointCut",
    "KWay",
    "NystromNCut",
    "OutOfReachWarning",
    "agreement",
    "agreement_matrix",
    "as_rows",
    "attention_affinity",
    "attribute_channels",
    "cka",
    "click",
    "density_sigma",
    "flatten_maps",
    "joint_cut",
    "joint_run",
    "kway",
    "neighbour_affinity",
    "relative_affinity",
    "spectral_projector",
    "subspace_overlap",
]
