"""What the families of plain image encoders share: one tower, no text, no answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from ..items.item import Item
from .batch import Batch, Response
from .family import Assets, Family
from .images import ImageTransform
from .sites import Site
from .structure import has
from .vision import VisionTower, usual_transform


def read_transform(given: Mapping[str, Any], *, default: ImageTransform) -> ImageTransform:
    """Return the preprocessing of a checkpoint's file; one that gives height and width does not mean a crop."""
    size = given.get("size")
    if isinstance(size, Mapping) and size.get("height") and given.get("do_center_crop") is None:
        given = {**given, "do_center_crop": False}
    return ImageTransform.from_config(given, default=default)


class ImageFamily(Family):
    """A family whose models are one `VisionTower`, maybe under a head.

    Class attributes:
        inner: Names that the tower has inside models with a head, such as "vit" in a classifier.
    """

    inner: ClassVar[tuple[str, ...]] = ()

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        self.vision = VisionTower(
            module,
            config=config,
            root=next((name for name in self.inner if has(module, name)), ""),
            transform=read_transform(assets.image_config, default=usual_transform(config)),
        )

    def sites(self) -> list[Site]:
        return self.vision.sites()

    @property
    def layout_roots(self) -> dict[str, str]:
        return {self.vision.root: "vision"}

    def must_fire(self) -> dict[str, str]:
        return {f"{self.vision.blocks}.0": "the vision tower did not look at the image"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        pixels, layouts, rows = self.vision.batch(items)
        return Batch(
            inputs={"pixel_values": pixels},
            layouts={"vision": layouts},
            rows={"vision": rows},
            item_ids=tuple(item.item_id for item in items),
            prompts=(None,) * len(items),
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        pixels = batch.inputs["pixel_values"]
        tower = self.module.get_submodule(self.vision.root)  # without the head, which no site needs
        tower(pixel_values=pixels, **self.vision.options(pixels))
