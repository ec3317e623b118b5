"""Thresholds keep their rate for any scores; CUSUM and rates by their formulas; detectors beside plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlascope.act.monitor_detectors import mahalanobis, moments, pca_residual
from vlascope.act.monitor_thresholds import (
    CUSUM_CAP,
    Rate,
    calibrate,
    conformal_threshold,
    cusum,
    episodes_needed,
)
from vlascope.errors import InputError


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.23])
def test_the_stated_rate_is_kept_for_skewed_dependent_scores(alpha):
    rng = np.random.default_rng(0)
    n, alarms, sigma_alarms, n_draws = 59, 0, 0, 1500
    for _ in range(n_draws):
        # A common factor per episode and a heavy tail: nothing that mean + 2 deviations could handle.
        lengths = rng.integers(3, 12, n + 1)
        episodes = [np.exp(rng.normal(0, 1) + rng.normal(0, 0.5, length)) for length in lengths]
        limits = calibrate(episodes[:n], reference=episodes[:n], alpha=alpha)
        alarms += limits.first_alarm(episodes[n], rule="frame") is not None
        sigma_alarms += limits.first_alarm(episodes[n], rule="sigma") is not None
    # Exactly floor((n + 1) alpha) / (n + 1) of new episodes exceed it.
    expected = np.floor((n + 1) * alpha + 1e-9) / (n + 1)
    assert alarms / n_draws == pytest.approx(expected, abs=4 * np.sqrt(alpha / n_draws))
    assert sigma_alarms / n_draws > 0.06, "the Gaussian rule states 2.3 % and does not keep it"


def test_thresholds_are_order_statistics():
    maxima = np.arange(19.0)
    assert conformal_threshold(maxima, alpha=0.05) == 18
    assert conformal_threshold(maxima, alpha=0.1) == 17
    assert conformal_threshold(np.arange(20.0), alpha=0.5) == 10, "the 11th of 20: 10 of 21 exceed it"
    assert [episodes_needed(a) for a in (0.05, 0.1, 0.5, 0.01)] == [19, 9, 1, 99]
    with pytest.raises(InputError, match="needs at least 19"):
        conformal_threshold(maxima[:18], alpha=0.05)
    with pytest.raises(InputError, match="between 0 and 1"):
        episodes_needed(1.0)


def test_calibration_says_what_it_cannot_do():
    rng = np.random.default_rng(1)
    episodes = [rng.normal(size=5) for _ in range(20)]
    limits = calibrate(episodes, reference=[10 + 3 * one for one in episodes], alpha=0.05)
    assert limits.rules == ("frame", "cusum", "sigma")
    with pytest.raises(InputError, match="twice as many"):
        limits.over(episodes[0], rule="both")
    flat = np.concatenate(episodes)
    assert limits.sigma == pytest.approx(flat.mean() + 2 * flat.std())
    with pytest.raises(InputError, match="pick on a table: got 18 calibration episodes"):
        calibrate(episodes[:18], reference=episodes, alpha=0.05, what="pick on a table")
    same = [np.ones(3)] * 20
    with pytest.raises(
        InputError, match="the calibration episodes have the same score; are they copies of one"
    ):
        calibrate(same, reference=episodes, alpha=0.05)
    with pytest.raises(InputError, match="the reference episodes have the same score"):
        calibrate(episodes, reference=same, alpha=0.05)
    with pytest.raises(InputError, match="unknown rule"):
        limits.over(episodes[0], rule="vibes")  # type: ignore[arg-type]


def test_limits_are_those_of_the_highest_of_each_episode():
    rng = np.random.default_rng(4)
    episodes = [rng.normal(size=rng.integers(2, 9)) for _ in range(43)]
    reference = [rng.normal(0.3, 2, size=5) for _ in range(7)]
    limits = calibrate(episodes, reference=reference, alpha=0.1)
    flat = np.concatenate(reference)
    highest: list[float] = []
    for one in episodes:
        total, sums = 0.0, []
        for score in one:
            total = max(0.0, total + (score - flat.mean()) / flat.std() - 1)
            sums.append(total)
        highest.append(max(sums))
    frames, sums = sorted(max(one) for one in episodes), sorted(highest)
    # Of 44 exchangeable episodes, 4 exceed the 40th smallest of the others, 2 the 42nd.
    assert limits.frame == frames[39] and limits.cusum == pytest.approx(sums[39], rel=1e-12)
    assert limits.frame_half == frames[41] and limits.cusum_half == pytest.approx(sums[41], rel=1e-12)


def test_the_sum_keeps_the_stated_rate_with_few_episodes():
    """Whatever it counts from, as long as that is not of the calibration: see the formula below."""
    rng = np.random.default_rng(5)
    alarms, n_draws, alpha = 0, 2000, 0.25
    for _ in range(n_draws):
        episodes = list(rng.normal(size=(9, 3)))
        limits = calibrate(episodes[:3], reference=episodes[4:], alpha=alpha)
        alarms += limits.first_alarm(episodes[3], rule="cusum") is not None
    assert alarms / n_draws <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / n_draws)


def test_both_rules_together_keep_the_rate():
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(800):
        episodes = [rng.normal(size=7) + 0.5 * rng.normal() for _ in range(80)]
        limits = calibrate(episodes[:59], reference=episodes[60:], alpha=0.1)
        over = limits.over(episodes[59], rule="both")
        alone = limits.cusums(episodes[59]) > limits.cusum_half
        assert (over >= alone).all()
        alarms += over.any()
    assert alarms / 800 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 800)


def test_cusum_adds_up_what_lasts():
    assert cusum(np.array([2.0, 2, 0, -5, 3]), drift=1).tolist() == [1, 2, 1, 0, 2]
    assert cusum(np.array([1e9, 0.0]), drift=1).tolist() == [CUSUM_CAP, CUSUM_CAP - 1]


def test_rates_carry_their_interval():
    one = Rate(alarms=8, n=10)
    assert one.share == 0.8 and one.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert one.text() == "8 of 10 (80.0% [49.0, 94.3])" and not one.holds(0.4) and one.holds(0.5)
    assert Rate(alarms=0, n=0).to_json()["share"] is None


def test_baselines_equal_the_formulas():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 7)) @ rng.normal(size=(7, 7)) + 40
    found = moments([x[:3], x[3:300], x[300:300], x[300:]])
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), rtol=1e-9)
    y = torch.from_numpy(x[:20] + 1).float()
    inverse = np.linalg.inv(found.covariance)
    around = y.double().numpy() - found.mean
    expected = np.einsum("nd,de,ne->n", around, inverse, around) / 7
    np.testing.assert_allclose(mahalanobis(found, shrinkage=0).score(y), expected, rtol=1e-3)
    from sklearn.decomposition import PCA

    pca = PCA(3).fit(x)
    left = y.numpy() - pca.inverse_transform(pca.transform(y.numpy()))
    np.testing.assert_allclose(
        pca_residual(found, n_components=3).score(y), np.square(left).sum(1) / found.variance, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([], "got 0 clean tokens"),
        ([np.ones((9, 7))], "need at least 14"),
        ([np.ones((50, 7))], "are the same"),
        ([np.full((50, 7), np.nan)], "NaN"),
    ],
)
def test_tokens_that_say_nothing_are_refused(chunks, words):
    with pytest.raises(InputError, match=words):
        moments(chunks)
