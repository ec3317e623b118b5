"""Words beside patches at one layer: cut together, one colour for a word and what it names, scored against masks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.layout import KINDS
from ..spectral.kway import kway
from ..spectral.nystrom import NystromNCut
from .findings import Finding, Row, layer_series
from .phrases import words_of
from .pooling import BACKGROUND
from .resample import MIN_UNITS, Units, bootstrap_mean, run_units, share_interval, summarise_null
from .result import Result, adjusted, cannot_say, plain_json, table

if TYPE_CHECKING:
    from ..runs import Run

N_SHUFFLES = 199
MAX_MAPS = 2_000
"""More maps than this are thinned evenly before they are scored."""
WORD_KINDS = ("text", "action")
ELSEWHERE = "masks of other items"
BESIDE = "other regions of the image"
CONTROLS = (ELSEWHERE, BESIDE)
"""The first tells a map from one that always points at the middle, the second from one that points at any object."""


@dataclass(frozen=True)
class SemanticCut:
    """Words and patches of one layer in one cut.

    Attributes:
        site: The layer.
        token_rows: int64 [n], rows of the layer's token table, increasing.
        is_word: bool [n].
        eigvecs: float32 [n, n_eig].
        labels: int16 [n], 0..k-1: words and patches of one group share a label, and so a colour.
        rgb: uint8 [n, 3], by one palette for both.
    """

    site: str
    token_rows: NDArray[np.int64]
    is_word: NDArray[np.bool_]
    eigvecs: NDArray[np.float32]
    labels: NDArray[np.int16]
    rgb: NDArray[np.uint8]


def semantic_cut(
    run: Run,
    site: str,
    *,
    with_patches: bool = True,
    k: int = 10,
    n_eig: int = 20,
    seed: int = 0,
    color: str = "tsne",
) -> SemanticCut:
    """Cut words and patches of a layer together, aligned, or words alone.

    Words and patches lie in two clouds apart from each other, and a plain cut would find little else. So each kind is
    centred on its own mean over the run, and directions alone are compared.

    Args:
        run: The run.
        site: A layer that holds words (and patches).
        with_patches: False cuts the words alone.
        k: Number of groups.
        n_eig: Eigenvectors.
        seed: Seeds cut and palette.
        color: Method of the palette.

    Raises:
        InputError: the layer lacks words or patches, or all of a kind are equal.

    Cost: the cut: 160,000 tokens take about 10 s.
    """
    from ..palette import Palette

    rows, is_word, x = _aligned(run, site, with_patches=with_patches)
    if len(rows) <= max(n_eig, k):
        raise InputError(
            f"got {len(rows)} tokens for {n_eig} eigenvectors and {k} groups; capture more items."
        )
    eigvecs = np.asarray(NystromNCut(max(n_eig, k), seed=seed).fit_transform(x))
    labels = kway(eigvecs, [k], seed=seed).labels[k].astype(np.int16)
    eigvecs = np.ascontiguousarray(eigvecs[:, :n_eig])
    palette = Palette.fit(eigvecs, method=color, seed=seed)
    return SemanticCut(site, rows, is_word, eigvecs, labels, palette.apply(eigvecs))


@dataclass(frozen=True)
class WordMap:
    """How like a word each patch of its image is.

    Attributes:
        item: Row of the item.
        word: The word.
        patch_rows: int64 [p], rows of the layer's token table.
        similarity: float32 [p], cosine after centring, -1..1.
        inside: bool [p], patches whose centre lies in what the word names; None where the masks do not name it.
        others: bool [p] for each other named region of the image that holds a patch.
    """

    item: int
    word: str
    patch_rows: NDArray[np.int64]
    similarity: NDArray[np.float32]
    inside: NDArray[np.bool_] | None
    others: tuple[NDArray[np.bool_], ...] = ()

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """Patches that the word picks: more than half-way from the map's median to its highest value."""
        middle, top = float(np.median(self.similarity)), float(self.similarity.max())
        return self.similarity > (middle + top) / 2


