"""Latents that stand for one factor and not for another that goes with it, validated where they were never fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import progress
from ..sim.rollout import wilson_interval
from .cards import _encoded, _rows_of_items, _site
from .checkpoint import Checkpoint
from .factorial import Design, Effects, detectable_effect, factor_effect, interaction_effect, make_design
from .module import MatryoshkaSAE

if TYPE_CHECKING:
    from ..runs import Run

ALPHA = 0.05
MIN_ACTIVE_UNITS = 0.1
"""A latent is tested when it is active in at least this share of the units (chosen without looking at labels)."""
N_SHUFFLES = 20

FOUND_HEAD = ("latent", "level", "effect", "interval", "eta²", "q", "held-out right", "interval ")


@dataclass(frozen=True)
class FoundLatent:
    """A latent with an effect of the target and none of the other factors.

    Attributes:
        latent: Its number.
        level: The coarsest level that holds it.
        effect: Standardised difference between the target's last and first value, in their order
            as text.
        interval: 95 % bootstrap interval of `effect`, over units.
        share: Partial eta squared of the target.
        q: Corrected p-value.
        held_out: Share of the held-out cell's units on the right side of the threshold fitted on the other cells.
        held_out_interval: Its Wilson interval.
        n_held_out: Units in that cell.
    """

    latent: int
    level: int
    effect: float
    interval: tuple[float, float]
    share: float
    q: float
    held_out: float
    held_out_interval: tuple[float, float]
    n_held_out: int

    @property
    def validated(self) -> bool | None:
        """Whether the held-out cell is told above chance; None where it has too few units to ever say so."""
        return self.held_out_interval[0] > 0.5 if _can_validate(self.n_held_out) else None


@dataclass(frozen=True)
class Discovery:
    """Outcome of a search for latents of one factor.

    Attributes:
        target: The factor.
        others: The factors that must have no effect.
        found: Latents of the target alone, strongest first.
        n_target: Latents with an effect of the target, before the others are discarded.
        discarded: Latents with an effect of the target and of another factor (or an interaction), by reason.
        n_tested: Latents tested.
        n_units, over: Independent units, with those of the held-out cell.
        n_held_out: Units of the held-out cell; the search does not see them.
        held_out_cell: The cell that was left out for validation.
        detectable: Smallest standardised difference that would be found with power 0.8; None where none would be.
        controls: The same search elsewhere: "shuffled labels" (mean number found), "random dictionary", "PCA" (number
            found), "dense probe" (held-out share right of a ridge on mean tokens).
    """

    target: str
    others: tuple[str, ...]
    found: tuple[FoundLatent, ...]
    n_target: int
    discarded: dict[str, int]
    n_tested: int
    n_units: int
    n_held_out: int
    over: str
    held_out_cell: str
    detectable: float | None
    controls: dict[str, float]

    def verdict(self) -> str:
        """Return the outcome in one sentence."""
        good = sum(bool(one.validated) for one in self.found)
        tested = f"{self.n_tested} latents over {self.n_units - self.n_held_out} {self.over}s"
        others = " or ".join(self.others)
        if not self.found:
            power = (
                "a difference of any size would have been missed more than once in 5, with so few units or "
                "permutations: this says nothing"
                if self.detectable is None
                else f"a standardised difference of {self.detectable:.2f} would have been found 4 times in 5"
            )
            return (
                f"no latent stands for {self.target} alone ({tested}; {power}; {self.n_target} latents with an effect "
                f"of {self.target} also follow {others})"
            )
        cell = f"{self.held_out_cell}: {self.n_held_out} {self.over}s"
        if not _can_validate(self.n_held_out):
            return (
                f"{len(self.found)} of {tested} stand for {self.target} and not for {others}; whether they tell it in "
                f"the held-out cell ({cell}) cannot be said: need at least 4 there"
            )
        return (
            f"{len(self.found)} of {tested} stand for {self.target} and not for {others}; {good} of them tell it in "
            f"the held-out cell ({cell})"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return one row per found latent, under `FOUND_HEAD`."""
        return [
            (
                str(one.latent),
                str(one.level),
                f"{one.effect:+.2f}",
                f"{one.interval[0]:+.2f} to {one.interval[1]:+.2f}",
                f"{one.share:.2f}",
                f"{one.q:.2g}",
                f"{one.held_out:.0%}",
                f"{one.held_out_interval[0]:.0%} to {one.held_out_interval[1]:.0%}"
                if one.validated is not None
                else "cannot say",
            )
            for one in self.found
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return dict(vars(self)) | {
            "verdict": self.verdict(),
            "found": [dict(vars(one)) | {"validated": one.validated} for one in self.found],
        }


def _can_validate(n: int) -> bool:
    """Whether all of n units on the right side would be above chance."""
    return wilson_interval(n, n)[0] > 0.5


def discover(
    run: Run,
    checkpoint: Checkpoint,
    *,
    factors: Sequence[str],
    held_out: Sequence[str] = (),
    site: str | None = None,
    tokens: str = "auto",
    n_permutations: int = 499,
    seed: int = 0,
    quiet: bool = False,
) -> Discovery:
    """Search a dictionary for latents of the first factor that do not follow the others.

    Args:
        run: A run whose items carry the factors as labels, in all combinations, constant within an episode.
        checkpoint: The dictionary.
        factors: Names of labels, the target first.
        held_out: Value of each factor: the cell that is left out for validation (default: the last of each).
        site: Where to read (default: where the dictionary was trained).
        tokens: Which tokens, as in training.
        n_permutations: Shuffles behind the p-values.
        seed: Seeds shuffles and bootstrap.
        quiet: No progress bar.

    Raises:
        InputError: fewer than two factors, missing labels, labels that change within an episode, small cells.

    Cost: two encodes per token (one for the random dictionary), then seconds.
    """
    if len(factors) < 2 or len(set(factors)) != len(factors):
        raise InputError(
            f"got factors {', '.join(factors) or '(none)'}; need the target and at least one other, such as fragile "
            "colour."
        )
    _check_numbers(n_permutations, seed)
    site = _site(checkpoint, site)
    units, over, labels = _units(run, factors)
    control = MatryoshkaSAE(checkpoint.sae.config, seed=seed + 1).to(checkpoint.sae.encoder.device)
    acts = run.acts(site)
    sample = np.asarray(
        acts[np.linspace(0, len(acts) - 1, min(len(acts), 4096)).astype(np.int64)], np.float32
    )
    control.mean.copy_(torch.from_numpy(sample.mean(0)))
    control.scale.fill_(float(sample.std(0).mean()) or 1.0)
    if checkpoint.sae.config.activation != "topk":  # thresholds of its own, for as many active latents
        control.threshold.data.fill_(2.0)
    latents = unit_means(run, checkpoint.sae, site, units, tokens=tokens, quiet=quiet)
    random = unit_means(run, control, site, units, tokens=tokens, quiet=True)
    raw = _raw_means(run, site, units, tokens=tokens)
    return discover_arrays(
        latents,
        labels,
        held_out=held_out,
        over=over,
        levels=checkpoint.sae.levels,
        raw_nd=raw,
        random_nf=random,
        n_permutations=n_permutations,
        seed=seed,
    )


def discover_arrays(
    latents_nf: NDArray[np.floating],
    labels: dict[str, list[object]],
    *,
    held_out: Sequence[str] = (),
    over: str = "episode",
    levels: Sequence[int] = (),
    raw_nd: NDArray[np.floating] | None = None,
    random_nf: NDArray[np.floating] | None = None,
    n_permutations: int = 499,
    n_shuffles: int = N_SHUFFLES,
    seed: int = 0,
) -> Discovery:
    """Search plain arrays; see `discover`.

    Args:
        latents_nf: [n_units, n_latents], mean activation per unit.
        labels: Value of each factor per unit, the target first.
        held_out: Value of each factor in the held-out cell.
        over: What a unit is.
        levels: Widths of the nested dictionaries.
        raw_nd: [n_units, d] mean tokens, for the controls.
        random_nf: [n_units, n_latents] of a random dictionary, for the control.
        n_permutations: Shuffles.
        n_shuffles: Whole searches with shuffled labels, for the control; 0 leaves it out.
        seed: Seeds shuffles and bootstrap.
    """
    _check_numbers(n_permutations, seed)
    design = make_design(labels)
    cell = _cell(design, held_out)
    inside = (design.codes == cell).all(1)
    seen = design.take(~inside)
    # The held-out cell takes no part in the choice either: chosen on it, noise would be right in it as well.
    tested, picked, n_target, discarded, target = _search(
        np.asarray(latents_nf)[~inside], seen, n_permutations=n_permutations, seed=seed
    )
    rng = np.random.default_rng([seed, 2])
    found = []
    for column in picked:
        latent = int(tested[column])
        x = np.asarray(latents_nf[:, latent], np.float64)
        share, interval = _validate(x[~inside], seen, x[inside], int(cell[0]))
        effect, around = _effect(x, design, rng=rng)
        found.append(
            FoundLatent(
                latent=latent,
                level=next((w for w in levels if latent < w), latents_nf.shape[1]),
                effect=effect,
                interval=around,
                share=float(target.share[column]),
                q=float(target.q[column]),
                held_out=share,
                held_out_interval=interval,
                n_held_out=int(inside.sum()),
            )
        )
    controls = _controls(
        np.asarray(latents_nf), design, inside, cell, raw_nd, random_nf, n_permutations, n_shuffles, seed
    )
    return Discovery(
        target=design.names[0],
        others=design.names[1:],
        found=tuple(sorted(found, key=lambda one: -one.share)),
        n_target=n_target,
        discarded=discarded,
        n_tested=len(tested),
        n_units=design.n,
        n_held_out=int(inside.sum()),
        over=over,
        held_out_cell=", ".join(
            f"{name}={level[int(i)]}"
            for name, level, i in zip(design.names, design.levels, cell, strict=True)
        ),
        detectable=detectable_effect(seen, n_tests=len(tested), n_permutations=n_permutations),
        controls=controls,
    )


def _check_numbers(n_permutations: int, seed: int) -> None:
    if n_permutations < 0 or seed < 0:
        raise InputError(f"got {n_permutations} permutations and seed {seed}; need numbers from 0 on.")


def _search(
    x_nf: NDArray[np.floating], design: Design, *, n_permutations: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int, dict[str, int], Effects]:
    """Return tested features, columns picked among them, and how many fell to which other effect."""
    x = np.asarray(x_nf)
    active = (x != 0).mean(0) >= MIN_ACTIVE_UNITS
    tested = np.flatnonzero(active & (np.ptp(x, axis=0) > 0))
    if not len(tested):
        raise InputError("no latent is active in at least a tenth of the units; nothing can be tested.")
    rng = np.random.default_rng([seed, 1])
    y = x[:, tested]
    target = factor_effect(y, design, 0, n_permutations=n_permutations, rng=rng)
    hit = target.q <= ALPHA
    fell = np.zeros(len(tested), bool)
    discarded: dict[str, int] = {}
    if hit.any():
        others = [
            factor_effect(y, design, i, n_permutations=n_permutations, rng=rng)
            for i in range(1, len(design.names))
        ]
        others.append(interaction_effect(y, design, n_permutations=n_permutations, rng=rng))
        for effect in others:
            # Uncorrected: a latent that may follow the other factor is one too many.
            bad = hit & (effect.p <= ALPHA / len(others)) & (effect.share >= 0.1 * target.share)
            discarded[effect.name] = int((bad & ~fell).sum())
            fell |= bad
    return tested, np.flatnonzero(hit & ~fell), int(hit.sum()), discarded, target


def _cell(design: Design, held_out: Sequence[str]) -> NDArray[np.int64]:
    if not held_out:
        return np.array([len(level) - 1 for level in design.levels])
    if len(held_out) != len(design.names):
        raise InputError(
            f"got {len(held_out)} values for the held-out cell; need one for each of {design.names}."
        )
    out = []
    for name, levels, value in zip(design.names, design.levels, held_out, strict=True):
        if str(value) not in levels:
            raise InputError(f"factor '{name}' has no value '{value}'; it has: {', '.join(levels)}.")
        out.append(levels.index(str(value)))
    return np.array(out)


def _validate(
    x: NDArray[np.float64], seen: Design, unseen: NDArray[np.float64], value: int
) -> tuple[float, tuple[float, float]]:
    """Return the share of the held-out units on the target's side, fitted where the other factors agree otherwise.

    The threshold lies midway between the means of the units with and without the target's value, among combinations
    of the other factors in which both occur.
    """
    strata = seen.strata(without=0)
    has = seen.codes[:, 0] == value
    both = np.isin(strata, np.intersect1d(strata[has], strata[~has]))
    high, low = x[both & has].mean(), x[both & ~has].mean()
    right = (unseen - (high + low) / 2) * np.sign(high - low) > 0
    return float(right.mean()), wilson_interval(int(right.sum()), len(right))


def _effect(
    x: NDArray[np.float64], design: Design, *, rng: np.random.Generator, n_draws: int = 500
) -> tuple[float, tuple[float, float]]:
    """Return the standardised difference between the target's last and first value, and its bootstrap interval."""
    codes = design.codes[:, 0]
    a, b = x[codes == 0], x[codes == codes.max()]

    def difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = np.sqrt((a.var(-1) + b.var(-1)) / 2)
        return (b.mean(-1) - a.mean(-1)) / np.maximum(spread, 1e-12)

    draws = difference(
        a[rng.integers(len(a), size=(n_draws, len(a)))], b[rng.integers(len(b), size=(n_draws, len(b)))]
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(difference(a, b)), (float(low), float(high))


def _controls(
    latents: NDArray[np.floating],
    design: Design,
    inside: NDArray[np.bool_],
    cell: NDArray[np.int64],
    raw: NDArray[np.floating] | None,
    random: NDArray[np.floating] | None,
    n_permutations: int,
    n_shuffles: int,
    seed: int,
) -> dict[str, float]:
    rng = np.random.default_rng([seed, 3])
    fit = ~inside
    seen = design.take(fit)
    n_found = []
    for number in range(n_shuffles):
        codes = seen.codes[:, 0].copy()
        strata = seen.strata(without=0)
        for s in range(strata.max() + 1):
            group = np.flatnonzero(strata == s)
            codes[group] = codes[rng.permutation(group)]
        shuffled = seen.with_codes(0, codes)
        n_found.append(len(_search(latents[fit], shuffled, n_permutations=99, seed=seed + number)[1]))
    out = {"shuffled labels, mean number found": float(np.mean(n_found))} if n_found else {}
    if random is not None:
        out["random dictionary, number found"] = float(
            len(_search(random[fit], seen, n_permutations=n_permutations, seed=seed)[1])
        )
    if raw is not None:
        x = np.asarray(raw, np.float64)
        x = (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-12)
        u, s, _ = np.linalg.svd(x[fit], full_matrices=False)
        n_parts = max(1, min(len(s) - 1, 50))
        out["PCA, number found"] = float(
            len(_search(u[:, :n_parts] * s[:n_parts], seen, n_permutations=n_permutations, seed=seed)[1])
        )
        y = np.where(seen.codes[:, 0] == cell[0], 1.0, -1.0)
        # Kernel form of ridge: units are fewer than channels.
        gram = x[fit] @ x[fit].T
        dual = np.linalg.solve(gram + np.trace(gram) / fit.sum() * np.eye(fit.sum()), y - y.mean())
        guess = x[inside] @ (x[fit].T @ dual) + y.mean()
        out["dense probe, held-out share right"] = float((guess > 0).mean())
    return out


def _units(run: Run, factors: Sequence[str]) -> tuple[NDArray[np.int64], str, dict[str, list[object]]]:
    """Return the unit of each item, what units are, and each factor's value per unit."""
    over = "episode" if all(row.episode is not None for row in run.items) else "item"
    names = [row.episode if over == "episode" else row.index for row in run.items]
    units = np.unique(np.array(names, np.int64), return_inverse=True)[1].astype(np.int64)
    labels: dict[str, list[object]] = {}
    for name in factors:
        values: dict[int, object] = {}
        for row, unit in zip(run.items, units, strict=True):
            value = row.labels.get(name)
            if value is None:
                raise InputError(
                    f"item '{row.item_id}' has no label '{name}'; it has: {', '.join(sorted(row.labels)) or 'none'}."
                )
            if values.setdefault(int(unit), value) != value:
                raise InputError(
                    f"label '{name}' changes within the episode of item '{row.item_id}'; factors must be constant "
                    "within a unit."
                )
        labels[name] = [values[u] for u in range(len(values))]
    return units, over, labels


def unit_means(
    run: Run,
    sae: MatryoshkaSAE,
    site: str,
    units: NDArray[np.int64],
    *,
    tokens: str = "auto",
    quiet: bool = False,
) -> NDArray[np.float32]:
    """Return the mean activation of each latent over the tokens of each unit, float32 [n_units, n_latents]."""
    rows_of = _rows_of_items(run, site, tokens=tokens)
    sums = np.zeros((int(units.max()) + 1, sae.config.n_latents), np.float32)
    counts = np.zeros(len(sums))
    for item, rows, codes in progress(
        _encoded(run, sae, site, rows_of), desc="reading latents", total=len(rows_of), quiet=quiet
    ):
        sums[units[item]] += np.asarray(codes.sum(0)).ravel()
        counts[units[item]] += len(rows)
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32)


def _raw_means(run: Run, site: str, units: NDArray[np.int64], *, tokens: str) -> NDArray[np.float64]:
    acts, item_of = run.acts(site), run.tokens(run.site(site).layout).item
    sums, counts = np.zeros((int(units.max()) + 1, acts.shape[1])), np.zeros(int(units.max()) + 1)
    for rows in _rows_of_items(run, site, tokens=tokens):
        unit = units[int(item_of[rows[0]])]
        sums[unit] += np.asarray(acts[rows], np.float64).sum(0)
        counts[unit] += len(rows)
    return sums / np.maximum(counts, 1)[:, None]
