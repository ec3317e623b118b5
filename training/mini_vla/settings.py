"""The settings of a training, read from one TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.mini_vla.network import Size

DEFAULT_PATH = Path(__file__).with_name("settings.toml")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Length, processes and how often things are saved."""

    seed: int
    minutes: float
    processes: int
    batch: int
    checkpoint_minutes: float
    validate_minutes: float
    milestones: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What one image contributes, and the photometric jitter."""

    text_tokens: int
    physics_share: float
    held_share: float
    own_share: float
    placing_weight: float
    keep_patches: int
    keep_until: float
    gain: tuple[float, float]
    channel: float
    offset: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the parts of the loss; the action bins have weight 1."""

    bin_sigma: float
    answer: float
    end: float
    patch_class: float
    pointer: float
    delta: float
    delta_beta: float
    class_weight: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Optimiser and learning-rate schedule."""

    kind: str
    lr: float
    muon_lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    warmup_updates: int
    flat_until: float
    final: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a training."""

    run: RunSettings
    network: Size
    batch: BatchSettings
    loss: LossSettings
    optimizer: OptimizerSettings

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def read_settings(path: Path = DEFAULT_PATH, *, changes: dict[str, Any] | None = None) -> Settings:
    """Settings from a TOML file.

    Args:
        path: The file; every key must be present and known.
        changes: Replacements by dotted name, such as {"run.minutes": 5.0}.

    Raises:
        KeyError: A changed name does not exist.
        TypeError: The file misses a key or has an unknown one.
    """
    data = tomllib.loads(path.read_text())
    for name, value in (changes or {}).items():
        section, key = name.split(".")
        if key not in data[section]:
            raise KeyError(f"no setting {name!r}; [{section}] has {', '.join(data[section])}.")
        data[section][key] = type(data[section][key])(value)
    kinds = {
        "run": RunSettings,
        "network": Size,
        "batch": BatchSettings,
        "loss": LossSettings,
        "optimizer": OptimizerSettings,
    }
    parts = {
        name: kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data[name].items()})
        for name, kind in kinds.items()
    }
    return Settings(**parts)