def word_maps(
    run: Run, site: str, *, words: Sequence[str] | None = None, mask: str = "segmentation",
    exclude: Sequence[str] = BACKGROUND,
) -> list[WordMap]:  # fmt: skip
    """Return the similarity map of each word of each item's prompt, with what the masks say that it names.

    A word names the regions whose names hold it; a word that all regions of an image share ("object") names nothing
    in particular and is left out where `words` is None.

    Args:
        run: The run.
        site: A layer with words and patches.
        words: Words to map; None takes those of the prompts that the masks can tell.
        mask: Name of the masks.
        exclude: Regions that are no objects.

    Raises:
        InputError: the layer lacks words or patches.
    """
    rows, is_word, x = _aligned(run, site, with_patches=True)
    tokens = run.tokens(run.site(site).layout)
    item_of = np.asarray(tokens.item)[rows]
    out = []
    for item in np.unique(item_of).tolist():
        here = np.flatnonzero(item_of == item)
        said, patches = here[is_word[here]], here[~is_word[here]]
        prompt = run.items[item].prompt
        if not len(said) or not len(patches) or not prompt:
            continue
        regions = _regions(run, item, mask=mask, exclude=exclude, box=tokens.box[rows[patches]])
        texts = [tokens.text[i] for i in rows[said]]
        asked = re.findall(r"[\w'-]+", prompt.lower()) if words is None else [w.lower() for w in words]
        for word in dict.fromkeys(asked):
            named = [patch for name, patch in regions.items() if word in name.lower().split()]
            is_telling = 0 < len(named) < len(regions)
            spelt = words_of(texts, word)
            if not spelt or (words is None and not is_telling):
                continue
            vector = x[said[spelt]].mean(0)
            size = float(np.linalg.norm(vector))
            similarity = x[patches] @ vector / (size if size > 0 else 1.0)
            inside = np.any(named, axis=0) if is_telling else None
            others = tuple(
                patch
                for name, patch in sorted(regions.items())
                if is_telling and word not in name.lower().split() and patch.any()
            )
            out.append(WordMap(item, word, rows[patches], similarity.astype(np.float32), inside, others))
    return out


