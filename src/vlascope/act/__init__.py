"""Testing by doing: steering, knock-outs, patching, closed-loop rollouts, and watchers that may stop them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .breaking import Break, BreakResult, find_breaks
    from .dose import DoseResponse, dose_response
    from .edits import ModelEdit, Together
    from .effects import Baseline, Effect, baseline, effect, effect_results
    from .knockout import Ablate, CutAttention, mean_values
    from .paired import Comparison, compare
    from .patch import Pair, PatchingResult, make_pairs, patching
    from .rollout import ClosedLoop, Trial, closed_loop, play
    from .saved import load_direction, save_direction
    from .several import knockouts
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
    from .words import word_direction

_LAZY = {
    "Ablate": "knockout",
    "Baseline": "effects",
    "Break": "breaking",
    "BreakResult": "breaking",
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
    "find_breaks": "breaking",
    "knockouts": "several",
    "latent_units": "steer",
    "load_direction": "saved",
    "make_pairs": "patch",
    "mean_difference": "steer",
    "mean_values": "knockout",
    "patching": "patch",
    "play": "rollout",
    "random_directions": "steer",
    "random_latents": "steer",
    "save_direction": "saved",
    "word_direction": "words",
}

__all__ = [
    "Ablate",
    "Baseline",
    "Break",
    "BreakResult",
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
    "find_breaks",
    "knockouts",
    "latent_units",
    "load_direction",
    "make_pairs",
    "mean_difference",
    "mean_values",
    "patching",
    "play",
    "random_directions",
    "random_latents",
    "save_direction",
    "word_direction",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
