"""The table-top world: a Panda arm, a table, a goal pad and a few objects in one PyBullet client.

An action is `(dx, dy, dz, grip)`: where the gripper should go from here, in metres, and 0 = open or 1 = close.
The waypoint may be far away; one step moves at most `MAX_STEP_M` towards it. A change of grip takes one step in
which the arm stands still. Ten steps are one second.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from vlascope.errors import InputError, missing_extra
from vlascope.sim._assets import FINGER_LIMIT, robot_urdf, write_assets
from vlascope.sim._shadow import points_from_depth, shadow_of_hand
from vlascope.sim.language import COLOURS, MATERIALS
from vlascope.sim.scene import PAD_SIZE, ObjectSpec, Scene

MAX_STEP_M = 0.025
STEPS_PER_SECOND = 10
SUBSTEPS = 24  # at 240 Hz
GRIP_SUBSTEPS = 72  # opening or closing takes longer than a move
OPEN_M = 0.058  # per finger
GRIP_FORCE_N = 40.0

# Segmentation ids; object i is SEG_OBJECT + i.
SEG_BACKGROUND, SEG_ARM, SEG_GRIPPER, SEG_PAD, SEG_OBJECT = 0, 1, 2, 3, 4

HAND_LOW = np.array([0.35, -0.18, 0.035])  # the gripper's reachable volume
HAND_HIGH = np.array([0.67, 0.18, 0.22])

_TCP = 11  # grasp point between the fingertips
_FINGERS = (9, 10)
_HAND_LINK = 8
_REST = (0.0, 0.15, 0.0, -2.35, 0.0, 2.5, 0.785)
_DOWN = (1.0, 0.0, 0.0, 0.0)  # quaternion: gripper points down, fingers open along y
_GRASP_REACH = 0.032  # an object counts as held when its middle is this close to the grasp point (in xy)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where the camera stands and how wide it sees: in front of the robot, looking back and down at it."""

    eye: tuple[float, float, float] = (1.62, 0.0, 1.33)
    target: tuple[float, float, float] = (0.505, 0.0, 0.107)
    fov_deg: float = 13.1

    def shifted(self, shift: tuple[float, float, float] | np.ndarray) -> Camera:
        """The camera moved by `shift` metres; its target moves by half of that."""
        eye = tuple(float(a + b) for a, b in zip(self.eye, shift, strict=True))
        target = tuple(float(a + b / 2) for a, b in zip(self.target, shift, strict=True))
        return Camera(eye=eye, target=target, fov_deg=self.fov_deg)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class State:
    """All poses at one moment, in metres.

    Attributes:
        gripper_xyz: Grasp point between the fingertips, [3].
        gripper_open: Whether the gripper is commanded open.
        finger_gap: Distance between the two fingers.
        object_xyz: Centres of the objects, [n, 3].
        object_quat: Their orientations (x, y, z, w), [n, 4].
        object_speed: Their speeds in m/s, [n].
        holding: Index of the object in the hand, or -1.
        pad_xy: Centre of the goal pad, [2].
        joints: Arm joint angles in radians, [7].
    """

    gripper_xyz: np.ndarray
    gripper_open: bool
    finger_gap: float
    object_xyz: np.ndarray
    object_quat: np.ndarray
    object_speed: np.ndarray
    holding: int
    pad_xy: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the camera and the robot report.

    Attributes:
        rgb: uint8 [h, w, 3].
        segmentation: uint8 [h, w]; see the `SEG_` constants.
        depth: float32 [h, w], metres from the camera along its axis.
        gripper_xyz: [3], metres.
        gripper_open: Whether the gripper is commanded open.
        gripper_gap: Distance between the fingers, metres.
        joints: [7], radians.
        step: Steps since the last reset.
    """

    rgb: np.ndarray
    segmentation: np.ndarray
    depth: np.ndarray
    gripper_xyz: np.ndarray
    gripper_open: bool
    gripper_gap: float
    joints: np.ndarray
    step: int


@dataclass
class _Body:
    uid: int
    spec: ObjectSpec | None = None
    home: tuple[float, float, float] = field(default=(0.0, 5.0, 0.0))


class TableTop:
    """One simulated table. Use it as a context manager, or call `close`.

    `reset` puts a scene on the table (about 1 ms: bodies are reused), `step` acts, `observe` renders.
    The same scene and actions give the same states and pictures, bit for bit, on the same machine.

    Args:
        image_px: Default side of the square pictures.
        camera: Camera before a scene's shift.

    Raises:
        MissingExtraError: PyBullet is not installed (extra `sim`).
    """

    def __init__(self, *, image_px: int = 112, camera: Camera | None = None) -> None:
        self.image_px = image_px
        self.camera = camera if camera is not None else Camera()
        self._p = _import_pybullet()
        self._client = self._p.connect(self._p.DIRECT)
        self._scene: Scene | None = None
        self._active: list[int] = []
        self._open = True
        self._step = 0
        self._build()

    def __enter__(self) -> TableTop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the physics client; calling it twice is fine."""
        if self._client >= 0:
            self._p.disconnect(self._client)
            self._client = -1

    @property
    def scene(self) -> Scene:
        """The scene on the table.

        Raises:
            InputError: `reset` has not been called.
        """
        if self._scene is None:
            raise InputError("the table is empty; call reset(scene) first.")
        return self._scene

    # ------------------------------------------------------------------ set-up

    def _build(self) -> None:
        import pybullet_data

        p, c = self._p, self._client
        with tempfile.TemporaryDirectory(prefix="vlascope-sim-") as name:
            folder = Path(name)
            urdf = folder / "panda.urdf"
            urdf.write_text(robot_urdf(pybullet_data.getDataPath()))
            paths = write_assets(folder)
            self._robot = p.loadURDF(str(urdf), useFixedBase=True, physicsClientId=c)
            self._textures = {
                key: p.loadTexture(path, physicsClientId=c)
                for key, path in paths.items()
                if path.endswith(".png")
            }
            shapes = {
                key: p.createVisualShape(
                    p.GEOM_MESH, fileName=path, rgbaColor=(1, 1, 1, 1), physicsClientId=c
                )
                for key, path in paths.items()
                if path.endswith(".obj")
            }
        p.setGravity(0, 0, -9.81, physicsClientId=c)
        p.setPhysicsEngineParameter(
            numSolverIterations=60, deterministicOverlappingPairs=1, physicsClientId=c
        )
        slab = p.createCollisionShape(p.GEOM_BOX, halfExtents=(0.8, 1.0, 0.05), physicsClientId=c)
        self._table = p.createMultiBody(0, slab, shapes["table"], (0.5, 0, -0.05), physicsClientId=c)
        self._pad = p.createMultiBody(0, -1, shapes["pad"], (0.5, 0, 0.001), physicsClientId=c)
        self._paint(self._pad, texture="pad.png")
        collisions = {
            "rigid": p.createCollisionShape(p.GEOM_BOX, halfExtents=_half_extents(), physicsClientId=c),
            "fragile": p.createCollisionShape(
                p.GEOM_CYLINDER, radius=_cylinder()[0], height=_cylinder()[1], physicsClientId=c
            ),
        }
        visuals = {"rigid": shapes["box"], "fragile": shapes["cylinder"]}
        self._bodies: dict[tuple[str, str], _Body] = {}
        for i, (colour, material) in enumerate((k, m) for k in COLOURS for m in MATERIALS):
            home = (0.5, 5.0 + 0.3 * i, 0.2)  # out of sight and of reach
            uid = p.createMultiBody(0, collisions[material], visuals[material], home, physicsClientId=c)
            self._paint(uid, texture=f"{colour}-{material}")
            self._bodies[colour, material] = _Body(uid, None, home)
        self._set_up_robot()

    def _set_up_robot(self) -> None:
        p, c = self._p, self._client
        for link in range(-1, p.getNumJoints(self._robot, physicsClientId=c)):
            shade = (0.86, 0.87, 0.89, 1) if link < _HAND_LINK else (0.24, 0.25, 0.29, 1)
            if link in _FINGERS:
                shade = (0.52, 0.50, 0.54, 1)
                p.changeDynamics(
                    self._robot, link, lateralFriction=1.0, spinningFriction=0.1, physicsClientId=c
                )
            p.changeVisualShape(self._robot, link, rgbaColor=shade, physicsClientId=c)
        gear = p.createConstraint(
            self._robot, _FINGERS[0], self._robot, _FINGERS[1], p.JOINT_GEAR,
            (1, 0, 0), (0, 0, 0), (0, 0, 0), physicsClientId=c,
        )  # fmt: skip
        p.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50, physicsClientId=c)
        infos = [p.getJointInfo(self._robot, i, physicsClientId=c) for i in range(7)]
        self._lower = [info[8] for info in infos] + [0.0, 0.0]
        self._upper = [info[9] for info in infos] + [FINGER_LIMIT, FINGER_LIMIT]
        self._range = [high - low for low, high in zip(self._lower, self._upper, strict=True)]

    def _paint(self, uid: int, *, texture: str, rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        self._p.changeVisualShape(
            uid,
            -1,
            textureUniqueId=self._textures[texture],
            rgbaColor=(*rgb, 1.0),
            physicsClientId=self._client,
        )

    # ------------------------------------------------------------------ acting

    def reset(self, scene: Scene, *, move_hand: bool = True) -> State:
        """Put a scene on the table, the gripper open at `scene.hand_xyz`; returns the state.

        With `move_hand=False` the arm stays where it was, for callers that call `place_hand` next.
        """
        p, c = self._p, self._client
        for key in self._active_keys():
            body = self._bodies[key]
            p.changeDynamics(body.uid, -1, mass=0, physicsClientId=c)
            p.resetBasePositionAndOrientation(body.uid, body.home, (0, 0, 0, 1), physicsClientId=c)
        self._scene = scene
        self._active = []
        self._step = 0
        for spec in scene.objects:
            uid = self._bodies[spec.colour, spec.material].uid
            self._active.append(uid)
            p.changeDynamics(
                uid,
                -1,
                mass=spec.mass,
                lateralFriction=spec.friction,
                spinningFriction=0.01,
                rollingFriction=0.0005,
                contactStiffness=spec.stiffness,
                contactDamping=spec.damping,
                linearDamping=0.04,
                angularDamping=0.1,
                physicsClientId=c,
            )
            self._put(uid, (spec.x, spec.y, spec.height / 2), yaw=spec.yaw)
        p.resetBasePositionAndOrientation(self._pad, (*scene.pad_xy, 0.001), (0, 0, 0, 1), physicsClientId=c)
        self._paint(self._table, texture=f"table-{scene.table}", rgb=scene.table_tint)
        if move_hand:
            self.place_hand(scene.hand_xyz, finger_gap=2 * OPEN_M, is_open=True)
        return self.state()

    def _active_keys(self) -> list[tuple[str, str]]:
        return [] if self._scene is None else [(o.colour, o.material) for o in self._scene.objects]

    def _put(self, uid: int, xyz: tuple[float, float, float], *, yaw: float) -> None:
        quat = (0.0, 0.0, float(np.sin(yaw / 2)), float(np.cos(yaw / 2)))
        self._p.resetBasePositionAndOrientation(uid, xyz, quat, physicsClientId=self._client)
        self._p.resetBaseVelocity(uid, (0, 0, 0), (0, 0, 0), physicsClientId=self._client)

    def place_object(
        self, index: int, xyz: tuple[float, float, float] | np.ndarray, *, yaw: float = 0.0
    ) -> None:
        """Move an object without physics (to set up states); `xyz` is its centre."""
        self._put(self._active[index], (float(xyz[0]), float(xyz[1]), float(xyz[2])), yaw=yaw)

    def place_hand(
        self, xyz: tuple[float, float, float] | np.ndarray, *, finger_gap: float, is_open: bool
    ) -> float:
        """Move the arm without physics so that its grasp point is at `xyz`; returns the error in metres.

        Args:
            xyz: Grasp point.
            finger_gap: Distance between the fingers, metres.
            is_open: What the gripper is commanded to be from now on.
        """
        target = tuple(float(v) for v in xyz)
        joints: tuple[float, ...] = _REST
        error = np.inf
        for _ in range(4):
            self._set_joints(joints, finger_gap)
            joints = self._solve(target)
            self._set_joints(joints, finger_gap)
            error = float(np.linalg.norm(np.asarray(self._tcp()) - target))
            if error < 5e-4:
                break
        self._open = is_open
        self._hold_arm(joints)
        self._drive_fingers()
        return error

    def _set_joints(self, joints: tuple[float, ...], finger_gap: float) -> None:
        p, c = self._p, self._client
        for i, angle in enumerate(joints):
            p.resetJointState(self._robot, i, angle, 0.0, physicsClientId=c)
        for finger in _FINGERS:
            p.resetJointState(self._robot, finger, finger_gap / 2, 0.0, physicsClientId=c)

    def _solve(self, target: tuple[float, ...]) -> tuple[float, ...]:
        """Joint angles that bring the grasp point to `target`, pointing down, near the present ones."""
        return self._p.calculateInverseKinematics(
            self._robot,
            _TCP,
            target,
            _DOWN,
            lowerLimits=self._lower,
            upperLimits=self._upper,
            jointRanges=self._range,
            restPoses=[*_REST, 0.0, 0.0],
            maxNumIterations=30,
            residualThreshold=1e-4,
            physicsClientId=self._client,
        )[:7]

    def _hold_arm(self, joints: tuple[float, ...]) -> None:
        self._p.setJointMotorControlArray(
            self._robot,
            list(range(7)),
            self._p.POSITION_CONTROL,
            targetPositions=list(joints),
            forces=[200.0] * 7,
            positionGains=[0.22] * 7,
            velocityGains=[1.0] * 7,
            physicsClientId=self._client,
        )

    def _drive_fingers(self) -> None:
        goal = OPEN_M if self._open else 0.0
        for finger in _FINGERS:
            self._p.setJointMotorControl2(
                self._robot,
                finger,
                self._p.POSITION_CONTROL,
                targetPosition=goal,
                force=GRIP_FORCE_N,
                maxVelocity=0.25,
                physicsClientId=self._client,
            )

    def step(self, action: np.ndarray | tuple[float, float, float, float]) -> State:
        """Act for one control step and return the new state.

        Args:
            action: (dx, dy, dz, grip), metres and 0..1 (from 0.5 on: close).

        Raises:
            InputError: The action is not four finite numbers, or no scene is on the table.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (4,) or not np.all(np.isfinite(values)):
            raise InputError(f"got action {action!r}; need four finite numbers (dx, dy, dz, grip).")
        _ = self.scene
        wants_open = bool(values[3] < 0.5)
        self._step += 1
        if wants_open != self._open:
            self._open = wants_open
            self._drive_fingers()
            self._simulate(GRIP_SUBSTEPS)
            return self.state()
        delta = values[:3]
        length = float(np.linalg.norm(delta))
        if length > MAX_STEP_M:
            delta = delta * (MAX_STEP_M / length)
        goal = np.clip(np.asarray(self._tcp()) + delta, HAND_LOW, HAND_HIGH)
        self._hold_arm(self._solve(tuple(goal)))
        self._simulate(SUBSTEPS)
        return self.state()

    def _simulate(self, n: int) -> None:
        for _ in range(n):
            self._p.stepSimulation(physicsClientId=self._client)

    def settle(self, seconds: float) -> State:
        """Let physics run with the arm standing still."""
        self._simulate(round(seconds * 240))
        return self.state()

    # ------------------------------------------------------------------ looking

    def _tcp(self) -> tuple[float, float, float]:
        return self._p.getLinkState(
            self._robot, _TCP, computeForwardKinematics=True, physicsClientId=self._client
        )[4]

    def state(self) -> State:
        """All poses now."""
        p, c = self._p, self._client
        scene = self.scene
        poses = [p.getBasePositionAndOrientation(uid, physicsClientId=c) for uid in self._active]
        speeds = [np.linalg.norm(p.getBaseVelocity(uid, physicsClientId=c)[0]) for uid in self._active]
        fingers = [p.getJointState(self._robot, f, physicsClientId=c)[0] for f in _FINGERS]
        tcp = np.asarray(self._tcp())
        xyz = np.array([pose[0] for pose in poses])
        gap = float(sum(fingers))
        joints = [s[0] for s in p.getJointStates(self._robot, list(range(7)), physicsClientId=c)]
        return State(
            gripper_xyz=tcp,
            gripper_open=self._open,
            finger_gap=gap,
            object_xyz=xyz,
            object_quat=np.array([pose[1] for pose in poses]),
            object_speed=np.array(speeds),
            holding=-1 if self._open else _held(tcp, xyz, gap, [o.height for o in scene.objects]),
            pad_xy=np.asarray(scene.pad_xy),
            joints=np.array(joints),
        )

    def observe(self, size: int | None = None, *, camera: Camera | None = None) -> Observation:
        """Render the scene; `size` is the side in pixels (default: `image_px`).

        Cost: 5 ms at 112 px, 51 ms at 384 px of one core's time.
        """
        p, c = self._p, self._client
        scene = self.scene
        px = self.image_px if size is None else size
        cam = (camera if camera is not None else self.camera).shifted(scene.camera_shift)
        view = p.computeViewMatrix(cam.eye, cam.target, (0, 0, 1))
        near, far = 0.6, 4.0
        projection = p.computeProjectionMatrixFOV(cam.fov_deg, 1.0, near, far)
        _, _, rgba, depth, seg = p.getCameraImage(
            px,
            px,
            view,
            projection,
            lightDirection=(1.0, -0.6, 2.2),
            lightColor=(1, 1, 1),
            lightAmbientCoeff=0.55,
            lightDiffuseCoeff=0.5,
            lightSpecularCoeff=0.0,
            shadow=0,
            flags=p.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
            renderer=p.ER_TINY_RENDERER,
            physicsClientId=c,
        )
        rgb = np.asarray(rgba, dtype=np.uint8).reshape(px, px, 4)[..., :3]
        buffer = np.asarray(depth, dtype=np.float32).reshape(px, px)
        metres = (far * near / (far - (far - near) * buffer)).astype(np.float32)
        segmentation = self._segmentation(np.asarray(seg).reshape(px, px))
        state = self.state()
        points = points_from_depth(
            metres, eye=np.array(cam.eye), target=np.array(cam.target), fov_deg=cam.fov_deg
        )
        light = shadow_of_hand(points, hand_xyz=state.gripper_xyz)
        light[(segmentation == SEG_ARM) | (segmentation == SEG_GRIPPER)] = 1.0
        rgb = np.clip(rgb * (light * scene.brightness)[..., None] + 0.5, 0, 255).astype(np.uint8)
        return Observation(
            rgb=np.ascontiguousarray(rgb),
            segmentation=segmentation,
            depth=metres,
            gripper_xyz=state.gripper_xyz,
            gripper_open=state.gripper_open,
            gripper_gap=state.finger_gap,
            joints=state.joints,
            step=self._step,
        )

    def observe_state(self) -> Observation:
        """What the robot reports, with empty pictures (0 x 0): for scripts that need no camera."""
        state = self.state()
        empty = np.zeros((0, 0), dtype=np.uint8)
        return Observation(
            rgb=np.zeros((0, 0, 3), dtype=np.uint8),
            segmentation=empty,
            depth=empty.astype(np.float32),
            gripper_xyz=state.gripper_xyz,
            gripper_open=state.gripper_open,
            gripper_gap=state.finger_gap,
            joints=state.joints,
            step=self._step,
        )

    def _segmentation(self, raw: np.ndarray) -> np.ndarray:
        uid = np.where(raw >= 0, raw & ((1 << 24) - 1), -1)
        link = (raw >> 24) - 1
        out = np.full(raw.shape, SEG_BACKGROUND, dtype=np.uint8)
        robot = uid == self._robot
        out[robot & (link < _HAND_LINK)] = SEG_ARM
        out[robot & (link >= _HAND_LINK)] = SEG_GRIPPER
        out[uid == self._pad] = SEG_PAD
        for i, body in enumerate(self._active):
            out[uid == body] = SEG_OBJECT + i
        return out


def _held(tcp: np.ndarray, xyz: np.ndarray, gap: float, heights: list[float]) -> int:
    """Which object is between closed fingers: they are kept apart by it and it is around the grasp point."""
    if gap < 0.05:
        return -1
    for i, height in enumerate(heights):
        near = np.linalg.norm(xyz[i, :2] - tcp[:2]) < _GRASP_REACH
        if near and abs(xyz[i, 2] - tcp[2]) < height / 2 + 0.005:
            return i
    return -1


def on_pad(state: State, index: int, *, height: float, margin: float = 0.0) -> bool:
    """Whether an object's centre is over the pad and it stands at table height."""
    offset = np.abs(state.object_xyz[index, :2] - state.pad_xy)
    rests = abs(state.object_xyz[index, 2] - height / 2) < 0.012
    return bool(np.all(offset < PAD_SIZE / 2 - margin) and rests)


def _half_extents() -> tuple[float, float, float]:
    from vlascope.sim.scene import BOX_SIZE

    return (BOX_SIZE[0] / 2, BOX_SIZE[1] / 2, BOX_SIZE[2] / 2)


def _cylinder() -> tuple[float, float]:
    from vlascope.sim.scene import CYLINDER_DIAMETER, CYLINDER_HEIGHT

    return CYLINDER_DIAMETER / 2, CYLINDER_HEIGHT


def _import_pybullet() -> ModuleType:
    try:
        import pybullet
    except ImportError as error:
        raise missing_extra("pybullet", extra="sim", needed_for="The simulator") from error
    return pybullet
