"""What can be read off a layer: position, state, colour, success, on episodes that the probe never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .controls import check_random
from .crossfit import unit_folds
from .findings import Finding, LayerSeries, Row, layer_series
from .labels import item_classes, item_numbers
from .mlp import held_out_mlp
from .pooling import TokenChoice, image_pixels, pool_items
from .probe_scores import Choices, ProbeScore, classes_of_units
from .resample import MIN_UNITS, Scheme, Units, n_unchanged, run_units, summarise_null
from .resample import shuffled as shuffle
from .result import Result, adjusted, cannot_say, number_text, plain_json
from .ridge import HeldOutRidge

if TYPE_CHECKING:
    from ..runs import Run

ProbeModel = Literal["ridge", "mlp"]
Predict = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]

PROBE_HEAD = ("site", "target", "test", "train", "95 % interval", "n", "p (BH)", "controls")
N_SHUFFLES: Mapping[ProbeModel, int] = {"ridge": 299, "mlp": 19}
"""Shuffles behind a p-value where nobody says how many: enough to find one layer of 15 by ridge; a network is slow, and
one layer of many then needs more."""

MEMORISED_GAP = 0.5
"""A probe that explains this much more of its training rows, or of rows held out at random, than of held-out units, and
nothing of these, memorises."""


@dataclass(frozen=True)
class ProbeResult:
    """How well one target can be read off one layer.

    Attributes:
        site: The layer.
        target: What was read.
        model: "ridge" or "mlp".
        test: Score on held-out units with interval, p and controls: R² over the mean of the training rows, or
            balanced accuracy.
        train: The same score on the rows that the probe was fitted on; None when nothing can be said.
        apart: The same score when rows are held out at random, so that other rows of their unit are fitted: what
            naming the units is worth. None where every row is a unit.
        per_output: Test R² of each number (or recall of each class).
        rmse: Test error of each number in its own unit, beside that of the mean predictor; empty for classes.
    """

    site: str
    target: str
    model: str
    test: Result
    train: float | None = None
    apart: float | None = None
    per_output: dict[str, float] | None = None
    rmse: dict[str, tuple[float, float]] | None = None

    @property
    def memorised(self) -> bool:
        """Whether the probe knows the units that it was fitted on and nothing of held-out ones.

        Rows held out at random tell as well, because a penalty chosen for held-out units may keep the probe from
        fitting what it could memorise.
        """
        if self.test.value is None or self.train is None:
            return False
        known = self.train if self.apart is None else max(self.train, self.apart)
        return known - self.test.value >= MEMORISED_GAP and not self.test.found and not self.test.undecided

    def verdict(self) -> str:
        """Return in one sentence whether the target can be read."""
        if self.test.value is None:
            return f"{self.target} at {self.site}: cannot say ({self.test.reason})"
        assert self.train is not None
        both = (
            f"{self.test.unit} {number_text(self.test.value)} on held-out {self.test.over}s, "
            f"{number_text(self.train)} on those fitted"
        )
        if self.memorised:
            shared = "" if self.apart is None else f", {number_text(self.apart)} on rows held out at random"
            return f"{self.target} is memorised at {self.site}, not readable: {both}{shared}"
        p = self.test.p if self.test.p_adjusted is None else self.test.p_adjusted
        if self.test.undecided:
            return f"{self.target} at {self.site}: cannot say ({self.test.undecided}): {both}, p={p:.2g}"
        told = "readable" if self.test.found else "not readable"
        return f"{self.target} is {told} at {self.site}: {both}, p={p:.2g}"

    def row(self) -> tuple[str, ...]:
        """Return one row of text under `PROBE_HEAD`."""
        t = self.test
        if t.value is None or self.train is None:
            return (self.site, self.target, f"cannot say: {t.reason}", "", "", str(t.n), "", "")
        return (
            self.site,
            self.target,
            f"{number_text(t.value)} {t.unit}",
            number_text(self.train),
            "" if t.interval is None else " to ".join(number_text(x) for x in t.interval),
            f"{t.n} ({t.n_units} {t.over}s)",
            f"{t.p if t.p_adjusted is None else t.p_adjusted:.3g}",
            ", ".join(f"{k} {number_text(v)}" for k, v in t.controls.items()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "site": self.site,
                "target": self.target,
                "model": self.model,
                "verdict": self.verdict(),
                "memorised": self.memorised,
                "test": self.test.to_json(),
                "train": self.train,
                "rows_held_out_at_random": self.apart,
                "per_output": self.per_output or {},
                "rmse_and_of_the_mean_predictor": self.rmse or {},
            }
        )


def probe_finding(probes: Sequence[ProbeResult], *, settings: Mapping[str, Any] | None = None) -> Finding:
    """Return the probes of one target at several layers as they are kept in a run.

    Args:
        probes: One per layer, in forward order, p-values corrected together (see `adjusted_probes`).
        settings: What else the answer depends on.
    """
    first = probes[0]
    known = [one for one in probes if one.test.value is not None]
    best = max(known, key=lambda one: one.test.value or 0.0) if known else first
    return Finding(
        measure="probe",
        title=first.target,
        verdict=best.verdict(),
        rows=tuple(Row(site=one.site, result=one.test) for one in probes),
        layers=(
            layer_series("held out", [(one.site, one.test) for one in probes]),
            LayerSeries(
                name="rows fitted",
                unit=first.test.unit,
                sites=tuple(one.site for one in probes),
                values=tuple(one.train for one in probes),
            ),
        ),
        settings={
            "target": first.target,
            "model": first.model,
            "sites": [one.site for one in probes],
            **(settings or {}),
        },
    )


def adjusted_probes(probes: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Return the probes with p-values corrected together (Benjamini-Hochberg)."""
    tests = adjusted([one.test for one in probes])
    return [replace(one, test=test) for one, test in zip(probes, tests, strict=True)]


