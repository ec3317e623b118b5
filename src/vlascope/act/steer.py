"""Steering: push what a site holds along latents of its dictionary, or along a direction.

An edit changes h into h + delta(h). With a dictionary, delta is the change of the codes times their decoder rows, so
that what the dictionary does not explain stays as it was ("delta"); "replace" puts the reconstruction itself in place,
which alone moves a model and therefore comes with a baseline of its own (`SteerLatents.baseline`). Strength is counted
in units of the latent's own 99 % quantile where it is active, or of the direction's over the site's tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .edits import Where, check_where, tokens_at

if TYPE_CHECKING:
    from ..models import Model, Site
    from ..sae import MatryoshkaSAE

How = Literal["add", "set", "scale"]
Mode = Literal["delta", "replace"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SteerDirection:
    """Adds `strength` units of a direction to the tokens of a site.

    Attributes:
        site: Where.
        direction: float32 [d]; its length does not matter.
        unit: Length of one unit, in the units of the site; see `direction_unit`.
        strength: Units to add; negative ones push the other way.
        tokens: Which tokens, see `WHERE`.
        label: What the direction is, for tables.
    """

    site: str
    direction: NDArray[np.float32]
    unit: float = 1.0
    strength: float = 1.0
    tokens: Where = "all"
    label: str = "direction"

    def __post_init__(self) -> None:
        check_where(self.tokens)
        values = np.asarray(self.direction, np.float32)
        if values.ndim != 1 or not np.isfinite(values).all() or not np.linalg.norm(values) > 0:
            raise InputError(
                f"got a direction of shape {values.shape}; need one finite vector [d] that is not zero."
            )
        if not (np.isfinite(self.unit) and self.unit > 0 and np.isfinite(self.strength)):
            raise InputError(f"got unit={self.unit}, strength={self.strength}; need finite values, unit > 0.")
        object.__setattr__(self, "direction", values / np.linalg.norm(values))

    @property
    def name(self) -> str:
        """Short name, for tables."""
        return f"{self.label} x {self.strength:g}"

    def scaled(self, strength: float) -> SteerDirection:
        """Return the same steering at another strength."""
        return replace(self, strength=float(strength))

    def delta(self, x_btd: Tensor) -> Tensor:
        """Return what is added, [b, t, d]."""
        return self._step.to(x_btd.device, x_btd.dtype).expand_as(x_btd)

    def edited(self, x_btd: Tensor) -> Tensor:
        """Return the edited tokens, [b, t, d]."""
        if x_btd.shape[-1] != len(self.direction):
            raise InputError(
                f"the direction has {len(self.direction)} channels; site '{self.site}' has {x_btd.shape[-1]}."
            )
        return x_btd + self.delta(x_btd)

    def on(self, model: Model) -> contextlib.AbstractContextManager[Any]:
        """Steer every forward pass inside the context."""
        return editing(model, self.site, self.edited, self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return what it does, without the direction itself."""
        return _facts(self, "direction", label=self.label, unit=self.unit)

    @cached_property
    def _step(self) -> Tensor:
        return torch.from_numpy(self.direction * np.float32(self.strength * self.unit))


