"""Batch debugging: does what a layer groups together follow the truth or the model's own answer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import watched
from .findings import Finding, Row, layer_series
from .groups import group_items, named_like
from .labels import item_values
from .pooling import TokenChoice, image_pixels, pool_items
from .resample import (
    Units,
    bootstrap_weights,
    n_unchanged,
    percentile_interval,
    run_units,
    shuffled,
    summarise_null,
)
from .result import Result, adjusted, cannot_say, number_text, plain_json, undecided
from .scores import contingency, nmi_of_table, nmi_of_tables

if TYPE_CHECKING:
    from ..runs import Run

N_SHUFFLES = 499
N_DRAWS = 500
N_CHANCE = 99
"""Shuffles that tell what each draw of the bootstrap scores by chance."""
MIN_UNITS = 6
MIN_WRONG = 5
"""Wrong answers below which nobody can tell whether groups follow the truth or the answer."""

DEBUG_HEAD = (
    "site",
    "groups",
    "NMI with truth",
    "shuffled",
    "p (BH)",
    "NMI with answer",
    "p (BH)",
    "truth - answer",
    "follows",
)


@dataclass(frozen=True, kw_only=True)
class LayerAssociation:
    """How the groups of one layer relate to the truth and to the answers.

    Attributes:
        site: The layer.
        groups: int64 [n], the group of each item (unsupervised: neither truth nor answers were used).
        truth: NMI of groups and truth.
        answer: NMI of groups and answers; None without answers.
        difference: NMI with truth minus NMI with answers, with its interval; None where they cannot be told apart.
    """

    site: str
    groups: NDArray[np.int64]
    truth: Result
    answer: Result | None
    difference: Result | None

    @property
    def undecided(self) -> str:
        """Why finding neither is no answer; "" where it is one, or where something was found."""
        return undecided([one for one in (self.truth, self.answer) if one is not None])

    @property
    def follows(self) -> str:
        """One of "truth", "answer", "both", "neither", "cannot say"."""
        if self.truth.value is None:
            return "cannot say"
        told = {
            name
            for name, one in (("truth", self.truth), ("answer", self.answer))
            if one is not None and one.found
        }
        if not told:
            return "cannot say" if self.undecided else "neither"
        if self.answer is None:
            return "truth"
        if self.difference is not None and self.difference.interval is not None:
            low, high = self.difference.interval
            if low > 0:
                return "truth"
            if high < 0:
                return "answer"
        return "both" if len(told) == 2 else told.pop()


@dataclass(frozen=True)
class AssociationResult:
    """Groups of similar items, layer by layer, beside the truth and the model's answers.

    Attributes:
        label: Name of the truth.
        items: int64 [n], the items that were compared.
        truth: The truth of each.
        answers: The model's answer to each; empty when it gave none.
        layers: One entry per site.
        raw_pixels: NMI of truth with groups of the downsampled images.
        n_groups: How many groups were made.
    """

    label: str
    items: NDArray[np.int64]
    truth: tuple[str, ...]
    answers: tuple[str, ...]
    layers: tuple[LayerAssociation, ...]
    raw_pixels: Result
    n_groups: int

    @property
    def n_wrong(self) -> int | None:
        """Items whose answer differs from the truth; None without answers."""
        return sum(a != t for a, t in zip(self.answers, self.truth, strict=True)) if self.answers else None

    def verdict(self) -> str:
        """Return in one sentence what the groups follow, and from which layer on."""
        by_layer = [(layer.site, layer.follows) for layer in self.layers]
        if all(layer.truth.value is None for layer in self.layers):
            return f"cannot say: {self.layers[0].truth.reason}"
        found = [(site, what) for site, what in by_layer if what in ("truth", "answer", "both")]
        unclear = next((layer.undecided for layer in self.layers if layer.undecided), "")
        if not found and unclear:
            return f"cannot say what the groups follow: {unclear}"
        if not found:
            what = f"neither '{self.label}' nor the answers" if self.answers else f"'{self.label}' not"
            return f"the groups follow {what} at any of {len(by_layer)} layers"
        kinds = list(dict.fromkeys(what for _, what in found))
        parts = []
        for kind in kinds:
            sites = [site for site, what in found if what == kind]
            where = sites[0] if len(sites) == 1 else f"{len(sites)} layers, {sites[0]} to {sites[-1]}"
            name = {
                "truth": f"the truth ('{self.label}')",
                "answer": "the model's own answer rather than the truth",
                "both": "truth and answer alike",
            }[kind]
            parts.append(f"{name} at {where}")
        text = f"the groups follow {'; '.join(parts)}"
        if self.n_wrong is not None and self.n_wrong < MIN_WRONG:
            text += (
                f" ({self.n_wrong} of {len(self.items)} answers are wrong: too few to tell truth from answer)"
            )
        return text

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per layer, under `DEBUG_HEAD`."""

        def cell(one: Result | None) -> str:
            if one is None or one.value is None:
                return ""
            if one.interval is None:
                return number_text(one.value)
            return f"{number_text(one.value)} [{', '.join(number_text(x) for x in one.interval)}]"

        def p(one: Result | None) -> str:
            return "" if one is None or one.p_adjusted is None else f"{one.p_adjusted:.3g}"

        return [
            (
                layer.site,
                str(len(np.unique(layer.groups))),
                cell(layer.truth),
                "".join(number_text(x) for x in layer.truth.controls.values()),
                p(layer.truth),
                cell(layer.answer),
                p(layer.answer),
                cell(layer.difference),
                layer.follows,
            )
            for layer in self.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "verdict": self.verdict(),
                "label": self.label,
                "n_items": len(self.items),
                "n_wrong": self.n_wrong,
                "n_groups": self.n_groups,
                "raw_pixels": self.raw_pixels.to_json(),
                "layers": [
                    {
                        "site": layer.site,
                        "follows": layer.follows,
                        "truth": layer.truth.to_json(),
                        "answer": None if layer.answer is None else layer.answer.to_json(),
                        "difference": None if layer.difference is None else layer.difference.to_json(),
                        "groups": layer.groups,
                    }
                    for layer in self.layers
                ],
                "items": self.items,
                "truth": self.truth,
                "answers": self.answers,
            }
        )

    def finding(self) -> Finding:
        """Return the comparison as it is kept in a run."""
        rows = [
            Row(site=layer.site, result=one)
            for layer in self.layers
            for one in (layer.truth, layer.answer, layer.difference)
            if one is not None
        ]
        series = [layer_series("NMI with the truth", [(one.site, one.truth) for one in self.layers])]
        if self.answers:
            series.append(
                layer_series("NMI with the answers", [(one.site, one.answer) for one in self.layers])
            )
        return Finding(
            measure="debug",
            title=f"{self.label} and answers" if self.answers else self.label,
            verdict=self.verdict(),
            rows=(*rows, Row(result=self.raw_pixels)),
            layers=tuple(series),
            settings={
                "label": self.label,
                "groups": self.n_groups,
                "sites": [layer.site for layer in self.layers],
                "with_answers": bool(self.answers),
            },
        )


