"""Vision towers: their sites, their pixel values and where each of their tokens looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError, ModelNotFoundError
from ..items.item import Item
from .batch import Rows
from .images import (
    BILINEAR,
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageTransform,
    crop,
    squash,
    sub_frame,
)
from .layout import TokenLayout, concat, grid_tokens, plain_tokens
from .sites import Site
from .structure import block_sites, first_path, pair

BLOCKS = ("encoder.layers", "vision_model.encoder.layers", "encoder.layer", "model.layer", "layers", "blocks")

# Per type of vision configuration: class tokens before the patches, and whether registers follow them.
_PREFIX = {
    "clip_vision_model": (1, False),
    "siglip_vision_model": (0, False),
    "siglip2_vision_model": (0, False),
    "dinov2": (1, False),
    "dinov2_with_registers": (1, True),
    "dinov3_vit": (1, True),
    "vit": (1, False),
    "vit_mae": (1, False),
    "vit_msn": (1, False),
    "deit": (2, False),  # the second one learned from a teacher's label
}

# Types whose forward adds the trained positions as they are unless told to fit them to another image size.
_FIT_ON_REQUEST = ("clip_vision_model", "siglip_vision_model", "vit", "vit_mae", "vit_msn", "deit")


class VisionTower:
    """A stack of blocks over image patches, as a whole model or as a part of one.

    Args:
        module: The model.
        config: The configuration of the vision part.
        root: Path of the vision part in the model; "" when it is the model.
        transform: The checkpoint's preprocessing.
        name: First part of the sites' names and name of the layout.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        config: Any,
        root: str,
        transform: ImageTransform,
        name: str = "vision",
    ) -> None:
        if config.model_type not in _PREFIX:
            raise ModelNotFoundError(
                f"the vision tower is of type '{config.model_type}'; known are {', '.join(sorted(_PREFIX))}."
            )
        n_class, has_registers = _PREFIX[config.model_type]
        n_registers = int(config.num_register_tokens) if has_registers else 0
        self.prefix = ["class"] * n_class + ["register"] * n_registers
        self.patch = pair(config.patch_size)
        self.name, self.root, self.transform = name, root, transform
        self.width = int(config.hidden_size)
        self.trained_hw = pair(config.image_size) if hasattr(config, "image_size") else None
        self.is_fitted = config.model_type not in _FIT_ON_REQUEST
        dotted = f"{root}." if root else ""
        self.blocks = first_path(
            module, [dotted + path for path in BLOCKS], needed_for="list of vision blocks"
        )
        self._module = module

    def sites(self) -> list[Site]:
        """Return the sites of all blocks."""
        return block_sites(
            self._module, blocks=self.blocks, name=self.name, layout=self.name, width=self.width
        )

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return float32 [n, 3, H, W].

        Raises:
            InputError: the preprocessing keeps the images' shapes, and these differ.
        """
        values = [self.transform(image) for image in images]
        if len(shapes := {value.shape[1:] for value in values}) > 1:
            raise InputError(
                f"the images of one batch have {len(shapes)} sizes after preprocessing ({_sizes(shapes)}), because "
                "this checkpoint neither crops nor squashes them; use batches of one, or images of one shape."
            )
        return torch.from_numpy(np.stack(values))

    def options(self, pixels: Tensor) -> dict[str, bool]:
        """Return what the tower's forward has to be told to take images of this size.

        Positions are interpolated when the pixel values are not of the size that the model was trained with.
        """
        if self.is_fitted or tuple(pixels.shape[-2:]) == self.trained_hw:
            return {}
        return {"interpolate_pos_encoding": True}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (rows, cols) of the patches of an image of that size."""
        shown = self.transform.output_hw(height, width)
        return shown[0] // self.patch[0], shown[1] // self.patch[1]

    def layout(self, height: int, width: int, *, camera: int = 0) -> TokenLayout:
        """Return what the tower's tokens of one image are."""
        rows, cols = self.grid(height, width)
        frame = sub_frame(
            self.transform.frame(height, width),
            shown_hw=self.transform.output_hw(height, width),
            used_hw=(rows * self.patch[0], cols * self.patch[1]),
        )
        patches = grid_tokens(rows, cols, frame=frame, camera=camera)
        if not self.prefix:
            return patches
        # Class and register tokens belong to an image although they lie nowhere in it.
        heads = [plain_tokens(kind, [f"<{kind}>"]) for kind in self.prefix]
        for head in heads:
            head.camera[:] = camera
            head.tile[:] = 0
        return concat([*heads, patches])

    def batch(
        self, items: Sequence[Item], *, cameras: int | None = None
    ) -> tuple[Tensor, list[TokenLayout], list[Rows]]:
        """Return pixel values of all images, and per item the layout and place of its tokens.

        Args:
            items: Every image of an item is shown to the tower on its own; the tokens are put one after another.
            cameras: Use only the first so many images of each item.
        """
        images, layouts, rows = [], [], []
        for item in items:
            parts, places = [], []
            for camera, image in enumerate(item.images[:cameras]):
                part = self.layout(*image.shape[:2], camera=camera)
                places.append((len(images), 0, len(part)))
                parts.append(part)
                images.append(image)
            layouts.append(concat(parts))
            rows.append(tuple(places))
        return self.pixels(images), layouts, rows


def usual_transform(config: Any) -> ImageTransform:
    """Return the preprocessing that this type of vision tower was trained with, for models without a file."""
    size = pair(config.image_size)[0]
    if config.model_type == "clip_vision_model":
        return crop(size, mean=CLIP_MEAN, std=CLIP_STD)
    if config.model_type == "dinov3_vit":
        return ImageTransform(size_hw=(size, size), mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BILINEAR)
    if config.model_type in ("vit_mae", "vit_msn"):
        return squash(size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if config.model_type == "vit":
        return ImageTransform(size_hw=(size, size), mean=HALF, std=HALF, resample=BILINEAR)
    if config.model_type == "deit":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        return ImageTransform(
            size_hw=(round(size * 256 / 224), round(size * 256 / 224)),
            crop_hw=(size, size),
            mean=mean,
            std=std,
        )
    if config.model_type.startswith("dinov2"):
        # DINOv2's own position table is for 518 px; its published processor shows 224 px, cut from 256.
        size = 224 if size == 518 else size
        return crop(size, resize=round(size * 256 / 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return squash(size)


def _sizes(shapes: set[tuple[int, ...]]) -> str:
    return ", ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
