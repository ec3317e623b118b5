"""Concept ranking: does the mean feature of images that show a word find other images that show it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .captions import Vocabulary, WordKind, run_captions, vocabulary
from .controls import check_random
from .findings import Finding, Row, layer_series
from .multiple import ALPHA, Reach
from .pooling import TokenChoice, image_pixels, pool_items
from .resample import (
    Permutation,
    Units,
    bootstrap_weights,
    percentile_interval,
    run_units,
    shuffled,
    summarise_null,
)
from .result import Result, adjusted, cannot_say, number_text, plain_json, undecided

if TYPE_CHECKING:
    from ..runs import Run

N_FOLDS = 5
N_SHUFFLES = 199
N_DRAWS = 200
MAX_NULL_ITEMS = 2_000
"""Images among which captions are shuffled; more are sampled."""

SPARE = 4
"""Words that stand out are shuffled so many times more often than would do if all of them were found."""

SHUFFLED_COLUMNS = 200
"""Words times shuffles that are ranked at once."""

MIN_ITEMS = 5
"""Fewer images than folds cannot be both in a template and in a ranking."""

MAX_SHARE = 0.5
"""A word that most images have finds nothing."""

CONCEPT_HEAD = ("word", "kind", "images", "AP", "95 % interval", "chance", "p (BH)")


@dataclass(frozen=True)
class ConceptResult:
    """How well templates of words rank images.

    Attributes:
        site: The layer.
        words: One result per word (value: average precision; controls "chance" and "shuffled captions"), in the
            order of the vocabulary; `details` has the kind.
        means: "all", "noun", "verb": mean over those words (mAP), with more controls where given.
        n_items: Images.
    """

    site: str
    words: tuple[Result, ...]
    means: Mapping[str, Result]
    n_items: int

    def verdict(self) -> str:
        """Return in one sentence how many words are found, and whether nouns are easier than verbs."""
        known = [w for w in self.words if w.value is not None]
        if not known:
            return f"cannot say: {self.means['all'].reason}"
        if unclear := undecided(known):
            return f"cannot say which words {self.site} finds: {unclear}"
        found = [w for w in known if w.found]
        text = f"{self.site} finds {len(found)} of {len(known)} words better than shuffled captions"
        parts = [
            f"{kind}s {number_text(one.value)}"
            for kind in ("noun", "verb")
            if (one := self.means[kind]).value is not None
        ]
        return f"{text}; mAP of {' and '.join(parts)}" if parts else text

    def table(self, *, n: int | None = None) -> list[tuple[str, ...]]:
        """Return one row of text per word, best first, under `CONCEPT_HEAD`."""
        ranked = sorted(self.words, key=lambda w: -(w.value or 0))
        rows = []
        for one in ranked[:n]:
            value = "cannot say" if one.value is None else number_text(one.value)
            chance = number_text(one.controls["chance"]) if "chance" in one.controls else ""
            p = "" if one.p_adjusted is None else f"{one.p_adjusted:.3g}"
            rows.append(
                (
                    one.name,
                    str(one.details.get("kind", "")),
                    str(one.details.get("images", "")),
                    value,
                    "too few images" if one.value is not None and one.interval is None else one.ends(),
                    chance,
                    p,
                )
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "site": self.site,
                "verdict": self.verdict(),
                "n_items": self.n_items,
                "means": {kind: one.to_json() for kind, one in self.means.items()},
                "words": [one.to_json() for one in self.words],
            }
        )


def concepts_finding(
    layers: Sequence[ConceptResult], *, label: str = "caption", n_words: int = 20
) -> Finding:
    """Return several layers as they are kept in a run: mAP of all, and the words of the best layer.

    Args:
        layers: One per layer, in forward order.
        label: Name of the captions.
        n_words: At most so many words, best first.
    """
    layers = adjusted_concepts(layers)
    best = max(layers, key=lambda layer: layer.means["all"].value or 0.0)
    words = sorted(best.words, key=lambda word: -(word.value or 0.0))[:n_words]
    kinds = ("all", "noun", "verb")
    return Finding(
        measure="concepts",
        title=label,
        verdict=best.verdict(),
        rows=(
            *(Row(site=layer.site, result=layer.means[kind]) for layer in layers for kind in kinds),
            *(Row(site=best.site, result=word) for word in words),
        ),
        layers=tuple(
            layer_series(
                f"mAP of {kind} words" if kind == "all" else f"mAP of {kind}s",
                [(layer.site, layer.means[kind]) for layer in layers],
                control="shuffled captions",
            )
            for kind in kinds
        ),
        settings={"label": label, "sites": [layer.site for layer in layers], "words": len(best.words)},
    )


def adjusted_concepts(layers: Iterable[ConceptResult]) -> list[ConceptResult]:
    """Return several layers with their p-values corrected together (Benjamini-Hochberg).

    The means are one family, and all words of all layers another: the best layer is chosen among them, so that a word
    found in it was looked for in every layer.
    """
    layers = list(layers)
    means = iter(adjusted([one for layer in layers for one in layer.means.values()]))
    words = iter(adjusted([one for layer in layers for one in layer.words]))
    return [
        replace(
            layer,
            means={kind: next(means) for kind in layer.means},
            words=tuple(next(words) for _ in layer.words),
        )
        for layer in layers
    ]


def concepts(
    run: Run,
    *,
    site: str,
    label: str = "caption",
    tokens: TokenChoice = "auto",
    min_items: int = MIN_ITEMS,
    max_words: int | None = 200,
    center: bool = True,
    random_run: Run | None = None,
    n_permutations: int = N_SHUFFLES,
    seed: int = 0,
) -> ConceptResult:
    """Rank images by their likeness to the mean feature of images whose caption holds a word, for every word.

    Args:
        run: Items with captions as labels (COCO captions).
        site: The layer; each image is the mean of its tokens there.
        label: Name of the labels with the captions: `caption`, `caption.1`, ...
        tokens: Which tokens stand for an image.
        min_items: Words of fewer images are left out.
        max_words: The commonest so many; None takes all.
        center: Subtract the mean of all images first (see `rank_words`).
        random_run: The same items captured with random weights.
        n_permutations: Shuffles of all words, see `rank_words`.
        seed: Seeds folds, shuffles and bootstrap.

    Raises:
        InputError: no captions, no word in enough images, fewer than 10 of them, or `random_run` of other items or the
            same weights.
        MissingExtraError: the extra `eval` is not installed.

    Cost: 5,000 images and 200 words below 20 s on two cores.
    """
    check_random(run, random_run)
    captions = run_captions(run, label=label)
    items = np.array([i for i, texts in enumerate(captions) if texts], np.int64)
    words = vocabulary([captions[i] for i in items]).frequent(
        min_items=min_items, max_share=MAX_SHARE, max_words=max_words
    )
    controls = {"raw pixels": image_pixels(run, items)}
    if random_run is not None:
        controls["random weights"] = pool_items(random_run, site, tokens=tokens).of_items(items)
    features = pool_items(run, site, tokens=tokens).of_items(items)
    return rank_words(
        features,
        words,
        run_units(run, items),
        site=site,
        controls=controls,
        center=center,
        n_permutations=n_permutations,
        seed=seed,
    )


def rank_words(
    features_nd: NDArray[np.floating],
    words: Vocabulary,
    units: Units,
    *,
    site: str = "features",
    controls: Mapping[str, NDArray[np.floating]] | None = None,
    center: bool = True,
    n_folds: int = N_FOLDS,
    n_permutations: int = N_SHUFFLES,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> ConceptResult:
    """Rank plain features; see `concepts`.

    Units are split into folds. The template of a word is the mean of the unit-norm features of the images outside a
    fold that have it; the images of the fold are ranked by cosine to it, so that no image is scored by a template
    that it is part of. Average precision is taken within each fold and averaged over the folds that have the word;
    chance is its exact expectation for a random order. Intervals draw the images that are ranked, not the templates:
    they hold the mean over other samples in about 90 of 100 cases. They are as wide as the number of images that
    have the word asks for; fewer than five give none.

    Args:
        features_nd: One row per image.
        words: Which image has which word; see `Vocabulary.frequent`.
        units: What is independent.
        site: Name of the features.
        controls: Other features of the same images, ranked in the same way, by name.
        center: Subtract the mean of all images (which knows no caption) before norms and cosines; without it the
            direction that all images share hides the rest.
        n_folds: Folds.
        n_permutations: Shuffles of captions between images behind each p-value, templates made anew each time (of
            more than 2,000 images as many are sampled for this). Words whose p is at most 5 % after these get more, up
            to 20 per word asked about, so that a single one can be told from so many.
        n_draws: Bootstrap draws.
        seed: Seeds all.

    Raises:
        InputError: rows do not fit, NaN, too few images or words.
    """
    x = np.asarray(features_nd, np.float32)
    n, n_words = words.has.shape
    if x.ndim != 2 or len(x) != n or len(units.ids) != n:
        raise InputError(
            f"got features {x.shape} and {len(units.ids)} units for {n} images; need one row each."
        )
    if not np.isfinite(x).all():
        raise InputError("features hold NaN or Inf; capture again in float32.")
    if not n_words:
        raise InputError("no word occurs in enough images; give more images, or a lower `min_items`.")
    if units.n < 2 * n_folds:
        raise InputError(
            f"got {units.n} independent {units.over}s; {n_folds} folds need at least {2 * n_folds}."
        )
    rng = np.random.default_rng([seed, 21])
    fold_of = (rng.permutation(units.n) % n_folds)[units.ids]
    if not np.ptp(x, axis=0).any():
        nothing = cannot_say(site, "the features of all images are equal", unit="AP", n=n, over=units.over)
        kinds = ("all", "noun", "verb")
        return ConceptResult(
            site,
            tuple(
                replace(nothing, name=w, details={"kind": k})
                for w, k in zip(words.words, words.kinds, strict=True)
            ),
            {kind: replace(nothing, name=f"mAP of {kind}s") for kind in kinds},
            n,
        )
    ranking = _Ranking(_scores(_unit(x, center=center), words.has, fold_of), words.has, fold_of)
    value, chance = ranking.precision(), ranking.chance()
    weights = bootstrap_weights(units.n, n_draws=n_draws, seed=seed)[:, units.ids]
    # Templates stay as they are (making them anew takes ten times as long).
    drawn = np.stack([ranking.precision(weights=w) for w in weights])
    # Repeated images stand next to each other in a ranking and lift every draw alike: take the lift out.
    drawn = drawn - _known_mean(drawn, 0) + value
    seen, null, tests = _null(_unit(x, center=center), words.has, fold_of, units, n=n_permutations, rng=rng)
    others: dict[str, NDArray[np.float64]] = {}
    for name, other in (controls or {}).items():
        scores = _scores(_unit(np.asarray(other, np.float32), center=center), words.has, fold_of)
        others[name] = _Ranking(scores, words.has, fold_of).precision()
    counts = words.has.sum(0)
    # A ranking hangs on the images that have the word: they, not all images, are how many units were drawn.
    holders = np.array([len(np.unique(units.ids[has])) for has in words.has.T])
    shared: dict[str, Any] = {"unit": "AP", "n": n, "over": units.over, "n_units": units.n}
    out: list[Result] = []
    for j, (word, kind) in enumerate(zip(words.words, words.kinds, strict=True)):
        details = {"kind": kind, "images": int(counts[j]), "shuffles": tests[j].n_permutations}
        if not np.isfinite(value[j]):
            out.append(
                replace(
                    cannot_say(word, "never both in a template and in a ranking", unit="AP", n=n),
                    details=details,
                )
            )
            continue
        test = tests[j]
        told = {"chance": float(chance[j]), "shuffled captions": test.null_mean}
        told |= {name: float(v[j]) for name, v in others.items()}
        out.append(
            Result(
                name=word,
                value=float(value[j]),
                interval=percentile_interval(drawn[:, j], n_units=int(holders[j]), bounds=(0, 1)),
                controls=told,
                p=test.p,
                reach=test.reach,
                details=details,
                **shared,
            )
        )
    means = {
        kind: _mean_over(kind, words.kinds, value, chance, drawn, holders, seen, null, others, shared)
        for kind in ("all", "noun", "verb")
    }
    return ConceptResult(site, tuple(adjusted(out)), means, n)


def expected_precision(n: int, n_relevant: int) -> float:
    """Return the mean average precision of a random order of n images of which `n_relevant` count (exact)."""
    if not 0 < n_relevant <= n:
        return float("nan")
    if n == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, n + 1)).sum())
    return (harmonic + (n - harmonic) * (n_relevant - 1) / (n - 1)) / n


def _unit(x: NDArray[np.float32], *, center: bool) -> NDArray[np.float32]:
    rows = x - x.mean(0) if center else x
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


def _scores(
    unit: NDArray[np.float32], has: NDArray[np.bool_], fold_of: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the cosine of every image to every word's template made without its fold; NaN where there is none."""
    out = np.full(has.shape, np.nan, np.float32)
    folds = [np.flatnonzero(fold_of == fold) for fold in range(int(fold_of.max()) + 1)]
    # A template without a fold is the sum over all images minus that of the fold.
    sums = np.stack([has[rows].T.astype(np.float32) @ unit[rows] for rows in folds])
    counts = np.stack([has[rows].sum(0) for rows in folds])
    for fold, rows in enumerate(folds):
        template = np.delete(sums, fold, axis=0).sum(0)
        size = np.linalg.norm(template, axis=1)
        lives = (np.delete(counts, fold, axis=0).sum(0) > 0) & (size > 0)
        part = unit[rows] @ (template / np.where(size > 0, size, 1)[:, None]).T
        out[rows] = np.where(lives, part, np.nan)
    return out


