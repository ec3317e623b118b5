"""LLaVA: image tokens of a vision tower, projected into the sequence of a language model.

Also models that act through action tokens, in OpenVLA's convention (`norm_stats` in their configuration).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..family import Assets, register
from ..images import ImageTransform
from ..multimodal import ImageTextFamily, Shown, take
from ..sites import Site
from ..vision import VisionTower, usual_transform


@register
class LlavaFamily(ImageTextFamily):
    """LLaVA-1.5 and every checkpoint of the class `LlavaForConditionalGeneration`.

    It reads one image, or as many as the configuration's `vlascope_prompt` has places for.
    """

    name = "llava"
    model_types = ("llava",)
    examples = ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf")
    summary = "LLaVA-1.5 and robot models of its class, such as the embedded mini-vla"
    n_images = 1  # trained on one

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        vision = self.config.vision_config
        self.vision = VisionTower(
            module,
            config=vision,
            root=self.vision_root,
            transform=ImageTransform.from_config(assets.image_config, default=usual_transform(vision)),
        )
        self.skip = 1 if self.config.vision_feature_select_strategy == "default" else 0

    def vision_sites(self) -> list[Site]:
        return self.vision.sites()

    @property
    def vision_blocks(self) -> str:
        return self.vision.blocks

    def show(self, image: NDArray[np.uint8], *, camera: int) -> Shown:
        layout = self.vision.layout(*image.shape[:2], camera=camera)
        kept = take(layout, slice(self.skip, None))
        return Shown(pixels=self.vision.pixels([image]), tower=(layout,), projected=(kept,), sequence=kept)
