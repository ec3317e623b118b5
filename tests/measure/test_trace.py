"""Trace on planted layers: where a concept appears and is lost, what layers share, and what cannot be said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.measure.planted import PATCH, PlantedRun, grid, language
from vlascope.errors import InputError, SiteNotFoundError
from vlascope.measure.crossfit import Question, read_classes
from vlascope.measure.layers import shared_tokens
from vlascope.measure.resample import units_of
from vlascope.measure.result import adjusted
from vlascope.measure.trace import LAYER_HEAD, LayerTrace, TraceResult, _losses, compare_traces
from vlascope.measure.trace import trace as full_trace


def trace(run, **options):
    """With the fastest palette: colours do not matter here."""
    return full_trace(run, color="pca", **options)


ROWS, COLS, N_EPISODES, PER = 3, 5, 16, 2
N = N_EPISODES * PER
SITES = ("vision.0", "vision.1", "projector", "language.0")


def make(tmp_path, *, known_at=("vision.1", "projector"), seed=0, with_masks=True, **changes) -> PlantedRun:
    """Colour is written into the features of the layers `known_at`; an object region into vision.1 on."""
    rng = np.random.default_rng(seed)
    episodes = np.repeat(np.arange(N_EPISODES), PER)
    colour = rng.permutation(np.arange(N_EPISODES) % 2)[episodes]
    base = rng.normal(size=(N, ROWS * COLS, 11))
    masks = []
    place = rng.integers(0, ROWS * COLS, (N, 2))
    acts = {}
    for i in range(N):
        mask = np.zeros((ROWS * PATCH, COLS * PATCH), np.uint8)
        for which, patch in enumerate(place[i]):
            r, c = divmod(int(patch), COLS)
            mask[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH] = 4 + which
        masks.append(mask)
    for depth, site in enumerate(SITES):
        x = base + 0.05 * depth * rng.normal(size=base.shape)
        if site in known_at:
            x = x.copy()
            x[:, :, 4] += 3 * colour[:, None]
            x[np.arange(N), place[:, 1], 6] += 9
        if site == "language.0":
            words = rng.normal(size=(N, 2, 11))
            x = np.concatenate([x, words], axis=1)
        acts[site] = ("language" if site.startswith("lang") else "vision", x)
    return PlantedRun(
        acts,
        layouts={"vision": grid(ROWS, COLS), "language": language(ROWS, COLS)},
        labels=[{"colour": ("blue", "red")[c], "same": "x"} for c in colour],
        episodes=list(episodes),
        masks=masks if with_masks else None,
        mask_names={0: "table", 4: "cup", 5: "box"},
        path=tmp_path,
        **changes,
    )


def test_the_layers_where_a_label_appears_and_is_lost(tmp_path):
    found = trace(make(tmp_path), sites=SITES, label="colour", k=4, n_permutations=99)
    assert (found.appears, found.lost) == ("vision.1", "language.0")
    assert found.best in ("vision.1", "projector")
    assert "separable from vision.1 on" in found.verdict() and "no longer at language.0" in found.verdict()
    assert "raw pixels" in found.verdict()
    saved = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [row["site"] for row in saved["layers"]] == list(SITES)
    assert all(len(row) == len(LAYER_HEAD) for row in found.table())
    layer = found.layers[1]
    assert layer.silhouette is not None and layer.silhouette_random is not None
    assert layer.silhouette > layer.silhouette_random + 0.05
    assert layer.overlap is not None
    assert set(found.cut.labels) == {4, 5, 10, 25}, "the report shows this cut, with its usual columns"


def test_regions_of_masks_are_the_concept_without_a_label(tmp_path):
    found = trace(make(tmp_path), sites=SITES, k=4, n_permutations=99)
    assert found.found == (False, True, True, False)
    assert found.concept == "region of segmentation"


def test_agreement_is_high_between_like_layers_and_about_0_for_shuffled_tokens(tmp_path):
    found = trace(make(tmp_path, known_at=()), sites=SITES, k=4, n_permutations=19, mask=None)
    assert found.layers[0].agreement is None
    for layer in found.layers[1:]:
        agreed = layer.agreement
        assert agreed is not None and agreed.cka is not None and agreed.cka_shuffled is not None
        assert agreed.cka > 0.9 and abs(agreed.cka_shuffled) < 0.1
        assert (
            agreed.cka_interval is not None and agreed.cka_interval[0] <= agreed.cka <= agreed.cka_interval[1]
        )
        assert agreed.n_shared == N * ROWS * COLS, "patches are shared between tower and language model"
        assert agreed.subspace is not None and agreed.subspace_shuffled is not None
        assert agreed.subspace > agreed.subspace_shuffled
    assert found.verdict().startswith("no label or mask")


def test_patches_are_matched_by_place_not_by_order(tmp_path):
    run = make(tmp_path)
    found = trace(run, sites=SITES, k=4, n_permutations=19, mask=None)
    here, there = shared_tokens(found.cut, "language.0", "projector")
    late, early = run.tokens("language"), run.tokens("vision")
    rows = found.cut.parts["language.0"].token_rows[here]
    before = found.cut.parts["projector"].token_rows[there]
    for name in ("item", "row", "col"):
        np.testing.assert_array_equal(getattr(late, name)[rows], getattr(early, name)[before])


def test_absent_concepts_are_rarely_found(tmp_path):
    from vlascope.measure.crossfit import Question, separability
    from vlascope.measure.resample import units_of
    from vlascope.measure.result import adjusted

    rng = np.random.default_rng(0)
    false = 0
    for trial in range(200):  # the decision of the trace, without its cut: 4 correlated layers, corrected
        units = units_of(np.arange(16))
        question = Question("c", rng.permutation(np.arange(16) % 2), ("a", "b"), units)
        x = rng.normal(size=(16, 5))
        layers = [
            separability(
                x + 0.3 * rng.normal(size=x.shape), question, name=str(i), n_permutations=79, seed=trial
            )
            for i in range(4)
        ]
        false += any(layer.found for layer in adjusted(layers))
    assert false <= 18, f"{false} of 200 null traces found something; at most 10 are expected"


def test_random_weights_stand_beside(tmp_path):
    run, other = make(tmp_path / "a"), make(tmp_path / "b", known_at=())
    found = trace(run, sites=SITES[:2], label="colour", k=4, n_permutations=39, random_run=other)
    result = found.layers[1].separable
    assert result is not None and result.value is not None
    assert result.controls["random weights"] < result.value - 0.2
    rows = compare_traces(
        {"one": found, "two": trace(other, sites=SITES[:2], label="colour", n_permutations=19)}
    )
    assert rows[0] == ("site", "one", "two") and rows[2][0] == "vision.1"


def test_what_cannot_be_asked_says_so(tmp_path):
    run = make(tmp_path)
    with pytest.raises(SiteNotFoundError):
        trace(run, sites=("vision.9",))
    with pytest.raises(InputError, match="no item of this run has a label 'color'. Nearest: 'colour'"):
        trace(run, sites=SITES, label="color")
    with pytest.raises(InputError, match="1 classes"):
        trace(run, sites=SITES, label="same")
    with pytest.raises(InputError, match="gave no answers"):
        trace(run, sites=SITES, label="answer")
    bare = make(tmp_path / "bare", with_masks=False)
    found = trace(bare, sites=SITES, k=4)
    assert found.concept == "" and found.raw_pixels is None


def layers_alike(seed: int, *, gone: tuple[int, ...] = ()) -> TraceResult:
    """Seven layers with the same signal and noise of their own, without it where it is `gone`; no cut."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(16) % 2)
    question = Question("c", codes, ("a", "b"), units_of(range(16)))
    readings = []
    for depth in range(7):
        x = rng.normal(size=(16, 5))
        x[:, 0] += (depth not in gone) * 2.5 * codes
        readings.append(read_classes(x, question, name=str(depth), n_permutations=199, seed=seed))
    results = adjusted([one.result for one in readings])
    losses = _losses(results, readings, seed=seed)
    layers = [LayerTrace(site=r.name, separable=r, loss=x) for r, x in zip(results, losses, strict=True)]
    return TraceResult(None, 3, "c", tuple(layers))  # type: ignore[arg-type]


