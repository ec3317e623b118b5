"""Dose and response: one steering at several strengths, beside controls of the same length and unrelated prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..measure.means import mean_result
from ..measure.resample import bootstrap_mean
from ..measure.result import Result, plain_json, table
from ..progress import progress
from .edits import ModelEdit, check_has_tokens
from .effects import Baseline, Effect, effect, effect_results
from .steer import Redirected, Steer, SteerLatents, one_site

if TYPE_CHECKING:
    from ..models import Model

Aim = Callable[[Effect], NDArray[np.float64]]
"""What the steering is meant to do: one number per item, larger where it is done more."""


@dataclass(frozen=True)
class Dose:
    """One strength.

    Attributes:
        strength: In the steering's units.
        aim: What it was meant to do, with the controls of the same length and p: the share of controls that do as
            much, (1 + those) / (1 + controls).
        beyond: Steering minus its strongest control, paired by item, with interval.
        effects: Shift per degree of freedom, KL, off-target mass and surprise.
        unrelated: The same on prompts that it should leave alone; empty when none were given.
    """

    strength: float
    aim: Result
    beyond: Result
    effects: tuple[Result, ...]
    unrelated: tuple[Result, ...]


@dataclass(frozen=True)
class DoseResponse:
    """A steering at several strengths.

    Attributes:
        edit: What it does, as JSON types (at strength 1).
        aim: Name of what it was meant to do.
        doses: One per strength, in order.
        n_controls: Controls per strength.
    """

    edit: dict[str, Any]
    aim: str
    doses: tuple[Dose, ...]
    n_controls: int

    def best(self) -> Dose:
        """Return the strength whose effect lies farthest beyond its strongest control."""
        return max(self.doses, key=lambda dose: -np.inf if dose.beyond.value is None else dose.beyond.value)

    @property
    def works(self) -> bool:
        """Whether at some strength the effect's interval, corrected for the number of strengths, is above controls."""
        return any(dose.beyond.interval is not None and dose.beyond.interval[0] > 0 for dose in self.doses)

    def verdict(self) -> str:
        """Return in one sentence whether the steering does what its controls do not."""
        dose = self.best()
        if self.works:
            say = "does what no control of the same length does"
        elif dose.beyond.value is not None and dose.beyond.interval is None:
            say = (
                f"cannot be told from its controls with {dose.beyond.n_units} independent {dose.beyond.over}s"
            )
        else:
            say = "does no more than its controls"
        beyond = dose.beyond.line().replace("(95 %, ", f"({_level_text(dose.beyond)}, ")
        return f"steering {say}: at {dose.strength:g} units {dose.aim.line()}; {beyond}"

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per number, under `TABLE_HEAD` of vlascope.measure.result."""
        rows = []
        for dose in self.doses:
            aim, beyond, *more = table([dose.aim, dose.beyond, *dose.effects, *dose.unrelated])
            if dose.beyond.interval is not None:  # the head of the table says 95 %
                beyond = (*beyond[:2], f"{beyond[2]} ({_level_text(dose.beyond)})", *beyond[3:])
            rows += [aim, beyond, *more]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "edit": self.edit,
                "aim": self.aim,
                "works": self.works,
                "verdict": self.verdict(),
                "n_controls": self.n_controls,
                "doses": [
                    {
                        "strength": dose.strength,
                        "aim": dose.aim.to_json(),
                        "beyond": dose.beyond.to_json(),
                        "effects": [r.to_json() for r in dose.effects],
                        "unrelated": [r.to_json() for r in dose.unrelated],
                    }
                    for dose in self.doses
                ],
            }
        )


def dose_response(
    model: Model,
    steer: Steer,
    base: Baseline,
    *,
    strengths: Sequence[float],
    controls: Sequence[Redirected],
    aim: Aim | None = None,
    aim_name: str = "size of the action shift",
    unrelated: Baseline | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> DoseResponse:
    """Measure a steering at several strengths against controls that change each token by the same length.

    Args:
        model: The model.
        steer: The steering; "replace" is compared with the unchanged reconstruction, whose own effect is subtracted.
        base: Items and answers, see `baseline`.
        strengths: In the steering's units.
        controls: From `random_directions` and `random_latents`; they are scaled to each strength.
        aim: What it is meant to do; default: length of the shift of the expected action (each degree of freedom in
            units of its spread over the items), for models without actions the divergence of the answers.
        aim_name: Its name and unit.
        unrelated: Items with prompts that the steering should leave alone.
        seed: Seeds the bootstrap.
        quiet: No progress bar.

    Returns:
        One `Dose` per strength. Intervals of `beyond` are widened for the number of strengths (Bonferroni).

    Raises:
        InputError: no strengths or no controls, or a site that has none of the tokens to be steered.

    Cost: two passes per item, strength and (1 + controls).
    """
    if not len(strengths) or not len(controls):
        raise InputError(
            f"got {len(strengths)} strengths and {len(controls)} controls; need at least one of each."
        )
    check_has_tokens(model, steer.tokens, site=one_site(model, steer.site), items=base.items)
    wanted = aim or _size(base)
    doses = []
    ticks = iter(
        progress(range(len(strengths) * (1 + len(controls))), desc="steering", unit="edit", quiet=quiet)
    )
    plain = _plain(model, steer, base, wanted)
    for strength in strengths:
        next(ticks)
        edit = steer.scaled(strength)
        found = effect(model, edit, base)
        value = wanted(found) - plain
        others = []
        for control in controls:
            next(ticks)
            others.append(wanted(effect(model, control.scaled(strength), base)) - plain)
        doses.append(
            _dose(model, edit, found, value, np.stack(others), base, controls, aim_name, unrelated,
                  n_strengths=len(strengths), seed=seed)
        )  # fmt: skip
    next(ticks, None)
    return DoseResponse(steer.scaled(1.0).to_json(), aim_name, tuple(doses), len(controls))


def _plain(model: Model, steer: Steer, base: Baseline, aim: Aim) -> NDArray[np.float64]:
    """Return what the reconstruction alone does, [n]; zeros for edits that keep what it does not explain."""
    plain = steer.baseline() if isinstance(steer, SteerLatents) else None
    return np.zeros(len(base.items)) if plain is None else aim(effect(model, plain, base))


def _dose(
    model: Model,
    edit: ModelEdit,
    found: Effect,
    value: NDArray[np.float64],
    others: NDArray[np.float64],
    base: Baseline,
    controls: Sequence[Redirected],
    aim_name: str,
    unrelated: Baseline | None,
    *,
    n_strengths: int,
    seed: int,
) -> Dose:
    means = np.array([np.nanmean(one) if np.isfinite(one).any() else np.nan for one in others])
    top = mean_result(f"{edit.name} / aim", value, base.units, unit=aim_name, seed=seed)
    by_kind: dict[str, list[float]] = {}
    for control, mean in zip(controls, means, strict=True):
        kind = "random directions" if control.label == "random direction" else "other latents"
        by_kind.setdefault(kind, []).append(float(mean))
    shown = {f"{kind}, mean": float(np.nanmean(found)) for kind, found in by_kind.items()}
    shown |= {f"{kind}, strongest": float(np.nanmax(found)) for kind, found in by_kind.items()}
    beyond_name = f"{edit.name} / beyond the strongest control"
    if top.value is None or not np.isfinite(means).any():
        beyond = replace(top, name=beyond_name, value=None, reason=top.reason or "no control applies")
    else:
        reached = int((means >= top.value - 1e-12).sum())
        top = replace(top, controls=shown, p=(1 + reached) / (1 + len(means)))
        difference = value - others[int(np.nanargmax(means))]
        beyond = mean_result(beyond_name, difference, base.units, unit=aim_name, seed=seed)
        if beyond.value is not None and beyond.interval is not None:
            known = np.isfinite(difference)
            wide = bootstrap_mean(
                difference[known],
                base.units.take(np.flatnonzero(known)),
                level=1 - 0.05 / n_strengths,
                seed=seed,
            )
            beyond = replace(beyond, interval=wide, details={"level": 1 - 0.05 / n_strengths})
    other = () if unrelated is None else tuple(
        replace(r, name=f"unrelated: {r.name}")
        for r in effect_results(effect(model, edit, unrelated), unrelated, seed=seed)
    )  # fmt: skip
    return Dose(
        float(getattr(edit, "strength", np.nan)),
        top,
        beyond,
        tuple(effect_results(found, base, seed=seed)),
        other,
    )


def _level_text(result: Result) -> str:
    """Return the level of an interval, which is wider than 95 % where there are several strengths."""
    return f"{100 * result.details.get('level', 0.95):.3g} %"


def _size(base: Baseline) -> Aim:
    if not base.names:
        return lambda found: found.kl
    spread = np.nanstd(base.expected, axis=0)
    used = spread > 0

    def size(found: Effect) -> NDArray[np.float64]:
        return np.sqrt(((found.shifted[:, used] / spread[used]) ** 2).mean(1))

    return size
