"""Meshes, textures and the robot description, written to a folder that the simulator reads once.

Everything is computed here: low-polygon shapes with texture coordinates (the software renderer's time grows
with triangles) and small textures. The robot's own meshes stay where pybullet_data keeps them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from vlascope.sim.language import COLOURS, MATERIALS
from vlascope.sim.scene import (
    BOX_SIZE,
    CYLINDER_DIAMETER,
    CYLINDER_HEIGHT,
    PAD_SIZE,
    TEST_TABLES,
    TRAIN_TABLES,
)

RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 34),
    "blue": (34, 78, 222),
    "green": (34, 158, 52),
    "yellow": (244, 204, 26),
}
FINGER_LIMIT = 0.065  # m per finger, raised from 0.04 so that objects can be large in the picture

_CYLINDER_SIDES = 14


def robot_urdf(pybullet_data_dir: str) -> str:
    """The Panda's description with its coarse collision meshes as visuals and a wider gripper.

    Raises:
        ValueError: The installed description does not look as expected.
    """
    source = Path(pybullet_data_dir) / "franka_panda" / "panda.urdf"
    text = source.read_text()
    text = text.replace("meshes/visual/", "meshes/collision/")
    text = text.replace("package://meshes/", f"{source.parent.as_posix()}/meshes/")
    text, n = re.subn(r'upper="0\.04"', f'upper="{FINGER_LIMIT}"', text)
    if n != 2:
        raise ValueError(
            f"{source.name}: found {n} finger limits of 0.04, expected 2; is pybullet_data changed?"
        )
    return text


def write_assets(folder: Path) -> dict[str, str]:
    """Write all meshes (.obj) and textures (.png); returns their paths by name.

    Names: "box", "cylinder", "table", "pad" (meshes); "COLOUR-MATERIAL", "pad.png" and "table-NAME" (textures).
    """
    meshes = {
        "box": _box_obj(BOX_SIZE),
        "cylinder": _cylinder_obj(CYLINDER_DIAMETER / 2, CYLINDER_HEIGHT),
        "pad": _quad_obj(PAD_SIZE, PAD_SIZE, cells=1),
        "table": _quad_obj(1.6, 2.0, cells=4),
    }
    textures = {f"{c}-{m}": _object_texture(c, m) for c in COLOURS for m in MATERIALS}
    textures["pad.png"] = _pad_texture()
    textures |= {f"table-{name}": table_texture(name) for name in (*TRAIN_TABLES, *TEST_TABLES)}
    paths = {}
    for name, text in meshes.items():
        path = folder / f"{name}.obj"
        path.write_text(text)
        paths[name] = str(path)
    for name, pixels in textures.items():
        path = folder / f"{name.removesuffix('.png')}-texture.png"
        Image.fromarray(pixels).save(path, compress_level=1)  # read once, then deleted
        paths[name] = str(path)
    return paths


def table_texture(name: str, *, size: int = 256) -> np.ndarray:
    """A table texture, uint8 [size, size, 3], near grey; scenes tint it."""
    rng = np.random.default_rng(sum(map(ord, name)))
    v, u = np.mgrid[0:size, 0:size] / size
    tone = np.ones((size, size, 3))
    if name == "plain":
        value = np.ones((size, size))
    elif name == "checker":
        value = np.where((np.floor(u * 24) + np.floor(v * 24)) % 2 == 0, 1.0, 0.80)
    elif name == "wood":
        rings = np.sin(
            2 * np.pi * (u * 22 + 0.35 * np.sin(2 * np.pi * v * 3) + 0.2 * np.sin(2 * np.pi * v * 7))
        )
        value = 0.86 + 0.10 * rings
        tone = tone * np.array([1.0, 0.88, 0.74])
    elif name == "speckle":
        value = 0.92 + 0.14 * _smooth_noise(rng, size, cells=96)
    elif name == "stripes":
        value = np.where(np.floor(v * 30) % 2 == 0, 1.0, 0.85)
    elif name == "linen":
        value = 0.90 + 0.06 * np.sin(2 * np.pi * u * 64) + 0.06 * np.sin(2 * np.pi * v * 64)
    elif name == "tiles":
        grout = (np.mod(u * 12, 1) < 0.08) | (np.mod(v * 12, 1) < 0.08)
        value = np.where(grout, 0.68, 0.97)
    elif name == "marble":
        veins = np.abs(_smooth_noise(rng, size, cells=9) + 0.5 * _smooth_noise(rng, size, cells=23))
        value = 0.74 + 0.26 * np.clip(veins * 4, 0, 1)
    else:
        raise ValueError(f"no table texture {name!r}")
    return np.clip(value[..., None] * tone * 255, 0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, size: int, *, cells: int) -> np.ndarray:
    """Noise in about -1..1 that varies over `cells` cells per side."""
    coarse = rng.uniform(-1, 1, size=(cells, cells)).astype(np.float32)
    return np.asarray(
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64
    )


def _object_texture(colour: str, material: str) -> np.ndarray:
    """Rigid: dark edges and a dark cross-plate; fragile: white bands around a lighter body."""
    size = 64
    rgb = np.array(RGB[colour], dtype=np.float64)
    pixels = np.tile(rgb, (size, size, 1))
    if material == "rigid":
        dark = rgb * 0.32
        edge = 6
        pixels[:edge] = pixels[-edge:] = dark
        pixels[:, :edge] = pixels[:, -edge:] = dark
    else:
        pixels = 0.82 * pixels + 0.18 * 255
        for start, stop in ((10, 20), (34, 44)):  # rows of the side's half of the texture
            pixels[start:stop] = 246
        pixels[56:60] = 246  # the ring on the top face (see `_cylinder_obj`)
    return pixels.astype(np.uint8)


def _pad_texture() -> np.ndarray:
    pixels = np.full((64, 64, 3), 250, dtype=np.uint8)
    pixels[:7] = pixels[-7:] = 40
    pixels[:, :7] = pixels[:, -7:] = 40
    return pixels


class _Obj:
    """Collects vertices and triangles of a Wavefront file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.faces: list[str] = []
        self.count = 0

    def add(self, points: list, uvs: list, normals: list, triangles: list[tuple[int, int, int]]) -> None:
        for p, t, n in zip(points, uvs, normals, strict=True):
            self.lines.append("v {:.6f} {:.6f} {:.6f}".format(*p))
            self.lines.append("vt {:.5f} {:.5f}".format(*t))
            self.lines.append("vn {:.5f} {:.5f} {:.5f}".format(*n))
        for triangle in triangles:
            i, j, k = (self.count + 1 + index for index in triangle)
            self.faces.append(f"f {i}/{i}/{i} {j}/{j}/{j} {k}/{k}/{k}")
        self.count += len(points)

    def text(self) -> str:
        return "\n".join([*self.lines, *self.faces, ""])


