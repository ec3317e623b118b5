"""Idefics3 and SmolVLM: tiles of the image, an overview, and a pixel shuffle that merges s x s patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..family import Assets, register
from ..images import HALF, Frame, ImageTransform
from ..layout import KINDS, TokenLayout, concat
from ..multimodal import ImageTextFamily, Shown, image_token_id, resized, tower_tokens, values_transform
from ..sites import Site
from ..structure import block_sites, first_path
from ..vision import BLOCKS

LANCZOS = 1  # PIL.Image.Resampling
MAX_SIDE = 4096  # pixels; the processors never make an image longer than this
FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"


@register
class Idefics3Family(ImageTextFamily):
    """Idefics3 and SmolVLM (also SmolVLM2 on images).

    Tiles 0, 1, ... are cut row by row from the enlarged image; the last tile is the whole image squashed to one
    square (the only one when the image is not split). A token of the projector and of the language model stands
    for `scale_factor` x `scale_factor` patches and has their box. Tags such as `<row_1_col_2>` are of kind
    "special" and carry the camera and the tile that they announce.
    """

    name = "idefics3"
    model_types = ("idefics3", "smolvlm")
    examples = (
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceM4/Idefics3-8B-Llama3",
    )
    summary = "Idefics3 and SmolVLM: tiles and an overview, merged by a pixel shuffle"
    vision_paths = ("model.vision_model",)
    projector_paths = ("model.connector",)
    language_paths = ("model.text_model",)

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        vision, image_config = self.config.vision_config, assets.image_config
        self.patch, self.scale = int(vision.patch_size), int(self.config.scale_factor)
        self.width = int(vision.hidden_size)
        self._blocks = first_path(
            module, [f"{self.vision_root}.{path}" for path in BLOCKS], needed_for="list of vision blocks"
        )
        default = ImageTransform(mean=HALF, std=HALF, resample=LANCZOS)
        self.values = values_transform(image_config, default=default)
        self.resample = self.values.resample
        self.side = int((image_config.get("max_image_size") or {}).get("longest_edge", vision.image_size))
        size = image_config.get("size") or {"longest_edge": 4 * self.side}
        self.longest = _longest(size) if image_config.get("do_resize", True) else None
        self.splits = bool(image_config.get("do_image_splitting", True))
        if self.side % (self.patch * self.scale):
            raise InputError(
                f"tiles of {self.side} px cannot be cut into patches of {self.patch} px merged {self.scale} x "
                f"{self.scale}; need a multiple of {self.patch * self.scale} as max_image_size."
            )

    @property
    def vision_blocks(self) -> str:
        return self._blocks

    def vision_sites(self) -> list[Site]:
        return block_sites(
            self.module,
            blocks=self._blocks,
            name="vision",
            layout="vision",
            width=self.width,
        )

    def default_template(self, n_images: int) -> str:
        return f"<|im_start|>User:{self.image_word * n_images}{{prompt}}<end_of_utterance>\nAssistant:"

    def show(self, image: NDArray[np.uint8], *, camera: int) -> Shown:
        height, width = image.shape[:2]
        if self.longest is not None:
            new_h, new_w = longest_edge(height, width, self.longest)
            image = resized(image, new_h, new_w, resample=self.resample)
        side, grid = self.side, (0, 0)
        views: list[NDArray[np.uint8]] = []
        frames: list[Frame] = []
        if self.splits:
            new_h, new_w = multiple_of(image.shape[0], image.shape[1], side)
            image = resized(image, new_h, new_w, resample=self.resample)
            grid = (image.shape[0] // side, image.shape[1] // side)
            grid = grid if grid != (1, 1) else (0, 0)  # one tile would repeat the overview
        x, y = width / max(grid[1], 1), height / max(grid[0], 1)
        for r in range(grid[0]):
            for c in range(grid[1]):
                views.append(image[r * side : (r + 1) * side, c * side : (c + 1) * side])
                frames.append((c * x, r * y, (c + 1) * x, (r + 1) * y))
        views.append(resized(image, side, side, resample=self.resample))
        frames.append((0.0, 0.0, float(width), float(height)))
        n_patch, n_merged = side // self.patch, side // self.patch // self.scale
        tower = [
            tower_tokens(n_patch, n_patch, frame=frame, camera=camera, tile=tile)
            for tile, frame in enumerate(frames)
        ]
        projected = [
            tower_tokens(n_merged, n_merged, frame=frame, camera=camera, tile=tile)
            for tile, frame in enumerate(frames)
        ]
        return Shown(
            pixels=torch.from_numpy(np.stack([self.values(view) for view in views])),
            tower=tuple(tower),
            projected=tuple(projected),
            sequence=concat(projected),
            grid=grid,
        )

    def image_text(self, shown: Shown) -> str:
        tokens = self.image_word * len(shown.projected[0])
        rows, cols = shown.grid
        text = ""
        for r in range(rows):
            text += "".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{tokens}" for c in range(cols)) + "\n"
        newline = "\n" if rows else ""
        return f"{text}{newline}{FAKE}{GLOBAL}{tokens}{FAKE}"

    def image_inputs(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        # One row with all tiles of all items: the model flattens the rows anyway, and none is padding.
        return {"pixel_values": torch.cat([one.pixels for one in shown])[None]}

    def mark(self, layout: TokenLayout, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
        assert self.words is not None
        fake = self.words.tokenizer.convert_tokens_to_ids(FAKE)
        if fake is None or fake == getattr(self.words.tokenizer, "unk_token_id", None):
            raise InputError(
                f"the tokenizer does not know '{FAKE}', which stands around every image of this family. Load the "
                "checkpoint's own tokenizer."
            )
        image = image_token_id(self.config)
        for first, last in spans:
            while ids[first] != fake:
                first -= 1
            tile = layout.tile[last]
            for at in range(last + 1, first - 1, -1):  # backwards: a tag belongs to the tile after it
                if ids[at] == image:
                    tile = layout.tile[at]
                else:
                    layout.kind[at] = KINDS.index("special")
                    layout.camera[at], layout.tile[at] = layout.camera[last], tile


def longest_edge(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the longer side `longest`, the other one even, and none above `MAX_SIDE`."""
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        width, height = MAX_SIDE, int(MAX_SIDE / aspect)
    elif height > width and height > MAX_SIDE:
        height, width = MAX_SIDE, int(MAX_SIDE * aspect)
    return max(height, 1), max(width, 1)


def multiple_of(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (height, width) rounded up to multiples of `side`, the shorter one after scaling by the longer."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return math.ceil(int(width / aspect) / side) * side, width
    height = math.ceil(height / side) * side
    return height, math.ceil(int(height * aspect) / side) * side


def _longest(size: Any) -> int:
    if not (isinstance(size, dict) and size.get("longest_edge")):
        raise InputError(
            f"the image processor's size is {size!r}; this family needs {{'longest_edge': pixels}}. Pass your own "
            "preprocessing through vlascope.wrap()."
        )
    return int(size["longest_edge"])
