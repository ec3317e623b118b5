"""SAM and SAM 2: image encoders that attend inside windows, shown as the image's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...errors import InputError
from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..images import BILINEAR, IMAGENET_MEAN, IMAGENET_STD, Frame, ImageTransform
from ..layout import KINDS, TokenLayout
from ..maps import Maps
from ..reach import Step, Steps, steps_of
from ..sites import Site
from ..structure import block_sites, first_path, has, module_width, pair
from ..windows import Windows


@dataclass(frozen=True, kw_only=True)
class LongSidePad(ImageTransform):
    """Resize the longer side, normalise, fill up with zeros below and at the right (SAM's way).

    Attributes:
        longest_edge: Size of the longer side.
        pad_hw: Height and width after filling up.
    """

    longest_edge: int
    pad_hw: tuple[int, int]

    def output_hw(self, height: int, width: int) -> tuple[int, int]:
        return self.pad_hw

    def frame(self, height: int, width: int) -> Frame:
        new_h, new_w = self._resized_hw(height, width)
        return (0.0, 0.0, self.pad_hw[1] * width / new_w, self.pad_hw[0] * height / new_h)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        new_hw = self._resized_hw(*image.shape[:2])
        plain = ImageTransform(
            size_hw=new_hw, scale=self.scale, mean=self.mean, std=self.std, resample=self.resample
        )
        out = np.zeros((3, *self.pad_hw), np.float32)
        out[:, : new_hw[0], : new_hw[1]] = plain(image)
        return out

    def _resized_hw(self, height: int, width: int) -> tuple[int, int]:
        scale = self.longest_edge / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)


@register
class SamFamily(Family):
    """SAM's image encoder; sites `vision.N` and `neck`, what the mask decoder sees.

    Most blocks attend inside windows: their q, k, v and attn are brought back to the image's grid, without the
    windows' padding, for reading and for editing. Tokens that lie in the filling below or beside an image that
    is not square are of kind "special" (text "<pad>"), not patches.
    """

    name = "sam"
    model_types = ("sam", "sam_vision_model")
    examples = ("facebook/sam-vit-base", "facebook/sam-vit-large", "facebook/sam-vit-huge")
    summary = "SAM image encoders, windows unfolded to the image grid"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = getattr(module.config, "vision_config", module.config)
        self.config = config
        self.root = "vision_encoder" if has(module, "vision_encoder") else ""
        self.dotted = f"{self.root}." if self.root else ""
        size, patch = int(config.image_size), int(config.patch_size)
        self.maps = Maps(transform=_sam_transform(assets.image_config, size=size))
        step = Step(kernel=patch, stride=patch, before=0, after=0)
        self.layout = self.maps.add(((step, step),))
        self.grid = size // patch

    def sites(self) -> list[Site]:
        width = int(self.config.hidden_size)
        blocks = f"{self.dotted}layers"
        sites = []
        for site in block_sites(self.module, blocks=blocks, name="vision", layout=self.layout, width=width):
            block = self.module.get_submodule(".".join(site.module_path.split(".")[: blocks.count(".") + 2]))
            size = int(block.window_size)  # type: ignore[arg-type]
            is_inside = site.tensor in ("q", "k", "v", "attn") and size > 0
            windows = Windows(rows=self.grid, cols=self.grid, size=size) if is_inside else None
            sites.append(replace(site, axes="bhwd", windows=windows, n_heads=self._n_heads(site)))
        neck = f"{self.dotted}neck"
        channels = int(self.config.output_channels)
        return [*sites, Site(name="neck", module_path=neck, layout=self.layout, width=channels, axes="bdhw")]

    @property
    def layout_roots(self) -> Mapping[str, str]:
        return {f"{self.dotted}layers": self.layout}

    def native_site(self, path: str) -> Site:
        return replace(super().native_site(path), axes="bhwd")

    def must_fire(self) -> dict[str, str]:
        return {f"{self.dotted}layers.0": "the image encoder did not look at the image"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        batch = self.maps.prepare(items)
        layouts = {
            name: [_mark_padding(layout, item) for layout, item in zip(parts, items, strict=True)]
            for name, parts in batch.layouts.items()
        }
        return replace(batch, layouts=layouts)

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        self.module.get_submodule(self.root)(pixel_values=batch.inputs["pixel_values"])

    def _n_heads(self, site: Site) -> int:
        return int(self.config.num_attention_heads) if site.tensor in ("q", "k", "v") else 0


@register
class Sam2Family(Family):
    """SAM 2's image encoder (Hiera); sites `vision.N`, blocks counted through all stages.

    A layout is named by the pixels between two tokens ("stride4" to "stride32"). The first block of a stage
    pools its queries: its q, k and v still have the finer grid of the stage before.
    """

    name = "sam2"
    model_types = ("sam2", "sam2_video", "sam2_vision_model", "sam2_hiera_det_model")
    examples = ("facebook/sam2.1-hiera-tiny", "facebook/sam2.1-hiera-large")
    summary = "SAM 2 image encoders, windows unfolded to the image grid"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        candidates = ["vision_encoder.backbone.blocks", "backbone.blocks", "blocks"]
        self.blocks = first_path(module, candidates, needed_for="list of vision blocks")
        self.root = self.blocks.rpartition(".")[0]
        backbone: Any = module.get_submodule(self.root)
        height, width = pair(backbone.config.image_size)
        default = ImageTransform(
            size_hw=(height, width), mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BILINEAR
        )
        transform = ImageTransform.from_config({**assets.image_config, "do_pad": False}, default=default)
        if transform.size_hw is None or transform.crop_hw is not None:
            raise InputError(
                "SAM 2 reads images of one size; its image processor's `size` must give height and width."
            )
        self.shown_hw = transform.size_hw
        self.maps = Maps(transform=transform)
        self._sites = self._find_sites(backbone)

    def sites(self) -> list[Site]:
        return list(self._sites)

    @property
    def layout_roots(self) -> Mapping[str, str]:
        return {site.module_path: site.layout for site in self._sites if site.tensor == "out"}

    def native_site(self, path: str) -> Site:
        return replace(super().native_site(path), axes="bhwd")

    def must_fire(self) -> dict[str, str]:
        return {f"{self.blocks}.0": "the image encoder did not look at the image"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        return self.maps.prepare(items)

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        self.module.get_submodule(self.root)(pixel_values=batch.inputs["pixel_values"])

    @classmethod
    def module_class(cls, config: Any, *, source: str, trust_remote_code: bool = False) -> Any:
        """Take the published checkpoints, made for video, as the image model that they contain."""
        if config.model_type != "sam2_video":
            return super().module_class(config, source=source, trust_remote_code=trust_remote_code)
        import transformers

        return transformers.Sam2Model

    def _find_sites(self, backbone: Any) -> list[Site]:
        sites: list[Site] = []
        steps = steps_of(backbone.get_submodule("patch_embed"))
        for index, block in enumerate(backbone.get_submodule("blocks").children()):
            before = steps
            if block.query_stride:
                rows, cols = (Step(kernel=n, stride=n, before=0, after=0) for n in pair(block.query_stride))
                steps = (*steps, (rows, cols))
            size = int(block.window_size)
            # Queries are pooled inside their window, so that attn comes out of a smaller one.
            after = size // pair(block.query_stride)[0] if block.query_stride else size
            base, path = f"vision.{index}", f"{self.blocks}.{index}"
            fused = module_width(block.attn.qkv) // 3
            sites.append(self._site(base, path, steps, 0, tensor="out", width=int(block.dim_out)))
            for i, tensor in enumerate("qkv"):
                site = self._site(
                    f"{base}.{tensor}", f"{path}.attn.qkv", before, size, tensor=tensor, width=fused
                )
                heads = int(block.attn.num_attention_heads)
                sites.append(replace(site, channels=(i * fused, (i + 1) * fused), n_heads=heads))
            sites += [
                self._site(f"{base}.attn", f"{path}.attn.proj", steps, after, tensor="attn", width=fused),
                self._site(f"{base}.mlp", f"{path}.mlp", steps, 0, tensor="mlp", width=int(block.dim_out)),
            ]
        return sites

    def _site(self, name: str, path: str, steps: Steps, window: int, *, tensor: str, width: int) -> Site:
        layout = self.maps.add(steps)
        rows, cols = (reach.n_cells for reach in self.maps.grid(layout, self.shown_hw))
        windows = Windows(rows=rows, cols=cols, size=window) if window else None
        return Site(
            name=name,
            module_path=path,
            layout=layout,
            tensor=tensor,
            width=width,
            axes="bhwd",
            windows=windows,
        )


def _mark_padding(layout: TokenLayout, item: Item) -> TokenLayout:
    """Return the layout with tokens that show nothing of their image called special."""
    sizes = np.array([(image.shape[1], image.shape[0]) for image in item.images], np.float32)
    outside = np.any(layout.box[:, :2] >= sizes[layout.camera] - 1e-3, axis=1)
    return replace(
        layout,
        kind=np.where(outside, KINDS.index("special"), layout.kind).astype(np.int8),
        row=np.where(outside, -1, layout.row).astype(np.int16),
        col=np.where(outside, -1, layout.col).astype(np.int16),
        text=tuple(
            "<pad>" if is_outside else text for is_outside, text in zip(outside, layout.text, strict=True)
        ),
        box=np.where(outside[:, None], np.nan, layout.box).astype(np.float32),
    )


def _sam_transform(given: Mapping[str, Any], *, size: int) -> LongSidePad:
    longest = (given.get("size") or {}).get("longest_edge") or size
    pad = given.get("pad_size") or {"height": size, "width": size}
    pad_hw = (int(pad["height"]), int(pad["width"]))
    if pad_hw != (size, size) or longest > size:
        raise InputError(
            f"this SAM reads images of {size} x {size} pixels; its image processor resizes the longer side to "
            f"{longest} and fills up to {pad_hw[0]} x {pad_hw[1]}. Give the processor that belongs to it."
        )
    default = ImageTransform(mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BILINEAR)
    steps = {key: value for key, value in given.items() if key not in ("size", "do_pad", "pad_size")}
    plain = ImageTransform.from_config({**steps, "do_resize": False}, default=default)
    return LongSidePad(
        longest_edge=int(longest),
        pad_hw=pad_hw,
        scale=plain.scale,
        mean=plain.mean,
        std=plain.std,
        resample=plain.resample,
    )