def probe(
    run: Run,
    *,
    site: str,
    target: str | Sequence[str],
    kind: Literal["auto", "number", "class"] = "auto",
    model: ProbeModel = "ridge",
    tokens: TokenChoice = "auto",
    split: str = "auto",
    scheme: Scheme = "auto",
    choices: Choices = "all",
    random_run: Run | None = None,
    n_permutations: int | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Read a target off a layer, testing on whole episodes (or scenes) that the probe never saw.

    Args:
        run: The run.
        site: The layer.
        target: "state", "action", "state.2", "pose" (of the camera), "answer.action", or labels; several numbers form
            one target.
        kind: "auto" reads numbers as numbers, and texts and yes/no as classes.
        model: "ridge" (closed form, penalty chosen on inner folds) or "mlp" (one hidden layer, early stopping).
        tokens: Which tokens stand for an item, see `pool_items`.
        split: What is held out as a whole: "auto" (episodes where there are any), "item", or a label ("scene").
        scheme: How the target is shuffled, see `resample.shuffled`. Where several questions are asked of one picture,
            "names" exchanges their answers: chance then holds what can be guessed from the picture alone.
        choices: A class is chosen among "all", or among those of its "unit": units of one class are left out then,
            classes are exchanged within units (`scheme` "names"), and what all items of a unit share says nothing.
        random_run: The same items read by random weights: a control.
        n_permutations: Shuffles of the target behind the p-value; default 299 (ridge), 19 (mlp).
        seed: Seeds folds, shuffles and bootstrap.

    Raises:
        SiteNotFoundError: no such site.
        InputError: unknown target, text asked for as number, one class, NaN features, or `random_run` of other items or
            the same weights.

    Cost: 1 s for 1,000 items of 128 channels (ridge).
    """
    check_random(run, random_run)
    names = [target] if isinstance(target, str) else list(target)
    if not names:
        raise InputError("got no target; name at least one label, or 'state'.")
    if kind == "auto":
        kind = _kind(run, names)
    if kind == "class":
        if len(names) > 1:
            raise InputError(f"got {len(names)} class labels ({', '.join(names)}); probe them one at a time.")
        found = item_classes(run, names[0])
        items, outputs = found.items, found.names
        y = np.eye(len(outputs))[found.codes]
    else:
        items, y, outputs = item_numbers(run, names)
    units = run_units(run, items, split=split)
    if choices == "unit":
        if kind != "class":
            raise InputError("choices='unit' is a choice among classes; the target holds numbers.")
        several = np.flatnonzero(classes_of_units(y, units).sum(1) > 1)
        items, y, units = items[several], y[several], units.take(several)
    name = " + ".join(names) + (f", among those of its {units.over}" if choices == "unit" else "")
    reason = _why_not(y, units)
    if choices == "unit" and not len(items):
        reason = f"'{names[0]}' is the same for all items of each {units.over}: there is nothing to choose within one"
    unit = "balanced accuracy" if kind == "class" else "R²"
    if reason:
        return ProbeResult(site, name, model, cannot_say(f"{site} / {name}", reason, unit=unit, n=len(items)))
    x = pool_items(run, site, tokens=tokens).of_items(items)
    controls = {"raw pixels": image_pixels(run, items)}
    if random_run is not None:
        controls["random weights"] = pool_items(random_run, site, tokens=tokens).of_items(items)
    return probe_arrays(
        x,
        y,
        units,
        outputs=outputs,
        is_class=kind == "class",
        model=model,
        scheme=scheme,
        choices=choices,
        controls=controls,
        site=site,
        target=name,
        n_permutations=n_permutations or N_SHUFFLES[model],
        seed=seed,
    )


def probe_arrays(
    features_nd: NDArray[np.floating],
    y_nc: NDArray[np.floating],
    units: Units,
    *,
    outputs: Sequence[str],
    is_class: bool = False,
    model: ProbeModel = "ridge",
    scheme: Scheme = "auto",
    choices: Choices = "all",
    controls: dict[str, NDArray[np.float32]] | None = None,
    site: str = "features",
    target: str = "target",
    n_permutations: int = 99,
    seed: int = 0,
) -> ProbeResult:
    """Probe plain arrays; see `probe`.

    Args:
        features_nd: [n, d].
        y_nc: [n, c] numbers, or class indicators.
        units: What is held out as a whole.
        outputs: Name of each column of `y_nc`.
        is_class: Whether columns are class indicators.
        model: "ridge" or "mlp".
        scheme: How the target is shuffled, see `probe`.
        choices: What a class is chosen among, see `probe`; "unit" needs `scheme` "auto" or "names".
        controls: Further features that are probed in the same way.
        site: Name of the features.
        target: Name of the target.
        n_permutations: Shuffles.
        seed: Seeds folds, shuffles and bootstrap.

    Raises:
        InputError: another scheme than "names" for choices within units.
    """
    if choices == "unit":
        # A class from another unit would be one that may not be chosen: such shuffles always miss.
        if scheme not in ("auto", "names"):
            raise InputError(
                f"got scheme='{scheme}' with choices='unit'; classes are chosen within units, so only 'names' "
                "(which exchanges them there) is a fair control."
            )
        scheme = "names"
    y = np.asarray(y_nc, np.float64)
    name, unit = f"{site} / {target}", "balanced accuracy" if is_class else "R²"
    x = np.asarray(features_nd)
    reason = _why_not(y, units) or ("" if np.ptp(x, axis=0).any() else "constant features")
    if reason:
        return ProbeResult(
            site, target, model, cannot_say(name, reason, unit=unit, n=len(y), over=units.over)
        )
    folds = unit_folds(units, seed=seed)
    predict = _predictor(x, folds, model=model, seed=seed)
    score = ProbeScore(y, folds, units, is_class=is_class, choices=choices)
    test, train = predict(score.inputs(y))
    value = score.test(y, test)
    apart = None
    if units.n < len(y):
        mixed = np.random.default_rng([seed, 5]).permutation(len(y)) % (int(folds.max()) + 1)
        guess = _predictor(x, mixed, model=model, seed=seed)(score.inputs(y))[0]
        apart = ProbeScore(y, mixed, units, is_class=is_class, choices=choices).test(y, guess)
    rng = np.random.default_rng([seed, 4])
    labels = y.argmax(1) if is_class else y
    others = [shuffle(labels, units, scheme=scheme, rng=rng) for _ in range(n_permutations)]
    n_same = n_unchanged(labels, others)
    if is_class:
        others = [np.eye(y.shape[1])[other] for other in others]
    null = [
        score.test(other, guess)
        for other, guess in zip(others, _shuffled_guesses(predict, others, score), strict=True)
    ]
    found = summarise_null(value, np.array(null), n_same=n_same)
    beside = {"mean predictor": 0.0}
    if is_class:
        allowed = np.ones_like(y) if score.allowed is None else score.allowed
        beside = {"majority" if choices == "all" else "chance": float((1 / allowed.sum(1)).mean())}
    beside["exchanged labels" if scheme == "names" else "shuffled labels"] = found.null_mean
    for control, values in (controls or {}).items():
        if np.ptp(values, axis=0).any():
            guess = _predictor(values, folds, model=model, seed=seed)(score.inputs(y))[0]
            beside[control] = score.test(y, guess)
    result = Result(
        name=name,
        value=value,
        unit=unit,
        n=len(y),
        over=units.over,
        n_units=units.n,
        interval=score.interval(y, test, seed=seed),
        controls=beside,
        p=found.p,
        reach=found.reach,
        details={"folds": int(folds.max()) + 1, "shuffles": n_permutations},
    )
    return ProbeResult(
        site,
        target,
        model,
        result,
        train=score.train(y, train),
        apart=apart,
        per_output=score.per_output(y, test, outputs),
        rmse=None if is_class else score.rmse(y, test, outputs),
    )


def _predictor(x: NDArray[np.floating], folds: NDArray[np.int64], *, model: ProbeModel, seed: int) -> Predict:
    if model == "ridge":
        return HeldOutRidge(x, folds)
    if model == "mlp":
        return lambda y: held_out_mlp(x, y, folds, seed=seed)
    raise InputError(f"unknown probe '{model}'; known are ridge and mlp.")


def _shuffled_guesses(
    predict: Predict, others: Sequence[NDArray[np.float64]], score: ProbeScore
) -> list[NDArray[np.float64]]:
    """Return test predictions of shuffled targets; ridge fits them all at once, as columns."""
    inputs = [score.inputs(other) for other in others]
    if not isinstance(predict, HeldOutRidge):
        return [predict(y)[0] for y in inputs]
    out: list[NDArray[np.float64]] = []
    step = max(1, 256 // inputs[0].shape[1])
    for start in range(0, len(inputs), step):
        some = inputs[start : start + step]
        out += np.split(predict.predict(np.concatenate(some, 1), n_groups=len(some))[0], len(some), axis=1)
    return out


def _why_not(y: NDArray[np.float64], units: Units) -> str:
    if units.n < MIN_UNITS:
        return f"{units.n} independent {units.over}s; need at least {MIN_UNITS}"
    constant = np.ptp(y, axis=0) == 0
    if constant.all():
        return "the target is the same everywhere"
    if constant.any():
        return f"{int(constant.sum())} of {len(constant)} outputs are the same everywhere; leave them out"
    return ""


def _kind(run: Run, names: Sequence[str]) -> Literal["number", "class"]:
    from .labels import item_values

    for name in names:
        if name.split(".")[0] in ("state", "action", "pose") or name == "answer.action":
            return "number"
        values = [v for v in item_values(run, name) if v is not None]
        if any(isinstance(v, str | bool) for v in values):
            return "class"
    return "number"
