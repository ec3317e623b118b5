"""Where the camera stands: renderings of scenes from many places, probed on scenes never seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vlascope as vs
from vlascope.files import write_json
from vlascope.items import Item, open_items
from vlascope.measure import probe
from vlascope.models import Model
from vlascope.sim import Camera, TableTop, sample_scene

SITES = ("vision.0", "vision.2", "vision.5")
N_VIEWS = 12


def read_poses(
    models: Mapping[str, Model], folder: Path, *, n_scenes: int, seed: int
) -> list[dict[str, Any]]:
    """Probe the camera's pose in "mini-vla", beside "random weights", whole scenes held out (NeRF layout)."""
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    home = Camera()
    with TableTop(image_px=112) as world:
        for number in range(n_scenes):
            world.reset(sample_scene(seed + number))
            place = folder / "nerf" / f"scene-{number}"
            place.mkdir(parents=True)
            frames = []
            for view in range(N_VIEWS):
                camera = Camera(eye=_around(home, rng), target=home.target, fov_deg=home.fov_deg)
                Image.fromarray(world.observe(camera=camera).rgb).save(place / f"{view}.png")
                frames.append(
                    {"file_path": f"{view}.png", "transform_matrix": camera_to_world(camera).tolist()}
                )
            write_json(
                place / "transforms.json", {"camera_angle_x": np.deg2rad(home.fov_deg), "frames": frames}
            )
            source = vs.items(f"nerf:{place}")
            items += [
                replace(source[i], item_id=f"{number}/{i}", labels={"scene": f"scene {number}"})
                for i in range(len(source))
            ]
    out = []
    runs = {
        name: vs.capture(
            model, open_items(items), out=folder / f"camera-{number}", sites=SITES, respond=False, quiet=True
        )
        for number, (name, model) in enumerate(models.items())
    }
    for site in SITES:
        one = probe(
            runs["mini-vla"], site=site, target="pose", split="scene", random_run=runs["random weights"]
        )
        print(one.test.line(), flush=True)
        out.append(one.to_json())
    return out


def camera_to_world(camera: Any) -> np.ndarray:
    """Return the pose of a camera that looks from its eye at its target, z up, float64 [4, 4], OpenGL axes."""
    eye, target = np.array(camera.eye), np.array(camera.target)
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    out[:3, 3] = eye
    return out


def _around(home: Any, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a place up to 35 degrees around the table from home, up to 12 degrees higher or lower, 10 % nearer."""
    offset = np.array(home.eye) - np.array(home.target)
    azimuth = np.arctan2(offset[1], offset[0]) + np.deg2rad(rng.uniform(-35, 35))
    height = np.arcsin(offset[2] / np.linalg.norm(offset)) + np.deg2rad(rng.uniform(-12, 12))
    far = np.linalg.norm(offset) * rng.uniform(0.9, 1.1)
    place = far * np.array(
        [np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)]
    )
    x, y, z = (float(v) for v in np.array(home.target) + place)
    return x, y, z
