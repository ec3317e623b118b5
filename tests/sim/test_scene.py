import json

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.sim.scene import (
    MIN_DX,
    MIN_DY,
    TEST_TABLES,
    X_RANGE,
    Y_RANGE,
    ObjectSpec,
    Scene,
    far_enough,
    sample_scene,
)


def _places(scene):
    return np.array([(o.x, o.y) for o in scene.objects] + [scene.pad_xy])


@pytest.mark.parametrize("n_objects", [2, 3, 4])
def test_objects_and_pad_keep_their_distance(n_objects):
    for seed in range(40):
        places = _places(sample_scene(seed, n_objects=n_objects))
        assert len(places) == n_objects + 1
        for i in range(len(places)):
            for j in range(i):
                dx, dy = np.abs(places[i] - places[j])
                assert dx > MIN_DX or dy > MIN_DY
        assert places[:, 0].min() >= X_RANGE[0] and places[:, 0].max() <= X_RANGE[1]
        assert places[:, 1].min() >= Y_RANGE[0] and places[:, 1].max() <= Y_RANGE[1]


def test_far_enough_sees_a_close_pair():
    assert not far_enough(np.array([[0.5, 0.0], [0.58, 0.1]]))
    assert far_enough(np.array([[0.45, 0.0], [0.58, 0.0]]))


def test_same_seed_same_scene_and_json_round_trip():
    scene = sample_scene(11)
    assert scene == sample_scene(11) and scene != sample_scene(12)
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_colour_and_material_are_independent():
    kinds = [(o.colour, o.material) for s in range(600) for o in sample_scene(s).objects]
    table = np.array(
        [[kinds.count((c, m)) for m in ("fragile", "rigid")] for c in ("red", "blue", "green", "yellow")]
    )
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


def test_test_tables_are_never_drawn():
    assert not {sample_scene(s).table for s in range(200)} & set(TEST_TABLES)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ObjectSpec(colour="pink", material="rigid", x=0.5, y=0.0),
        lambda: ObjectSpec(colour="red", material="soft", x=0.5, y=0.0),
        lambda: ObjectSpec(colour="red", material="rigid", x=0.5, y=0.0, mass=0.0),
        lambda: Scene(objects=(), pad_xy=(0.5, 0.0)),
        lambda: Scene(
            objects=(ObjectSpec(colour="red", material="rigid", x=0.5, y=0.0),) * 2, pad_xy=(0.5, 0.0)
        ),
        lambda: sample_scene(0).replace(table="glass"),
        lambda: sample_scene(0, n_objects=5),
    ],
)
def test_impossible_scenes_are_refused(make):
    with pytest.raises(InputError, match="got"):
        make()
