"""CLIP, SigLIP and SigLIP 2: a vision tower and, in the two-tower models, a text tower."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..images import ImageTransform
from ..naflex import NaflexTower
from ..sites import Site
from ..structure import block_sites, first_path, has
from ..text import Words, pad_right
from ..vision import VisionTower, usual_transform

_log = logging.getLogger(__name__)


@register
class ClipFamily(Family):
    """CLIP, SigLIP and SigLIP 2, with or without their text tower (sites `text.*`).

    SigLIP 2 checkpoints of fixed size are SigLIP models to transformers; those with native shapes ("naflex")
    show each image in its own aspect. CLIP and SigLIP interpolate their positions for other image sizes.
    """

    name = "clip"
    model_types = (
        "clip",
        "clip_vision_model",
        "siglip",
        "siglip_vision_model",
        "siglip2",
        "siglip2_vision_model",
    )
    examples = (
        "openai/clip-vit-base-patch16",
        "openai/clip-vit-large-patch14",
        "google/siglip-base-patch16-224",
        "google/siglip2-base-patch16-224",
        "google/siglip2-base-patch16-naflex",
    )
    summary = "CLIP, SigLIP and SigLIP 2 image (and text) encoders"
    reads_text = True
    default_prompt = "a photo"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        vision = getattr(config, "vision_config", config)
        root = "vision_model" if has(module, "vision_model") else ""
        self.vision: VisionTower
        if vision.model_type == "siglip2_vision_model":
            self.vision = NaflexTower(module, config=vision, root=root, given=assets.image_config)
        else:
            transform = ImageTransform.from_config(assets.image_config, default=usual_transform(vision))
            self.vision = VisionTower(module, config=vision, root=root, transform=transform)
        self.text_config = getattr(config, "text_config", None) if has(module, "text_model") else None
        self.words = Words(assets.tokenizer) if assets.tokenizer is not None else None
        self._has_warned = False

    def sites(self) -> list[Site]:
        sites = self.vision.sites()
        if self.text_config is not None:
            blocks = first_path(self.module, ["text_model.encoder.layers"], needed_for="list of text blocks")
            width = int(self.text_config.hidden_size)
            sites += block_sites(self.module, blocks=blocks, name="text", layout="text", width=width)
        return sites

    @property
    def layout_roots(self) -> dict[str, str]:
        return {self.vision.root: "vision", "text_model": "text"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        pixels, vision_layouts, vision_rows = self.vision.batch(items)
        inputs, layouts, rows = {"pixel_values": pixels}, {"vision": vision_layouts}, {"vision": vision_rows}
        lengths = {}
        if isinstance(self.vision, NaflexTower):
            inputs |= self.vision.shapes(items)
            lengths["vision"] = pixels.shape[1]
        prompts: list[str | None] = [item.prompt for item in items]
        if self.text_config is not None and self.words is not None:
            prompts = [self.default_prompt if prompt is None else prompt for prompt in prompts]
            ids = [self._encode(prompt or "") for prompt in prompts]
            # SigLIP was trained on texts filled up to full length, and attends to the filling.
            is_siglip = self.text_config.model_type in ("siglip_text_model", "siglip2_text_model")
            length = int(self.text_config.max_position_embeddings) if is_siglip else None
            pad_id = self.words.tokenizer.pad_token_id or 0
            inputs["input_ids"] = torch.from_numpy(pad_right(ids, pad_id=pad_id, length=length))
            lengths["text"] = inputs["input_ids"].shape[1]
            layouts["text"] = [self.words.layout(row) for row in ids]
            rows["text"] = [((i, 0, len(row)),) for i, row in enumerate(ids)]
        return Batch(
            inputs=inputs,
            layouts=layouts,
            rows=rows,
            item_ids=tuple(item.item_id for item in items),
            prompts=tuple(prompts),
            lengths=lengths,
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        wanted = {site.layout for site in sites}
        if "text" in wanted:
            if "input_ids" not in batch.inputs:
                raise InputError(
                    "the text tower needs a tokenizer; load the checkpoint by name, or pass processor=."
                )
            self.module.get_submodule("text_model")(input_ids=batch.inputs["input_ids"])
        if "vision" in wanted:
            pixels = batch.inputs["pixel_values"]
            if isinstance(self.vision, NaflexTower):
                more = {name: batch.inputs[name] for name in ("spatial_shapes", "pixel_attention_mask")}
            else:
                more = self.vision.options(pixels)
            self.module.get_submodule(self.vision.root)(pixel_values=pixels, **more)

    def reaches(self, site: Site, *, asked: Sequence[Site]) -> bool:
        return site.layout in {other.layout for other in asked}

    def _encode(self, prompt: str) -> list[int]:
        assert self.words is not None and self.text_config is not None
        limit = int(self.text_config.max_position_embeddings)
        ids = self.words.encode(prompt)
        if len(ids) > limit:
            if not self._has_warned:
                _log.warning("prompt of %d tokens cut to the %d that the text tower reads", len(ids), limit)
                self._has_warned = True
            ids = [*ids[: limit - 1], ids[-1]]  # the last one marks the end, which CLIP pools from
        return ids
