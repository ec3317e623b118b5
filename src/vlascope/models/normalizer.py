"""Statistics of a dataset: states and actions to the numbers a policy computes with, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .actions import ActionFormatError

Kind = Literal["mean_std", "quantiles", "min_max"]
KEYS: Mapping[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "quantiles": ("q01", "q99"),
    "min_max": ("min", "max"),
}
EPS = 1e-8  # as transformers and LeRobot use it; openpi has 1e-6

_NAMES = {
    "state": ("state", "observation.state", "observation_state"),
    "action": ("action", "actions"),
}


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """An affine map per dimension: to mean 0 and variance 1, or to [-1, 1].

    Attributes:
        kind: "mean_std", "quantiles" (1 % and 99 % to -1 and 1) or "min_max".
        first: Mean, or the lower bound, per dimension.
        second: Standard deviation, or the upper bound.
    """

    kind: Kind
    first: tuple[float, ...]
    second: tuple[float, ...]

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any], *, kind: Kind) -> Normalizer:
        """Read a map from the statistics of one feature, such as {"mean": [...], "std": [...]}.

        Raises:
            ActionFormatError: the statistics lack what `kind` needs, or lengths differ.
        """
        keys = KEYS[kind]
        if missing := [key for key in keys if stats.get(key) is None]:
            raise ActionFormatError(
                f"the statistics have {', '.join(sorted(stats))}; normalisation by {kind} needs {missing[0]!r}."
            )
        first, second = (np.asarray(_plain(stats[key]), np.float64).reshape(-1) for key in keys)
        if first.shape != second.shape:
            raise ActionFormatError(
                f"the statistics have {len(first)} x {keys[0]} and {len(second)} x {keys[1]}; need equal numbers."
            )
        return cls(kind=kind, first=tuple(first.tolist()), second=tuple(second.tolist()))

    def __len__(self) -> int:
        return len(self.first)

    def normalize(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return values [..., dof] in the units of the data as the policy's numbers."""
        a, b = np.array(self.first), np.array(self.second)
        if self.kind == "mean_std":
            return (np.asarray(values, np.float64) - a) / (b + EPS)
        return 2.0 * (np.asarray(values, np.float64) - a) / (b - a + EPS) - 1.0

    def unnormalize(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `normalize`."""
        a, b = np.array(self.first), np.array(self.second)
        if self.kind == "mean_std":
            return np.asarray(values, np.float64) * (b + EPS) + a
        return (np.asarray(values, np.float64) + 1.0) / 2.0 * (b - a + EPS) + a


def datasets(raw: Mapping[str, Any] | None) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return statistics as {dataset: {"state" | "action": {"mean": ..., ...}}}.

    Args:
        raw: {feature: {...}} of one dataset (then called "data"), {dataset: {feature: {...}}}, or either of them
            under "norm_stats"; None for none.
    """
    if not raw:
        return {}
    whole: Mapping[str, Any] = raw.get("norm_stats") or raw
    if one := _features(whole):
        return {"data": one}
    parts = {name: _features(part) for name, part in whole.items() if isinstance(part, Mapping)}
    return {name: found for name, found in parts.items() if found}


def policy_stats(source: Any) -> dict[str, Any]:
    """Return the statistics that a processor carries; {} when it carries none.

    Knows transformers' `PI0Processor` (or its configuration as a mapping), LeRobot's processor pipelines (their
    normaliser's `stats`), and plain mappings as for `datasets`.
    """
    get = source.get if isinstance(source, Mapping) else lambda key: getattr(source, key, None)
    found: dict[str, Any] = {}
    for feature, prefix in (("state", "state"), ("action", "actions")):
        mean, std = get(f"{prefix}_mean"), get(f"{prefix}_std")
        if mean is not None and std is not None:
            found[feature] = {"mean": mean, "std": std}
    if found:
        return found
    if isinstance(source, Mapping):
        return dict(source) if datasets(source) else {}
    for step in getattr(source, "steps", None) or ():
        stats = getattr(step, "stats", None)
        if isinstance(stats, Mapping) and _features(stats):
            return dict(stats)
    return {}


def policy_tokenizer(source: Any) -> Any:
    """Return the tokenizer inside one of LeRobot's processor pipelines; None when there is none."""
    for step in getattr(source, "steps", None) or ():
        for name in ("input_tokenizer", "tokenizer"):
            tokenizer = getattr(step, name, None)
            if hasattr(tokenizer, "convert_ids_to_tokens"):
                return tokenizer
    return None


def buffered_stats(module: Any) -> dict[str, dict[str, Any]]:
    """Return the statistics that older LeRobot policies keep as buffers of the module itself; {} without them."""
    found: dict[str, dict[str, Any]] = {}
    places = {
        "state": "normalize_inputs.buffer_observation_state",
        "action": "unnormalize_outputs.buffer_action",
    }
    for feature, path in places.items():
        part = module
        for name in path.split("."):
            part = getattr(part, name, None)
        values = dict(part.items()) if part is not None and hasattr(part, "items") else {}
        if values:
            found[feature] = values
    return found


def kind_of(mode: Any) -> Kind | None:
    """Return the kind that LeRobot's `NormalizationMode` names; None for identity.

    Raises:
        ActionFormatError: a mode that is not known.
    """
    name = str(getattr(mode, "value", mode)).lower()
    if name == "identity":
        return None
    if name in KEYS:
        return name  # type: ignore[return-value]
    raise ActionFormatError(f"got the normalisation {mode!r}; known are identity, {', '.join(KEYS)}.")


def _features(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for feature, names in _NAMES.items():
        for name in names:
            if isinstance(raw.get(name), Mapping):
                found[feature] = raw[name]
                break
    return found


def _plain(values: Any) -> Sequence[float]:
    """A list of numbers from a list, an array or a tensor (on any device)."""
    return values.detach().float().cpu().tolist() if hasattr(values, "detach") else values
