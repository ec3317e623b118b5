"""PaliGemma 1 and 2: SigLIP patches, then the prompt, read in both directions; answers are causal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..batch import Batch
from ..family import Assets, register
from ..images import ImageTransform
from ..multimodal import ImageTextFamily, Shown
from ..sites import Site
from ..vision import VisionTower, usual_transform


@register
class PaliGemmaFamily(ImageTextFamily):
    """PaliGemma and PaliGemma 2.

    The sequence is the image's patches, `<bos>`, the prompt and a line break. Images and prompt attend to each
    other in both directions; the tokens of an answer see what is before them only, also when prompt and answer
    are read in one pass.
    """

    name = "paligemma"
    model_types = ("paligemma",)
    examples = ("google/paligemma-3b-mix-224", "google/paligemma2-3b-mix-448")
    summary = "PaliGemma 1 and 2"
    uses_chat_template = False  # trained on short tasks such as "caption en"
    default_prompt = "caption en"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        vision = self.config.vision_config
        self.vision = VisionTower(
            module,
            config=vision,
            root=self.vision_root,
            transform=ImageTransform.from_config(assets.image_config, default=usual_transform(vision)),
        )

    def vision_sites(self) -> list[Site]:
        return self.vision.sites()

    @property
    def vision_blocks(self) -> str:
        return self.vision.blocks

    def default_template(self, n_images: int) -> str:
        bos = getattr(self.assets.tokenizer, "bos_token", None) or ""
        return f"{self.image_word * n_images}{bos}{{prompt}}\n"

    def encode(self, text: str) -> list[int]:
        # The template places <bos> itself, after the images.
        assert self.words is not None
        return list(self.words.tokenizer(text, add_special_tokens=False)["input_ids"])

    def show(self, image: NDArray[np.uint8], *, camera: int) -> Shown:
        layout = self.vision.layout(*image.shape[:2], camera=camera)
        return Shown(
            pixels=self.vision.pixels([image]), tower=(layout,), projected=(layout,), sequence=layout
        )

    def sequence_inputs(self, input_ids: Tensor, *, n_prompt: Sequence[int]) -> dict[str, Tensor]:
        # 0: in the block that is read in both directions; 1: causal.
        starts = torch.tensor(list(n_prompt))[:, None]
        return {"token_type_ids": (torch.arange(input_ids.shape[1])[None] >= starts).long()}

    def later_inputs(self, batch: Batch, *, at: Tensor, is_ragged: bool) -> dict[str, Any]:
        return {"position_ids": at[:, None] + 1} if is_ragged else {}  # positions count from 1 here
