"""Following what a model knows through its layers: agreement, separability, and where a concept appears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import watched
from ..spectral.cut import DEFAULT_KS, CutResult, cut_run
from .controls import check_random
from .crossfit import Question, Reading, read_classes, reading_loss, separability
from .findings import Finding, LayerSeries, Row, layer_series
from .labels import item_classes
from .layers import LayerAgreement, layer_agreement
from .overlap import OverlapResult, PixelClusters, best_overlap
from .pooling import (
    BACKGROUND,
    TokenChoice,
    image_pixels,
    patch_pixels,
    pool_items,
    pool_regions,
    region_groups,
)
from .resample import run_units
from .result import Result, adjusted, number_text, plain_json, undecided
from .scores import silhouette

if TYPE_CHECKING:
    from ..runs import Run

LAYER_HEAD = ("site", "CKA", "subspace", "label ARI", "IoU", "separable", "p (BH)", "silhouette")
N_SHUFFLES = 499


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """One layer of a trace.

    Attributes:
        site: The layer.
        agreement: With the layer before; None for the first.
        overlap: Best-cluster IoU with the masks; None without masks or patches.
        separable: How well a linear reader of held-out episodes tells the concept's classes apart, with chance,
            shuffled labels, raw pixels and (where given) random weights as controls; None without a concept.
        loss: How much less separable than at the best layer, as a 95 % interval widened for the layers compared; only
            for layers after the best one, None elsewhere and where the rows differ.
        silhouette: Of the same classes; None where it is not defined.
        silhouette_random: Mean of the same under shuffled labels.
    """

    site: str
    agreement: LayerAgreement | None = None
    overlap: OverlapResult | None = None
    separable: Result | None = None
    loss: tuple[float, float] | None = None
    silhouette: float | None = None
    silhouette_random: float | None = None


@dataclass(frozen=True)
class TraceResult:
    """A model's layers side by side, on one cut and one palette.

    Attributes:
        cut: The shared cut; `cut.strip()` of it is the picture.
        k: Level of its labels.
        concept: What was asked: a label, "answer", or the regions of a mask; "" when nothing.
        layers: One entry per site in forward order.
        raw_pixels: How separable the concept is from the pixels alone; None without a concept.
    """

    cut: CutResult
    k: int
    concept: str
    layers: tuple[LayerTrace, ...]
    raw_pixels: Result | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The layers, in forward order."""
        return tuple(layer.site for layer in self.layers)

    @property
    def found(self) -> tuple[bool, ...]:
        """For each layer whether the concept is separable (p adjusted over the layers, at most 5 %)."""
        return tuple(layer.separable is not None and layer.separable.found for layer in self.layers)

    @property
    def appears(self) -> str | None:
        """The first layer at which the concept is separable; None where it never is."""
        return next((s for s, found in zip(self.sites, self.found, strict=True) if found), None)

    @property
    def best(self) -> str | None:
        """The layer at which it is most separable; None where it never is."""
        at = _best([layer.separable for layer in self.layers])
        return None if at is None else self.sites[at]

    @property
    def lost(self) -> str | None:
        """The first layer after the best one that has lost it; None where none has.

        There it is not separable, and less so than at the best layer: the interval of the loss lies above 0. Not
        separable alone says too little: of layers that know the same, some miss 5 % by chance.
        """
        return next(
            (
                layer.site
                for layer, found in zip(self.layers, self.found, strict=True)
                if not found and layer.loss is not None and layer.loss[0] > 0
            ),
            None,
        )

    @property
    def gaps(self) -> tuple[str, ...]:
        """Layers from where it appears to where it is lost at which it is not shown to be, by chance or not."""
        if self.appears is None:
            return ()
        end = len(self.sites) if self.lost is None else self.sites.index(self.lost)
        start = self.sites.index(self.appears)
        return tuple(s for s, f in list(zip(self.sites, self.found, strict=True))[start:end] if not f)

    def verdict(self) -> str:
        """Return in one sentence where the concept appears, and whether it stays or is lost."""
        if not self.concept:
            return "no label or mask was given: the trace compares layers only"
        if all(layer.separable is None or layer.separable.value is None for layer in self.layers):
            reasons = {layer.separable.reason for layer in self.layers if layer.separable is not None}
            return f"cannot say where '{self.concept}' appears: {'; '.join(sorted(reasons))}"
        unclear = undecided([layer.separable for layer in self.layers if layer.separable is not None])
        if unclear:
            return f"cannot say where '{self.concept}' appears: {unclear}"
        if self.appears is None:
            return f"'{self.concept}' is not separable at any of {len(self.layers)} layers"
        best = next(layer.separable for layer in self.layers if layer.site == self.best)
        assert best is not None and best.value is not None
        text = f"'{self.concept}' is separable from {self.appears} on, best at {self.best} ({number_text(best.value)})"
        if self.lost is not None:
            text += f", no longer at {self.lost}"
            again = [s for s, f in zip(self.sites, self.found, strict=True) if f]
            again = [s for s in again if self.sites.index(s) > self.sites.index(self.lost)]
            text += f", again at {', '.join(again)}" if again else ""
        if self.gaps:
            text += f", not shown at {', '.join(self.gaps)} (which may be chance)"
        elif self.lost is None:
            text += ", and stays"
        if self.raw_pixels is not None and self.raw_pixels.value is not None:
            text += f"; raw pixels reach {number_text(self.raw_pixels.value)}"
        return text

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per layer, under `LAYER_HEAD`."""
        return [_row(layer) for layer in self.layers]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the cut's arrays as JSON types."""
        return plain_json(
            {
                "verdict": self.verdict(),
                "concept": self.concept,
                "k": self.k,
                "cut": self.cut.path.name,
                "appears": self.appears,
                "best": self.best,
                "lost": self.lost,
                "gaps": self.gaps,
                "raw_pixels": None if self.raw_pixels is None else self.raw_pixels.to_json(),
                "layers": [_layer_json(layer) for layer in self.layers],
            }
        )

    def finding(self) -> Finding:
        """Return the trace as it is kept in a run: the test per layer, and every number along the depth."""
        tests = [(layer.site, layer.separable) for layer in self.layers]
        rows = [Row(site=site, result=result) for site, result in tests if result is not None]
        if self.raw_pixels is not None:
            rows.append(Row(result=self.raw_pixels))
        series = [layer_series("separable", tests)] if rows else []
        return Finding(
            measure="trace",
            title=self.concept or "layers",
            verdict=self.verdict(),
            rows=tuple(rows),
            layers=(*series, *_series(self.layers)),
            settings={"concept": self.concept, "k": self.k, "sites": self.sites, "cut": self.cut.path.name},
        )


