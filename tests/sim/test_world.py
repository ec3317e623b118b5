import builtins

import numpy as np
import pytest

from vlascope.errors import InputError, MissingExtraError
from vlascope.sim import Camera, TableTop, sample_scene
from vlascope.sim.scene import ObjectSpec, Scene
from vlascope.sim.world import MAX_STEP_M, SEG_ARM, SEG_GRIPPER, SEG_OBJECT, SEG_PAD

pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def world():
    with TableTop(image_px=64) as table:
        yield table


def two_objects(**changes):
    scene = Scene(
        objects=(
            ObjectSpec(colour="red", material="rigid", x=0.55, y=-0.1),
            ObjectSpec(colour="blue", material="fragile", x=0.55, y=0.1),
        ),
        pad_xy=(0.43, 0.0),
    )
    return scene.replace(**changes)


def test_step_moves_towards_the_waypoint_but_no_further_than_the_limit(world):
    start = world.reset(two_objects())
    far = world.step((0.0, 0.2, 0.0, 0.0))
    moved = far.gripper_xyz - start.gripper_xyz
    assert 0.6 * MAX_STEP_M < moved[1] <= 1.05 * MAX_STEP_M
    assert np.abs(moved[[0, 2]]).max() < 0.003
    before = world.state().gripper_xyz
    after = world.step((0.01, 0.0, 0.0, 0.0)).gripper_xyz
    assert abs(after[0] - before[0] - 0.01) < 0.004


def test_change_of_grip_stands_still(world):
    start = world.reset(two_objects())
    assert start.gripper_open and start.finger_gap > 0.1
    closed = world.step((0.1, 0.1, 0.0, 1.0))
    assert not closed.gripper_open and closed.finger_gap < 0.01 and closed.holding == -1
    assert np.linalg.norm(closed.gripper_xyz - start.gripper_xyz) < 0.003
    assert world.step((0.0, 0.0, 0.0, 0.0)).finger_gap > 0.1


@pytest.mark.parametrize("action", [(0.0, 0.0, 0.0), (0.0, np.nan, 0.0, 0.0), np.zeros((1, 4))])
def test_bad_actions_are_refused(world, action):
    world.reset(two_objects())
    with pytest.raises(InputError, match="four finite numbers"):
        world.step(action)


def test_an_empty_table_is_an_error():
    with TableTop() as empty, pytest.raises(InputError, match="reset"):
        empty.observe()


def test_picture_left_is_negative_y_and_near_is_low(world):
    world.reset(two_objects(hand_xyz=(0.42, 0.0, 0.19)))
    seg = world.observe(113).segmentation
    red_rows, red_cols = np.where(seg == SEG_OBJECT)
    blue_rows, blue_cols = np.where(seg == SEG_OBJECT + 1)
    pad_rows, _ = np.where(seg == SEG_PAD)
    assert red_cols.max() < blue_cols.min()
    assert pad_rows.mean() < red_rows.mean()  # the pad is nearer to the robot, so higher in the picture
    assert (seg == SEG_ARM).any() and (seg == SEG_GRIPPER).any()


def test_segmentation_agrees_with_colour_and_depth(world):
    world.reset(two_objects(hand_xyz=(0.42, 0.0, 0.19)))
    seen = world.observe(128)
    red = seen.rgb[seen.segmentation == SEG_OBJECT].mean(axis=0)
    assert red[0] > 2 * red[1] and red[0] > 2 * red[2]
    # The top of the object is nearer to the camera than the table that it hides; all within the room.
    eye, middle = np.array(Camera().eye), np.array([0.55, -0.1, 0.074])
    nearest = seen.depth[seen.segmentation == SEG_OBJECT].min()
    axis = np.array(Camera().target) - eye
    expected = (middle - eye) @ axis / np.linalg.norm(axis)
    assert abs(nearest - expected) < 0.06
    assert seen.depth.shape == seen.segmentation.shape == (128, 128) and seen.depth.dtype == np.float32


def test_objects_are_three_patches_wide_at_112_px(world):
    widths = []
    for seed in range(12):
        scene = sample_scene(seed)
        world.reset(scene)
        seg = world.observe(112).segmentation
        for i in range(len(scene.objects)):
            _, cols = np.where(seg == SEG_OBJECT + i)
            if len(cols) > 300:
                widths.append(cols.max() - cols.min() + 1)
    assert len(widths) > 25 and np.median(widths) >= 24


def test_pictures_and_states_repeat_bit_for_bit(world):
    def run(table):
        table.reset(sample_scene(5))
        for _ in range(3):
            table.step((0.05, 0.02, -0.1, 0.0))
        seen = table.observe(96)
        return seen, table.state()

    first, first_state = run(world)
    world.reset(sample_scene(6))  # something else in between
    world.step((0.0, 0.0, -0.2, 1.0))
    with TableTop() as fresh:
        for table in (world, fresh):
            again, state = run(table)
            np.testing.assert_array_equal(again.rgb, first.rgb)
            np.testing.assert_array_equal(again.segmentation, first.segmentation)
            np.testing.assert_array_equal(state.object_xyz, first_state.object_xyz)
            np.testing.assert_array_equal(state.joints, first_state.joints)


def test_variations_change_the_picture(world):
    plain = two_objects()
    world.reset(plain)
    base = world.observe()
    for changes in ({"brightness": 0.8}, {"table": "tiles"}, {"camera_shift": (0.0, 0.05, 0.0)}):
        world.reset(plain.replace(**changes))
        seen = world.observe()
        assert np.abs(seen.rgb.astype(int) - base.rgb).mean() > 1, changes
        if "camera_shift" not in changes:
            np.testing.assert_array_equal(seen.segmentation, base.segmentation)
    world.reset(plain.replace(brightness=0.5))
    np.testing.assert_allclose(world.observe().rgb, base.rgb * 0.5, atol=1.01)


def test_missing_pybullet_names_the_extra(monkeypatch):
    real = builtins.__import__

    def no_pybullet(name, *args, **kwargs):
        if name == "pybullet":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pybullet)
    with pytest.raises(MissingExtraError, match=r"vlascope\[sim\]"):
        TableTop()