def association(
    run: Run,
    *,
    sites: Sequence[str],
    label: str,
    answers: str | None = "answer",
    tokens: TokenChoice = "auto",
    n_groups: int | None = None,
    n_permutations: int = N_SHUFFLES,
    seed: int = 0,
) -> AssociationResult:
    """Group similar items by each layer alone and ask whether the groups follow the truth or the answers.

    Each item is the mean of its tokens; items are grouped by k-means on principal components of standardised channels,
    without looking at truth or answers. Normalised mutual information is compared with labels shuffled between whole
    episodes (or items); p-values of all layers are corrected together. Unrelated groups score above 0 by chance:
    intervals are centred by what shuffled labels score in the same draws, and each result's details hold the value
    "adjusted for chance" (0: as shuffled labels, 1: equal; Vinh, Epps and Bailey 2010 for rows that are independent).

    Args:
        run: Similar images with one factor varied.
        sites: Layers, in forward order.
        label: The factor (the truth).
        answers: "answer" for what the model said, or a label that holds its answers; None compares with the truth
            only. When the model gave no answers, ask without.
        tokens: Which tokens stand for an item, see `pool_items`.
        n_groups: Number of groups; None makes as many as the factor has values.
        n_permutations: Shuffles.
        seed: Seeds groups, shuffles and intervals.

    Raises:
        InputError: no sites, unknown label, fewer than two values of it, or no answers.

    Cost: below 1 s per layer for 1,000 items.
    """
    names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    if not names:
        raise InputError("got no sites; name at least one.")
    items, truth, said = _truth_and_answers(run, label, answers)
    units = run_units(run, items)
    k = len(set(truth)) if n_groups is None else n_groups
    if not 2 <= k <= len(items):
        raise InputError(f"got {len(items)} items and {k} groups; need 2 groups or more and as many items.")
    features = {name: pool_items(run, name, tokens=tokens).of_items(items) for name in names}
    layers = []
    before = None
    for name in watched(names, desc="layers", unit="layer"):
        groups = group_items(features[name], k, seed=seed)
        groups = before = groups if before is None else named_like(groups, before)
        layers.append(_layer(name, groups, truth, said, units, n_permutations=n_permutations, seed=seed))
    layers = _corrected(layers)
    pixel_groups = group_items(image_pixels(run, items), k, seed=seed)
    pixels = _associate("raw pixels", pixel_groups, truth, units, n_permutations=n_permutations, seed=seed)
    return AssociationResult(label, items, tuple(truth), tuple(said or ()), tuple(layers), pixels, k)