@dataclass(frozen=True, kw_only=True, eq=False)
class SteerLatents:
    """Changes the activations of some latents of a site's dictionary.

    Attributes:
        site: Where; the dictionary's own site.
        sae: The dictionary, on raw tokens (as `load_sae` returns it).
        latents: Which.
        units: Activation that counts as strength 1, per latent of `latents`: its own p99, see `latent_units`.
        strength: In those units ("add", "set"), or a factor ("scale").
        how: "add" adds to the activation (never below 0), "set" puts it to the strength (0 removes the latent),
            "scale" multiplies it.
        mode: "delta" keeps what the dictionary does not explain; "replace" puts its reconstruction in place.
        level: Level at which the dictionary is cut; None for the whole. Only latents below it exist there.
        tokens: Which tokens, see `WHERE`.
    """

    site: str
    sae: MatryoshkaSAE
    latents: tuple[int, ...]
    units: tuple[float, ...]
    strength: float = 1.0
    how: How = "add"
    mode: Mode = "delta"
    level: int | None = None
    tokens: Where = "patch"

    def __post_init__(self) -> None:
        check_where(self.tokens)
        if self.how not in ("add", "set", "scale") or self.mode not in ("delta", "replace"):
            raise InputError(
                f"got how='{self.how}', mode='{self.mode}'; need add, set or scale, and delta or replace."
            )
        width = self.sae.config.level(self.level)
        wrong = [one for one in self.latents if not 0 <= one < width]
        if wrong or (not self.latents and self.mode == "delta"):
            raise InputError(
                f"got latents {list(self.latents)}; need some from 0..{width - 1}"
                + (f" (level {width} holds no others)." if wrong else ".")
            )
        if len(set(self.latents)) < len(self.latents):
            twice = next(one for one in self.latents if self.latents.count(one) > 1)
            raise InputError(f"got latent {twice} twice; name each once, and change the strength instead.")
        if len(self.units) != len(self.latents) or any(not (np.isfinite(u) and u > 0) for u in self.units):
            raise InputError(
                f"got units {list(self.units)} for {len(self.latents)} latents; need one positive activation each. "
                "A latent that is never active in the run has none: choose another."
            )
        if not np.isfinite(self.strength) or (self.how != "add" and self.strength < 0):
            raise InputError(f"got strength={self.strength}; '{self.how}' needs a finite value >= 0.")

    @property
    def name(self) -> str:
        """Short name, for tables."""
        some = ", ".join(map(str, self.latents[:4])) + (", ..." if len(self.latents) > 4 else "")
        verb = {"add": "+", "set": "=", "scale": "x"}[self.how]
        return f"latent {some} {verb} {self.strength:g}{' (replace)' if self.mode == 'replace' else ''}"

    def scaled(self, strength: float) -> SteerLatents:
        """Return the same steering at another strength."""
        return replace(self, strength=float(strength))

    def baseline(self) -> SteerLatents | None:
        """Return the edit to compare with: for "replace" the reconstruction unchanged; None where it is no edit."""
        return None if self.mode == "delta" else replace(self, latents=(), units=())

    @torch.no_grad()
    def delta(self, x_btd: Tensor) -> Tensor:
        """Return what is added, [b, t, d], in "delta" mode's sense: the change of codes times decoder rows."""
        if not self.latents:
            return torch.zeros_like(x_btd)
        codes = self._codes(x_btd)
        index = torch.tensor(self.latents, device=x_btd.device)
        now = codes.dense()[:, index]
        unit = torch.tensor(self.units, device=now.device, dtype=now.dtype)
        if self.how == "add":
            new = (now + self.strength * unit).clamp_min(0)
        elif self.how == "set":
            new = (self.strength * unit).expand_as(now)
        else:
            new = now * self.strength
        step = (new - now) @ self.sae.decoder[index] * self.sae.scale
        return step.reshape(x_btd.shape).to(x_btd.dtype)

    def edited(self, x_btd: Tensor) -> Tensor:
        """Return the edited tokens, [b, t, d]."""
        if self.mode == "delta":
            return x_btd + self.delta(x_btd)
        rebuilt = self.sae.decode(self._codes(x_btd), level=self.level).reshape(x_btd.shape).to(x_btd.dtype)
        return rebuilt + self.delta(x_btd)

    def on(self, model: Model) -> contextlib.AbstractContextManager[Any]:
        """Steer every forward pass inside the context."""
        return editing(model, self.site, self.edited, self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return what it does."""
        return _facts(
            self, "latents", latents=list(self.latents), units=[float(u) for u in self.units], how=self.how,
            mode=self.mode, level=self.sae.config.level(self.level),
        )  # fmt: skip

    def _codes(self, x_btd: Tensor) -> Any:
        return self.sae.encode(x_btd.reshape(-1, x_btd.shape[-1]).to(self.sae.decoder.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Redirected:
    """A control: another steering's change, token by token of the same length, along another direction.

    Attributes:
        base: The steering that it controls for.
        direction: float32 [d].
        label: What the direction is, for tables.
    """

    base: SteerDirection | SteerLatents
    direction: NDArray[np.float32]
    label: str

    @property
    def name(self) -> str:
        """Short name, for tables."""
        return f"{self.label} (as long as {self.base.name})"

    def scaled(self, strength: float) -> Redirected:
        """Return the control of the same steering at another strength."""
        return replace(self, base=self.base.scaled(strength))

    def edited(self, x_btd: Tensor) -> Tensor:
        """Return the edited tokens, [b, t, d]."""
        length = self.base.delta(x_btd).norm(dim=-1, keepdim=True)
        unit = torch.from_numpy(self.direction / np.linalg.norm(self.direction)).to(x_btd.device, x_btd.dtype)
        start = x_btd
        if isinstance(self.base, SteerLatents) and (plain := self.base.baseline()) is not None:
            start = plain.edited(x_btd)
        return start + length * unit

    def on(self, model: Model) -> contextlib.AbstractContextManager[Any]:
        """Steer every forward pass inside the context."""
        return editing(model, self.base.site, self.edited, self.base.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return what it does, without the direction itself."""
        return {"name": self.name, "kind": "control", "label": self.label, "of": self.base.to_json()}


Steer = SteerDirection | SteerLatents


def random_directions(base: Steer, *, n: int, seed: int = 0) -> list[Redirected]:
    """Return controls along directions drawn evenly from the sphere, changes as long as those of `base`."""
    rng = np.random.default_rng([seed, 11])
    width = len(base.direction) if isinstance(base, SteerDirection) else base.sae.config.d_in
    drawn = rng.standard_normal((n, width)).astype(np.float32)
    return [Redirected(base=base, direction=one, label="random direction") for one in drawn]


def random_latents(
    base: Steer, sae: MatryoshkaSAE, *, among: Sequence[int], n: int, seed: int = 0
) -> list[Redirected]:
    """Return controls along decoder rows of other latents, changes as long as those of `base`.

    Args:
        base: The steering.
        sae: The dictionary.
        among: Latents to draw from (those that are active in the data); those of `base` are left out.
        n: How many, at most as many as there are.
        seed: Draws them; half of them point the other way.
    """
    rng = np.random.default_rng([seed, 12])
    taken = set(base.latents) if isinstance(base, SteerLatents) else set()
    pool = np.array([one for one in among if one not in taken], np.int64)
    chosen = rng.permutation(pool)[:n]
    signs = rng.choice([-1.0, 1.0], len(chosen)) if isinstance(base, SteerDirection) else np.ones(len(chosen))
    rows = sae.decoder.detach().float().cpu().numpy()
    return [
        Redirected(base=base, direction=(sign * rows[one]).astype(np.float32), label=f"latent {one}")
        for one, sign in zip(chosen.tolist(), signs, strict=True)
    ]


def mean_difference(
    to_nd: NDArray[np.floating], from_nd: NDArray[np.floating]
) -> tuple[NDArray[np.float32], float]:
    """Return the direction from one group of tokens to another, and the distance of their means (one unit).

    Args:
        to_nd: [n, d], tokens of what is steered to.
        from_nd: [m, d], tokens of what is steered from.

    Raises:
        InputError: empty groups, other widths, or equal means.
    """
    to_nd, from_nd = np.asarray(to_nd, np.float64), np.asarray(from_nd, np.float64)
    if not len(to_nd) or not len(from_nd):
        raise InputError(
            f"got {len(to_nd)} tokens to steer to and {len(from_nd)} to steer from; need at least one of either."
        )
    if to_nd.shape[1:] != from_nd.shape[1:]:
        raise InputError(f"got tokens of shapes {to_nd.shape} and {from_nd.shape}; need equal widths.")
    step = to_nd.mean(0) - from_nd.mean(0)
    length = float(np.linalg.norm(step))
    if not length > 0:
        raise InputError("both groups have the same mean; there is no direction between them.")
    return (step / length).astype(np.float32), length


def direction_unit(tokens_nd: NDArray[np.floating], direction: NDArray[np.floating]) -> float:
    """Return how far tokens lie from their mean along a direction, 99 % quantile of the absolute value."""
    unit = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    along = (np.asarray(tokens_nd, np.float64) - np.mean(tokens_nd, 0)) @ unit
    return float(np.quantile(np.abs(along), 0.99))


def latent_units(sae: MatryoshkaSAE, tokens_nd: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return for each latent its 99 % quantile over the tokens where it is active, float64 [n]; NaN where it never is.

    For a whole run use `vlascope.sae.latent_statistics(...).p99`, which reads it in bounded memory.
    """
    codes = sae.encode(torch.from_numpy(np.ascontiguousarray(tokens_nd, np.float32)))
    cols, vals = codes.cols.cpu().numpy(), codes.vals.detach().double().cpu().numpy()
    order = np.lexsort((vals, cols))
    cols, vals = cols[order], vals[order]
    out = np.full(sae.config.n_latents, np.nan)
    names, starts = np.unique(cols, return_index=True)
    for latent, part in zip(names, np.split(vals, starts[1:]), strict=True):
        out[latent] = np.quantile(part, 0.99)
    return out


def editing(model: Model, site: str, fn: Any, where: Where) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which chosen tokens of one site are what `fn` makes of them."""
    found = one_site(model, site)
    return model.edit(found, fn, tokens=tokens_at(model, where, layout_name=found.layout))


def one_site(model: Model, site: str) -> Site:
    """Return the one site that a name means.

    Raises:
        InputError: it names several.
    """
    found = model.resolve(site)
    if len(found) != 1:
        raise InputError(f"'{site}' names {len(found)} sites; steering takes one.")
    return found[0]


def _facts(edit: Steer, kind: str, **more: Any) -> dict[str, Any]:
    where = edit.tokens if isinstance(edit.tokens, str) else "a function of the layout"
    return {
        "name": edit.name,
        "kind": kind,
        "site": edit.site,
        "strength": edit.strength,
        "tokens": where,
        **more,
    }
