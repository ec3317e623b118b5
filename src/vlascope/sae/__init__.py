"""A site's dictionary: nested sparse autoencoders, their training, checkpoints, cards and discovery."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import SAEConfig, TrainConfig

if TYPE_CHECKING:
    from .cards import Cards, LatentStatistics, latent_statistics, make_cards
    from .checkpoint import Checkpoint, load_sae, run_origin, save_sae
    from .codes import Codes
    from .discovery import Discovery, FoundLatent, discover, discover_arrays
    from .job import TrainResult
    from .metrics import Evaluation, LevelMetrics, evaluate
    from .module import MatryoshkaSAE
    from .step import SAETrainer, StepReport
    from .stream import Split, TokenStream, split_items
    from .train import train_sae

_LAZY = {
    "Cards": "cards",
    "Checkpoint": "checkpoint",
    "Codes": "codes",
    "Discovery": "discovery",
    "Evaluation": "metrics",
    "FoundLatent": "discovery",
    "LatentStatistics": "cards",
    "LevelMetrics": "metrics",
    "MatryoshkaSAE": "module",
    "SAETrainer": "step",
    "Split": "stream",
    "StepReport": "step",
    "TokenStream": "stream",
    "TrainResult": "job",
    "discover": "discovery",
    "discover_arrays": "discovery",
    "evaluate": "metrics",
    "latent_statistics": "cards",
    "load_sae": "checkpoint",
    "make_cards": "cards",
    "run_origin": "checkpoint",
    "save_sae": "checkpoint",
    "split_items": "stream",
    "train_sae": "train",
}

__all__ = [
    "Cards",
    "Checkpoint",
    "Codes",
    "Discovery",
    "Evaluation",
    "FoundLatent",
    "LatentStatistics",
    "LevelMetrics",
    "MatryoshkaSAE",
    "SAEConfig",
    "SAETrainer",
    "Split",
    "StepReport",
    "TokenStream",
    "TrainConfig",
    "TrainResult",
    "discover",
    "discover_arrays",
    "evaluate",
    "latent_statistics",
    "load_sae",
    "make_cards",
    "run_origin",
    "save_sae",
    "split_items",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
