"""DINOv2, with and without register tokens, and DINOv3 (its vision transformers; for its CNNs see `cnn`)."""

from __future__ import annotations

from ..family import register
from ..image_family import ImageFamily


@register
class DinoFamily(ImageFamily):
    """DINOv2 and DINOv3 backbones, also under a classification head.

    Positions are interpolated (DINOv2) or rotary (DINOv3): images may be of any size that the patch divides.
    """

    name = "dino"
    model_types = ("dinov2", "dinov2_with_registers", "dinov3_vit")
    examples = (
        "facebook/dinov2-small",
        "facebook/dinov2-base",
        "facebook/dinov2-with-registers-base",
        "facebook/dinov3-vits16-pretrain-lvd1689m",
    )
    summary = "DINOv2 (with and without registers) and DINOv3 image encoders"
    inner = ("dinov2", "dinov2_with_registers", "dinov3_vit")
