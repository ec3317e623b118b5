"""Batch debugging on planted groups: those that follow the truth, the answers, or nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.measure.planted import PlantedRun, grid
from vlascope.errors import InputError
from vlascope.measure.association import DEBUG_HEAD, associate, association, group_items
from vlascope.measure.groups import named_like
from vlascope.measure.resample import units_of

N = 42
SITES = ("vision.0", "vision.1", "vision.2")


def make(*, wrong: int = 14, answers: bool = True, seed: int = 0) -> PlantedRun:
    """vision.0 knows nothing, vision.1 the truth, vision.2 the answer."""
    rng = np.random.default_rng(seed)
    truth = np.arange(N) % 3
    said = truth.copy()
    said[:wrong] = (truth[:wrong] + 1) % 3
    noise = rng.normal(size=(3, N, 15, 7))
    codes = np.eye(3) * 6
    noise[1, :, :, :3] += codes[truth][:, None]
    noise[2, :, :, :3] += codes[said][:, None]
    names = ("one", "two", "three")
    return PlantedRun(
        {site: ("vision", noise[i]) for i, site in enumerate(SITES)},
        layouts={"vision": grid(3, 5)},
        labels=[{"count": names[t]} for t in truth],
        answers=[f" {names[s].title()}." for s in said] if answers else None,
    )


def test_each_layer_is_told_what_it_follows():
    found = association(make(), sites=SITES, label="count", n_permutations=199)
    assert [layer.follows for layer in found.layers] == ["neither", "truth", "answer"]
    assert found.n_wrong == 14
    assert "the truth ('count') at vision.1" in found.verdict()
    assert "own answer rather than the truth at vision.2" in found.verdict()
    assert not found.raw_pixels.found
    truth = found.layers[1].truth
    assert truth.value == pytest.approx(1) and truth.controls["shuffled labels"] < 0.2
    assert truth.n == N and truth.p_adjusted is not None and truth.p is not None
    assert truth.p_adjusted >= truth.p
    assert all(len(row) == len(DEBUG_HEAD) for row in found.table())
    json.dumps(found.to_json(), allow_nan=False)


def test_groups_keep_their_number_from_layer_to_layer():
    rng = np.random.default_rng(3)
    before = rng.integers(0, 4, 50)
    moved = before.copy()
    moved[:5] = (before[:5] + 1) % 4
    for order in ([2, 3, 0, 1], [1, 0, 3, 2]):
        renamed = np.array(order)[moved]
        np.testing.assert_array_equal(named_like(renamed, before), moved)
    fewer = named_like(np.where(before == 2, 1, 0), before)
    assert len(np.unique(fewer)) == 2 and (fewer[before == 2] == 2).all()
    found = association(make(wrong=1), sites=SITES, label="count", n_permutations=19)
    knows, says = found.layers[1].groups, found.layers[2].groups
    assert (knows == says).sum() == N - 1, "one answer of 42 is another"


def test_right_answers_cannot_be_told_from_the_truth():
    found = association(make(wrong=2), sites=SITES, label="count", n_permutations=99)
    assert [layer.follows for layer in found.layers] == ["neither", "both", "both"]
    assert "2 of 42 answers are wrong: too few to tell" in found.verdict()


def test_no_answers():
    run = make(answers=False)
    with pytest.raises(InputError, match="gave no answers"):
        association(run, sites=SITES, label="count")
    found = association(run, sites=SITES, label="count", answers=None, n_permutations=99)
    assert [layer.follows for layer in found.layers] == ["neither", "truth", "truth"]


def test_unrelated_groups_are_found_in_at_most_5_percent():
    rng = np.random.default_rng(1)
    false = 0
    units = units_of(np.repeat(np.arange(12), 3), over="episode")
    for trial in range(200):
        groups = rng.integers(0, 3, 12)[units.ids]  # frames of an episode fall into one group
        label = [str(x) for x in rng.permutation(np.arange(12) % 3)[units.ids]]
        if len(set(groups)) > 1:
            false += associate(groups, label, units, name="x", n_permutations=39, seed=trial).found
    assert false <= 18, f"{false} of 200 null runs; at most 10 are expected"


def test_intervals_of_null_data_hold_what_chance_gives():
    """NMI of few units lies far above 0 by chance, and quantiles of resamples lie higher still."""
    rng = np.random.default_rng(2)
    held = above = 0
    adjusted = []
    for trial in range(60):
        units = units_of(np.repeat(np.arange(15), 2), over="episode")
        groups, label = rng.integers(0, 4, (2, 15))[:, units.ids]
        one = associate(groups, [str(x) for x in label], units, name="x", n_permutations=39, seed=trial)
        chance = one.controls["shuffled labels"]
        assert one.interval is not None and one.value is not None and chance > 0.1
        held += one.interval[0] <= chance <= one.interval[1]
        above += one.interval[0] > one.value or one.interval[1] < one.value
        adjusted.append(one.details["adjusted for chance"])
    assert held >= 51 and above <= 3, (held, above)
    assert abs(np.mean(adjusted)) < 0.05


def test_intervals_of_equal_groups_end_at_one():
    truth = np.arange(30) % 3
    one = associate(truth, [str(x) for x in truth], units_of(np.arange(30)), name="x", n_permutations=39)
    assert one.value == pytest.approx(1) and one.interval == pytest.approx((1, 1))
    assert one.details["adjusted for chance"] == pytest.approx(1)
    mixed = np.where(np.arange(30) < 9, (truth + 1) % 3, truth)
    part = associate(mixed, [str(x) for x in truth], units_of(np.arange(30)), name="x", n_permutations=39)
    assert part.interval is not None and part.value is not None
    assert 0 < part.interval[0] < part.value < part.interval[1] < 1
    assert part.controls["shuffled labels"] < part.interval[0]
    apart = associate(np.arange(9), list("abcdefghi"), units_of(np.arange(9)), name="x", n_permutations=39)
    assert apart.value == 1 and not apart.found, "names that never repeat are equal however they are shuffled"
    assert apart.details["adjusted for chance"] == pytest.approx(0, abs=1e-6)


def test_shuffling_frames_as_if_independent_would_find_too_much():
    """The reason for whole units: the same null data, frames shuffled freely, is 'found' far too often."""
    rng = np.random.default_rng(1)
    episodes, frames = units_of(np.repeat(np.arange(12), 6)), units_of(np.arange(72))
    wrong = 0
    for trial in range(40):
        groups = rng.integers(0, 3, 12)[episodes.ids]
        label = [str(x) for x in rng.permutation(np.arange(12) % 3)[episodes.ids]]
        wrong += associate(groups, label, frames, name="x", n_permutations=39, seed=trial).found
    assert wrong > 20


def test_groups_and_constant_features():
    x = np.r_[np.zeros((5, 3)), np.ones((6, 3))] + 1e-3 * np.random.default_rng(0).normal(size=(11, 3))
    groups = group_items(x, 2)
    assert len(set(groups[:5])) == 1 and len(set(groups[5:])) == 1 and groups[0] != groups[-1]
    assert set(group_items(np.ones((7, 2)), 3)) == {0}


def test_groups_do_not_follow_one_channel_of_large_scale():
    rng = np.random.default_rng(3)
    truth = np.repeat([0, 1], 30)
    x = rng.normal(0, 0.3, (60, 7))
    x[:, :5] += 3 * truth[:, None]
    for scale in (1, 60):
        x[:, 6] *= scale
        groups = group_items(x, 2)
        assert (groups == truth).all() or (groups == 1 - truth).all(), scale
    result = associate(np.zeros(8), list("abababab"), units_of(np.arange(8)), name="x")
    assert result.value is None and "same features" in result.reason
    few = associate(np.arange(4) % 2, list("abab"), units_of(np.arange(4)), name="x")
    assert "need at least 6" in few.reason


def test_the_factor_must_vary():
    run = make()
    for row in run.items:
        row.labels["fixed"] = "x"
    with pytest.raises(InputError, match="vary the factor"):
        association(run, sites=SITES, label="fixed")
    with pytest.raises(InputError, match="no sites"):
        association(run, sites=(), label="count")
