"""What a dictionary is made of, and how it is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from ..errors import InputError

Activation = Literal["topk", "batchtopk", "jumprelu"]
DEFAULT_LEVELS = (64, 256, 1024, 4096)


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The shape of a nested dictionary.

    Attributes:
        d_in: Channels of the site.
        n_latents: Latents in all; 0 stands for four per channel.
        k: Latents that are active per token: exactly (topk), on average (batchtopk), or as a target (jumprelu).
        levels: Widths of the nested dictionaries. Those that reach beyond `n_latents` are dropped, and the whole
            dictionary is always the last, so that no latent is left untrained.
        level_weights: Weight of each level's loss, any scale; empty for decreasing ones (n, n-1, ..., 1).
        activation: How active latents are chosen.
        random_prefixes: 0 trains the fixed `levels`; otherwise that many random prefixes per batch, so that every
            cut is a trained one.
    """

    d_in: int
    n_latents: int = 0
    k: int = 16
    levels: tuple[int, ...] = DEFAULT_LEVELS
    level_weights: tuple[float, ...] = ()
    activation: Activation = "topk"
    random_prefixes: int = 0

    def __post_init__(self) -> None:
        if self.d_in < 1:
            raise InputError(f"got d_in={self.d_in}; need at least one channel.")
        n = self.n_latents or 4 * self.d_in
        object.__setattr__(self, "n_latents", n)
        if not 1 <= self.k <= n:
            raise InputError(f"got k={self.k} active of {n} latents; need 1 <= k <= {n}.")
        if self.activation not in ("topk", "batchtopk", "jumprelu"):
            raise InputError(
                f"unknown activation '{self.activation}'; known are topk, batchtopk and jumprelu."
            )
        levels = tuple(int(level) for level in self.levels)
        if any(level < 1 for level in levels) or any(a >= b for a, b in pairwise(levels)):
            raise InputError(f"got levels {levels}; need increasing widths from 1 on.")
        given = self.level_weights
        if given and len(given) == len(levels) and (not levels or levels[-1] != n):
            raise InputError(
                f"got {len(given)} weights for levels {levels}, but the whole dictionary of {n} is a level too: "
                "name it as the last level and give it a weight."
            )
        levels = (*(level for level in levels if level < n), n)
        weights = tuple(float(w) for w in given) or tuple(float(len(levels) - i) for i in range(len(levels)))
        if len(weights) != len(levels) or any(not w > 0 for w in weights):
            raise InputError(f"got level weights {weights}; need {len(levels)} positive ones for {levels}.")
        if self.random_prefixes < 0 or self.random_prefixes > n:
            raise InputError(f"got random_prefixes={self.random_prefixes}; need 0 to {n}.")
        total = sum(weights)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "level_weights", tuple(w / total for w in weights))

    def level(self, width: int | None) -> int:
        """Return the width of a cut that was trained; None means the whole dictionary.

        Raises:
            InputError: the width is no trained level.
        """
        if width is None:
            return self.n_latents
        if self.random_prefixes and 1 <= width <= self.n_latents:
            return width
        if width not in self.levels:
            raise InputError(
                f"this dictionary was not trained to be cut at {width} latents; its levels are "
                f"{', '.join(map(str, self.levels))}. (Train with random prefixes to cut it anywhere.)"
            )
        return width

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SAEConfig:
        """Return the settings that `to_json` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a dictionary is trained.

    Attributes:
        batch: Tokens per step.
        tokens: Tokens to train on; 0 stands for `epochs` passes.
        epochs: Passes over the training tokens, when `tokens` is 0.
        lr: Adam's step; 0 stands for 6e-4 / sqrt(n_latents / 16384): three times what is usual, as gradients have one
            length here; short trainings then leave a fifth to a half less.
        warmup: Share of the steps with a rising step size.
        decay: Share of the steps, at the end, over which the step size falls to zero.
        l1: Weight of the mean absolute activation, in units of the token norm.
        aux: Weight of the loss that revives dead latents; 0 turns it off.
        aux_share: Share of each batch's rows that the revival sees.
        dead_share: A latent that was silent for this share of the run's tokens counts as dead.
        precision: Type of the encoder's product: "float32", "bfloat16" (candidates are found in bfloat16, their
            values and the final choice are float32), or "auto" (bfloat16 on GPUs).
        init: Decoder directions at the start: "random", or "data" (half random, half differences of tokens to the
            mean; slower to learn wherever these go together).
        jump_width: Width of the window in which jumprelu thresholds learn, in units of the token scale.
        jump_weight: Weight of jumprelu's sparsity loss.
        eval_every: Steps between evaluations on held-out tokens.
        patience: Evaluations without progress before training stops; 0 never stops early.
        save_every: Steps between saved training states.
        held_out: Share of the episodes (or items) that are never trained on.
        seed: Seeds weights, order of tokens and the split.
    """

    batch: int = 4096
    tokens: int = 0
    epochs: float = 1.0
    lr: float = 0.0
    warmup: float = 0.05
    decay: float = 0.2
    l1: float = 1e-4
    aux: float = 1 / 32
    aux_share: float = 0.25
    dead_share: float = 0.05
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    init: Literal["random", "data"] = "random"
    jump_width: float = 0.1
    jump_weight: float = 0.1
    eval_every: int = 200
    patience: int = 0
    save_every: int = 200
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch", 1, 1 << 24),
            ("tokens", 0, 1 << 60),
            ("lr", 0, 1e6),
            ("warmup", 0, 1),
            ("decay", 0, 1),
            ("l1", 0, 1e6),
            ("aux", 0, 1e6),
            ("eval_every", 1, float("inf")),
            ("save_every", 1, float("inf")),
            ("patience", 0, float("inf")),
            ("jump_weight", 0, 1e6),
            ("seed", 0, (1 << 63) - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"got {name}={value}; need {low} <= {name} <= {high}.")
        for name, high in (
            ("epochs", 1e6),
            ("held_out", 0.9),
            ("aux_share", 1),
            ("dead_share", 1),
            ("jump_width", 10),
        ):
            if not 0 < getattr(self, name) <= high:
                raise InputError(f"got {name}={getattr(self, name)}; need 0 < {name} <= {high}.")
        for name, known in (("precision", ("auto", "float32", "bfloat16")), ("init", ("data", "random"))):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} '{getattr(self, name)}'; known are {', '.join(known)}.")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)
