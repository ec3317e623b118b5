"""Concept ranking: planted words found, absent words not; average precision against scikit-learn; captions tagged."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure import rank_words
from vlascope.measure.captions import Vocabulary, caption_words, vocabulary
from vlascope.measure.concepts import (
    _precision,
    _Ranking,
    _scores,
    _unit,
    adjusted_concepts,
    expected_precision,
)
from vlascope.measure.resample import units_of


def words(has: np.ndarray) -> Vocabulary:
    n = has.shape[1]
    return Vocabulary(tuple(f"w{j}" for j in range(n)), tuple(["noun", "verb"][j % 2] for j in range(n)), has)  # type: ignore[arg-type]


def test_planted_words_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    has = rng.random((101, 4)) < 0.25
    x = rng.normal(size=(101, 7)) + 5
    x[:, 0] += 4 * has[:, 0]
    x[:, 1] += 4 * has[:, 1]
    found = rank_words(
        x, words(has), units_of(range(101)), controls={"raw pixels": rng.normal(size=(101, 3))}
    )
    assert [one.found for one in found.words] == [True, True, False, False]
    first = found.words[0]
    assert (first.value or 0) > 0.9 and first.controls["chance"] < 0.4 and first.controls["raw pixels"] < 0.5
    assert first.interval is not None and first.interval[0] <= (first.value or 0) <= first.interval[1]
    assert found.means["noun"].details["words"] == 2
    assert "finds 2 of 4 words" in found.verdict()
    assert found.table(n=1)[0][0] in ("w0", "w1")


def test_no_word_is_found_in_noise_more_often_than_5_percent():
    n_found, n_mean = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        has = rng.random((30, 2)) < 0.3
        has[:2] = True
        found = rank_words(
            rng.normal(size=(30, 3)), words(has), units_of(range(30)), n_permutations=39, n_draws=2, seed=seed
        )
        n_found += any(one.found for one in found.words)
        n_mean += found.means["all"].found
    # 5 % of 200 is 10; more than 17 would happen by chance once in a hundred times.
    assert n_found <= 17 and n_mean <= 17, (n_found, n_mean)


def test_no_template_scores_its_own_images():
    rng = np.random.default_rng(1)
    # Every image has a direction of its own: only a template that holds the image itself could find it.
    x, has, fold_of = np.eye(40, dtype=np.float32), rng.random((40, 1)) < 0.5, rng.permutation(40) % 5
    scores = _scores(_unit(x, center=False), has, fold_of)
    np.testing.assert_allclose(scores, 0, atol=1e-6)


def test_scores_are_cosines_to_templates_of_the_other_folds():
    rng = np.random.default_rng(2)
    x, has, fold_of = (
        rng.normal(size=(23, 5)).astype(np.float32),
        rng.random((23, 3)) < 0.5,
        rng.permutation(23) % 4,
    )
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    got = _scores(_unit(x, center=False), has, fold_of)
    for i in range(23):
        for j in range(3):
            template = unit[(fold_of != fold_of[i]) & has[:, j]].mean(0)
            assert got[i, j] == pytest.approx(unit[i] @ template / np.linalg.norm(template), abs=1e-5)


def test_average_precision_agrees_with_scikit_learn_on_both_paths():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(3)
    scores, has, fold_of = (
        rng.normal(size=(41, 5)).astype(np.float32),
        rng.random((41, 5)) < 0.3,
        np.arange(41) % 3,
    )
    slow = [
        np.mean([average_precision_score(has[fold_of == f, j], scores[fold_of == f, j]) for f in range(3)])
        for j in range(5)
    ]
    np.testing.assert_allclose(_precision(scores, has, fold_of), slow, atol=1e-6)
    np.testing.assert_allclose(_Ranking(scores, has, fold_of).precision(), slow, atol=1e-6)
    np.testing.assert_allclose(
        _Ranking(scores, has, fold_of).precision(weights=np.full(41, 1.0)), slow, atol=1e-6
    )


def test_chance_is_what_random_orders_score():
    rng = np.random.default_rng(4)
    n, r = 17, 5
    hits = np.arange(n) < r
    simulated = []
    for _ in range(4000):
        hit = hits[rng.permutation(n)]
        simulated.append((np.cumsum(hit) / np.arange(1, n + 1))[hit].mean())
    assert expected_precision(n, r) == pytest.approx(np.mean(simulated), abs=0.01)
    assert expected_precision(1, 1) == 1.0 and np.isnan(expected_precision(5, 0))


def test_intervals_of_words_hang_on_the_images_that_have_them():
    """With one image in ten having a word, 80 images are 8: plain percentiles hold AP in 80 of 100."""
    values, intervals = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        has = np.arange(80)[:, None] < [8, 24]
        x = rng.normal(size=(80, 6)) + 1.5 * has @ np.eye(2, 6)
        found = rank_words(
            x, words(has), units_of(range(80)), n_permutations=1, n_draws=100, seed=seed
        )  # fmt: skip
        values.append([one.value for one in found.words])
        intervals.append([one.interval for one in found.words])
    for j, mean in enumerate(np.mean(values, axis=0)):
        held = sum(ends[j] is not None and ends[j][0] <= mean <= ends[j][1] for ends in intervals)
        assert held >= 52, f"word {j}: {held} of 60"


def test_a_word_of_four_images_has_no_interval_however_many_others_there_are():
    rng = np.random.default_rng(2)
    has = np.arange(70)[:, None] < [4, 20]
    found = rank_words(rng.normal(size=(70, 5)), words(has), units_of(range(70)), n_permutations=19)
    rare, common = found.words
    assert rare.value is not None and rare.interval is None and common.interval is not None
    assert {row[0]: row[4] for row in found.table()}["w0"] == "too few images"


def test_edges_are_said():
    has = np.ones((20, 1), bool)
    flat = rank_words(np.ones((20, 3)), words(has), units_of(range(20)))
    assert flat.verdict().startswith("cannot say: the features of all images are equal")
    with pytest.raises(InputError, match="no word occurs in enough images"):
        rank_words(
            np.ones((20, 3)),
            words(has).frequent(min_items=1, max_share=0.5, max_words=5),
            units_of(range(20)),
        )
    with pytest.raises(InputError, match="5 folds need at least 10"):
        rank_words(np.eye(6), words(has[:6]), units_of(range(6)))


def test_captions_are_tagged_and_lemmatised():
    pytest.importorskip("textblob")
    pytest.importorskip("lemminflect")
    found = caption_words("Two men are riding horses while children watch.")
    assert {
        ("man", "noun"),
        ("ride", "verb"),
        ("horse", "noun"),
        ("child", "noun"),
        ("watch", "verb"),
    } <= found
    assert not any(word in ("be", "two", "while") for word, _ in found)
    assert caption_words("A DOG RUNS.") == {("dog", "noun"), ("run", "verb")}
    both = vocabulary([["A dog runs.", "Dogs run"], ["A cat"], []])
    assert both.has[:, both.words.index("dog")].tolist() == [True, False, False]
    with pytest.raises(InputError, match="no item has a caption"):
        vocabulary([[], [" "]])


def test_one_word_of_two_hundred_is_found():
    """With 199 shuffles its p could not be below 1/200, and below 1 after the correction."""
    rng = np.random.default_rng(5)
    has = rng.random((150, 200)) < 0.15
    x = rng.normal(size=(150, 6))
    x[:, 0] += 9 * has[:, 0]
    found = rank_words(x, words(has), units_of(range(150)), n_draws=2)
    assert found.words[0].found and found.words[0].details["shuffles"] == 3999
    assert not any(one.undecided for one in found.words), "the others could have been found as well"
    assert sum(one.found for one in found.words[1:]) <= 1


def test_words_of_all_layers_are_one_family():
    """The best layer was chosen among all, but its words were corrected among themselves."""
    rng = np.random.default_rng(0)
    n_found = 0
    for seed in range(20):
        has = rng.random((40, 4)) < 0.3
        has[:2] = True
        layers = [
            rank_words(
                rng.normal(size=(40, 3)), words(has), units_of(range(40)),
                site=str(i), n_permutations=299, n_draws=2, seed=seed,
            )
            for i in range(9)
        ]  # fmt: skip
        both = adjusted_concepts(layers)
        assert {one.reach.family for layer in both for one in layer.words if one.reach} == {36}
        n_found += any(one.found for layer in both for one in layer.words)
    assert n_found <= 4, f"{n_found} of 20 null runs"