def trace(
    run: Run,
    *,
    sites: Sequence[str],
    label: str | None = None,
    mask: str | None = "segmentation",
    tokens: TokenChoice = "auto",
    k: int = 10,
    random_run: Run | None = None,
    n_permutations: int = N_SHUFFLES,
    seed: int = 0,
    color: str = "tsne",
    cut: CutResult | None = None,
) -> TraceResult:
    """Follow a concept through layers that are cut together, with one palette.

    With `label`, the concept is that label (or "answer") and each item is one vector per layer. Else, where the run
    has masks, the concept is which region a group of patches belongs to, and each region of each item is one vector.
    Episodes (or items) stay whole in folds, shuffles and intervals.

    Args:
        run: The run.
        sites: Layers in forward order.
        label: A label of the items, or "answer".
        mask: Name of the masks; None ignores them.
        tokens: Which tokens stand for an item, see `pool_items`.
        k: Number of concepts of the cut.
        random_run: The same items read by the same model with random weights: a control per layer.
        n_permutations: Shuffles behind each p-value.
        seed: Seeds the cut, samples, folds and shuffles.
        color: Palette of the cut, see `Palette.fit`.
        cut: Use this cut of the run, which must hold the sites and k.

    Raises:
        SiteNotFoundError: no such site.
        InputError: no sites, a label that nothing has or with one class, or `random_run` of other items or
            the same weights.

    Cost: the cut (10 s per 160,000 tokens), one k-means of the patches' pixels, and below 1 s per layer.
    """
    names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    if not names:
        raise InputError("got no sites; name at least one.")
    for name in names:
        run.site(name)
    check_random(run, random_run)
    has_masks = mask is not None and any(mask in row.mask_media for row in run.items)
    ask = _Concept(run, label=label, mask=mask if has_masks else None, tokens=tokens, random_run=random_run)
    if cut is None:
        # With the usual numbers of concepts beside k: the report shows the newest cut of the most sites.
        n_tokens = sum(len(run.acts(name)) for name in names)
        usual = [other for other in DEFAULT_KS if other < n_tokens // 2]
        cut = cut_run(run, sites=names, k=sorted({*usual, k}), seed=seed, color=color)
    elif k not in cut.labels or any(name not in cut.parts for name in names):
        raise InputError(
            f"the given cut holds sites {', '.join(cut.sites)} and k = {sorted(cut.labels)}; it must hold those asked "
            f"for (k = {k})."
        )
    pixels = PixelClusters(run, k=k, seed=seed)
    layers: list[LayerTrace] = []
    readings: list[Reading | None] = []
    for at, name in enumerate(watched(names, desc="layers", unit="layer")):
        agreed = layer_agreement(cut, name, names[at - 1], k=k, seed=seed) if at else None
        reading, measured = ask.measure(name, n_permutations=n_permutations, seed=seed)
        readings.append(reading)
        layers.append(
            LayerTrace(
                site=name,
                agreement=agreed,
                overlap=_overlap(run, cut, name, mask=mask, pixels=pixels) if has_masks else None,
                **measured,
            )
        )
    asked = [i for i, layer in enumerate(layers) if layer.separable is not None]
    corrected = adjusted([r for layer in layers if (r := layer.separable) is not None])
    for i, result in zip(asked, corrected, strict=True):
        layers[i] = replace(layers[i], separable=result)
    for i, loss in enumerate(_losses([layer.separable for layer in layers], readings, seed=seed)):
        layers[i] = replace(layers[i], loss=loss)
    return TraceResult(
        cut=cut,
        k=k,
        concept=ask.name,
        layers=tuple(layers),
        raw_pixels=ask.pixels(n_permutations=n_permutations, seed=seed),
    )


def compare_traces(traces: Mapping[str, TraceResult]) -> list[tuple[str, ...]]:
    """Return two or more models or checkpoints side by side: one row per layer, one column per trace.

    The first row is the head. Cells are the separability with its interval; "-" where a trace lacks the layer.
    """
    order = dict.fromkeys(site for one in traces.values() for site in one.sites)
    rows: list[tuple[str, ...]] = [("site", *traces)]
    for site in order:
        cells = []
        for one in traces.values():
            result = next((layer.separable for layer in one.layers if layer.site == site), None)
            cells.append("-" if result is None or result.value is None else _with_interval(result))
        rows.append((site, *cells))
    return rows


def _best(results: Sequence[Result | None]) -> int | None:
    """Return which of the layers that are found has the highest value; None where none is found."""
    values = [one.value or 0.0 if one is not None and one.found else -1.0 for one in results]
    return int(np.argmax(values)) if values and max(values) >= 0 else None


def _losses(
    results: Sequence[Result | None], readings: Sequence[Reading | None], *, seed: int
) -> list[tuple[float, float] | None]:
    """Return for each layer after the best one how much less separable it is, as an interval."""
    out: list[tuple[float, float] | None] = [None] * len(results)
    best = _best(results)
    before = None if best is None else readings[best]
    if best is None or before is None:
        return out
    # The best layer was chosen among all: each pair of layers could have been compared.
    n_pairs = len(results) * (len(results) - 1) // 2
    for i in range(best + 1, len(results)):
        after = readings[i]
        if after is not None:
            out[i] = reading_loss(before, after, n_compared=n_pairs, seed=seed)
    return out


class _Concept:
    """What is asked of every layer, prepared once: classes of items, or regions of masks."""

    def __init__(
        self,
        run: Run,
        *,
        label: str | None,
        mask: str | None,
        tokens: TokenChoice,
        random_run: Run | None,
    ) -> None:
        self.run, self.mask, self.random_run = run, mask, random_run
        self.tokens: TokenChoice = tokens
        self.by_region = label is None and mask is not None
        self.name = label if label is not None else f"region of {mask}" if mask is not None else ""
        self.question: Question | None = None
        self._pixels: NDArray[np.float32] | None = None
        if label is not None:
            found = item_classes(run, label)
            self.items = found.items
            self.question = Question(label, found.codes, found.names, run_units(run, found.items))

    def features(self, run: Run, site: str) -> tuple[NDArray[np.float32], Question] | None:
        """Return the vectors and the question of one layer; None where it has no patches to ask about regions."""
        if not self.by_region:
            if self.question is None:
                return None
            return pool_items(run, site, tokens=self.tokens).of_items(self.items), self.question
        assert self.mask is not None
        table = run.tokens(run.site(site).layout)
        if np.isnan(table.box).all():
            return None
        pooled = pool_regions(run, site, mask=self.mask, exclude=BACKGROUND)
        names, codes = np.unique(pooled.names, return_inverse=True)
        counts = np.bincount(codes)
        frequent = counts >= 2
        keep = frequent[codes]
        names, codes = np.unique(np.asarray(pooled.names)[keep], return_inverse=True)
        units = run_units(self.run, pooled.items[keep])
        if self._pixels is None:
            group, _, _ = region_groups(run, site, mask=self.mask, regions=None, exclude=BACKGROUND)
            rows = np.flatnonzero(group >= 0)
            vectors = patch_pixels(run, table.item[rows], table.box[rows])
            sums = np.zeros((len(pooled.items), vectors.shape[1]))
            np.add.at(sums, group[rows], vectors)
            self._pixels = (sums / np.bincount(group[rows])[:, None])[keep].astype(np.float32)
        question = Question(self.name, codes.astype(np.int64), tuple(str(n) for n in names), units)
        if self.question is None:
            self.question = question
        return pooled.features[keep], question

    def measure(self, site: str, *, n_permutations: int, seed: int) -> tuple[Reading | None, dict[str, Any]]:
        """Return the reading of one layer, and its separability and silhouettes."""
        found = self.features(self.run, site)
        if found is None:
            return None, {}
        x, question = found
        reading = read_classes(x, question, name=site, n_permutations=n_permutations, seed=seed)
        result = reading.result
        if self.random_run is not None and result.value is not None:
            other = self.features(self.random_run, site)
            assert other is not None
            control = separability(other[0], question, name=site, n_permutations=19, seed=seed)
            if control.value is not None:
                result = replace(result, controls={**result.controls, "random weights": control.value})
        value = random = None
        if result.value is not None and len(question.names) < len(x):
            rng = np.random.default_rng([seed, 2])
            scaled = _standardised(x)
            value = silhouette(scaled, question.codes, seed=seed)
            random = float(
                np.mean([silhouette(scaled, rng.permutation(question.codes), seed=seed) for _ in range(5)])
            )
        return reading, {"separable": result, "silhouette": value, "silhouette_random": random}

    def pixels(self, *, n_permutations: int, seed: int) -> Result | None:
        """Return how separable the concept is from the pixels alone."""
        if self.question is None:
            return None
        x = self._pixels if self.by_region else image_pixels(self.run, self.items)
        if x is None or len(x) != len(self.question.codes):
            return None
        return separability(x, self.question, name="raw pixels", n_permutations=n_permutations, seed=seed)


def _standardised(x: NDArray[np.floating]) -> NDArray[np.float64]:
    spread = x.std(0, dtype=np.float64)
    return (x - x.mean(0, dtype=np.float64)) / np.where(spread > 0, spread, 1)


def _overlap(
    run: Run, cut: CutResult, site: str, *, mask: str | None, pixels: PixelClusters
) -> OverlapResult | None:
    table = run.tokens(cut.parts[site].layout)
    if np.isnan(table.box[cut.parts[site].token_rows]).all():
        return None
    return best_overlap(
        run, cut, site=site, k=pixels.k, mask=mask or "segmentation", seed=pixels.seed, pixels=pixels
    )


def _with_interval(result: Result) -> str:
    assert result.value is not None
    if result.interval is None:
        return number_text(result.value)
    return f"{number_text(result.value)} [{', '.join(number_text(x) for x in result.interval)}]"


def _row(layer: LayerTrace) -> tuple[str, ...]:
    def text(value: float | None) -> str:
        return "" if value is None else number_text(value)

    agreed, result = layer.agreement, layer.separable
    separable = ""
    if result is not None:
        separable = _with_interval(result) if result.value is not None else f"cannot say: {result.reason}"
    return (
        layer.site,
        text(agreed.cka if agreed else None),
        text(agreed.subspace if agreed else None),
        text(agreed.ari if agreed else None),
        text(layer.overlap.mean if layer.overlap else None),
        separable,
        text(result.p_adjusted if result else None),
        text(layer.silhouette),
    )


def _series(layers: Sequence[LayerTrace]) -> list[LayerSeries]:
    """Return the numbers along the depth that are no tests; those that no layer has are left out."""
    agreed = [layer.agreement for layer in layers]
    mapped = [layer.overlap for layer in layers]
    columns: list[
        tuple[str, str, list[float | None], list[tuple[float, float] | None], list[float | None]]
    ] = [
        (
            "CKA with the layer before",
            "CKA",
            [a.cka if a else None for a in agreed],
            [a.cka_interval if a else None for a in agreed],
            [a.cka_shuffled if a else None for a in agreed],
        ),
        (
            "subspace shared with the layer before",
            "overlap",
            [a.subspace if a else None for a in agreed],
            [None] * len(layers),
            [a.subspace_shuffled if a else None for a in agreed],
        ),
        (
            "label ARI with the layer before",
            "ARI",
            [a.ari if a else None for a in agreed],
            [a.ari_interval if a else None for a in agreed],
            [None] * len(layers),
        ),
        (
            "best-cluster IoU with the masks",
            "IoU",
            [o.mean if o else None for o in mapped],
            [None] * len(layers),
            [o.control_mean if o else None for o in mapped],
        ),
        (
            "silhouette",
            "silhouette",
            [layer.silhouette for layer in layers],
            [None] * len(layers),
            [layer.silhouette_random for layer in layers],
        ),
    ]
    return [
        LayerSeries(
            name=name,
            unit=unit,
            sites=tuple(layer.site for layer in layers),
            values=tuple(values),
            low=tuple(None if ends is None else ends[0] for ends in intervals),
            high=tuple(None if ends is None else ends[1] for ends in intervals),
            control=tuple(control),
        )
        for name, unit, values, intervals, control in columns
        if any(value is not None for value in values)
    ]


def _layer_json(layer: LayerTrace) -> dict[str, Any]:
    out: dict[str, Any] = {"site": layer.site}
    if layer.agreement is not None:
        out["agreement"] = {k: v for k, v in vars(layer.agreement).items() if k != "site"}
    if layer.overlap is not None:
        o = layer.overlap
        out["overlap"] = {
            "iou": o.mean,
            "raw_pixels_iou": o.control_mean,
            "difference": o.difference,
            "interval_95_of_the_difference": o.interval,
            "over": o.unit,
            "n": o.n_items,
        }
    if layer.separable is not None:
        out["separable"] = layer.separable.to_json()
        out["loss_since_the_best_95"] = layer.loss
        out["silhouette"] = layer.silhouette
        out["silhouette_shuffled_labels"] = layer.silhouette_random
    return out
