"""Foresight planted, absent, and out of reach."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure.multiple import benjamini_hochberg
from vlascope.measure.world_model import adjusted_world_models, world_model, world_model_arrays

N_EPISODES, LENGTH = 12, 13


def frames(seed: int, *, n_episodes: int = N_EPISODES, length: int = LENGTH):
    rng = np.random.default_rng(seed)
    episode, step = np.repeat(np.arange(n_episodes), length), np.tile(np.arange(length), n_episodes)
    pushes = rng.normal(size=(n_episodes, length, 3))
    e = np.cumsum(pushes, axis=1)
    return rng, episode, step, pushes.reshape(-1, 3), e.reshape(-1, 3)


def test_a_layer_that_holds_the_next_push_is_found():
    rng, episode, step, pushes, e = frames(0)
    coming = np.roll(pushes, -1, axis=0)  # the change from t to t + 1
    h = coming @ rng.normal(size=(3, 7)) + 0.1 * rng.normal(size=(len(e), 7))
    found = world_model_arrays(h, e, coming, episode, step, horizons=(1, 3, 30))
    one, three, thirty = found.results
    assert one.found and one.value is not None and one.value > 0.9
    assert three.value is not None and 0.1 < three.value < 0.6, "one of three pushes is known"
    assert thirty.value is None and "0 pairs" in thirty.reason
    assert one.controls["action alone over persistence"] > 0.9
    assert one.controls["over action alone"] < 0, "the coming push is the action itself, without noise"
    of = {name: 1 - three.controls[name] for name in three.controls}
    assert of["over action alone"] * of["action alone over persistence"] == pytest.approx(
        of["over persistence"]
    )
    assert one.controls["e(t) alone over persistence"] < 0.1 and one.controls["shuffled time"] < 0.1
    assert "adds to what e says now" in found.verdict() and "1 steps" in found.verdict()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_layer_without_foresight_is_rarely_found():
    false = 0
    for trial in range(200):
        rng, episode, step, _, e = frames(trial, n_episodes=6, length=7)
        h = np.cumsum(rng.normal(size=(6, 7, 2)), axis=1).reshape(-1, 2)
        found = world_model_arrays(h, e, None, episode, step, horizons=(1,), n_permutations=19, seed=trial)
        false += found.results[0].found
    assert false <= 18, f"{false} of 200 null runs; 10 are expected"


def test_what_cannot_be_said():
    _, episode, step, _, e = frames(0)
    still = world_model_arrays(e, np.ones_like(e), None, episode, step)
    assert "constant" in still.verdict()
    one = world_model_arrays(e[::LENGTH], e[::LENGTH], None, episode[::LENGTH], step[::LENGTH])
    assert one.verdict().startswith("cannot say"), "episodes of one frame have no future"
    with pytest.raises(InputError, match="at least 1"):
        world_model(None, site="a", state_site="b", horizons=(0,))  # type: ignore[arg-type]


def test_the_present_state_itself_adds_nothing():
    """Rotated in time it costs accuracy, so that it beats every shuffle: the interval must lie above 0 as well."""
    told = better = 0
    episode, step = np.repeat(np.arange(30), 20), np.tile(np.arange(20), 30)
    for trial in range(12):
        e = np.random.default_rng(trial).normal(size=(600, 12))
        found = world_model_arrays(e, e, None, episode, step, horizons=(1,), n_permutations=19, seed=trial)
        better += found.results[0].found and (found.results[0].value or 0) > 0
        told += "adds to what" in found.verdict()
    assert better >= 5 and told <= 1, (better, told)


def test_layers_and_horizons_are_one_family():
    rng, episode, step, pushes, e = frames(1)
    noise = [rng.normal(size=(len(e), 3)) for _ in range(2)]
    layers = [
        world_model_arrays(h, e, None, episode, step, site=str(i), horizons=(1, 3), n_permutations=19)
        for i, h in enumerate([np.roll(pushes, -1, axis=0), *noise])
    ]
    both = adjusted_world_models(layers)
    families = {one.reach.family for layer in both for one in layer.results if one.reach}
    assert families == {6}, "three layers, two horizons"
    p = [one.p for layer in layers for one in layer.results]
    np.testing.assert_allclose(
        [one.p_adjusted for layer in both for one in layer.results], benjamini_hochberg(p)
    )
