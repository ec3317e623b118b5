"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images at their own resolution, 2 x 2 patches merged to one token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..batch import Batch
from ..family import Assets, register
from ..images import CLIP_MEAN, CLIP_STD, HALF, ImageTransform
from ..multimodal import ImageTextFamily, Shown, image_token_id, tower_tokens, values_transform
from ..packed import Packing, one_after_another
from ..sites import Site
from ..structure import block_sites

MAX_ASPECT = 200  # longer side over shorter side; the model was never shown more


@register
class QwenVLFamily(ImageTextFamily):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL on images.

    The image is scaled to multiples of a merged patch, within the pixel limits of the image processor. Tower and
    merger hold the images of a batch packed and in the model's own order (merged patches together, windows
    together); their sites show one row per item in raster order, and edits go back the same way. Qwen3-VL adds
    merged features of some tower blocks to the language model after its first blocks: the sites `deepstack.0`,
    `deepstack.1`, ... are what is added behind `language.0`, `language.1`, ..., whose own output does not yet
    hold it.
    """

    name = "qwen-vl"
    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    examples = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct")
    summary = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL: dynamic resolution, 2 x 2 patches per token"
    image_word = "<|image_pad|>"
    vision_paths = ("model.visual", "visual")
    projector_paths = ("model.visual.merger", "visual.merger")

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        vision, image_config = self.config.vision_config, assets.image_config
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)
        self.n_frames = int(vision.temporal_patch_size)
        window = getattr(vision, "window_size", None)
        self.window = int(window) // self.merge // self.patch if window else None
        self.is_third = self.config.model_type == "qwen3_vl"
        # Qwen2-VL's configuration calls the merger's output width "hidden_size".
        self.width = int(vision.embed_dim if self.config.model_type == "qwen2_vl" else vision.hidden_size)
        mean, std = (HALF, HALF) if self.is_third else (CLIP_MEAN, CLIP_STD)
        self.values = values_transform(image_config, default=ImageTransform(mean=mean, std=std))
        self.pixel_limits = _pixel_limits(image_config, side=self.patch * self.merge)
        self.resizes = bool(image_config.get("do_resize", True))
        self._check_files(image_config)
        self.packings = {name: Packing(is_flat=True) for name in self.packings}

    @property
    def vision_blocks(self) -> str:
        return f"{self.vision_root}.blocks"

    def vision_sites(self) -> list[Site]:
        return block_sites(
            self.module,
            blocks=self.vision_blocks,
            name="vision",
            layout="vision",
            width=self.width,
        )

    def sites(self) -> list[Site]:
        sites = super().sites()
        mergers = list(getattr(self.module.get_submodule(self.vision_root), "deepstack_merger_list", []))
        deep = [
            self.packed(
                Site(
                    name=f"deepstack.{i}",
                    module_path=f"{self.vision_root}.deepstack_merger_list.{i}",
                    layout="projector",
                    width=int(self.config.text_config.hidden_size),
                )
            )
            for i in range(len(mergers))
        ]
        at = next(i for i, site in enumerate(sites) if site.name == "projector")
        return [*sites[: at + 1], *deep, *sites[at + 1 :]]

    @property
    def layout_roots(self) -> dict[str, str]:
        deep = f"{self.vision_root}.deepstack_merger_list"
        return super().layout_roots | {deep: "projector"}

    def default_template(self, n_images: int) -> str:
        system = "" if self.is_third else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        images = f"<|vision_start|>{self.image_word}<|vision_end|>" * n_images
        return f"{system}<|im_start|>user\n{images}{{prompt}}<|im_end|>\n<|im_start|>assistant\n"

    def show(self, image: NDArray[np.uint8], *, camera: int) -> Shown:
        height, width = image.shape[:2]
        step = self.patch * self.merge
        new_h, new_w = fitted(height, width, step=step, limits=self.pixel_limits)
        if not self.resizes:
            new_h, new_w = height, width
        if new_h % step or new_w % step:
            raise InputError(
                f"an image of {width} x {height} px cannot be cut into squares of {step} px, and this checkpoint's "
                f"image processor does not resize (do_resize). Give images whose sides are multiples of {step}."
            )
        pixels = replace(self.values, size_hw=(new_h, new_w) if self.resizes else None)(image)
        rows, cols = new_h // self.patch, new_w // self.patch
        frame = (0.0, 0.0, float(width), float(height))
        merged = tower_tokens(rows // self.merge, cols // self.merge, frame=frame, camera=camera)
        return Shown(
            pixels=torch.from_numpy(self._patches(pixels, rows, cols)),
            tower=(tower_tokens(rows, cols, frame=frame, camera=camera),),
            projected=(merged,),
            sequence=merged,
            grid=(rows, cols),
        )

    def image_inputs(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        grids = torch.tensor([[1, *one.grid] for one in shown])
        return {**super().image_inputs(shown), "image_grid_thw": grids}

    def sequence_inputs(self, input_ids: Tensor, *, n_prompt: Sequence[int]) -> dict[str, Tensor]:
        # Which tokens get two-dimensional positions.
        return {"mm_token_type_ids": (input_ids == image_token_id(self.config)).int()}

    def orders(self, batch: Batch, layout: str) -> list[Tensor]:
        merge = self.merge if layout == "vision" else 1
        scale = self.merge // merge
        images = one_after_another(
            [
                patch_order(int(h) // scale, int(w) // scale, merge=merge, window=self.window)
                for _, h, w in batch.inputs["image_grid_thw"].tolist()
            ]
        )
        n_images = [len(set(one.camera.tolist())) for one in batch.layouts[layout]]
        ends = np.cumsum([0, *n_images])
        return [torch.cat(images[a:b]) for a, b in itertools.pairwise(ends)]

    def later_inputs(self, batch: Batch, *, at: Tensor, is_ragged: bool) -> dict[str, Any]:
        # An image's tokens share positions, so that text behind it counts on from less than its place. The
        # model keeps that difference from the first pass.
        inner: Any = self.module.get_submodule("model")
        position = at[:, None] + inner.rope_deltas.to(at.device)
        return {"position_ids": position[None].expand(3, -1, -1)}

    def _patches(self, pixels: NDArray[np.float32], rows: int, cols: int) -> NDArray[np.float32]:
        """Return [rows * cols, 3 * frames * patch * patch]: patches of one merged token after one another."""
        m, p = self.merge, self.patch
        parts = pixels.reshape(3, rows // m, m, p, cols // m, m, p).transpose(1, 4, 2, 5, 0, 3, 6)
        parts = np.repeat(
            parts[..., None, :, :], self.n_frames, axis=-3
        )  # a still image is a film that stands
        return np.ascontiguousarray(parts.reshape(rows * cols, -1))

    def _check_files(self, image_config: Mapping[str, Any]) -> None:
        for key, ours in (
            ("patch_size", self.patch),
            ("merge_size", self.merge),
            ("temporal_patch_size", self.n_frames),
        ):
            if int(image_config.get(key) or ours) != ours:
                raise InputError(
                    f"the image processor's {key} is {image_config[key]}, the model's is {ours}. Make them equal "
                    "in preprocessor_config.json and config.json."
                )


def fitted(height: int, width: int, *, step: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in multiples of `step` with an area within `limits`, near the image's shape.

    Raises:
        InputError: the image is more than `MAX_ASPECT` times as long as wide.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise InputError(
            f"an image of {width} x {height} px is too long for this model; at most {MAX_ASPECT}:1."
        )
    low, high = limits
    new_h, new_w = round(height / step) * step, round(width / step) * step
    if new_h * new_w > high:
        shrink = math.sqrt(height * width / high)
        new_h = max(step, math.floor(height / shrink / step) * step)
        new_w = max(step, math.floor(width / shrink / step) * step)
    elif new_h * new_w < low:
        grow = math.sqrt(low / (height * width))
        new_h, new_w = math.ceil(height * grow / step) * step, math.ceil(width * grow / step) * step
    return new_h, new_w


def patch_order(rows: int, cols: int, *, merge: int, window: int | None = None) -> Tensor:
    """Return int64 [rows * cols]: for each patch in raster order its place in the tower's order.

    Args:
        rows: Rows of patches, a multiple of `merge`.
        cols: Columns of patches, a multiple of `merge`.
        merge: Side of the squares of patches that lie together.
        window: Side of the attention windows in such squares (Qwen2.5-VL); None for no windows. Windows at
            the right and bottom edge are smaller.
    """
    row, col = (x.reshape(-1) for x in np.mgrid[0:rows, 0:cols])
    r, c = row // merge, col // merge
    keys = [col % merge, row % merge, c, r]  # from the fastest
    if window is not None:
        keys += [c // window, r // window]
    tower = np.lexsort(keys)  # patches in the tower's order
    place = np.empty_like(tower)
    place[tower] = np.arange(len(tower))
    return torch.from_numpy(place)


def _pixel_limits(image_config: Mapping[str, Any], *, side: int) -> tuple[int, int]:
    """Return the least and the greatest area in pixels; old files name them, new ones call them edges."""
    size = image_config.get("size") or {}
    low = image_config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    high = image_config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    return int(low or 4 * side * side), int(high or 1280 * side * side)
