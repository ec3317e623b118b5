"""Scores of segments against slow formulas, brute force and hand-counted answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure.segmentation import (
    best_overlaps,
    covering,
    jaccard,
    majority_confusion,
    match_segments,
    matched_counts,
    mean_iou,
    oracle_counts,
    overlap_table,
    rand_index,
    table_iou,
    variation_of_information,
)


def pair(seed: int, *, n: int = 4, m: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, m, (7, 11))
    labels = np.where(rng.random((7, 11)) < 0.6, truth, rng.integers(0, n, (7, 11)))
    return labels, truth


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_slow_formulas(seed):
    labels, truth = pair(seed)
    table = overlap_table(labels, truth)
    a, b = labels.reshape(-1), truth.reshape(-1)
    iou = {
        (i, j): ((a == i) & (b == j)).sum() / ((a == i) | (b == j)).sum() for i in range(4) for j in range(3)
    }
    np.testing.assert_allclose([[iou[i, j] for j in range(3)] for i in range(4)], table_iou(table)[:4])
    np.testing.assert_allclose(best_overlaps(table), [max(iou[i, j] for i in range(4)) for j in range(3)])
    slow = sum((b == j).sum() * max(iou[i, j] for i in range(4)) for j in range(3)) / len(b)
    assert covering(table) == pytest.approx(slow)
    same = [(a[i] == a[j]) == (b[i] == b[j]) for i, j in itertools.combinations(range(len(a)), 2)]
    assert rand_index(table) == pytest.approx(np.mean(same))
    p = np.array([[((a == i) & (b == j)).mean() for j in range(3)] for i in range(4)])
    given_b = -sum(v * np.log2(v / p[:, j].sum()) for i in range(4) for j, v in enumerate(p[i]) if v)
    given_a = -sum(v * np.log2(v / p[i].sum()) for i in range(4) for v in p[i] if v)
    assert variation_of_information(table) == pytest.approx(given_a + given_b)


@pytest.mark.parametrize("seed", range(5))
def test_matching_agrees_with_brute_force(seed):
    table = overlap_table(*pair(seed, n=4, m=4))[:4]
    iou = table_iou(table)
    best = max(sum(iou[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(4)))
    found = match_segments(table)
    assert sum(iou[i, j] for i, j in enumerate(found) if j >= 0) == pytest.approx(best)


def test_equal_labels_are_perfect_under_any_names():
    _, truth = pair(1)
    table = overlap_table(np.array([2, 0, 1])[truth], truth)
    assert covering(table) == rand_index(table) == 1.0
    assert variation_of_information(table) == pytest.approx(0, abs=1e-12)
    assert mean_iou(oracle_counts(table)) == 1.0
    assert mean_iou(matched_counts(table, match_segments(table))) == 1.0


def test_void_is_left_out_and_uncovered_pixels_cost():
    truth = np.array([[0, 0, 1, -1]])
    assert overlap_table(np.array([[0, 0, 1, 1]]), truth).sum() == 3
    table = overlap_table(np.array([[0, -1, 1, 1]]), truth)
    assert best_overlaps(table).tolist() == [0.5, 1.0]
    with pytest.raises(InputError, match="shape"):
        overlap_table(np.zeros((2, 3), int), truth)


def test_majority_names_every_segment_and_mean_iou_by_hand():
    table = np.array([[5.0, 1, 0], [1, 3, 0]])
    np.testing.assert_array_equal(majority_confusion(table), [[5, 1, 0], [1, 3, 0], [0, 0, 0]])
    assert mean_iou(oracle_counts(table)) == pytest.approx((5 / 7 + 3 / 5) / 2), "class 2 does not occur"
    stacked = np.stack([oracle_counts(table), oracle_counts(table)])
    assert mean_iou(stacked).shape == (2,)


def test_jaccard():
    a, b = np.array([[1, 1, 0]], bool), np.array([[0, 1, 1]], bool)
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a & b & ~a, b & ~b) == 1.0