def associate(
    groups: NDArray[np.integer],
    labels: Sequence[str],
    units: Units,
    *,
    name: str,
    n_permutations: int = N_SHUFFLES,
    seed: int = 0,
) -> Result:
    """Return the normalised mutual information of groups and labels, with interval, p-value and shuffled control.

    Args:
        groups: Group of each observation.
        labels: Label of each.
        units: Unit of each.
        name: Name of the result.
        n_permutations: Shuffles of the labels, whole units at a time.
        seed: Seeds shuffles and bootstrap.
    """
    return _associate(
        name, np.asarray(groups, np.int64), list(labels), units, n_permutations=n_permutations, seed=seed
    )


def _truth_and_answers(
    run: Run, label: str, answers: str | None
) -> tuple[NDArray[np.int64], list[str], list[str] | None]:
    truth = item_values(run, label)
    said = None if answers is None else item_values(run, answers)
    keep = [i for i in range(run.n_items) if truth[i] is not None and (said is None or said[i] is not None)]
    texts = [_clean(truth[i]) for i in keep]
    if len(set(texts)) < 2:
        raise InputError(
            f"'{label}' has {len(set(texts))} different values in {len(keep)} items; need 2 or more: vary the factor."
        )
    return np.array(keep, np.int64), texts, None if said is None else [_clean(said[i]) for i in keep]


def _clean(value: Any) -> str:
    """Return a value as it is compared: "Red." and "red" are one answer."""
    return str(value).strip().rstrip(".!").lower()


def _layer(
    site: str,
    groups: NDArray[np.int64],
    truth: list[str],
    said: list[str] | None,
    units: Units,
    *,
    n_permutations: int,
    seed: int,
) -> LayerAssociation:
    one = _associate(f"{site} / truth", groups, truth, units, n_permutations=n_permutations, seed=seed)
    other = difference = None
    if said is not None:
        other = _associate(f"{site} / answer", groups, said, units, n_permutations=n_permutations, seed=seed)
        difference = _difference(site, groups, truth, said, units, seed=seed)
    return LayerAssociation(site=site, groups=groups, truth=one, answer=other, difference=difference)