def test_a_layer_that_misses_5_percent_has_not_lost_the_concept():
    found = [layers_alike(seed) for seed in range(40)]
    missed = [
        one for one in found if one.best and not all(one.found[one.sites.index(one.best) :])
    ]  # all of these were said to have lost it
    lost = [one for one in found if one.lost]
    assert len(missed) >= 10 and len(lost) <= 4, f"{len(lost)} of 40"
    gap = next(one for one in missed if not one.lost)
    assert "no longer" not in gap.verdict() and "stays" not in gap.verdict()
    assert f"not shown at {', '.join(gap.gaps)} (which may be chance)" in gap.verdict()


def test_regions_of_which_each_image_shows_one_are_told_apart(tmp_path):
    """Names were renamed within images: where each shows one region, that is no shuffle at all."""
    rng = np.random.default_rng(0)
    which = rng.integers(0, 2, 40)
    place = rng.integers(0, ROWS * COLS, 40)
    x = rng.normal(size=(40, ROWS * COLS, 7))
    x[np.arange(40), place, 2 + which] += 9
    masks = []
    for patch, name in zip(place, which, strict=True):
        flat = np.zeros(ROWS * COLS, np.uint8)
        flat[patch] = 4 + name
        masks.append(np.kron(flat.reshape(ROWS, COLS), np.ones((PATCH, PATCH), np.uint8)))
    run = PlantedRun(
        {"v": ("vision", x)}, layouts={"vision": grid(ROWS, COLS)}, masks=masks,
        mask_names={0: "table", 4: "cup", 5: "box"}, path=tmp_path,
    )  # fmt: skip
    found = trace(run, sites=("v",), k=4, n_permutations=39)
    result = found.layers[0].separable
    assert result is not None and result.found and result.controls["shuffled labels"] < 0.7


def test_six_episodes_are_too_few_to_say_no():
    codes = np.array([0, 1, 0, 1, 0, 1])
    question = Question("c", codes, ("a", "b"), units_of(range(6)))
    reading = read_classes(np.c_[9.0 * codes, codes], question, name="v")
    found = TraceResult(None, 3, "c", (LayerTrace(site="v", separable=reading.result),))  # type: ignore[arg-type]
    assert reading.result.value == 1
    assert found.verdict().startswith("cannot say where 'c' appears: too few items")
