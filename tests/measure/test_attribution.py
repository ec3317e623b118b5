"""Channels that make a group dissolve it when they go; patches that move the action of mini-vla are on the object."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure.action_patches import action_patches, insertion_deletion
from vlascope.measure.attribution import cluster_channels
from vlascope.measure.orders import judge_orders, order_areas, other_things
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
    with pytest.raises(InputError, match="method='guess'"):
        insertion_deletion(model, items, method="guess")  # type: ignore[arg-type]


def orders_of(effects, relevance, units, *, seed: int) -> list[np.ndarray]:
    """Areas for things whose answers move by the sum of the effects of their hidden parts."""
    return [
        order_areas(lambda hidden, e=e: np.abs(hidden @ e) / abs(e.sum()), own, others=[relevance[o] for o in others])
        for e, own, others in zip(effects, relevance, other_things(units, seed=seed), strict=True)
    ]  # fmt: skip


def test_areas_by_hand():
    effects = np.array([8.0, 4, 2, 1, 1])
    asked: list[int] = []

    def moved(hidden):
        asked.append(len(hidden))
        return hidden @ effects / 16

    areas = order_areas(moved, effects, others=[-effects, effects], n_steps=4)
    assert asked == [2 * 4 * 3] and areas.shape == (2, 3)
    assert areas[0, 0] == pytest.approx((8 + 12 + 14 + 15) / 16 / 4), "the largest effects go first"
    assert areas[1, 0] == pytest.approx(1 - (1 + 2 + 4 + 8) / 16 / 4), "and come back first"
    assert areas[0, 1] == pytest.approx((1 + 2 + 4 + 8) / 16 / 4), "the opposite order"
    np.testing.assert_array_equal(areas[:, 2], areas[:, 0])
    for bad in ({"n_steps": 1, "others": []}, {"others": [effects[1:]]}):
        with pytest.raises(InputError, match="n_steps="):
            order_areas(moved, effects, **bad)


def test_other_orders_come_from_other_units_and_are_shared_within_one():
    units = units_of([0, 0, 1, 2, 2, 3, 4])
    others = other_things(units, n=3)
    assert others.shape == (7, 3)
    for thing, some in enumerate(others):
        there = units.ids[some]
        assert len(set(there.tolist())) == 3 and units.ids[thing] not in there
    np.testing.assert_array_equal(others[0], others[1])
    assert other_things(units).shape == (7, 4) and other_things(units_of([0, 0])).shape == (2, 0)


def test_an_order_that_says_nothing_is_rarely_found_and_one_that_does_is():
    false = np.zeros(2, int)
    for trial in range(200):
        rng = np.random.default_rng(trial)
        units = units_of([0, 0, 1, 2, 3, 4])  # two frames of one episode are nearly the same in all
        effects, relevance = rng.exponential(size=(2, 5, 23))
        effects, relevance = effects[units.ids], relevance[units.ids] + 0.01 * rng.normal(size=(6, 23))
        areas = orders_of(effects, relevance, units, seed=trial)
        false += [one.found for one in judge_orders(areas, units, name="x", n_permutations=99, seed=trial)]
    assert (false <= 18).all(), f"{false} of 200 null runs; 10 are expected"
    effects = rng.exponential(size=(7, 23))
    units = units_of(range(7))
    known = orders_of(effects, effects + 0.3 * rng.normal(size=(7, 23)), units, seed=0)
    for result in judge_orders(known, units, name="x"):
        assert result.found and result.value is not None
        assert result.value > result.controls["orders of other images"] + 0.1
        assert result.interval is not None and result.interval[0] < result.value < result.interval[1]


def test_orders_that_do_not_depend_on_the_image_are_never_called_informative():
    """What moves the action lies together and near the middle: raster and middle-first beat random orders."""
    rows, cols, n = 7, 11, 9
    y, x = np.mgrid[:rows, :cols].reshape(2, -1)
    rng = np.random.default_rng(0)
    at = rng.normal([rows / 2, cols / 2], 1.5, size=(n, 2))
    effects = np.exp(-((y - at[:, :1]) ** 2 + (x - at[:, 1:]) ** 2) / 3)
    units = units_of(range(n))
    middle = -np.hypot(y - (rows - 1) / 2, x - (cols - 1) / 2)
    for order in (middle, -(y * cols + x).astype(float), (y * cols + x).astype(float)):
        for result in judge_orders(
            orders_of(effects, np.tile(order, (n, 1)), units, seed=1), units, name="x"
        ):
            assert not result.found and result.p == 1.0
    for result in judge_orders(orders_of(effects, effects, units, seed=1), units, name="x"):
        assert result.found, result.line()


def test_deletion_and_insertion_keep_their_own_areas_and_units_are_exchanged_whole():
    areas = np.full((8, 2, 20), 0.5)
    areas[:, 0, 0], areas[:, 1, 0], areas[:, 1, 1:] = 0.9, 0.2, 0.1
    deletion, insertion = judge_orders(list(areas), units_of(range(8)), name="x")
    assert (deletion.name, insertion.name) == ("x / deletion", "x / insertion")
    assert deletion.value == pytest.approx(0.9) and insertion.value == pytest.approx(0.2)
    assert deletion.controls["orders of other images"] == pytest.approx(0.5)
    assert insertion.controls["orders of other images"] == pytest.approx(0.1)
    # Eight things of five units: of the random orders, four in ten do as well in the whole of a unit as the given one.
    areas[:, 0, 1:9] = 0.9
    one, whole = (
        judge_orders(list(areas), units_of(of), name="x", n_permutations=999)[0]
        for of in (range(8), [0, 0, 0, 0, 1, 2, 3, 4])
    )
    alone = 0.45**8  # the given order itself is one of the twenty that are drawn
    assert one.p == pytest.approx(alone, abs=0.01)
    assert whole.p == pytest.approx(0.45**5, abs=0.01) and whole.p > one.p + 0.008