def _null(
    unit: NDArray[np.float32],
    has: NDArray[np.bool_],
    fold_of: NDArray[np.int64],
    units: Units,
    *,
    n: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Permutation]]:
    """Return the precision of each word [w], the same under shuffled captions [n, w], and the test of each word.

    Templates are made anew for each shuffle.

    With many words p must be small to be found, and so the shuffles many. All words are shuffled n times; those with
    p <= 5 % then up to 20 w times, as often as the least p needs if a quarter of those that no shuffle reached are
    real. Which these are does not depend on what further shuffles say, so that p stays valid: no word gets a smaller
    one than from one of the two numbers of shuffles fixed beforehand.

    Shuffling only the held-out captions would be quicker but wrong: two folds see each other's captions in their
    templates, so that their precisions rise and fall together.
    """
    if len(unit) > MAX_NULL_ITEMS and units.n == len(unit):
        keep = np.sort(rng.choice(len(unit), MAX_NULL_ITEMS, replace=False))
        unit, has, fold_of, units = unit[keep], has[keep], fold_of[keep], units.take(keep)
    rows = np.arange(len(unit))
    seen = _precision(_scores(unit, has, fold_of), has, fold_of)
    scheme = "rows" if units.n == len(unit) else "series"

    def null_of(some: NDArray[np.int64], n_shuffles: int) -> NDArray[np.float64]:
        out, step = [], max(1, SHUFFLED_COLUMNS // len(some))
        for start in range(0, n_shuffles, step):
            orders = [
                shuffled(rows, units, scheme=scheme, rng=rng) for _ in range(min(step, n_shuffles - start))
            ]
            other = np.concatenate([has[order][:, some] for order in orders], axis=1)
            out.append(_precision(_scores(unit, other, fold_of), other, fold_of).reshape(-1, len(some)))
        return np.concatenate(out)

    null = null_of(np.arange(has.shape[1]), n)
    tests = [summarise_null(float(value), null[:, j]) for j, value in enumerate(seen)]
    p = np.array([one.p for one in tests])
    n_first = max(1, int((p <= 1 / (1 + n)).sum()))
    needed = round(has.shape[1] / ALPHA)  # for one word that stands out alone
    n_all = min(needed, SPARE * needed // n_first) - 1
    if n_all <= n:
        return seen, null, tests
    standing = np.flatnonzero((p <= ALPHA + 1e-9) & np.isfinite(seen))
    more = null_of(standing, n_all - n) if len(standing) else null[:0, :0]
    for at, j in enumerate(standing):
        tests[j] = summarise_null(float(seen[j]), np.concatenate([null[:, j], more[:, at]]))
    # A word that did not stand out could have got as many shuffles as those that did.
    reach = Reach(least=1 / (1 + n_all), n_shuffles=n_all, adjusted=1 / (1 + n_all))
    return seen, null, [replace(one, reach=reach) for one in tests]


def _precision(
    scores: NDArray[np.float32], has: NDArray[np.bool_], fold_of: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what `_Ranking.precision` does, several times faster: hits ride in the last bit of the sorted scores.

    Equal scores rank misses first.
    """
    total, n = np.zeros(has.shape[1]), np.zeros(has.shape[1])
    for fold in range(int(fold_of.max()) + 1):
        rows = fold_of == fold
        mine = np.ascontiguousarray(scores[rows].T)
        lives = ~np.isnan(mine).any(1)
        bits = np.nan_to_num(mine).view(np.int32)
        keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
        keys = (keys & ~np.int32(1)) | ~has[rows].T
        keys.sort(axis=1)
        hit = (keys[:, ::-1] & 1) == 0
        hits = np.cumsum(hit, axis=1, dtype=np.float32)
        count = hits[:, -1]
        places = np.arange(1, hit.shape[1] + 1, dtype=np.float32)
        ap = (hits / places * hit).sum(1) / np.maximum(count, 1)
        use = lives & (count > 0)
        total[use] += ap[use]
        n[use] += 1
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


class _Ranking:
    """Images of each fold in the order of each word's scores, and the average precision of that order."""

    def __init__(
        self, scores: NDArray[np.float32], has: NDArray[np.bool_], fold_of: NDArray[np.int64]
    ) -> None:
        self.has = has
        self.folds = []
        for fold in range(int(fold_of.max()) + 1):
            rows = np.flatnonzero(fold_of == fold)
            lives = ~np.isnan(scores[rows]).any(0)
            order = rows[np.argsort(-np.nan_to_num(scores[rows]), axis=0, kind="stable")]
            hit = has[order, np.arange(has.shape[1])].astype(np.float32)
            self.folds.append((order, lives, hit))

    def precision(self, *, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the average precision of each word, mean over folds that have it; NaN where none has.

        Args:
            weights: How often each image counts.
        """
        total, n = np.zeros(self.has.shape[1]), np.zeros(self.has.shape[1])
        for ranked, lives, hit in self.folds:
            seen = np.arange(1, len(ranked) + 1, dtype=np.float32)[:, None]
            if weights is not None:
                w = weights.astype(np.float32)[ranked]
                hit = hit * w
                seen = np.maximum(np.cumsum(w, axis=0), 1e-6)
            hits = np.cumsum(hit, axis=0)
            count = hits[-1]
            ap = (hits / seen * hit).sum(0) / np.maximum(count, 1e-6)
            use = lives & (count > 0)
            total[use] += ap[use]
            n[use] += 1
        return np.where(n > 0, total / np.maximum(n, 1), np.nan)

    def chance(self) -> NDArray[np.float64]:
        """Return what `precision` is on average when every fold is in random order."""
        total, n = np.zeros(self.has.shape[1]), np.zeros(self.has.shape[1])
        for ranked, lives, _ in self.folds:
            counts = self.has[ranked[:, 0]].sum(0)
            known = {c: expected_precision(len(ranked), c) for c in np.unique(counts).tolist() if c}
            for j in np.flatnonzero(lives & (counts > 0)):
                total[j] += known[int(counts[j])]
                n[j] += 1
        return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _known_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the mean of the numbers that are not NaN; NaN, without a warning, where all are."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def _mean_over(
    kind: str,
    kinds: Sequence[WordKind],
    value: NDArray[np.float64],
    chance: NDArray[np.float64],
    drawn: NDArray[np.float64],
    holders: NDArray[np.int64],
    seen: NDArray[np.float64],
    null: NDArray[np.float64],
    others: Mapping[str, NDArray[np.float64]],
    shared: Mapping[str, Any],
) -> Result:
    chosen = np.array([kind in ("all", k) for k in kinds], bool) & np.isfinite(value)
    name = "mAP of all words" if kind == "all" else f"mAP of {kind}s"
    if not chosen.any():
        return cannot_say(
            name, f"no {'word' if kind == 'all' else kind} occurs often enough", unit="mAP", n=shared["n"]
        )
    test = summarise_null(float(_known_mean(seen[chosen], 0)), _known_mean(null[:, chosen], 1))
    told = {"chance": float(chance[chosen].mean()), "shuffled captions": test.null_mean}
    told |= {name: float(_known_mean(v[chosen], 0)) for name, v in others.items()}
    return Result(
        name=name,
        value=float(value[chosen].mean()),
        interval=percentile_interval(
            _known_mean(drawn[:, chosen], 1), n_units=int(holders[chosen].mean()), bounds=(0, 1)
        ),
        controls=told,
        p=test.p,
        reach=test.reach,
        details={"words": int(chosen.sum())},
        **{**shared, "unit": "mAP"},
    )
