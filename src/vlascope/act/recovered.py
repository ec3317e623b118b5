"""How much of what a model needs a site for survives when a dictionary's reconstruction is put in the tokens' place."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..measure.resample import bootstrap_interval
from ..measure.result import Result, cannot_say
from .edits import Where, tokens_at
from .effects import Baseline, effect
from .steer import SteerLatents, editing, one_site

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import Model
    from ..sae import MatryoshkaSAE

MIN_LOSS = 1e-3
"""Nats per token that taking a site's tokens away must cost, so that a share of it means something."""


@dataclass(frozen=True)
class Constant:
    """Puts one vector in the place of every chosen token of a site.

    Attributes:
        site: Where.
        value: [d].
        tokens: Which tokens, see `WHERE`.
    """

    site: str
    value: NDArray[np.float32]
    tokens: Where = "patch"

    @property
    def name(self) -> str:
        """Short name, for tables."""
        return f"{self.site}: one token for all"

    def on(self, model: Model) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the tokens are replaced."""

        def change(x: Tensor) -> Tensor:
            return torch.from_numpy(self.value).to(x.device, x.dtype).expand_as(x)

        return editing(model, self.site, change, self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return what it does as JSON types."""
        return {"name": self.name, "site": self.site, "tokens": str(self.tokens)}


def loss_recovered(
    model: Model,
    sae: MatryoshkaSAE,
    base: Baseline,
    *,
    site: str,
    levels: Sequence[int] = (),
    tokens: Where = "patch",
    seed: int = 0,
) -> list[Result]:
    """Return per level the share of the loss that the dictionary recovers: 1 when nothing of the answer is lost.

    The loss is that of the model's own unedited answer (action tokens, or words), in nats per token. It is compared
    between the tokens as they are, their reconstructions, and their mean in the place of all: (mean - reconstruction)
    / (mean - as they are), each averaged over items.

    Args:
        model: The model.
        sae: The site's dictionary.
        base: Items and the model's own answers, see `baseline`.
        site: Where it was trained.
        levels: Levels (default: all that were trained).
        tokens: Which tokens are replaced.
        seed: Seeds the intervals.

    Returns:
        One result per level, with the three losses in `details`; "cannot say" where the answer does not need the site.

    Raises:
        InputError: a level that was not trained, or a site without such tokens.

    Cost: one answer and one pass per item and level, and one more of each.

    References: the measure is that of SAE evaluations for language models, see J. Bloom et al., SAELens.
    """
    widths = [sae.config.level(level) for level in (levels or sae.levels)]
    clean = base.surprise
    gone = effect(model, Constant(site, _mean(model, base, site=site, tokens=tokens), tokens), base).surprise
    out = []
    for width in widths:
        edit = SteerLatents(
            site=site, sae=sae, latents=(), units=(), mode="replace", level=width, tokens=tokens
        )
        out.append(_share(width, clean, effect(model, edit, base).surprise, gone, base, seed=seed))
    return out


def _share(
    width: int,
    clean: NDArray[np.float64],
    rebuilt: NDArray[np.float64],
    gone: NDArray[np.float64],
    base: Baseline,
    *,
    seed: int,
) -> Result:
    name, unit = f"level {width} / loss recovered", "share of the loss"
    known = np.flatnonzero(np.isfinite(clean + rebuilt + gone))
    lost, missing = (gone - clean)[known], (rebuilt - clean)[known]
    if not len(known) or lost.mean() < MIN_LOSS:
        reason = "the answer does not need these tokens: their mean in place of all of them costs it nothing"
        return cannot_say(name, reason, unit=unit, n=len(known), over=base.units.over)
    units = base.units.take(known)

    def ratio(weights: NDArray[np.floating]) -> float:
        below = float((weights * lost).sum())
        return 1 - float((weights * missing).sum()) / below if below > 0 else np.nan

    return Result(
        name=name,
        value=ratio(np.ones(len(known))),
        unit=unit,
        n=len(known),
        over=base.units.over,
        n_units=units.n,
        interval=bootstrap_interval(ratio, units, seed=seed),
        details={
            "as they are": float(clean[known].mean()),
            "reconstructed": float(rebuilt[known].mean()),
            "mean in place of all": float(gone[known].mean()),
            "loss": "nats per token of the unedited answer",
        },
    )


def _mean(model: Model, base: Baseline, *, site: str, tokens: Where) -> NDArray[np.float32]:
    """Return the mean of the tokens that are replaced where prompt and answer are read in one pass."""
    found = one_site(model, site)
    where = tokens_at(model, tokens, layout_name=found.layout)
    total, n = np.zeros(found.width), 0
    for start in range(0, len(base.items), base.batch_size):
        some = slice(start, start + base.batch_size)
        batch = model.prepare(list(base.items[some]), answers=base.replies[some])
        values = model.capture(batch, [found])[found.name]
        for layout, x in zip(batch.layouts[found.layout], values, strict=True):
            rows = x.float().cpu().numpy()
            if where is not None:
                with model._hooks.running(batch):  # where the answer begins
                    rows = rows[where(layout)]
            total += rows.sum(0, dtype=np.float64)
            n += len(rows)
    if not n:
        raise InputError(
            f"{site} has no '{tokens}' tokens in any of {len(base.items)} items; choose other tokens or another site."
        )
    return (total / n).astype(np.float32)
