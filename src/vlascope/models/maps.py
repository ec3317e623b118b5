"""Encoders whose tokens are the cells of feature maps, one grid per resolution: CNNs and pyramids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, ModelNotFoundError
from ..items.item import Item
from .batch import Batch, Rows
from .images import ImageTransform
from .layout import TokenLayout, concat, grid_tokens
from .reach import Reach, Steps, map_frame


class Maps:
    """The resolutions of an encoder. Layouts are named by the step between cells: "stride4", "stride8", ...

    Args:
        transform: The checkpoint's preprocessing.
    """

    def __init__(self, *, transform: ImageTransform) -> None:
        self.transform = transform
        self.steps: dict[str, Steps] = {}

    def add(self, steps: Steps) -> str:
        """Return the layout of maps that come after `steps`; makes it known.

        Raises:
            ModelNotFoundError: two maps of one step look at different places.
        """
        rows, cols = (Reach.of(1 << 14, [pair[axis] for pair in steps]) for axis in (0, 1))
        name = f"stride{rows.step}" if rows.step == cols.step else f"stride{rows.step}x{cols.step}"
        known = self.steps.setdefault(name, steps)
        if any(Reach.of(1 << 14, [p[axis] for p in known]) != (rows, cols)[axis] for axis in (0, 1)):
            raise ModelNotFoundError(
                f"two feature maps with a cell every {rows.step} pixels look at different places; vlascope cannot "
                "name their cells together. Use vlascope.wrap(module, sites=..., layout=...)."
            )
        return name

    def grid(self, name: str, shown_hw: tuple[int, int]) -> tuple[Reach, Reach]:
        """Return the rows and columns of a layout for an input of that height and width."""
        rows, cols = (
            Reach.of(n, [pair[axis] for pair in self.steps[name]]) for axis, n in enumerate(shown_hw)
        )
        if rows.n_cells < 1 or cols.n_cells < 1:
            raise InputError(f"an input of {shown_hw[0]} x {shown_hw[1]} pixels is too small for this model.")
        return rows, cols

    def layout(self, name: str, height: int, width: int, *, camera: int = 0) -> TokenLayout:
        """Return what the cells of a map are, for an image of that size."""
        shown = self.transform.output_hw(height, width)
        rows, cols = self.grid(name, shown)
        frame = map_frame(rows, cols, frame=self.transform.frame(height, width), shown_hw=shown)
        return grid_tokens(rows.n_cells, cols.n_cells, frame=frame, camera=camera)

    def prepare(self, items: Sequence[Item]) -> Batch:
        """Return the items as inputs, with a layout per resolution; each image is shown on its own."""
        values: list[NDArray[np.float32]] = []
        layouts: Mapping[str, list[TokenLayout]] = {name: [] for name in self.steps}
        rows: Mapping[str, list[Rows]] = {name: [] for name in self.steps}
        for item in items:
            first = len(values)
            values += [self.transform(image) for image in item.images]
            for name in self.steps:
                parts = [self.layout(name, *image.shape[:2], camera=i) for i, image in enumerate(item.images)]
                layouts[name].append(concat(parts))
                rows[name].append(tuple((first + i, 0, len(part)) for i, part in enumerate(parts)))
        if len({value.shape for value in values}) > 1:
            raise InputError(
                "the images of one batch have different sizes after preprocessing, because this checkpoint neither "
                "crops nor squashes them; use batches of one, or images of one shape."
            )
        return Batch(
            inputs={"pixel_values": torch.from_numpy(np.stack(values))},
            layouts=layouts,
            rows=rows,
            item_ids=tuple(item.item_id for item in items),
            prompts=(None,) * len(items),
            source=tuple(items),
        )
