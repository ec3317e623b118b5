import dataclasses

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.sim import FAILURES, OUTCOMES, TableTop, draw_task, run_episode, script_failure
from vlascope.sim.expert import expert_action
from vlascope.sim.scene import sample_scene
from vlascope.sim.world import State

pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim

EXPECTED = {
    "none": {"success"},
    "grasp_offset": {"never_lifted"},
    "slip": {"never_lifted", "dropped", "not_on_pad"},
    "wrong_object": {"wrong_object"},
    "drop": {"dropped"},
}


@pytest.fixture(scope="module")
def world():
    with TableTop(image_px=48) as table:
        yield table


@pytest.mark.parametrize("task", ["pick", "place"])
@pytest.mark.parametrize("failure", FAILURES)
def test_scripts_end_as_they_should(world, task, failure):
    scene, instruction = draw_task(FAILURES.index(failure), task=task)
    scene, script = script_failure(scene, instruction=instruction, failure=failure, seed=3)
    episode = run_episode(world, scene=scene, instruction=instruction, act=script, render=False)
    assert episode.outcome in EXPECTED[failure] & set(OUTCOMES[task])
    assert len(episode.states) == episode.n_steps + 1 == len(episode.infos) + 1
    target_lifted = instruction.target in episode.lifted
    assert target_lifted == (episode.outcome in ("success", "dropped", "not_on_pad"))
    if failure == "none":
        events = episode.events
        assert events["close"] <= events["grasp"] <= events["lift"]
        assert ("release" in events) == (task == "place")
        assert episode.first_close_error_m < 0.016 and episode.nearest_at_close == instruction.target
    if failure == "wrong_object":
        assert episode.nearest_at_close != instruction.target


def test_unknown_failure_lists_the_known_ones():
    scene, instruction = draw_task(0, task="pick")
    with pytest.raises(InputError, match="grasp_offset.*Nearest: 'slip'"):
        script_failure(scene, instruction=instruction, failure="slipp", seed=0)


def test_given_up_episode_keeps_as_many_pictures_as_actions(world):
    scene, instruction = draw_task(0, task="pick")
    calls = iter([np.zeros(4), (np.zeros(4), {"note": 1}), None])
    episode = run_episode(
        world, scene=scene, instruction=instruction, act=lambda seen, state: next(calls), keep_frames=True
    )
    assert episode.n_steps == 2 and len(episode.rgb) == 2 and len(episode.segmentation) == 2
    assert episode.infos[1] == {"note": 1}
    assert episode.outcome == "never_lifted" and episode.first_close_error_m is None


def _state(scene, *, hand, is_open=True, holding=-1):
    xyz = np.array([[o.x, o.y, o.height / 2] for o in scene.objects])
    if holding >= 0:
        xyz[holding] = hand - np.array([0, 0, 0.012])
    n = len(xyz)
    return State(
        gripper_xyz=np.array(hand, dtype=float),
        gripper_open=is_open,
        finger_gap=0.116 if is_open else 0.08,
        object_xyz=xyz,
        object_quat=np.tile([0, 0, 0, 1.0], (n, 1)),
        object_speed=np.zeros(n),
        holding=holding,
        pad_xy=np.array(scene.pad_xy),
        joints=np.zeros(7),
    )


def test_expert_points_at_the_named_object():
    scene = sample_scene(0, n_objects=3)
    state = _state(scene, hand=[0.5, 0.0, 0.16])
    for i, spec in enumerate(scene.objects):
        action = expert_action(scene, state, task="pick", target=i)
        np.testing.assert_allclose(action[:2], [spec.x - 0.5, spec.y], atol=1e-12)
        assert action[3] == 0


def test_expert_closes_only_around_the_target_and_opens_when_it_holds_another():
    scene = sample_scene(1, n_objects=2)
    spec = scene.objects[0]
    there = np.array([spec.x, spec.y, 0.052])
    assert expert_action(scene, _state(scene, hand=there), task="pick", target=0)[3] == 1
    assert expert_action(scene, _state(scene, hand=there + [0.02, 0, 0]), task="pick", target=0)[3] == 0
    assert expert_action(scene, _state(scene, hand=there + [0, 0, 0.03]), task="pick", target=0)[3] == 0
    holding = _state(scene, hand=[0.5, 0.0, 0.17], is_open=False, holding=0)
    assert expert_action(scene, holding, task="pick", target=0)[3] == 1
    assert expert_action(scene, holding, task="pick", target=1)[3] == 0


def test_expert_carries_to_the_pad_and_releases_above_it():
    scene = sample_scene(1, n_objects=2)
    low = _state(scene, hand=[scene.objects[0].x, scene.objects[0].y, 0.06], is_open=False, holding=0)
    up = expert_action(scene, low, task="place", target=0)
    assert up[0] == up[1] == 0 and up[2] > 0.05 and up[3] == 1
    across = _state(scene, hand=[*(np.array(scene.pad_xy) + [0.06, 0.0]), 0.17], is_open=False, holding=0)
    np.testing.assert_allclose(
        expert_action(scene, across, task="place", target=0)[:2], [-0.06, 0.0], atol=1e-9
    )
    rest = scene.objects[0].height / 2
    down = _state(scene, hand=[*scene.pad_xy, rest + 0.012], is_open=False, holding=0)
    assert expert_action(scene, down, task="place", target=0)[3] == 0


@pytest.mark.parametrize("change", [{"task": "push"}, {"target": 9}])
def test_expert_refuses_what_it_cannot_do(change):
    scene = sample_scene(1, n_objects=2)
    asked = {"task": "pick", "target": 0} | change
    with pytest.raises(InputError, match="got"):
        expert_action(scene, _state(scene, hand=[0.5, 0, 0.16]), **asked)


def test_expert_is_memoryless():
    scene = sample_scene(2)
    state = _state(scene, hand=[0.5, 0.05, 0.12])
    copy = dataclasses.replace(state, gripper_xyz=state.gripper_xyz.copy())
    first = expert_action(scene, state, task="place", target=1)
    np.testing.assert_array_equal(first, expert_action(scene, copy, task="place", target=1))
