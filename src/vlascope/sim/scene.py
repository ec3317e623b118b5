"""What stands on the table: objects with their physical parameters, the goal pad, and how scenes are drawn.

Units are metres, kilograms, newtons per metre and radians. The robot's base is the origin, x points away
from it, y to the right of the camera image, z up; the table's top is z = 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from vlascope.errors import InputError
from vlascope.sim.language import COLOURS, MATERIALS

X_RANGE = (0.42, 0.61)  # centres of objects and pad
Y_RANGE = (-0.135, 0.135)
MIN_DX = 0.12  # neighbours are apart by this much in x ...
MIN_DY = 0.125  # ... or by this much in y: the open hand then fits between them
HAND_X, HAND_Y, HAND_Z = (0.40, 0.50), (-0.12, 0.12), (0.15, 0.19)  # where the gripper may start
MAX_YAW = 0.15
MAX_OBJECTS = 4
PAD_SIZE = 0.13

BOX_SIZE = (0.084, 0.080, 0.074)  # rigid objects: x, y (grip axis), z
CYLINDER_DIAMETER = 0.082  # fragile objects
CYLINDER_HEIGHT = 0.088

TRAIN_TABLES = ("plain", "checker", "wood", "speckle", "stripes", "linen")
TEST_TABLES = ("tiles", "marble")  # never drawn by `sample_scene`: kept to test a changed table

# Ranges from which the physical parameters of each material are drawn, and their usual values.
PHYSICS: dict[str, dict[str, tuple[float, float]]] = {
    "fragile": {"mass": (0.05, 0.15), "friction": (0.7, 1.0), "stiffness": (8e3, 1.5e4)},
    "rigid": {"mass": (0.15, 0.35), "friction": (0.7, 1.0), "stiffness": (2e4, 4e4)},
}


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """One object on the table.

    `stiffness` (N/m) and `damping` (N s/m) of its contacts are its compliance: a fragile object is softer.
    """

    colour: str
    material: str
    x: float
    y: float
    yaw: float = 0.0
    mass: float = 0.2
    friction: float = 0.85
    stiffness: float = 2e4
    damping: float = 200.0

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise InputError(f"got colour {self.colour!r}; objects are one of {', '.join(COLOURS)}.")
        if self.material not in MATERIALS:
            raise InputError(f"got material {self.material!r}; objects are {' or '.join(MATERIALS)}.")
        for name in ("mass", "friction", "stiffness", "damping"):
            if not getattr(self, name) > 0:
                raise InputError(f"got {name} = {getattr(self, name)}; an object needs a positive value.")

    @property
    def height(self) -> float:
        """Height in metres."""
        return BOX_SIZE[2] if self.material == "rigid" else CYLINDER_HEIGHT


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that is set at the start of an episode.

    Attributes:
        objects: 1 to `MAX_OBJECTS` objects, no two alike in both colour and material.
        pad_xy: Centre of the goal pad.
        hand_xyz: Where the gripper starts (open).
        table: Name of the table texture, of `TRAIN_TABLES` or `TEST_TABLES`.
        table_tint: RGB factors on that texture, 0..1.
        camera_shift: Metres added to the camera's position (its target shifts by half of it, so that the
            picture both moves and turns a little).
        brightness: Gain on the rendered picture; 1 leaves it as rendered.
    """

    objects: tuple[ObjectSpec, ...]
    pad_xy: tuple[float, float]
    hand_xyz: tuple[float, float, float] = (0.45, 0.0, 0.17)
    table: str = "plain"
    table_tint: tuple[float, float, float] = (0.75, 0.73, 0.70)
    camera_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: float = 1.0
    seed: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise InputError(f"got {len(self.objects)} objects; a scene has 1 to {MAX_OBJECTS}.")
        pairs = [(o.colour, o.material) for o in self.objects]
        if len(set(pairs)) < len(pairs):
            raise InputError(f"got two objects alike in {pairs}; change the colour or material of one.")
        if self.table not in (*TRAIN_TABLES, *TEST_TABLES):
            known = ", ".join((*TRAIN_TABLES, *TEST_TABLES))
            raise InputError(f"got table {self.table!r}; known tables are {known}.")

    def replace(self, **changes: object) -> Scene:
        """A copy with some fields changed, such as `scene.replace(brightness=0.8)`."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """Plain lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        """The inverse of `to_dict`, also after a trip through JSON."""
        fields = dict(data)
        fields["objects"] = tuple(ObjectSpec(**o) for o in fields["objects"])
        for name in ("pad_xy", "hand_xyz", "table_tint", "camera_shift"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def sample_scene(
    seed: int | np.random.Generator,
    *,
    n_objects: int | None = None,
    kinds: list[tuple[str, str]] | None = None,
    table: str | None = None,
) -> Scene:
    """Draw a scene: colours and materials independent, places far enough apart for the open hand.

    Args:
        seed: Integer or generator.
        n_objects: 2 to 4; drawn uniformly from them when None.
        kinds: (colour, material) of each object in order, instead of drawing them.
        table: Table texture instead of a random one of `TRAIN_TABLES`.

    Raises:
        InputError: Impossible counts.
    """
    rng = np.random.default_rng(seed)
    if kinds is not None:
        n_objects = len(kinds)
    if n_objects is None:
        n_objects = int(rng.integers(2, MAX_OBJECTS + 1))
    if not 1 <= n_objects <= MAX_OBJECTS:
        raise InputError(f"got n_objects = {n_objects}; the table holds 1 to {MAX_OBJECTS}.")
    drawn = kinds if kinds is not None else _draw_kinds(rng, n_objects)
    places = _draw_places(rng, n_objects + 1)
    objects = tuple(
        _draw_object(rng, colour, material, place)
        for (colour, material), place in zip(drawn, places[:-1], strict=True)
    )
    grey = rng.uniform(0.45, 0.85)
    tint = np.clip(grey + rng.uniform(-0.07, 0.07, size=3), 0.0, 1.0)
    return Scene(
        objects=objects,
        pad_xy=(float(places[-1][0]), float(places[-1][1])),
        hand_xyz=(float(rng.uniform(*HAND_X)), float(rng.uniform(*HAND_Y)), float(rng.uniform(*HAND_Z))),
        table=table if table is not None else str(rng.choice(TRAIN_TABLES)),
        table_tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        seed=seed if isinstance(seed, int) else 0,
    )


def far_enough(places: np.ndarray) -> bool:
    """Whether all pairs of places [n, 2] keep the distance that the open hand needs."""
    dx = np.abs(places[:, None, 0] - places[None, :, 0])
    dy = np.abs(places[:, None, 1] - places[None, :, 1])
    ok = (dx > MIN_DX) | (dy > MIN_DY)
    return bool(np.all(ok[~np.eye(len(places), dtype=bool)]))


def _draw_kinds(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    while True:
        kinds = [(str(rng.choice(COLOURS)), str(rng.choice(MATERIALS))) for _ in range(n)]
        if len(set(kinds)) == n:
            return kinds


def _draw_places(rng: np.random.Generator, n: int) -> np.ndarray:
    """Places [n, 2] in random order: distinct cells of a 2 x 3 grid, then random moves that keep the gaps."""
    margin = 0.004
    xs = np.array([X_RANGE[0] + 0.025, X_RANGE[1] - 0.025])
    ys = np.array([-MIN_DY - margin, 0.0, MIN_DY + margin])
    cells = np.array([(x, y) for x in xs for y in ys])
    places = cells[rng.permutation(len(cells))[:n]]
    # A short Markov chain over allowed layouts: it forgets the grid quickly when there is room.
    scales = np.repeat([0.10, 0.03], 12)[:, None, None]
    moves = (scales * rng.normal(size=(24, n, 2))).tolist()
    points: list[list[float]] = places.tolist()
    for sweep in moves:
        for i, (move_x, move_y) in enumerate(sweep):
            x, y = points[i][0] + move_x, points[i][1] + move_y
            inside = X_RANGE[0] <= x <= X_RANGE[1] and Y_RANGE[0] <= y <= Y_RANGE[1]
            if inside and all(
                abs(x - q[0]) > MIN_DX or abs(y - q[1]) > MIN_DY for j, q in enumerate(points) if j != i
            ):
                points[i] = [x, y]
    return np.array(points)


def _draw_object(rng: np.random.Generator, colour: str, material: str, place: np.ndarray) -> ObjectSpec:
    ranges = PHYSICS[material]
    stiffness = float(np.exp(rng.uniform(*np.log(ranges["stiffness"]))))
    return ObjectSpec(
        colour=colour,
        material=material,
        x=float(place[0]),
        y=float(place[1]),
        yaw=float(rng.uniform(-MAX_YAW, MAX_YAW)),
        mass=float(rng.uniform(*ranges["mass"])),
        friction=float(rng.uniform(*ranges["friction"])),
        stiffness=stiffness,
        damping=float(0.02 * stiffness),
    )
