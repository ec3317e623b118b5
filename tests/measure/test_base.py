"""Results, corrections, intervals, permutations, scores: against closed forms, slow references and null data."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure.crossfit import (
    CrossFit,
    Question,
    _null_accuracies,
    balanced_accuracy,
    read_classes,
    reading_loss,
    separability,
    unit_folds,
)
from vlascope.measure.layers import _cka_jackknife, ari_of_table
from vlascope.measure.multiple import benjamini_hochberg
from vlascope.measure.resample import (
    bootstrap_interval,
    bootstrap_mean,
    n_unchanged,
    percentile_interval,
    permutation_test,
    run_units,
    share_interval,
    shuffled,
    units_of,
)
from vlascope.measure.result import TABLE_HEAD, Result, adjusted, cannot_say, table, undecided
from vlascope.measure.scores import ari, contingency, nmi, silhouette
from vlascope.sim import wilson_interval
from vlascope.spectral import cka


def test_benjamini_hochberg_by_hand_and_against_scipy():
    from scipy.stats import false_discovery_control

    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    p = np.random.default_rng(0).random(37)
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    assert len(benjamini_hochberg([])) == 0
    with pytest.raises(InputError):
        benjamini_hochberg([0.1, float("nan")])


def test_a_result_says_everything_in_one_line_and_in_json():
    one = Result(
        name="vision.3", value=0.75, unit="NMI", n=40, over="episode", n_units=8, interval=(0.6, 0.9),
        controls={"shuffled labels": np.float64(0.1)}, p=0.01,
    )  # fmt: skip
    none = cannot_say("vision.4", "constant features", n=40)
    first, second = adjusted([one, none])
    assert first.p_adjusted == pytest.approx(0.01) and first.found and not second.found
    line = first.line()
    for part in (
        "vision.3",
        "0.750",
        "[0.600, 0.900]",
        "8 episodes",
        "n=40",
        "shuffled labels 0.100",
        "p=0.01",
    ):
        assert part in line
    assert "cannot say (constant features)" in second.line()
    assert json.loads(json.dumps(first.to_json(), allow_nan=False))["interval_95"] == [0.6, 0.9]
    assert all(len(row) == len(TABLE_HEAD) for row in table([first, second]))
    with pytest.raises(InputError, match="reason"):
        Result(name="x", value=None, unit="", n=0)


def test_a_p_of_exactly_5_percent_is_found_after_correction():
    family = [Result(name=str(i), value=1.0, unit="", n=20, p=1 / 20) for i in range(3)]
    assert all(one.found for one in adjusted(family))


def test_bootstrap_mean_is_the_general_bootstrap_and_covers():
    rng = np.random.default_rng(1)
    units = units_of(np.repeat(np.arange(11), 3))
    values = rng.normal(size=33)
    slow = bootstrap_interval(lambda w: (w * values).sum() / w.sum(), units, n_draws=300, seed=4)
    assert bootstrap_mean(values, units, n_draws=300, seed=4) == pytest.approx(slow)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_mean(
            rng.normal(0.3, 1, 40), units_of(np.arange(40)), n_draws=300, seed=trial
        ) or (1, 0)
        hits += low <= 0.3 <= high
    assert hits >= 178
    assert bootstrap_mean(values, units_of(["a"] * 33)) is None


def test_shuffles_keep_what_belongs_together():
    rng = np.random.default_rng(2)
    units = units_of(np.repeat(np.arange(5), 4))
    whole = np.repeat(np.array([0, 1, 0, 2, 1]), 4)
    moved = shuffled(whole, units, rng=rng)
    assert all(len(set(moved[units.ids == u])) == 1 for u in range(5))
    assert sorted(moved) == sorted(whole)
    changing = np.tile(np.array([0, 0, 1, 2]), 5)
    for scheme in ("shift", "series", "auto", "names"):
        moved = shuffled(changing, units, scheme=scheme, rng=rng)
        for u in range(5):
            assert sorted(np.bincount(moved[units.ids == u])) == sorted(np.bincount(changing[:4]))
    renamed = shuffled(changing, units, scheme="names", rng=rng)
    assert all(renamed[4 * u] == renamed[4 * u + 1] for u in range(5)), "equal names stay equal"


def test_permutation_p_values_are_uniform_when_nothing_is_there():
    rng = np.random.default_rng(3)
    units = units_of(np.arange(20))
    found = 0
    for trial in range(200):
        x, y = rng.normal(size=20), rng.integers(0, 2, 20)
        test = permutation_test(
            lambda labels, x=x: abs(x[labels == 1].mean() - x[labels == 0].mean()) if 0 < labels.sum() < 20 else 0,
            y, units, n_permutations=59, seed=trial,
        )  # fmt: skip
        found += test.p <= 0.05
    assert found <= 20, f"{found} of 200 null runs; 10 are expected"
    x = np.r_[np.zeros(10), np.ones(10)] + 0.01 * rng.normal(size=20)
    y = np.r_[np.zeros(10, int), np.ones(10, int)]
    assert permutation_test(lambda labels: x[labels == 1].mean(), y, units, n_permutations=99).p == 0.01


def test_scores_agree_with_scikit_learn():
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 3, 60), rng.integers(0, 4, 60)
    assert nmi(a, b) == pytest.approx(normalized_mutual_info_score(a, b))
    assert nmi(a, (a + 1) % 3) == pytest.approx(1)
    assert ari(a, b) == pytest.approx(adjusted_rand_score(a, b))
    assert ari_of_table(contingency(a, b)) == pytest.approx(adjusted_rand_score(a, b))
    x = rng.normal(size=(60, 5))
    assert silhouette(x, a) == pytest.approx(silhouette_score(x, a))
    with pytest.raises(InputError, match="single class"):
        nmi(a, np.zeros(60))
    with pytest.raises(InputError, match="equal"):
        silhouette(np.ones((60, 2)), a)


def test_crossfit_is_ridge_fitted_without_the_test_fold():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(31, 7)) * np.arange(1, 8), rng.normal(size=(31, 2))
    folds = unit_folds(units_of(np.arange(31)), seed=1)
    got = CrossFit(x, folds, ridge=0.3).predict(y)
    for fold in range(5):
        test = folds == fold
        scale = StandardScaler().fit(x[~test])
        model = Ridge(0.3 * 7).fit(scale.transform(x[~test]), y[~test])
        np.testing.assert_allclose(got[test], model.predict(scale.transform(x[test])), atol=1e-8)


def test_many_shuffles_at_once_are_the_plain_loop():
    rng = np.random.default_rng(8)
    fit = CrossFit(rng.normal(size=(23, 4)), unit_folds(units_of(np.arange(23))))
    codes = rng.integers(0, 3, (7, 23))
    slow = [balanced_accuracy(row, fit.classify(row), n_classes=3) for row in codes]
    np.testing.assert_allclose(_null_accuracies(fit, codes, n_classes=3), slow)


def test_units_never_straddle_folds():
    units = units_of(np.repeat(np.arange(13), 3))
    folds = unit_folds(units, seed=0)
    assert all(len(set(folds[units.ids == u])) == 1 for u in range(13))
    assert set(folds) == set(range(5))
    with pytest.raises(InputError, match="at least 2"):
        unit_folds(units_of(["a", "a"]))


def _question(n_units: int, per_unit: int, rng: np.random.Generator) -> Question:
    units = units_of(np.repeat(np.arange(n_units), per_unit), over="episode")
    codes = rng.permutation(np.arange(n_units) % 2)[units.ids]
    return Question("colour", codes.astype(np.int64), ("blue", "red"), units)


def test_separability_finds_planted_classes_and_not_more_than_5_percent_of_absent_ones():
    rng = np.random.default_rng(6)
    found = 0
    for trial in range(200):
        question = _question(12, 3, rng)
        episode_look = rng.normal(size=(12, 6))[question.units.ids]  # frames of an episode look alike
        x = episode_look + 0.1 * rng.normal(size=(36, 6))
        found += separability(x, question, name="x", n_permutations=39, seed=trial).found
    assert found <= 20, f"{found} of 200 null runs; 10 are expected"
    x[:, 2] += 5 * question.codes
    planted = separability(x, question, name="x", n_permutations=99)
    assert planted.found and planted.value is not None and planted.value > 0.9
    assert planted.interval is not None and planted.interval[0] > 0.5
    assert planted.controls["chance"] == 0.5 and planted.controls["shuffled labels"] < 0.7


def test_separability_cannot_say():
    rng = np.random.default_rng(7)
    question = _question(4, 3, rng)
    assert "need at least 5" in separability(rng.normal(size=(12, 2)), question, name="x").reason
    question = _question(8, 2, rng)
    assert "constant" in separability(np.ones((16, 2)), question, name="x").reason
    one = Question("colour", np.zeros(16, np.int64), ("red",), question.units)
    assert "single class" in separability(rng.normal(size=(16, 2)), one, name="x").reason


def test_balanced_accuracy_by_hand():
    truth, guess = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1])
    assert balanced_accuracy(truth, guess, n_classes=2) == pytest.approx((0.75 + 1) / 2)
    assert balanced_accuracy(truth, guess, n_classes=3) == pytest.approx((0.75 + 1) / 2)


def test_intervals_of_few_units_are_wider():
    values = np.random.default_rng(0).normal(size=20_000)
    plain = np.quantile(values, [0.025, 0.975])
    assert percentile_interval(values, n_units=100_000) == pytest.approx(tuple(plain), rel=1e-3)
    for n, reach in (
        (23, 2.120),
        (5, 3.104),
    ):  # sqrt(n / (n - 1)) times Student's quantile with n - 1 degrees
        wide = percentile_interval(values, n_units=n)
        assert wide is not None and wide[1] - wide[0] == pytest.approx(2 * reach, rel=0.05), n
    assert percentile_interval(values, n_units=4) is None
    moved = percentile_interval(values - 0.7, n_units=23, center=0.5, bounds=(-1, 1))
    assert moved == (-1, 1), "as wide as before around the center, within the range"


def test_intervals_of_few_units_cover_their_mean():
    rng = np.random.default_rng(8)
    for n in (5, 8):
        found = [bootstrap_mean(rng.normal(size=n), units_of(range(n)), n_draws=300) for _ in range(200)]
        hits = sum(one is not None and one[0] <= 0 <= one[1] for one in found)
        assert hits >= 176, f"{hits} of 200 with {n} units"
    few = np.r_[rng.normal(size=4), np.full(30, np.nan)]
    assert bootstrap_mean(few, units_of(range(34))) is None, "units without a value are none"


def test_an_item_without_episode_leaves_the_episodes_whole():
    rows = [SimpleNamespace(index=i, episode=i // 10, item_id=str(i)) for i in range(80)]
    rows.append(SimpleNamespace(index=80, episode=None, item_id="photo"))
    units = run_units(SimpleNamespace(items=rows), range(81))
    assert (units.n, units.over) == (9, "episode")
    assert all(len(set(units.ids[10 * e : 10 * e + 10])) == 1 for e in range(8))
    assert (units.ids == units.ids[80]).sum() == 1


def test_shares_have_wilsons_interval():
    alone = units_of(range(24))
    assert share_interval(np.arange(24) < 20, alone) == pytest.approx(wilson_interval(20, 24))
    low, high = share_interval(np.zeros(24, bool), alone) or (1, 0)
    assert low == 0 and high > 0.1, "24 misses do not prove that nothing can be hit"
    hits = np.r_[np.ones(18), np.zeros(6), np.nan]
    assert share_interval(hits, units_of(range(25))) == pytest.approx(wilson_interval(18, 24))


def test_shares_of_whole_units_count_what_the_units_add():
    copies = np.repeat(np.arange(10) < 7, 30)
    units = units_of(np.repeat(np.arange(10), 30))
    low, high = share_interval(copies, units) or (0, 0)
    alone = wilson_interval(7, 10)
    assert low < alone[0] and high > alone[1], "thirty copies of an answer say no more than one"
    same = share_interval(np.ones(300), units)
    assert same == pytest.approx(wilson_interval(10, 10, z=2.262157)), "alike in all units: ten answers"
    assert share_interval(np.ones(40), units_of(np.repeat(np.arange(4), 10))) is None
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(300):
        hits = rng.random((12, 8)) < rng.beta(4.5, 0.5, 12)[:, None]
        low, high = share_interval(hits.ravel(), units_of(np.repeat(np.arange(12), 8))) or (1, 0)
        covered += low <= 0.9 <= high
    assert covered >= 264, f"{covered} of 300"


def test_balanced_accuracy_has_an_interval_where_all_is_right():
    codes = np.repeat([0, 1], [5, 45])
    low, high = share_interval(np.ones(50), units_of(range(50)), strata=codes) or (0, 0)
    assert high == 1 and low == pytest.approx(wilson_interval(18, 18)[0]), "4 / (1/5 + 1/45) = 18 answers"


def test_cka_of_few_groups_reaches_as_far_as_students_t():
    rng = np.random.default_rng(10)
    x = rng.normal(size=(100, 4))
    y = x + 0.05 * rng.normal(size=x.shape)
    units = units_of(np.repeat(np.arange(5), 20))
    value = cka(x, y)
    low, high = _cka_jackknife(x, y, units, value) or (0, 2)
    parts = np.array([cka(x[units.ids != g], y[units.ids != g]) for g in range(5)])
    error = np.sqrt(4 / 5 * ((parts - parts.mean()) ** 2).sum())
    assert (low, high) == pytest.approx((value - 2.776445 * error, value + 2.776445 * error), abs=1e-9)
    # Few copies of noise agree by chance: the error alone would reach beyond 1.
    noisy = x + 0.05 * np.repeat([[0], [0], [0], [0], [9]], 20, axis=0) * rng.normal(size=x.shape)
    assert (_cka_jackknife(x, noisy, units, 0.99) or (0, 2))[1] == 1.0
    assert _cka_jackknife(x, y, units_of(np.repeat(np.arange(4), 25)), value) is None


def test_ends_say_where_units_are_too_few():
    one = Result(name="x", value=0.5, unit="", n=30, over="episode", n_units=3)
    assert one.row()[2] == "too few episodes" and "too few episodes" in one.line()


def test_a_test_that_could_find_nothing_says_so():
    """The verdict was negative although no p that the shuffles can give would have been small enough."""
    rng = np.random.default_rng(0)
    codes = np.array([0, 0, 0, 1, 1, 1])
    x = np.c_[9 * codes, 0.1 * rng.normal(size=6)]
    six = separability(x, Question("c", codes, ("a", "b"), units_of(range(6))), name="x")
    assert six.value == 1 and not six.found
    assert six.reach is not None and six.reach.least == pytest.approx(0.1, abs=0.04), (
        "2 of 20 ways to deal 3 of 6"
    )
    assert "too few items: 6 can be exchanged in so few ways" in six.undecided and "cannot say" in six.line()
    wide = np.repeat(codes, 4)
    more = Question("c", wide, ("a", "b"), units_of(range(24)))
    assert separability(np.c_[9 * wide, rng.normal(size=24)], more, name="x").found
    test = permutation_test(lambda y: float(y[0]), wide[::-1], units_of(range(24)), n_permutations=19)
    one = Result(name="0", value=1.0, unit="", n=24, n_units=24, p=0.05, reach=test.reach)
    null = [
        Result(name=str(i), value=0.0, unit="", n=24, n_units=24, p=0.5, reach=test.reach) for i in range(6)
    ]
    family = adjusted([one, *null])
    assert "p cannot fall below 0.05, and 7 questions are asked at once; take 139" in undecided(family)
    assert undecided([one]) == "" and one.found, "alone, 19 shuffles do"
    assert not undecided(adjusted([one] * 7)), "and where all are found"


def test_shuffles_that_only_rename_change_nothing():
    codes = np.array([0, 0, 1, 2])
    others = [np.array(o) for o in ([0, 0, 1, 2], [2, 2, 0, 1], [0, 1, 0, 2], [1, 1, 2, 0])]
    assert n_unchanged(codes, others) == 3
    numbers = np.array([[1.0], [2.0], [3.0]])
    assert n_unchanged(numbers, [numbers, numbers[::-1]]) == 1


def test_the_loss_of_a_layer_is_paired():
    rng = np.random.default_rng(1)
    codes = np.arange(60) % 2
    question = Question("c", codes, ("a", "b"), units_of(range(60)))
    good, bad = np.c_[9 * codes, rng.normal(size=60)], rng.normal(size=(60, 2))
    one, same, none = (read_classes(x, question, name="x", n_permutations=19) for x in (good, good, bad))
    assert reading_loss(one, same) == (0, 0)
    ends = reading_loss(one, none, n_compared=21)
    assert ends is not None and 0 < ends[0] < 0.5 < ends[1]
    fewer = Question("c", codes[:40], ("a", "b"), units_of(range(40)))
    assert reading_loss(one, read_classes(bad[:40], fewer, name="x", n_permutations=19)) is None
