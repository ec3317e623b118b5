"""Video encoders: V-JEPA 2 and VideoMAE. Their tokens are places in space and time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..image_family import read_transform
from ..images import BILINEAR, IMAGENET_MEAN, IMAGENET_STD, ImageTransform, sub_frame
from ..layout import TokenLayout, concat, grid_tokens
from ..sites import Site
from ..structure import LEAVES, block_sites, first_path, has, pair

_log = logging.getLogger(__name__)

_LEAVES = {**LEAVES, "mlp": ("mlp", "output.dense")}  # VideoMAE's block has no module around its two layers


@register
class VideoFamily(Family):
    """V-JEPA 2 and VideoMAE, also under a head; sites `vision.N`.

    The images of an item are the frames of one clip, in order and of one size; `vlascope.items.clips` makes such
    items of a video. Two frames (a tubelet) become one layer of patches. In the layout, `tile` counts these
    layers (time), and `camera` is the item's image with which the layer begins. A single image is shown as a clip
    that stands still.
    """

    name = "video"
    model_types = ("vjepa2", "videomae")
    examples = (
        "facebook/vjepa2-vitl-fpc64-256",
        "facebook/vjepa2-vitg-fpc64-384",
        "MCG-NJU/videomae-base",
    )
    summary = "video encoders V-JEPA 2 and VideoMAE, tokens in space and time"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        self.config = config
        self.is_vjepa = config.model_type == "vjepa2"
        self.root = next((name for name in ("vjepa2", "videomae") if has(module, name)), "")
        dotted = f"{self.root}." if self.root else ""
        self.blocks = first_path(
            module, [f"{dotted}encoder.layer", f"{dotted}encoder.layers"], needed_for="list of video blocks"
        )
        self.tubelet = int(config.tubelet_size)
        self.n_frames = int(config.frames_per_clip if self.is_vjepa else config.num_frames)
        self.patch = pair(config.patch_size)
        size = pair(config.crop_size if self.is_vjepa else config.image_size)
        self.trained_hw = size
        self.transform = _transform(assets.image_config, size=size, is_vjepa=self.is_vjepa)
        self._has_warned = False

    def sites(self) -> list[Site]:
        width = int(self.config.hidden_size)
        return block_sites(
            self.module, blocks=self.blocks, name="vision", layout="vision", width=width, leaves=_LEAVES
        )

    @property
    def layout_roots(self) -> Mapping[str, str]:
        return {self.blocks: "vision"}

    def must_fire(self) -> dict[str, str]:
        return {f"{self.blocks}.0": "the video encoder did not look at the clip"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        clips = [self._clip(item) for item in items]
        if len(lengths := {len(clip) for clip in clips}) > 1:
            raise InputError(
                f"the clips of one batch have {sorted(lengths)} frames; give clips of one length, or use batches of "
                "one."
            )
        layouts = [self._layout(item, n_frames=len(clip)) for item, clip in zip(items, clips, strict=True)]
        return Batch(
            inputs={"pixel_values": torch.stack(clips)},
            layouts={"vision": layouts},
            rows={"vision": [((i, 0, len(layout)),) for i, layout in enumerate(layouts)]},
            item_ids=tuple(item.item_id for item in items),
            prompts=(None,) * len(items),
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        model = self.module.get_submodule(self.root)
        pixels = batch.inputs["pixel_values"]
        if self.is_vjepa:
            model(pixel_values_videos=pixels, skip_predictor=True)
        else:
            model(pixel_values=pixels)

    def _clip(self, item: Item) -> Tensor:
        """Return float32 [frames, 3, H, W]."""
        n_images = len(item.images)
        if len(sizes := {image.shape[:2] for image in item.images}) > 1:
            raise InputError(
                f"item '{item.item_id}' has images of {len(sizes)} sizes; to a video model an item's images are the "
                "frames of one clip, which have one size. Choose one camera."
            )
        shown = self.transform.output_hw(*item.images[0].shape[:2])
        if shown != self.trained_hw:
            raise InputError(
                f"the preprocessing gives frames of {shown[0]} x {shown[1]} pixels; the positions of this model are "
                f"made for {self.trained_hw[0]} x {self.trained_hw[1]}. Give the processor that belongs to it."
            )
        frames = [torch.from_numpy(self.transform(image)) for image in item.images]
        if n_images == 1:
            if not self._has_warned:
                _log.warning("a single image is shown as a clip of %d equal frames", self._still_length)
                self._has_warned = True
            frames = frames * self._still_length
        elif n_images % self.tubelet or (not self.is_vjepa and n_images != self.n_frames):
            need = f"a multiple of {self.tubelet}" if self.is_vjepa else f"{self.n_frames}"
            raise InputError(
                f"item '{item.item_id}' has {n_images} images; this model reads clips of {need} frames (or one image, "
                "as a clip that stands still). Make clips with vlascope.items.clips.clips(source, n_frames=...)."
            )
        return torch.stack(frames)

    @property
    def _still_length(self) -> int:
        """Frames of a clip made of one image: as few as the model can read."""
        return self.tubelet if self.is_vjepa else self.n_frames

    def _layout(self, item: Item, *, n_frames: int) -> TokenLayout:
        height, width = item.images[0].shape[:2]
        shown = self.transform.output_hw(height, width)
        rows, cols = shown[0] // self.patch[0], shown[1] // self.patch[1]
        frame = sub_frame(
            self.transform.frame(height, width),
            shown_hw=shown,
            used_hw=(rows * self.patch[0], cols * self.patch[1]),
        )
        is_still = len(item.images) == 1
        return concat(
            [
                grid_tokens(rows, cols, frame=frame, camera=0 if is_still else t * self.tubelet, tile=t)
                for t in range(n_frames // self.tubelet)
            ]
        )


def _transform(given: Mapping[str, Any], *, size: tuple[int, int], is_vjepa: bool) -> ImageTransform:
    resize = int(size[0] * 256 / 224) if is_vjepa else size[0]
    default = ImageTransform(
        shortest_edge=resize, crop_hw=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BILINEAR
    )
    # Keys that only say how frames are chosen are none of ours: an item's images are its frames.
    return read_transform(given, default=default)
