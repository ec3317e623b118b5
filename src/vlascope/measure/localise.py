"""Localisation and segmentation scores: methods side by side on the same patches, with intervals and controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import progress
from .boxes import Matches, Proposals, average_precision, box_iou, match_boxes
from .controls import check_random
from .findings import Finding, Row
from .methods import Segments, method_names, read_features, segment
from .nave import Scope, check_k
from .resample import (
    MIN_UNITS,
    Units,
    bootstrap_weights,
    percentile_interval,
    share_interval,
    shuffled,
    summarise_null,
)
from .result import Result, adjusted, cannot_say, number_text, plain_json
from .segmentation import (
    best_overlaps,
    covering,
    jaccard,
    match_segments,
    matched_counts,
    mean_iou,
    oracle_counts,
    overlap_table,
    rand_index,
    variation_of_information,
)
from .truth import ImageTruth, Truth, read_truth

if TYPE_CHECKING:
    from ..runs import Run

N_DRAWS = 1_000
N_SHUFFLES = 199
NULL_SIDE = 32
"""Grid on which segments meet the truth of other images (whose sizes differ)."""

MAX_NULL_IMAGES = 50
MIN_SHUFFLED = 6
"""Units below which shuffles could not find anything."""

CONTROLS = {"pixels": "raw pixels", "tiles": "tiles"}
"""Methods that know no model, and what they are called beside the others."""

SCORES = {
    "best overlap": "mean IoU of each object with the segment that fits it best",
    "oracle mIoU": "mean IoU of classes, every segment named after its commonest class",
    "Hungarian mIoU": "mean IoU of classes, segments and classes matched one to one",
    "covering": "size-weighted best IoU of human regions (BSDS)",
    "PRI": "probabilistic Rand index (BSDS)",
    "VoI": "variation of information in bits, lower is better (BSDS)",
    "J": "IoU of the proposed object with the video mask: mean over frames, then over videos (DAVIS)",
    "CorLoc": "share of images whose first box overlaps an object by half or more",
    "AP@50": "average precision of the boxes, any class, at half overlap",
}
LOWER_IS_BETTER = ("VoI",)


@dataclass(frozen=True)
class Evaluation:
    """Scores of several methods on the same images.

    Attributes:
        truth: Name of the truth.
        sites: Layers of the multi-layer methods; `site` is that of the others.
        site: See `sites`.
        k: Segments per image (or over all images).
        scope: "image" or "joint".
        results: For each method and score the result.
        seconds: Time that each method took.
    """

    truth: str
    sites: tuple[str, ...]
    site: str
    k: int
    scope: Scope
    results: Mapping[str, Mapping[str, Result]]
    seconds: Mapping[str, float]
    _draws: Mapping[tuple[str, str], NDArray[np.float64]]

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that the truth allows, in their usual order."""
        return tuple(next(iter(self.results.values())))

    def difference(self, method: str, other: str, *, score: str) -> Result:
        """Return how much more one method scores than another on the same images, with its paired interval."""
        a, b = self.results[method][score], self.results[other][score]
        name = f"{score}: {method} - {other}"
        if a.value is None or b.value is None:
            return cannot_say(name, a.reason or b.reason, unit=a.unit, n=a.n, over=a.over)
        draws = self._draws.get((method, score)), self._draws.get((other, score))
        interval = None
        if draws[0] is not None and draws[1] is not None:
            interval = percentile_interval(
                draws[0] - draws[1], n_units=min(a.n_units, b.n_units), center=a.value - b.value
            )
        return replace(
            a, name=name, value=a.value - b.value, interval=interval, controls={}, p=None, p_adjusted=None
        )

    def head(self) -> tuple[str, ...]:
        """Return the head of `table`."""
        return ("method", *self.scores)

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per method: value and 95 % interval of each score."""

        def cell(one: Result) -> str:
            if one.value is None:
                return "cannot say"
            ends = "" if one.interval is None else f" [{', '.join(number_text(x) for x in one.interval)}]"
            return number_text(one.value) + ends + (" *" if one.found else "")

        return [(name, *(cell(one) for one in scores.values())) for name, scores in self.results.items()]

    def summary(self) -> str:
        """Return in a few lines what was compared and what the marks mean."""
        first = next(iter(next(iter(self.results.values())).values()))
        null = [
            f"{score} {number_text(one.controls['shuffled images'])}"
            for score, one in next(iter(self.results.values())).items()
            if "shuffled images" in one.controls
        ]
        where = "each image on its own" if self.scope == "image" else "all images together"
        text = (
            f"{self.truth}; {first.n} images ({first.n_units} {first.over}s); K={self.k}, {where}; layer {self.site}, "
            f"layers {', '.join(self.sites)}. Intervals: 95 %, bootstrap over {first.over}s (CorLoc: Wilson)."
        )
        if first.n_units < MIN_UNITS:
            text += f" They need {MIN_UNITS} {first.over}s; Wilson's needs independent images."
        if null:
            text += (
                f"\n* above the same segments on other images (p <= 0.05, permutation, Benjamini-Hochberg over the "
                f"table); {next(iter(self.results))} there: {', '.join(null)}."
            )
        reasons = dict.fromkeys(
            r.reason for row in self.results.values() for r in row.values() if r.value is None
        )
        return "\n".join([text, *(f"cannot say: {reason}" for reason in reasons)])

    def finding(self) -> Finding:
        """Return the table as it is kept in a run."""
        several = ("joint", "nave")
        return Finding(
            measure="eval",
            title=self.truth,
            verdict=self.summary().splitlines()[0],
            rows=tuple(
                Row(site=", ".join(self.sites) if name in several else self.site, result=one)
                for name, row in self.results.items()
                for one in row.values()
            ),
            settings={
                "truth": self.truth,
                "sites": self.sites,
                "site": self.site,
                "k": self.k,
                "scope": self.scope,
                "methods": list(self.results),
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "truth": self.truth,
                "sites": self.sites,
                "site": self.site,
                "k": self.k,
                "scope": self.scope,
                "seconds": {name: round(secs, 2) for name, secs in self.seconds.items()},
                "methods": {
                    name: {score: one.to_json() for score, one in row.items()}
                    for name, row in self.results.items()
                },
            }
        )


def evaluate(
    run: Run,
    *,
    sites: Sequence[str],
    site: str | None = None,
    truth: Truth | None = None,
    methods: Sequence[str] | None = None,
    k: int = 5,
    scope: Scope = "image",
    random_run: Run | None = None,
    n_permutations: int = N_SHUFFLES,
    n_draws: int = N_DRAWS,
    n_starts: int = 1,
    seed: int = 0,
    quiet: bool = True,
) -> Evaluation:
    """Score methods of segmentation and localisation against what is known about a run's images.

    Every method works on the same patches of the same layer (or layers). Intervals resample images (episodes or
    whole videos where images belong to some). Each score is compared with what the same segments score on the truth
    of other images ("shuffled images"), with k-means on the raw pixels, with plain tiles, and, when given, with the
    same network with random weights; p-values of the whole table are corrected together.

    Args:
        run: The run.
        sites: Layers with patches, in forward order.
        site: The layer of single-layer methods; None takes the last of `sites`.
        truth: See `read_truth`; None takes the masks of the run.
        methods: Some of `method_names`; None takes all.
        k: Segments per image, or in all with scope "joint".
        scope: "image" segments each image alone; "joint" all together. The Hungarian matching is done likewise:
            per image, or once.
        random_run: The same items captured with random weights.
        n_permutations: Shuffles of images behind each p-value.
        n_draws: Bootstrap draws behind each interval.
        n_starts: Seeds of each method whose scores are averaged: k-means ends elsewhere with every seed, which can
            move a score by more than its interval over images says. Shuffled images and random weights: the first.
        seed: Seeds methods, shuffles and bootstrap.
        quiet: Show no progress bar.

    Raises:
        InputError: no sites, unknown method, no starts, k below 2, nothing to score, or `random_run` of other items or
            the same weights.
        MissingExtraError: "slic" without scikit-image.

    Cost: about 0.2 s per image for all methods at 784 patches; the cuts of "ncut", "joint" and "tokencut" dominate.
    """
    if n_starts < 1:
        raise InputError(f"got n_starts={n_starts}; need at least 1.")
    check_k(k)
    check_random(run, random_run)
    known = read_truth(run) if truth is None else truth
    names = tuple(method_names()) if methods is None else tuple(dict.fromkeys(methods))
    items = known.items
    features = read_features(run, sites, site=site, items=items)
    random_features = None if random_run is None else read_features(random_run, sites, site=site, items=items)
    questions = _questions(known, scope)
    if not questions or not names:
        raise InputError("got no methods, or a truth without classes, objects, boxes or segmentations.")
    weights = bootstrap_weights(known.units.n, n_draws=n_draws, seed=seed)[:, known.units.ids]
    raw: dict[str, dict[str, Result]] = {}
    draws: dict[tuple[str, str], NDArray[np.float64]] = {}
    seconds: dict[str, float] = {}
    for name in progress(names, desc="methods", unit="method", quiet=quiet):
        start = time.perf_counter()
        starts = [
            segment(run, features, method=name, k=k, scope=scope, seed=seed + i) for i in range(n_starts)
        ]
        seconds[name] = (time.perf_counter() - start) / n_starts
        raw[name] = {}
        cross = _Cross(starts[0], known, scope, seed=seed)
        at_random = None
        if random_features is not None and random_run is not None and name not in (*CONTROLS, "slic"):
            at_random = segment(random_run, random_features, method=name, k=k, scope=scope, seed=seed)
        for question in questions:
            values = [question.values(found, known) for found in starts]
            one, draw = _result(name, question, values, known, weights, cross, n_permutations, seed)
            if at_random is not None:
                control = float(
                    question.totals(question.values(at_random, known), np.ones((1, len(items))))[0]
                )
                one = replace(one, controls={**one.controls, "random weights": control})
            raw[name][question.name] = one
            if draw is not None:
                draws[name, question.name] = draw
    for control, text in CONTROLS.items():
        for name, row in raw.items():
            for score, one in row.items():
                value = raw[control][score].value if control in raw and name != control else None
                if value is not None and one.value is not None:
                    row[score] = replace(one, controls={**one.controls, text: value})
    flat = adjusted([one for row in raw.values() for one in row.values()])
    places = iter(flat)
    results = {name: {score: next(places) for score in row} for name, row in raw.items()}
    main_site = sites[-1] if site is None else site
    return Evaluation(known.name, tuple(sites), main_site, k, scope, results, seconds, draws)


@dataclass(frozen=True)
class _Question:
    """One score: numbers per image that add up (`parts`), and the score of their weighted sum."""

    name: str
    parts: Callable[[_View, _Seen], NDArray[np.float64]]
    final: Callable[[NDArray[np.float64]], float]
    is_share: bool = False
    is_per_unit: bool = False

    def values(self, found: Sequence[Segments], known: Truth) -> Any:
        """Return the parts of every image."""
        pairs = zip(found, known.images.values(), strict=True)
        return self.weighed([self.parts(_View.full(s, t), _Seen.full(t)) for s, t in pairs], known.units)

    def weighed(self, parts: Sequence[NDArray[np.float64]], units: Units) -> NDArray[np.float64]:
        """Return the parts of all images as one array, all units weighing the same where the score is their mean."""
        values = _stack(parts)
        if not self.is_per_unit:
            return values
        sizes = np.bincount(units.ids, values[:, 1])  # images of the unit that have what the score needs
        return values / np.maximum(sizes, 1)[units.ids][:, None]

    def interval(
        self, values: Sequence[Any], value: float, draws: NDArray[np.float64], units: Units
    ) -> tuple[float, float] | None:
        """Return the interval of the score: Wilson's of a share, else from draws.

        Args:
            values: What `values` returned, for each start.
            value: The score.
            draws: The score for each draw of units.
            units: Unit of each image.
        """
        if self.is_share:
            hits, counts = np.mean(values, axis=0).T
            return share_interval(np.where(counts > 0, hits, np.nan), units)
        # Draws lack rare classes and repeat images, which moves them all to one side: they are moved back.
        bounds = (0.0, np.inf) if self.name in LOWER_IS_BETTER else (0.0, 1.0)
        n_units = units.take(self.has_parts(values[0])).n
        return percentile_interval(draws, n_units=n_units, center=value, bounds=bounds)

    def has_parts(self, values: Any) -> NDArray[np.bool_]:
        """Return which images have what the score needs."""
        return np.any(values.reshape(len(values), -1) != 0, axis=1)

    def totals(self, values: Any, weights_bn: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the score for each row of weights: how often each image counts."""
        sums = weights_bn @ values.reshape(len(values), -1)
        return np.array([self.final(row.reshape(values.shape[1:])) for row in sums])