def _box_obj(size: tuple[float, float, float]) -> str:
    """A box centred on the origin; each face shows the whole texture."""
    half = np.array(size) / 2
    obj = _Obj()
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            a, b = np.zeros(3), np.zeros(3)
            a[(axis + 1) % 3] = 1.0
            b[(axis + 2) % 3] = sign  # so that a x b points along the normal
            corners = [(normal + s * a + t * b) * half for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            obj.add(corners, [(0, 0), (1, 0), (1, 1), (0, 1)], [normal] * 4, [(0, 1, 2), (0, 2, 3)])
    return obj.text()


def _cylinder_obj(radius: float, height: float) -> str:
    """An upright cylinder centred on the origin.

    The texture's rows 0..53 of 64 wrap around the side from top to bottom; rows 54..63 run from the rim of the
    top face (54) to its centre (63).
    """
    angles = 2 * np.pi * np.arange(_CYLINDER_SIDES + 1) / _CYLINDER_SIDES
    cos, sin = np.cos(angles), np.sin(angles)
    half = height / 2
    obj = _Obj()
    top_v, bottom_v = 1 - 0.5 / 64, 1 - 53.5 / 64
    rim_v, centre_v = 1 - 54.5 / 64, 1 - 63.5 / 64
    for i in range(_CYLINDER_SIDES):
        j = i + 1
        ring = [(radius * cos[a], radius * sin[a]) for a in (i, j)]
        points = [(*ring[0], -half), (*ring[1], -half), (*ring[1], half), (*ring[0], half)]
        u0, u1 = i / _CYLINDER_SIDES, j / _CYLINDER_SIDES
        uvs = [(u0, bottom_v), (u1, bottom_v), (u1, top_v), (u0, top_v)]
        normals = [(cos[a], sin[a], 0.0) for a in (i, j, j, i)]
        obj.add(points, uvs, normals, [(0, 1, 2), (0, 2, 3)])
        points = [(*ring[0], half), (*ring[1], half), (0.0, 0.0, half)]
        obj.add(points, [(u0, rim_v), (u1, rim_v), (u0, centre_v)], [(0, 0, 1)] * 3, [(0, 1, 2)])
    return obj.text()


def _quad_obj(width_x: float, width_y: float, *, cells: int) -> str:
    """A flat rectangle in z = 0 facing up, made of cells x cells quads (small ones raster more exactly)."""
    obj = _Obj()
    for i in range(cells):
        for j in range(cells):
            corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
            points = [((a / cells - 0.5) * width_x, (b / cells - 0.5) * width_y, 0.0) for a, b in corners]
            uvs = [(a / cells, b / cells) for a, b in corners]
            obj.add(points, uvs, [(0, 0, 1)] * 4, [(0, 1, 2), (0, 2, 3)])
    return obj.text()
