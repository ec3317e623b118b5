"""DINOv2, with and without register tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..images import ImageTransform
from ..sites import Site
from ..vision import VisionTower, usual_transform


@register
class DinoFamily(Family):
    """DINOv2 backbones, also under a classification head."""

    name = "dino"
    model_types = ("dinov2", "dinov2_with_registers")
    examples = ("facebook/dinov2-small", "facebook/dinov2-base", "facebook/dinov2-with-registers-base")
    summary = "DINOv2 image encoders, with and without registers"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config = module.config
        inner = [name for name in ("dinov2", "dinov2_with_registers") if hasattr(module, name)]
        self.vision = VisionTower(
            module,
            config=config,
            root=inner[0] if inner else "",
            transform=ImageTransform.from_config(assets.image_config, default=usual_transform(config)),
        )

    def sites(self) -> list[Site]:
        return self.vision.sites()

    @property
    def layout_roots(self) -> dict[str, str]:
        return {self.vision.root: "vision"}

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
        self.module(pixel_values=batch.inputs["pixel_values"])
