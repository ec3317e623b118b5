"""Testing by doing: steering, knock-outs, patching, closed-loop rollouts, and watchers that may stop them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dose import DoseResponse, dose_response
    from .edits import ModelEdit, Together
    from .effects import Baseline, Effect, baseline, effect, effect_results
    from .knockout import Ablate, CutAttention, mean_values
    from .paired import Comparison, compare
    from .patch import Pair, PatchingResult, make_pairs, patching
    from .rollout import ClosedLoop, Trial, closed_loop, play
    from .steer import (
        Redirected,
        SteerDirection,
        SteerLatents,
        direction_unit,
        latent_units,
        mean_difference,
        random_directions,
        random_latents,
    )
    from .watcher import Veto, Watcher

_LAZY = {
    "Ablate": "knockout",
    "Baseline": "effects",
    "ClosedLoop": "rollout",
    "Comparison": "paired",
    "CutAttention": "knockout",
    "DoseResponse": "dose",
    "Effect": "effects",
    "ModelEdit": "edits",
    "Pair": "patch",
    "PatchingResult": "patch",
    "Redirected": "steer",
    "SteerDirection": "steer",
    "SteerLatents": "steer",
    "Together": "edits",
    "Trial": "rollout",
    "Veto": "watcher",
    "Watcher": "watcher",
    "baseline": "effects",
    "closed_loop": "rollout",
    "compare": "paired",
    "direction_unit": "steer",
    "dose_response": "dose",
    "effect": "effects",
    "effect_results": "effects",
    "latent_units": "steer",
    "make_pairs": "patch",
    "mean_difference": "steer",
    "mean_values": "knockout",
    "patching": "patch",
    "play": "rollout",
    "random_directions": "steer",
    "random_latents": "steer",
}

__all__ = [
    "Ablate",
    "Baseline",
    "ClosedLoop",
    "Comparison",
    "CutAttention",
    "DoseResponse",
    "Effect",
    "ModelEdit",
    "Pair",
    "PatchingResult",
    "Redirected",
    "SteerDirection",
    "SteerLatents",
    "Together",
    "Trial",
    "Veto",
    "Watcher",
    "baseline",
    "closed_loop",
    "compare",
    "direction_unit",
    "dose_response",
    "effect",
    "effect_results",
    "latent_units",
    "make_pairs",
    "mean_difference",
    "mean_values",
    "patching",
    "play",
    "random_directions",
    "random_latents",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
