"""Words that point at what they name are told from words that point anywhere; absent words cannot say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.measure.planted import PATCH, PlantedRun, grid, language
from vlascope.errors import InputError
from vlascope.measure.semantics import semantic_cut, semantics, word_maps

ROWS, COLS, D = 3, 5, 13
COLOURS = ("red", "blue")


def make(tmp_path, *, n=14, points=True, seed=0, **changes) -> PlantedRun:
    """Two objects per image; the prompt names one; its patch and its word share a direction if `points`."""
    rng = np.random.default_rng(seed)
    direction = np.linalg.qr(rng.normal(size=(D, 4)))[0].T * 6
    words = ("<s>", "pick", "red", "cup")
    x = rng.normal(size=(n, ROWS * COLS + len(words), D))
    x[:, ROWS * COLS :] += 9 * np.ones(D)  # words lie far from patches
    masks = []
    for i in range(n):
        places = rng.choice(ROWS * COLS, 2, replace=False)
        mask = np.zeros((ROWS * PATCH, COLS * PATCH), np.uint8)
        for which, patch in enumerate(places):
            r, c = divmod(int(patch), COLS)
            mask[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH] = 4 + which
            if points:
                x[i, patch] += direction[which]
        if points:
            x[i, ROWS * COLS + 2] += direction[0]
        masks.append(mask)
    run = PlantedRun(
        {"language.1": ("language", x)}, layouts={"language": language(ROWS, COLS, words)}, path=tmp_path,
        masks=masks, mask_names={0: "table", 4: "red cup", 5: "blue cup"}, **changes,
    )  # fmt: skip
    for row in run.items:
        object.__setattr__(row, "prompt", "pick red cup")
    return run


def test_a_word_points_at_what_it_names(tmp_path):
    run = make(tmp_path)
    cut = semantic_cut(run, "language.1", k=4, n_eig=6, color="pca")
    assert cut.is_word.sum() == 14 * 4 and cut.rgb.shape == (len(cut.token_rows), 3)
    found = semantics(run, "language.1", words=("red", "unicorn"), cut=cut, n_permutations=99)
    by_name = {r.name: r for r in found.results}
    assert by_name["red / pointing"].value > 0.9 and by_name["red / pointing"].found
    assert by_name["red / IoU"].value > 0.4 and by_name["red / pointing"].controls["share of patches"] < 0.1
    assert by_name["unicorn / pointing"].reason == "it is in no prompt among the tokens"
    assert by_name["word and patches in one group"].found
    assert "words point at what they name" in found.verdict()
    json.dumps(found.to_json(), allow_nan=False)


def test_words_that_all_regions_share_name_nothing(tmp_path):
    run = make(tmp_path)
    assert {m.word for m in word_maps(run, "language.1")} == {"red"}
    (result,) = [r for r in semantics(run, "language.1", words=("cup",)).results if r.name.startswith("cup")]
    assert result.reason == "no mask tells it from another region"


def test_words_that_point_nowhere_are_rarely_said_to(tmp_path):
    false = 0
    for trial in range(200):
        run = make(tmp_path, n=7, points=False, seed=trial)
        false += any(r.found for r in semantics(run, "language.1", n_permutations=39, seed=trial).results)
    assert false <= 16, f"{false} of 200; at most 10 expected"


def marking(tmp_path, *, follows: bool, seed: int) -> PlantedRun:
    """Both objects of an image are marked by all words; the prompt names either. `follows`: its own one more so."""
    rng = np.random.default_rng(seed)
    run = make(tmp_path, n=14, points=False, seed=seed)
    x = rng.normal(size=(14, ROWS * COLS + 4, D)) * 0.3
    x[:, -4:] += 9
    direction = np.eye(D)[:3] * 6
    table = run.tokens("language")
    for i in range(14):
        mask, named = run.mask(i), int(rng.integers(2))
        for which in range(2):
            (patch,) = np.unique(np.flatnonzero(mask[::PATCH, ::PATCH] == 4 + which))
            x[i, patch] += direction[2] + follows * direction[which]
        word = f"{COLOURS[named]}"
        object.__setattr__(run.items[i], "prompt", f"pick {word} cup")
        x[i, -2] += direction[2] + follows * direction[named]
        table.text[i * (ROWS * COLS + 4) + ROWS * COLS + 2] = word
    run._acts["language.1"][:] = x.reshape(-1, D)
    return run


def test_maps_that_mark_any_object_do_not_point_at_what_a_word_names(tmp_path):
    found = 0
    for seed in range(12):
        some = semantics(marking(tmp_path, follows=False, seed=seed), "language.1", n_permutations=99)
        first = some.results[0]
        assert first.details["p against masks of other items"] <= 0.05, "both objects are marked"
        found += first.found
    assert found <= 2, f"{found} of 12"
    best = semantics(marking(tmp_path, follows=True, seed=1), "language.1", n_permutations=99)
    assert best.results[0].n == 14 and best.results[0].value == 1.0 and best.results[0].found
    assert "0% on other regions of the image" in best.verdict()


def test_words_alone_and_what_cannot_be_asked(tmp_path):
    run = make(tmp_path)
    alone = semantic_cut(run, "language.1", with_patches=False, k=3, n_eig=4, color="pca")
    assert alone.is_word.all() and len(alone.labels) == 14 * 4
    with pytest.raises(InputError, match="need at least|capture more"):
        semantic_cut(make(tmp_path, n=1), "language.1", with_patches=False, k=10)
    few = semantics(make(tmp_path, n=3), "language.1")
    assert few.results[0].value is None and few.verdict().startswith("cannot say")
    bare = PlantedRun(
        {"vision.0": ("vision", np.zeros((3, ROWS * COLS, D)))},
        layouts={"vision": grid(ROWS, COLS)}, path=tmp_path,
    )  # fmt: skip
    with pytest.raises(InputError, match="has no words"):
        word_maps(bare, "vision.0")
    empty = make(tmp_path)
    empty._masks = [np.zeros_like(m) for m in empty._masks]
    assert semantics(empty, "language.1").results[0].value is None
