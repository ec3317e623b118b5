"""Action tokens: continuous robot actions as the last ids of a vocabulary, in OpenVLA's convention.

OpenVLA cuts [-1, 1] at `n_bins` equally spaced edges, numbers the intervals with `numpy.digitize` (1 for the
lowest) and gives interval k the id `vocab_size - k`: the lowest value has the highest id. An id is decoded to
the centre of its interval; `n_bins` edges have `n_bins - 1` intervals, so the two highest numbers share the
last one. Each dimension is mapped to [-1, 1] by the 1 % and 99 % quantiles of the training data, except where
its mask is false (the value is then used as it is).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlascope.errors import VlascopeError, nearest


class ActionFormatError(VlascopeError, ValueError):
    """Action values, ids or statistics that do not fit together."""


@dataclass(frozen=True, kw_only=True)
class ActionReply:
    """What a model's reply says as an action.

    Attributes:
        values: float32 [dof], in the units of the training data; NaN where the reply has no action token.
        problems: Empty for a well-formed reply; else what is wrong, such as "word_in_action:2" (the third
            token is not an action token), "too_few_tokens:3" or "too_many_tokens:6".
    """

    values: np.ndarray
    problems: tuple[str, ...] = ()

    @property
    def well_formed(self) -> bool:
        """Whether the reply is exactly one action token per dimension."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class ActionBins:
    """The map between actions and token ids of one model.

    Attributes:
        vocab_size: One more than the id of the lowest bin (OpenVLA's padded vocabularies are larger).
        low: 1 % quantile per dimension, in the units of the data.
        high: 99 % quantile per dimension.
        mask: Whether a dimension is normalised by its quantiles.
        names: Names of the dimensions, such as ("dx", "dy", "dz", "grip").
        n_bins: Number of edges on [-1, 1], both ends included.
    """

    vocab_size: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]
    names: tuple[str, ...] = ()
    n_bins: int = 256

    def __post_init__(self) -> None:
        lengths = {len(self.low), len(self.high), len(self.mask)}
        if len(lengths) != 1 or (self.names and len(self.names) != len(self.low)):
            raise ActionFormatError(
                f"got {len(self.low)} lower quantiles, {len(self.high)} upper ones, {len(self.mask)} masks and "
                f"{len(self.names)} names; all need one entry per action dimension. Check norm_stats."
            )
        if not 2 <= self.n_bins <= self.vocab_size:
            raise ActionFormatError(
                f"got {self.n_bins} bins for a vocabulary of {self.vocab_size}; need 2 <= n_bins <= vocab_size."
            )
        for i, (a, b, used) in enumerate(zip(self.low, self.high, self.mask, strict=True)):
            if used and not a < b:
                raise ActionFormatError(
                    f"dimension {i} has quantiles {a} and {b}; the upper one must be larger. Check norm_stats."
                )

    @classmethod
    def from_config(cls, config: Any, *, dataset: str | None = None) -> ActionBins:
        """Read the map from a model's configuration (`norm_stats`, `n_action_bins`, the vocabulary size).

        Args:
            config: A configuration object or dictionary in OpenVLA's style.
            dataset: Key of `norm_stats`; may be left out when there is only one.

        Raises:
            ActionFormatError: The configuration has no action statistics, or `dataset` must be named.
        """
        get = (
            config.get
            if isinstance(config, Mapping)
            else lambda key, default=None: getattr(config, key, default)
        )
        stats = get("norm_stats")
        if not stats:
            raise ActionFormatError(
                "the configuration has no `norm_stats`, so this model has no action tokens."
            )
        if dataset is None:
            if len(stats) > 1:
                raise ActionFormatError(
                    f"the model knows the actions of {len(stats)} datasets ({', '.join(sorted(stats))}); name one: "
                    "model.use_dataset(NAME)."
                )
            dataset = next(iter(stats))
        if dataset not in stats:
            raise ActionFormatError(
                f"the model has no action statistics for {dataset!r}. Nearest: {', '.join(nearest(dataset, stats))}. "
                f"It has {', '.join(sorted(stats))}."
            )
        action = stats[dataset]["action"]
        text = get("text_config")
        size = (text.get if isinstance(text, Mapping) else lambda k: getattr(text, k, None))("vocab_size")
        size = size if size is not None else get("vocab_size")
        if size is None:
            raise ActionFormatError(
                "the configuration has norm_stats but no vocab_size; add it to place the bins."
            )
        return cls(
            vocab_size=int(size) - int(get("pad_to_multiple_of", 0) or 0),
            low=tuple(float(v) for v in action["q01"]),
            high=tuple(float(v) for v in action["q99"]),
            mask=tuple(bool(v) for v in action.get("mask", [True] * len(action["q01"]))),
            names=tuple(action.get("names", ())),
            n_bins=int(get("n_action_bins", 256) or 256),
        )

    @property
    def dof(self) -> int:
        """Number of action dimensions, and of tokens per action."""
        return len(self.low)

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """One name per dimension: `names`, or a0, a1, ..."""
        return self.names or tuple(f"a{i}" for i in range(self.dof))

    @property
    def first_id(self) -> int:
        """Lowest id of an action token (it stands for the highest values)."""
        return self.vocab_size - self.n_bins

    def is_action(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which ids are action tokens; bool, same shape."""
        array = np.asarray(ids)
        return (array >= self.first_id) & (array < self.vocab_size)

    def numbers(self, ids: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """Return the bins of action tokens: 0 for the lowest values, the id `vocab_size - 1`."""
        return tuple(int(self.vocab_size - 1 - i) for i in ids)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Values in data units mapped to [-1, 1] and clipped; float64, shape [..., dof]."""
        values = np.asarray(values, dtype=np.float64)
        low, high, mask = np.array(self.low), np.array(self.high), np.array(self.mask)
        span = np.where(mask, high - low, 1.0)
        return np.clip(np.where(mask, 2.0 * (values - low) / span - 1.0, values), -1.0, 1.0)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `normalize` inside the quantiles; float64, shape [..., dof]."""
        values = np.asarray(values, dtype=np.float64)
        low, high, mask = np.array(self.low), np.array(self.high), np.array(self.mask)
        return np.where(mask, 0.5 * (values + 1.0) * (high - low) + low, values)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Token ids of actions.

        Args:
            values: Shape [..., dof], in data units; values beyond the quantiles get the outermost bin.

        Returns:
            int64 ids, same shape.

        Raises:
            ActionFormatError: Wrong last dimension, or values that are not finite.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.shape[-1:] != (self.dof,):
            raise ActionFormatError(
                f"got actions of shape {values.shape}; the last dimension must be {self.dof}."
            )
        if not np.isfinite(values).all():
            raise ActionFormatError("got actions that are NaN or infinite; every value must be finite.")
        edges = np.linspace(-1.0, 1.0, self.n_bins)
        return self.vocab_size - np.digitize(self.normalize(values), edges).astype(np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> ActionReply:
        """The action that a reply's tokens stand for; a malformed reply is flagged, never guessed.

        Args:
            ids: Token ids of one reply, without the end-of-text token.

        Returns:
            Bin centres in data units with NaN where there is no action token, and the list of problems.
        """
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        problems: list[str] = []
        if array.size < self.dof:
            problems.append(f"too_few_tokens:{array.size}")
        elif array.size > self.dof:
            problems.append(f"too_many_tokens:{array.size}")
        used = array[: self.dof]
        good = self.is_action(used)
        problems += [f"word_in_action:{i}" for i in np.flatnonzero(~good)]
        centred = np.full(self.dof, np.nan)
        edges = np.linspace(-1.0, 1.0, self.n_bins)
        centres = 0.5 * (edges[:-1] + edges[1:])
        number = np.clip(self.vocab_size - used - 1, 0, len(centres) - 1)
        centred[: used.size] = np.where(good, centres[number], np.nan)
        return ActionReply(values=self.unnormalize(centred).astype(np.float32), problems=tuple(problems))