def _codes(labels: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


def _associate(
    name: str,
    groups: NDArray[np.int64],
    labels: Sequence[str],
    units: Units,
    *,
    n_permutations: int,
    seed: int,
) -> Result:
    codes, n = _codes(labels), len(groups)
    reason = ""
    if codes.max() == 0:
        reason = "all labels are the same"
    elif len(np.unique(groups)) < 2:
        reason = "the layer holds the same features for all items"
    elif units.n < MIN_UNITS:
        reason = f"{units.n} independent {units.over}s; need at least {MIN_UNITS}"
    if reason:
        return cannot_say(name, reason, unit="NMI", n=n, over=units.over)
    value = nmi_of_table(contingency(groups, codes))
    rng = np.random.default_rng([seed, 3])
    others = [shuffled(codes, units, rng=rng) for _ in range(n_permutations)]
    null = np.array([nmi_of_table(contingency(groups, other)) for other in others])
    test = summarise_null(value, null, n_same=n_unchanged(codes, others))
    draws, chance = _above_chance(groups, codes, units, seed=seed)
    interval = percentile_interval(chance + (1 - chance) * draws, n_units=units.n, bounds=(0, 1))
    return Result(
        name=name,
        value=value,
        unit="NMI",
        n=n,
        over=units.over,
        n_units=units.n,
        interval=interval,
        controls={"shuffled labels": test.null_mean},
        p=test.p,
        reach=test.reach,
        details={
            "shuffles": n_permutations,
            "adjusted for chance": (value - chance) / max(1 - chance, 1e-12),
        },
    )


def _difference(
    site: str, groups: NDArray[np.int64], truth: list[str], said: list[str], units: Units, *, seed: int
) -> Result:
    """Return NMI with truth minus NMI with answers, on paired resamples."""
    name, n_wrong = f"{site} / truth - answer", sum(a != t for a, t in zip(said, truth, strict=True))
    if n_wrong < MIN_WRONG:
        reason = f"only {n_wrong} of {len(truth)} answers differ from the truth"
        return cannot_say(name, reason, unit="NMI", n=len(truth), over=units.over)
    t, a = _codes(truth), _codes(said)
    if a.max() == 0 or len(np.unique(groups)) < 2 or units.n < MIN_UNITS:
        return cannot_say(name, "one answer or one group", unit="NMI", n=len(truth), over=units.over)
    value = nmi_of_table(contingency(groups, t)) - nmi_of_table(contingency(groups, a))
    values = [
        chance + (1 - chance) * draws
        for draws, chance in (_above_chance(groups, codes, units, seed=seed) for codes in (t, a))
    ]
    return Result(
        name=name,
        value=value,
        unit="NMI",
        n=len(truth),
        over=units.over,
        n_units=units.n,
        interval=percentile_interval(values[0] - values[1], n_units=units.n, bounds=(-1, 1)),
        details={"n_wrong": n_wrong},
    )


def _above_chance(
    x: NDArray[np.int64], y: NDArray[np.int64], units: Units, *, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Return bootstrap draws of NMI adjusted for chance (0: as shuffled, 1: equal), and what NMI is by chance.

    NMI of few units lies above 0 by chance, and more so in a draw, which holds fewer different units than the data:
    its quantiles alone would lie too high. What a draw scores by chance is therefore taken from shuffles drawn in the
    same way. The same units are drawn for the same seed.
    """
    n_x, n_y = int(x.max()) + 1, int(y.max()) + 1
    weights = bootstrap_weights(units.n, n_draws=N_DRAWS, seed=seed)
    weights = np.concatenate([np.ones((1, units.n)), weights])

    def scores(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """NMI of all units, and of each draw."""
        per_unit = np.zeros((units.n, n_x * n_y))
        np.add.at(per_unit, (units.ids, x * n_y + codes), 1)
        return nmi_of_tables((weights @ per_unit).reshape(-1, n_x, n_y))

    rng = np.random.default_rng([seed, 6])
    shuffles = np.array([scores(shuffled(y, units, rng=rng)) for _ in range(N_CHANCE)])
    # A draw in which a side has one class only, as it is or shuffled, says nothing.
    known = np.isfinite(shuffles)
    chance = np.where(known, shuffles, 0).sum(0) / np.maximum(known.sum(0), 1)
    chance = np.where(known.any(0), chance, np.nan)
    draws = (scores(y) - chance) / np.maximum(1 - chance, 1e-12)
    return draws[1:], float(chance[0])


def _corrected(layers: list[LayerAssociation]) -> list[LayerAssociation]:
    results = [r for layer in layers for r in (layer.truth, layer.answer) if r is not None]
    out = iter(adjusted(results))
    return [
        LayerAssociation(
            site=layer.site,
            groups=layer.groups,
            truth=next(out),
            answer=None if layer.answer is None else next(out),
            difference=layer.difference,
        )
        for layer in layers
    ]
