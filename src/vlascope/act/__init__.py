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
    from .monitor import Monitor
    from .monitor_attacks import pgd_patch, trojan_direction
    from .monitor_evaluate import AttackResult, evaluate_attack
    from .monitor_fit import fit_monitor
    from .monitor_report import MonitorReport, score_run
    from .monitor_store import load_monitor, save_monitor
    from .monitor_watch import MonitorWatcher
    from .paired import Comparison, compare
    from .patch import Pair, PatchingResult, make_pairs, patching
    from .player import Trial
    from .recovered import loss_recovered
    from .rollout import ClosedLoop, closed_loop, play
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
    from .watching import saved_monitor
    from .words import word_direction

_LAZY = {
    "Ablate": "knockout",
    "AttackResult": "monitor_evaluate",
    "Baseline": "effects",
    "Break": "breaking",
    "BreakResult": "breaking",
    "ClosedLoop": "rollout",
    "Comparison": "paired",
    "CutAttention": "knockout",
    "DoseResponse": "dose",
    "Effect": "effects",
    "ModelEdit": "edits",
    "Monitor": "monitor",
    "MonitorReport": "monitor_report",
    "MonitorWatcher": "monitor_watch",
    "Pair": "patch",
    "PatchingResult": "patch",
    "Redirected": "steer",
    "SteerDirection": "steer",
    "SteerLatents": "steer",
    "Together": "edits",
    "Trial": "player",
    "Veto": "watcher",
    "Watcher": "watcher",
    "baseline": "effects",
    "closed_loop": "rollout",
    "compare": "paired",
    "direction_unit": "steer",
    "dose_response": "dose",
    "effect": "effects",
    "effect_results": "effects",
    "evaluate_attack": "monitor_evaluate",
    "find_breaks": "breaking",
    "fit_monitor": "monitor_fit",
    "knockouts": "several",
    "latent_units": "steer",
    "load_direction": "saved",
    "load_monitor": "monitor_store",
    "loss_recovered": "recovered",
    "make_pairs": "patch",
    "mean_difference": "steer",
    "mean_values": "knockout",
    "patching": "patch",
    "pgd_patch": "monitor_attacks",
    "play": "rollout",
    "random_directions": "steer",
    "random_latents": "steer",
    "save_direction": "saved",
    "save_monitor": "monitor_store",
    "saved_monitor": "watching",
    "score_run": "monitor_report",
    "trojan_direction": "monitor_attacks",
    "word_direction": "words",
}

__all__ = [
    "Ablate",
    "AttackResult",
    "Baseline",
    "Break",
    "BreakResult",
    "ClosedLoop",
    "Comparison",
    "CutAttention",
    "DoseResponse",
    "Effect",
    "ModelEdit",
    "Monitor",
    "MonitorReport",
    "MonitorWatcher",
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
    "evaluate_attack",
    "find_breaks",
    "fit_monitor",
    "knockouts",
    "latent_units",
    "load_direction",
    "load_monitor",
    "loss_recovered",
    "make_pairs",
    "mean_difference",
    "mean_values",
    "patching",
    "pgd_patch",
    "play",
    "random_directions",
    "random_latents",
    "save_direction",
    "save_monitor",
    "saved_monitor",
    "score_run",
    "trojan_direction",
    "word_direction",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
