"""Channels that make a group dissolve it when they go; patches that move the action of mini-vla are on the object."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure.action_patches import action_patches, insertion_deletion
from vlascope.measure.attribution import cluster_channels


def planted(seed: int = 0, *, strength: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Group 0 lies at the origin; groups 1 and 2 are told from it by two channels each, among 23."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [17, 19, 23])
    x = rng.normal(size=(len(labels), 23)).astype(np.float32)
    for group in (1, 2):
        x[labels == group, 2 * group : 2 * group + 2] += strength
    return x, labels


def test_channels_of_a_group_dissolve_it_and_random_ones_do_not():
    x, labels = planted()
    found, results = cluster_channels(x, labels, n_remove=2, n_random=59)
    for group in (1, 2):
        result = results[group]
        assert set(found.top(group, 2).tolist()) == {2 * group, 2 * group + 1}
        assert result.value is not None and result.value > 0.25 and result.found, result.line()
        assert result.controls["none removed"] < 0.1 and result.controls["random channels"] < 0.15


def test_groups_without_channels_are_rarely_said_to_have_some():
    false = 0
    for trial in range(20):
        rng = np.random.default_rng(trial)
        x = rng.normal(size=(23, 7)).astype(np.float32)
        labels = rng.permutation(np.arange(23) % 2)
        false += any(r.found for r in cluster_channels(x, labels, n_remove=2, n_random=19, seed=trial)[1])
    assert false <= 3, false


def test_what_cannot_be_attributed():
    x, labels = planted()
    with pytest.raises(InputError, match="labels"):
        cluster_channels(x, labels[:-1])
    with pytest.raises(InputError, match="n_remove=23"):
        cluster_channels(x, labels, n_remove=23)
    with pytest.raises(InputError, match="coincide"):
        cluster_channels(np.ones_like(x), labels)
    tiny = np.where(np.arange(len(labels)) < 2, 3, labels)
    assert "2 tokens" in cluster_channels(x, tiny, n_random=19)[1][3].reason


@pytest.fixture(scope="module")
def mini():
    import vlascope as vs

    source = vs.items("demo:pick")
    return vs.load("mini-vla", device="cpu"), [source[i] for i in (0, 3)]


def test_patches_that_move_the_action_of_mini_vla(mini):
    model, items = mini
    by_method = {m: action_patches(model, items[0], dof="dy", method=m) for m in ("gradient", "occlusion")}
    reply = model.respond([items[0]])[0]
    for found in by_method.values():
        assert len(found.relevance) == len(found.box) and (found.relevance >= 0).all()
        assert abs(found.action - reply.action[reply.action_names.index("dy")]) < 0.03
    a, b = (np.argsort(np.argsort(f.relevance)) for f in by_method.values())
    assert np.corrcoef(a, b)[0, 1] > 0.1, "two ways to ask agree more than by chance"
    again = action_patches(model, items[0], dof="dy")
    np.testing.assert_array_equal(again.relevance, by_method["gradient"].relevance)
    assert model.respond([items[0]])[0].token_ids == reply.token_ids, "no hook is left behind"


def test_insertion_and_deletion_need_items_and_known_actions(mini):
    model, items = mini
    for result in insertion_deletion(model, items[:1], dof="dy", n_steps=2):
        assert result.value is None and "need at least 5" in result.reason
    with pytest.raises(InputError, match="no degree of freedom 'roll'; it has dx, dy, dz, grip"):
        action_patches(model, items[0], dof="roll")
    with pytest.raises(InputError, match="n_random=3"):
        insertion_deletion(model, items, n_random=3)
