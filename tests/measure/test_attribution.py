"""Channels that make a group dissolve it when they go; patches that move the action of mini-vla are on the object."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure.action_patches import action_patches, insertion_deletion
from vlascope.measure.attribution import cluster_channels
from vlascope.measure.orders import judge_orders, order_areas
from vlascope.measure.resample import units_of


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
    items = units_of(np.arange(len(labels)) % 7)
    found, results = cluster_channels(x, labels, n_remove=2, n_random=59, units=items)
    for group in (1, 2):
        result = results[group]
        assert set(found.top(group, 2).tolist()) == {2 * group, 2 * group + 1}
        assert result.value is not None and result.value > 0.25 and result.found, result.line()
        assert result.interval is not None and result.n_units == 7
        assert result.interval[0] <= result.value <= result.interval[1] < 1
        assert result.controls["none removed"] < 0.1 and result.controls["random channels"] < 0.15


def test_groups_without_channels_are_rarely_said_to_have_some():
    false = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        x = rng.normal(size=(23, 7)).astype(np.float32)
        labels = rng.permutation(np.arange(23) % 2)
        false += any(r.found for r in cluster_channels(x, labels, n_remove=2, n_random=19, seed=trial)[1])
    assert false <= 16, f"{false} of 200 null runs; at most 10 are expected"


def test_what_cannot_be_attributed():
    x, labels = planted()
    with pytest.raises(InputError, match="labels"):
        cluster_channels(x, labels[:-1])
    with pytest.raises(InputError, match="5 units for 59 tokens"):
        cluster_channels(x, labels, units=units_of(range(5)))
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


def orders_of(effects: np.ndarray, relevance: np.ndarray, *, seed: int) -> np.ndarray:
    """Areas for a thing whose answer moves by the sum of the effects of its hidden parts."""
    return order_areas(
        lambda hidden: np.abs(hidden @ effects) / abs(effects.sum()),
        relevance,
        rng=np.random.default_rng(seed),
    )


def test_areas_by_hand_and_every_random_picture_asked_once():
    effects = np.array([8.0, 4, 2, 1, 1])
    asked: list[int] = []

    def moved(hidden):
        asked.append(len(hidden))
        return hidden @ effects / 16

    areas = order_areas(moved, effects, n_steps=4, n_random=19, rng=np.random.default_rng(0))
    assert asked == [4 * (2 + 19)] and areas.shape == (2, 20)
    assert areas[0, 0] == pytest.approx((8 + 12 + 14 + 15) / 16 / 4), "the largest effects go first"
    assert areas[1, 0] == pytest.approx(1 - (1 + 2 + 4 + 8) / 16 / 4), "and come back first"
    np.testing.assert_allclose(areas[0, 1:] + areas[1, 1:], 1)
    with pytest.raises(InputError, match="n_steps=1"):
        order_areas(moved, effects, n_steps=1, rng=np.random.default_rng(0))


def test_an_order_that_says_nothing_is_rarely_found_and_one_that_does_is():
    false = np.zeros(2, int)
    for trial in range(200):
        rng = np.random.default_rng(trial)
        units = units_of([0, 0, 1, 2, 3, 4])  # two frames of one episode are nearly the same in all
        effects, relevance = rng.exponential(size=(2, 5, 23))
        effects, relevance = effects[units.ids], relevance[units.ids] + 0.01 * rng.normal(size=(6, 23))
        areas = [
            orders_of(e, r, seed=1000 * trial + u)
            for e, r, u in zip(effects, relevance, units.ids, strict=True)
        ]
        false += [one.found for one in judge_orders(areas, units, name="x", n_permutations=99, seed=trial)]
    assert (false <= 18).all() and (false > 0).all(), f"{false} of 200 null runs; 10 are expected"
    effects = rng.exponential(size=(5, 23))
    known = [orders_of(e, e + 0.3 * rng.normal(size=23), seed=i) for i, e in enumerate(effects)]
    for result in judge_orders(known, units_of(range(5)), name="x"):
        assert result.found and result.value is not None
        assert result.value > result.controls["random orders"] + 0.1
        assert result.interval is not None and result.interval[0] < result.value < result.interval[1]


def test_deletion_and_insertion_keep_their_own_areas_and_units_are_exchanged_whole():
    areas = np.full((8, 2, 20), 0.5)
    areas[:, 0, 0], areas[:, 1, 0], areas[:, 1, 1:] = 0.9, 0.2, 0.1
    deletion, insertion = judge_orders(list(areas), units_of(range(8)), name="x")
    assert (deletion.name, insertion.name) == ("x / deletion", "x / insertion")
    assert deletion.value == pytest.approx(0.9) and insertion.value == pytest.approx(0.2)
    assert deletion.controls["random orders"] == pytest.approx(0.5)
    assert insertion.controls["random orders"] == pytest.approx(0.1)
    # Eight things of five units: of the random orders, four in ten do as well in the whole of a unit as the given one.
    areas[:, 0, 1:9] = 0.9
    one, whole = (
        judge_orders(list(areas), units_of(of), name="x", n_permutations=999)[0]
        for of in (range(8), [0, 0, 0, 0, 1, 2, 3, 4])
    )
    alone = 0.45**8  # the given order itself is one of the twenty that are drawn
    assert one.p == pytest.approx(alone, abs=0.01)
    assert whole.p == pytest.approx(0.45**5, abs=0.01) and whole.p > one.p + 0.008
