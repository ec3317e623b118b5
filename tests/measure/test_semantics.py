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
    assert result.reason == "no mask tells what it names"


def test_words_that_point_nowhere_are_rarely_said_to(tmp_path):
    false = 0
    for trial in range(200):
        run = make(tmp_path, n=7, points=False, seed=trial)
        false += any(r.found for r in semantics(run, "language.1", n_permutations=39, seed=trial).results)
    assert false <= 16, f"{false} of 200; at most 10 expected"


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
