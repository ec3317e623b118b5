"""Vision transformers of the first kind: ViT, DeiT, MSN, and masked autoencoders (MAE)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..batch import Batch
from ..family import register
from ..image_family import ImageFamily
from ..sites import Site


@register
class VitFamily(ImageFamily):
    """ViT, DeiT and MSN encoders, also under a head. Positions are interpolated for other image sizes."""

    name = "vit"
    model_types = ("vit", "deit", "vit_msn")
    examples = (
        "google/vit-base-patch16-224",
        "google/vit-base-patch16-224-in21k",
        "facebook/deit-base-distilled-patch16-224",
        "facebook/vit-msn-base",
    )
    summary = "ViT, DeiT and MSN image encoders"
    inner = ("vit", "deit")


@register
class MaeFamily(ImageFamily):
    """The encoder of a masked autoencoder, shown the whole image.

    The model's own forward hides three quarters of the patches at random and shuffles the others; here it hides
    none and keeps their order.
    """

    name = "mae"
    model_types = ("vit_mae",)
    examples = ("facebook/vit-mae-base", "facebook/vit-mae-large")
    summary = "encoders of masked autoencoders (MAE), nothing masked"
    inner = ("vit",)

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        pixels = batch.inputs["pixel_values"]
        encoder = self.module.get_submodule(self.vision.root)
        n_patches = batch.rows["vision"][0][0][2] - len(self.vision.prefix)
        # The patches are put into the order of this noise, and all of them are kept.
        noise = torch.arange(n_patches, device=pixels.device, dtype=torch.float32).expand(len(pixels), -1)
        with _nothing_masked(encoder):
            encoder(pixel_values=pixels, noise=noise, **self.vision.options(pixels))


@contextlib.contextmanager
def _nothing_masked(encoder: nn.Module) -> Iterator[None]:
    config: Any = encoder.get_submodule("embeddings").config
    before = config.mask_ratio
    config.mask_ratio = 0.0
    try:
        yield
    finally:
        config.mask_ratio = before