@dataclass(frozen=True)
class SemanticsResult:
    """Whether words point at what they name.

    Attributes:
        site: The layer.
        maps: One per word and item.
        results: Pointing game and IoU over all words and for each, and how often word and patches share a group.
    """

    site: str
    maps: tuple[WordMap, ...]
    results: tuple[Result, ...]

    def verdict(self) -> str:
        """Return in one sentence whether words point at what they name."""
        first = self.results[0]
        if first.value is None:
            return f"cannot say whether words point at patches at {self.site}: {first.reason}"
        end = f"in {first.value:.0%} of {first.n} cases (" + ", ".join(
            f"{number:.0%} on {name}" for name, number in first.controls.items() if name in CONTROLS
        ) + ")"  # fmt: skip
        if first.undecided:
            return f"cannot say whether words point at patches at {self.site} ({first.undecided}): {end}"
        if not first.found:
            return f"at {self.site} words do not point at what they name: {end}"
        words = [r.name.split(" / ")[0] for r in self.results if r.name.endswith(" / pointing") and r.found]
        return (
            f"at {self.site} words point at what they name {end}: {', '.join(words[1:]) or 'taken together'}"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per number."""
        return table(self.results)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON types."""
        return plain_json(
            {"site": self.site, "verdict": self.verdict(), "results": [r.to_json() for r in self.results]}
        )


def semantics_finding(layers: Sequence[SemanticsResult]) -> Finding:
    """Return several layers as they are kept in a run; the p-values of all of them are corrected together."""
    layers = adjusted_semantics(layers)
    first = [layer.results[0] for layer in layers]
    best = max(zip(layers, first, strict=True), key=lambda pair: pair[1].value or 0.0)[0]
    return Finding(
        measure="semantics",
        title="words and patches",
        verdict=best.verdict(),
        rows=tuple(Row(site=one.site, result=r) for one in layers for r in one.results),
        layers=(
            layer_series(
                "pointing",
                [(layer.site, one) for layer, one in zip(layers, first, strict=True)],
                control=BESIDE,
            ),
        ),
        settings={
            "sites": [layer.site for layer in layers],
            "words": sorted({m.word for layer in layers for m in layer.maps}),
        },
    )


def adjusted_semantics(layers: Sequence[SemanticsResult]) -> list[SemanticsResult]:
    """Return several layers with the p-values of all of them corrected together (Benjamini-Hochberg)."""
    flat = iter(adjusted([r for layer in layers for r in layer.results]))
    return [replace(layer, results=tuple(next(flat) for _ in layer.results)) for layer in layers]


def semantics(
    run: Run,
    site: str,
    *,
    words: Sequence[str] | None = None,
    mask: str = "segmentation",
    exclude: Sequence[str] = BACKGROUND,
    cut: SemanticCut | None = None,
    n_permutations: int = N_SHUFFLES,
    seed: int = 0,
) -> SemanticsResult:
    """Score the maps of words against masks: pointing game, IoU and (with a cut) one group for word and patches.

    There are two nulls, and p is the larger of both: what is found differs from either. One gives each map a mask of
    another episode (or item), so that a word which always points at the middle is not said to point at things. The
    other exchanges what the word names with another named region of the same image (in all of an episode or in none),
    so that words whose maps mark every object are not said to tell them apart.

    Args:
        run: A run with prompts and masks.
        site: A layer with words and patches.
        words: See `word_maps`.
        mask: Name of the masks.
        exclude: Regions that are no objects.
        cut: A cut of the layer: also measure how often a word and most of what it names share a group.
        n_permutations: Shuffles.
        seed: Seeds them.

    Returns:
        Results corrected together; "cannot say" for words that never occur or that no mask names, or where no image
        shows another named region.

    Raises:
        InputError: the layer lacks words or patches.

    References: pointing game: Zhang et al. 2018, doi:10.1007/s11263-017-1059-x.
    """
    maps = word_maps(run, site, words=words, mask=mask, exclude=exclude)
    scored = [m for m in maps if m.inside is not None and m.inside.any() and m.others]
    names = list(dict.fromkeys([*(words or ()), *sorted({m.word for m in scored})]))
    results: list[Result] = []
    for name in ("all words", *names):
        some = [m for m in scored if name == "all words" or m.word == name.lower()]
        if not some and name != "all words":
            occurs = any(m.word == name.lower() for m in maps)
            reason = (
                "no mask tells it from another region" if occurs else "it is in no prompt among the tokens"
            )
            results.append(cannot_say(f"{name} / pointing", reason, unit="share of hits"))
            continue
        results += _scores(run, some, name=name, n_permutations=n_permutations, seed=seed)
    if cut is not None:
        results.append(_one_group(run, site, cut, scored, n_permutations=n_permutations, seed=seed))
    return SemanticsResult(site, tuple(maps), tuple(adjusted(results)))


def _scores(run: Run, maps: Sequence[WordMap], *, name: str, n_permutations: int, seed: int) -> list[Result]:
    if len(maps) > MAX_MAPS:
        maps = [maps[i] for i in np.linspace(0, len(maps) - 1, MAX_MAPS).astype(int)]
    items = np.array([m.item for m in maps], np.int64)
    units = run_units(run, items) if len(maps) else Units(items, "item")
    if units.n < MIN_UNITS:
        reason = f"words with masks in {units.n} independent {units.over}s; need at least {MIN_UNITS}"
        return [cannot_say(f"{name} / pointing", reason, unit="share of hits", n=len(maps), over=units.over)]
    masks = [m.inside for m in maps if m.inside is not None]
    width = max(len(m) for m in masks)
    inside, chosen = np.zeros((2, len(maps), width), np.float32)
    for i, (m, one) in enumerate(zip(maps, masks, strict=True)):
        inside[i, : len(one)], chosen[i, : len(one)] = one, m.chosen
    best = np.array([int(m.similarity.argmax()) for m in maps])
    # [2, i, j]: map i on mask j; undefined where the images have grids of different size.
    shared = chosen @ inside.T
    union = chosen.sum(1)[:, None] + inside.sum(1)[None] - shared
    scores = np.stack([inside[:, best].T, shared / np.maximum(union, 1)]).astype(np.float64)
    n_patches = np.array([len(one) for one in masks])
    scores[:, n_patches[:, None] != n_patches[None]] = np.nan
    beside = [
        [(other[at], (m.chosen & other).sum() / (m.chosen | other).sum()) for other in m.others]
        for m, at in zip(maps, best, strict=True)
    ]
    area = float(np.mean([m.mean() for m in masks]))
    every = np.arange(len(maps))
    return [
        _judged(
            lambda masks_of, row=row: scores[row, every, masks_of],
            [np.array([one[row] for one in some], np.float64) for some in beside],
            units,
            name=f"{name} / {what}",
            unit=unit,
            chance=chance,
            is_share=row == 0,
            n_permutations=n_permutations,
            seed=seed,
        )
        for row, (what, unit, chance) in enumerate(
            (("pointing", "share of hits", {"share of patches": area}), ("IoU", "IoU of patches", {}))
        )
    ]


def _judged(
    scores: Callable[[NDArray[np.integer]], NDArray[np.float64]],
    beside: Sequence[NDArray[np.float64]],
    units: Units,
    *,
    name: str,
    unit: str,
    chance: Mapping[str, float],
    is_share: bool,
    n_permutations: int,
    seed: int,
) -> Result:
    """Return the mean score of maps on their own masks against both controls (see `semantics`).

    Args:
        scores: Takes for each map the number of the map whose mask it gets, returns its score on that, [n]; NaN where
            the mask does not fit.
        beside: For each map, its scores on the other regions of its image, at least one.
        units: Unit of each map.
        name: Name of the result.
        unit: Its unit.
        chance: Further controls.
        is_share: Scores are yes or no.
        n_permutations: Shuffles of either kind.
        seed: Seeds them.
    """
    found = scores(np.arange(len(beside)))
    rng = np.random.default_rng([seed, 4])
    elsewhere = [np.nanmean(scores(_elsewhere(units, rng))) for _ in range(n_permutations)]
    counts = np.array([1 + len(others) for others in beside])
    among = np.full((len(beside), counts.max()), np.nan)
    for row, own, others in zip(among, found, beside, strict=True):
        row[: 1 + len(others)] = own, *others
    exchanged = []
    for _ in range(n_permutations):
        drawn = rng.random(units.n)[
            units.ids
        ]  # one draw for all maps of a unit: its regions are the same ones
        exchanged.append(among[np.arange(len(among)), (drawn * counts).astype(int)].mean())
    tests = [summarise_null(float(found.mean()), np.array(null)) for null in (elsewhere, exchanged)]
    worst = max(tests, key=lambda test: test.p)
    means = (tests[0].null_mean, float(np.mean([others.mean() for others in beside])))
    return Result(
        name=name,
        value=tests[0].value,
        unit=unit,
        n=len(found),
        over=units.over,
        n_units=units.n,
        interval=share_interval(found, units) if is_share else bootstrap_mean(found, units, seed=seed),
        controls={**dict(zip(CONTROLS, means, strict=True)), **chance},
        p=worst.p,
        reach=worst.reach,
        details={f"p against {control}": test.p for control, test in zip(CONTROLS, tests, strict=True)},
    )


def _elsewhere(units: Units, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return for each map another one whose mask it gets: units are dealt anew, a unit's maps go to one other unit.

    Words are not kept: of two objects in every picture one word would else always meet masks of its own kind only.
    """
    order = rng.permutation(units.n)
    rows_of = [np.flatnonzero(units.ids == unit) for unit in range(units.n)]
    out = np.empty(len(units.ids), np.int64)
    for unit, rows in enumerate(rows_of):
        other = rows_of[order[unit]]
        out[rows] = other[(np.arange(len(rows)) * len(other)) // len(rows)]
    return out


def _one_group(
    run: Run, site: str, cut: SemanticCut, maps: Sequence[WordMap], *, n_permutations: int, seed: int
) -> Result:
    """Return how often a word has the group of most of the patches that it names."""
    name, unit = "word and patches in one group", "share of words"
    if cut.site != site:
        raise InputError(f"the cut is of '{cut.site}', the question about '{site}'; cut that layer.")
    tokens = run.tokens(run.site(site).layout)
    label = np.full(len(tokens), -1, np.int64)
    label[cut.token_rows] = cut.labels
    word_row = np.zeros(len(tokens), bool)
    word_row[cut.token_rows[cut.is_word]] = True
    mine, labels, masks = [], [], []
    for m in maps:
        span = tokens.rows_of(m.item)
        rows = np.flatnonzero(word_row[span]) + span.start
        spelt = words_of([tokens.text[i] for i in rows], m.word)
        assert m.inside is not None
        mine.append(int(label[rows[spelt[-1]]]))
        labels.append(label[m.patch_rows])
        masks.append(m.inside)
    units = run_units(run, [m.item for m in maps]) if maps else Units(np.zeros(0, np.int64), "item")
    if units.n < MIN_UNITS:
        reason = f"words with masks in {units.n} independent {units.over}s; need at least {MIN_UNITS}"
        return cannot_say(name, reason, unit=unit, n=len(maps), over=units.over)

    def same(i: int, mask: NDArray[np.bool_]) -> float:
        """Whether word i has the group of most patches under a mask laid on its image."""
        return (
            float(np.bincount(labels[i][mask]).argmax() == mine[i]) if len(mask) == len(labels[i]) else np.nan
        )

    return _judged(
        lambda masks_of: np.array([same(i, masks[j]) for i, j in enumerate(masks_of)]),
        [np.array([same(i, other) for other in m.others]) for i, m in enumerate(maps)],
        units,
        name=name,
        unit=unit,
        chance={},
        is_share=True,
        n_permutations=n_permutations,
        seed=seed,
    )


def _aligned(
    run: Run, site: str, *, with_patches: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]:
    """Return rows, which of them are words, and unit vectors after centring each kind."""
    tokens = run.tokens(run.site(site).layout)
    kind = np.asarray(tokens.kind)
    is_word = np.isin(kind, [KINDS.index(name) for name in WORD_KINDS])
    is_patch = (kind == KINDS.index("patch")) & (np.asarray(tokens.camera) == 0)
    if not is_word.any() or (with_patches and not is_patch.any()):
        lacking = "words" if not is_word.any() else "patches"
        raise InputError(f"site '{site}' has no {lacking}; choose a layer of the language model.")
    rows = np.flatnonzero(is_word | is_patch if with_patches else is_word)
    words = is_word[rows]
    acts = run.acts(site)
    x = np.empty((len(rows), acts.shape[1]), np.float32)
    for span, values in acts.blocks():
        first, last = np.searchsorted(rows, [span.start, span.stop])
        x[first:last] = np.asarray(values, np.float32)[rows[first:last] - span.start]
    if not np.isfinite(x).all():
        raise InputError(f"site '{site}' holds NaN or Inf; capture again in float32.")
    for some in (words, ~words):
        if some.any():
            if not np.ptp(x[some], axis=0).any():
                raise InputError(
                    f"site '{site}': all its {'words' if some is words else 'patches'} are equal."
                )
            x[some] -= x[some].mean(0, dtype=np.float64).astype(np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return rows, words, (x / np.where(length > 0, length, 1)).astype(np.float32)


def _regions(
    run: Run, item: int, *, mask: str, exclude: Sequence[str], box: NDArray[np.float32]
) -> dict[str, NDArray[np.bool_]]:
    """Return for each named region which patches have their centre in it."""
    mask_hw = run.mask(item, mask)
    if mask_hw is None:
        return {}
    height, width = mask_hw.shape
    x, y = (box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    ids = np.full(len(box), -1, np.int64)
    ids[seen] = mask_hw[y[seen].astype(int), x[seen].astype(int)]
    out: dict[str, NDArray[np.bool_]] = {}
    for value, name in run.mask_names(item, mask).items():
        if name not in exclude and name != "gripper":
            out[name] = out.get(name, np.zeros(len(box), bool)) | (ids == int(value))
    return out