@dataclass(frozen=True)
class _Precision(_Question):
    """Average precision: the ranking over images does not add up, so the parts are the matches themselves."""

    def values(self, found: Sequence[Segments], known: Truth) -> Any:
        pairs = zip(found, known.images.values(), strict=True)
        return [_matches(_View.full(s, t), _Seen.full(t)) for s, t in pairs]

    def has_parts(self, values: Any) -> NDArray[np.bool_]:
        return np.ones(len(values), bool)

    def totals(self, values: Any, weights_bn: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.array([average_precision(values, weights=row) for row in weights_bn])


@dataclass(frozen=True)
class _View:
    """The segments of one image at one size, and its proposed boxes relative to the image (0..1)."""

    labels: NDArray[np.int64]
    object: NDArray[np.bool_]
    proposals: Proposals

    @classmethod
    def at(cls, found: Segments, height: int, width: int) -> _View:
        size = np.array([found.map.size_hw[1], found.map.size_hw[0]] * 2, np.float64)
        boxes = [(found.map.box_of(mask), score) for mask, score in found.objects]
        kept = [(box / size, score) for box, score in boxes if box is not None]
        first = found.objects[0][0] if found.objects else np.zeros(found.map.grid, bool)
        return cls(
            found.at(height, width),
            found.map.paint(first.astype(np.int64), height=height, width=width) == 1,
            Proposals(
                np.array([b for b, _ in kept], np.float64).reshape(-1, 4),
                np.array([s for _, s in kept], np.float64),
            ),
        )

    @classmethod
    def full(cls, found: Segments, truth: ImageTruth) -> _View:
        return cls.at(found, *found.map.size_hw)


@dataclass(frozen=True)
class _Seen:
    """The truth of one image at one size, boxes relative to the image."""

    truth: ImageTruth
    size: NDArray[np.float64]

    @classmethod
    def full(cls, truth: ImageTruth, side: int | None = None) -> _Seen:
        """Return the truth with its maps at their own size, or nearest-resized to side x side."""
        maps = [truth.classes, truth.objects, truth.foreground, *truth.humans]
        shapes = {m.shape for m in maps if m is not None}
        height, width = next(iter(shapes)) if shapes else (1, 1)
        size = np.array([width, height, width, height], np.float64)
        if side is None:
            return cls(truth, size)
        rows, cols = (np.arange(side) * n // side + n // (2 * side) for n in (height, width))
        rows, cols = rows.clip(max=height - 1), cols.clip(max=width - 1)

        def small(m: Any) -> Any:
            return None if m is None else m[rows][:, cols]

        return cls(
            replace(
                truth,
                classes=small(truth.classes),
                objects=small(truth.objects),
                foreground=small(truth.foreground),
                humans=tuple(small(m) for m in truth.humans),
            ),
            size,
        )

    @property
    def boxes(self) -> NDArray[np.float64]:
        return self.truth.boxes / self.size


def _mean(sums: NDArray[np.float64]) -> float:
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


def _one(value: float) -> NDArray[np.float64]:
    return np.array([value, 1.0]) if np.isfinite(value) else np.zeros(2)


def _questions(known: Truth, scope: Scope) -> list[_Question]:
    """Return the scores that the truth allows."""
    has = {
        "classes": any(t.classes is not None for t in known.images.values()) and len(known.class_names) > 1,
        "objects": any(t.objects is not None for t in known.images.values()),
        "humans": any(t.humans for t in known.images.values()),
        "foreground": any(t.foreground is not None for t in known.images.values()),
        "boxes": any(len(t.boxes) for t in known.images.values()),
    }
    n_classes = len(known.class_names)
    out: list[_Question] = []

    def objects(view: _View, seen: _Seen) -> NDArray[np.float64]:
        if seen.truth.objects is None or seen.truth.objects.max() < 0:
            return np.zeros(2)
        # Pixels outside the objects count against a segment: they are one more region, which is not asked about.
        table = overlap_table(view.labels, seen.truth.objects.astype(np.int64) + 1)
        return _one(
            float(np.nanmean(best_overlaps(table)[1:])) if (table.sum(0)[1:] > 0).any() else float("nan")
        )

    def table_of(view: _View, seen: _Seen) -> NDArray[np.float64] | None:
        if seen.truth.classes is None:
            return None
        table = overlap_table(view.labels, seen.truth.classes)
        return np.pad(table, ((0, 0), (0, n_classes - table.shape[1])))

    def oracle(view: _View, seen: _Seen) -> NDArray[np.float64]:
        table = table_of(view, seen)
        return np.zeros(3 * n_classes) if table is None else oracle_counts(table).reshape(-1)

    def hungarian(view: _View, seen: _Seen) -> NDArray[np.float64]:
        table = table_of(view, seen)
        if scope == "joint":  # segments are the same things in all images: sum first, match once
            # Pixels without a segment are the last row, whose place differs from image to image; make it the first.
            return np.zeros((1, n_classes)) if table is None else np.roll(table, 1, axis=0)
        return np.zeros((3, n_classes)) if table is None else matched_counts(table, match_segments(table))

    def hungarian_final(sums: NDArray[np.float64]) -> float:
        return float(mean_iou(sums if scope == "image" else matched_counts(sums, match_segments(sums))))

    def human(score: Callable[[NDArray[np.float64]], float]) -> Callable[[_View, _Seen], NDArray[np.float64]]:
        def parts(view: _View, seen: _Seen) -> NDArray[np.float64]:
            if not seen.truth.humans:
                return np.zeros(2)
            return _one(float(np.mean([score(overlap_table(view.labels, one)) for one in seen.truth.humans])))

        return parts

    def video(view: _View, seen: _Seen) -> NDArray[np.float64]:
        return (
            np.zeros(2)
            if seen.truth.foreground is None
            else _one(jaccard(view.object, seen.truth.foreground))
        )

    def located(view: _View, seen: _Seen) -> NDArray[np.float64]:
        wanted = seen.boxes[~seen.truth.is_ignored]
        if not len(wanted):
            return np.zeros(2)
        first = view.proposals.boxes[:1]
        return _one(float(bool(len(first)) and bool((box_iou(first, wanted) >= 0.5).any())))

    if has["objects"]:
        out.append(_Question("best overlap", objects, _mean))
    if has["classes"]:
        out.append(_Question("oracle mIoU", oracle, lambda s: float(mean_iou(s.reshape(3, n_classes)))))
        out.append(_Question("Hungarian mIoU", hungarian, hungarian_final))
    if has["humans"]:
        out.append(_Question("covering", human(covering), _mean))
        out.append(_Question("PRI", human(rand_index), _mean))
        out.append(_Question("VoI", human(variation_of_information), _mean))
    if has["foreground"]:
        out.append(_Question("J", video, _mean, is_per_unit=True))
    if has["boxes"]:
        out.append(_Question("CorLoc", located, _mean, is_share=True))
        out.append(_Precision("AP@50", located, _mean))
    return out


def _matches(view: _View, seen: _Seen) -> Matches:
    t = seen.truth
    return match_boxes(view.proposals, seen.boxes, is_ignored=t.is_ignored, is_crowd=t.is_crowd)


class _Cross:
    """Segments of some images against the truth of all of them, on a small grid: what shuffled images score."""

    def __init__(self, found: Sequence[Segments], known: Truth, scope: Scope, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 11])
        n = len(found)
        self.units: Units = known.units
        self.keep = np.arange(n)
        if n > MAX_NULL_IMAGES:
            self.keep = np.sort(rng.choice(n, MAX_NULL_IMAGES, replace=False))
            self.units = known.units.take(self.keep)
        truths = list(known.images.values())
        self.views = [_View.at(found[int(i)], NULL_SIDE, NULL_SIDE) for i in self.keep]
        self.seen = [_Seen.full(truths[int(i)], NULL_SIDE) for i in self.keep]

    def test(self, question: _Question, *, n_permutations: int, seed: int) -> Any:
        """Return the permutation test of a score (sign turned where lower is better)."""
        rng = np.random.default_rng([seed, 12])
        n = len(self.keep)
        order = np.arange(n)
        orders = [order, *(shuffled(order, self.units, rng=rng) for _ in range(n_permutations))]
        sign = -1.0 if question.name in LOWER_IS_BETTER else 1.0
        is_ap = isinstance(question, _Precision)
        parts: dict[tuple[int, int], Any] = {}

        def part(i: int, j: int) -> Any:
            if (i, j) not in parts:
                parts[i, j] = (_matches if is_ap else question.parts)(self.views[i], self.seen[j])
            return parts[i, j]

        values = []
        for one in orders:
            chosen = [part(i, int(j)) for i, j in enumerate(one)]
            if is_ap:
                value = average_precision(chosen)
            else:
                value = question.final(question.weighed(chosen, self.units).sum(0))
            values.append(sign * value)
        test = summarise_null(values[0], np.array(values[1:]))
        return replace(test, null_mean=sign * test.null_mean)


def _result(
    method: str,
    question: _Question,
    values: Sequence[Any],
    known: Truth,
    weights: NDArray[np.float64],
    cross: _Cross,
    n_permutations: int,
    seed: int,
) -> tuple[Result, NDArray[np.float64] | None]:
    n, units = len(known.images), known.units

    def totals(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.mean([question.totals(one, weights_bn) for one in values], axis=0)

    value = float(totals(np.ones((1, n)))[0])
    name, unit = f"{method} / {question.name}", question.name
    if not np.isfinite(value):
        nothing = cannot_say(name, "no image has what this score needs", unit=unit, n=n, over=units.over)
        return replace(nothing, n_units=units.n), None
    draws = totals(weights)
    one = Result(
        name=name,
        value=value,
        unit=unit,
        n=n,
        over=units.over,
        n_units=units.n,
        interval=question.interval(values, value, draws, units),
    )
    if units.n < MIN_SHUFFLED:  # too few to shuffle: no p-value, and so no verdict
        return one, draws
    test = cross.test(question, n_permutations=n_permutations, seed=seed)
    return replace(one, p=test.p, reach=test.reach, controls={"shuffled images": test.null_mean}), draws


def _stack(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return parts of all images as one array; tables of different heights are filled up with empty segments."""
    height = max(part.shape[0] for part in parts)
    if all(part.shape[0] == height for part in parts):
        return np.stack(parts)
    return np.stack(
        [np.pad(part, [(0, height - part.shape[0]), *[(0, 0)] * (part.ndim - 1)]) for part in parts]
    )
