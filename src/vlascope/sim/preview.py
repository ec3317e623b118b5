"""Contact sheets: many scenes, or one episode's frames, in one picture."""

from __future__ import annotations

import numpy as np

from vlascope.errors import InputError
from vlascope.sim.episode import Episode
from vlascope.sim.scene import sample_scene
from vlascope.sim.world import TableTop

_GAP_PX = 4


def preview(*, seed: int = 0, n_scenes: int = 12, image_px: int = 192, columns: int = 4) -> np.ndarray:
    """A contact sheet of random scenes, uint8 [height, width, 3].

    Args:
        seed: First scene's seed; scene i depends on `seed + i` only.
        n_scenes: How many.
        image_px: Side of each picture.
        columns: Pictures per row.

    Raises:
        InputError: No scenes or columns asked for.
        MissingExtraError: PyBullet is not installed.
    """
    if n_scenes < 1:
        raise InputError(f"got n_scenes = {n_scenes}; need at least 1.")
    with TableTop(image_px=image_px) as world:
        pictures = []
        for i in range(n_scenes):
            world.reset(sample_scene(seed + i))
            pictures.append(world.observe().rgb)
    return contact_sheet(pictures, columns=columns)


def preview_episode(episode: Episode, *, every: int = 2, columns: int = 6) -> np.ndarray:
    """A contact sheet of an episode's frames, uint8 [height, width, 3].

    Raises:
        InputError: The episode was run without `keep_frames`.
    """
    if episode.rgb is None:
        raise InputError("the episode has no pictures; run it with keep_frames=True.")
    return contact_sheet(list(episode.rgb[::every]), columns=columns)


def contact_sheet(pictures: list[np.ndarray], *, columns: int) -> np.ndarray:
    """Pictures of one size in rows of `columns`, with white gaps; uint8 [height, width, 3]."""
    if not pictures or columns < 1:
        raise InputError(f"got {len(pictures)} pictures in {columns} columns; need at least one of each.")
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step_y, step_x = height + _GAP_PX, width + _GAP_PX
    sheet = np.full((rows * step_y - _GAP_PX, columns * step_x - _GAP_PX, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * step_y, (i % columns) * step_x
        sheet[y : y + height, x : x + width] = picture
    return sheet
