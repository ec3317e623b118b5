"""Action bins follow OpenVLA's convention and flag malformed replies."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.models.actions import ActionBins, ActionFormatError

BINS = ActionBins(
    vocab_size=307,
    low=(-0.25, -0.25, -0.1, 0.0),
    high=(0.25, 0.25, 0.3, 1.0),
    mask=(True, True, True, True),
    names=("dx", "dy", "dz", "grip"),
)


def test_lowest_value_has_highest_id() -> None:
    assert BINS.encode(np.array([-0.25, 0.25, 0.1, 1.0])).tolist() == [306, 51, 307 - 128, 51]


def test_round_trip_is_within_half_a_bin() -> None:
    rng = np.random.default_rng(0)
    low, high = np.array(BINS.low), np.array(BINS.high)
    values = rng.uniform(low, high, size=(211, 4))
    decoded = np.stack([BINS.decode(row).values for row in BINS.encode(values)])
    half_bin = (high - low) / (BINS.n_bins - 1) / 2
    assert (np.abs(decoded - values) <= half_bin + 1e-6).all()


def test_values_beyond_the_quantiles_get_the_outermost_bin() -> None:
    ids = BINS.encode(np.array([9.0, -9.0, 0.0, 1.0]))
    assert ids[0] == BINS.first_id and ids[1] == BINS.vocab_size - 1


def test_matches_openvla_formula_on_every_id() -> None:
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    plain = ActionBins(vocab_size=32000, low=(-1.0,), high=(1.0,), mask=(False,))
    for token in range(31744, 32000):
        expected = centres[np.clip(32000 - token - 1, 0, centres.shape[0] - 1)]
        assert plain.decode([token]).values[0] == pytest.approx(expected, abs=1e-7)


def test_malformed_replies_are_flagged_and_not_guessed() -> None:
    word = BINS.decode([306, 3, 306, 306])
    assert word.problems == ("word_in_action:1",) and np.isnan(word.values).tolist() == [0, 1, 0, 0]
    short = BINS.decode([306, 306])
    assert short.problems == ("too_few_tokens:2",) and np.isnan(short.values[2:]).all()
    long = BINS.decode([306] * 5)
    assert long.problems == ("too_many_tokens:5",) and not long.well_formed


def test_config_reading_and_its_errors() -> None:
    stats = {"a": {"action": {"q01": [-1.0], "q99": [1.0], "mask": [True]}}}
    config = {
        "norm_stats": stats,
        "n_action_bins": 256,
        "text_config": {"vocab_size": 32064},
        "pad_to_multiple_of": 64,
    }
    assert ActionBins.from_config(config).vocab_size == 32000
    with pytest.raises(ActionFormatError, match="no `norm_stats`"):
        ActionBins.from_config({"text_config": {"vocab_size": 5}})
    with pytest.raises(ActionFormatError, match="name one"):
        ActionBins.from_config({**config, "norm_stats": {**stats, "b": stats["a"]}})
    with pytest.raises(ActionFormatError, match="finite"):
        BINS.encode(np.array([np.nan, 0, 0, 0]))
