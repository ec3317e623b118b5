"""Image models of the timm library, when it works; loaded by hub name ("timm/...") or made by the user."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import InputError, MissingExtraError, ModelNotFoundError
from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..images import BICUBIC, BILINEAR, IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from ..layout import concat, plain_tokens
from ..maps import Maps
from ..reach import Step
from ..sites import Site
from ..structure import block_sites, has, pair

_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": BILINEAR, "bicubic": BICUBIC}


def require_timm() -> None:
    """Check that timm can be imported.

    Raises:
        MissingExtraError: it is missing, or it (or the torchvision that it needs) is broken.
    """
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another PyTorch fails with a RuntimeError on import.
        raise MissingExtraError(
            f"timm models need the packages timm and torchvision, and importing timm failed: {error}. Install them "
            "with: pip install timm torchvision (the torchvision of your PyTorch's release and index). Or load "
            "the same network from transformers, or use vlascope.wrap(module, sites=..., layout=...)."
        ) from error


@register
class TimmFamily(Family):
    """Models of timm: vision transformers (`vision.N` with q, k, v), and feature maps of all others.

    For other networks `vision.N` are the maps that timm itself lists (`feature_info`), with layouts named by the
    pixels between two cells. Their boxes are plain squares of that size: timm does not say how its
    convolutions pad, so that cells may look up to half a square to the left of and above their box.
    """

    name = "timm"
    model_types = ("timm_wrapper",)
    examples = ("timm/vit_small_patch14_reg4_dinov2.lvd142m", "timm/resnet50.a1_in1k")
    summary = "timm models, when timm and its torchvision work"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        self.root = "timm_model" if has(module, "timm_model") else ""
        self.dotted = f"{self.root}." if self.root else ""
        self.inner: Any = module.get_submodule(self.root)
        self.maps = Maps(transform=_transform(self.inner))
        self.is_transformer = has(self.inner, "blocks") and has(self.inner, "patch_embed.proj")
        self.prefix: list[str] = []
        if self.is_transformer:
            self.prefix = _prefix(self.inner)
            rows, cols = (
                Step(kernel=n, stride=n, before=0, after=0) for n in pair(self.inner.patch_embed.patch_size)
            )
            self.layout_name = self.maps.add(((rows, cols),))
        self._sites = self._find_blocks() if self.is_transformer else self._find_maps()

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        """timm's models have no config of transformers but say how they were trained."""
        has_config = hasattr(module, "config")
        return not has_config and hasattr(module, "pretrained_cfg") and hasattr(module, "forward_features")

    def sites(self) -> list[Site]:
        return list(self._sites)

    @property
    def layout_roots(self) -> Mapping[str, str]:
        if self.is_transformer:
            return {f"{self.dotted}blocks": self.layout_name}
        return {site.module_path: site.layout for site in self._sites}

    def native_site(self, path: str) -> Site:
        return replace(super().native_site(path), axes=self._sites[0].axes)

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        batch = self.maps.prepare(items)
        if not self.prefix:
            return batch
        layouts, rows, n_before = [], [], 0
        for item in items:
            parts = []
            for camera, image in enumerate(item.images):
                heads = [plain_tokens(kind, [f"<{kind}>"]) for kind in self.prefix]
                for head in heads:
                    head.camera[:], head.tile[:] = camera, 0
                patches = self.maps.layout(self.layout_name, *image.shape[:2], camera=camera)
                parts.append(concat([*heads, patches]))
            layouts.append(concat(parts))
            rows.append(tuple((n_before + i, 0, len(part)) for i, part in enumerate(parts)))
            n_before += len(parts)
        return replace(batch, layouts={self.layout_name: layouts}, rows={self.layout_name: rows})

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        self.inner.forward_features(batch.inputs["pixel_values"])

    @classmethod
    def load_module(
        cls, name: str, *, config: Any, dtype: Any, revision: str | None, trust_remote_code: bool
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """As for other families; first check that timm works."""
        require_timm()
        return super().load_module(
            name, config=config, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )

    def _find_blocks(self) -> list[Site]:
        return block_sites(
            self.module,
            blocks=f"{self.dotted}blocks",
            name="vision",
            layout=self.layout_name,
            width=int(self.inner.embed_dim),
        )

    def _find_maps(self) -> list[Site]:
        info = getattr(self.inner, "feature_info", None)
        entries = list(getattr(info, "info", info) or [])
        if not entries:
            raise ModelNotFoundError(
                f"{type(self.inner).__name__} has neither blocks over patches nor a feature_info, so vlascope does not "
                "know its feature maps. Use vlascope.wrap(module, sites=..., layout=...)."
            )
        is_last = str(getattr(self.inner, "output_fmt", "NCHW")).upper().endswith("NHWC")
        sites = []
        for index, entry in enumerate(entries):
            size = int(entry["reduction"])
            # What does not fill a whole square at the right and below still makes a cell.
            step = Step(kernel=size, stride=size, before=0, after=size - 1)
            sites.append(
                Site(
                    name=f"vision.{index}",
                    module_path=f"{self.dotted}{entry['module']}",
                    layout=self.maps.add(((step, step),)),
                    width=int(entry["num_chs"]),
                    axes="bhwd" if is_last else "bdhw",
                )
            )
        return sites


def _prefix(inner: Any) -> list[str]:
    n_prefix = int(inner.num_prefix_tokens)
    n_class = 1 if getattr(inner, "cls_token", None) is not None else 0
    registers = getattr(inner, "reg_token", None)
    n_registers = int(registers.shape[1]) if isinstance(registers, torch.Tensor) else 0
    # Distilled models have a second class token.
    return ["class"] * max(n_class, n_prefix - n_registers) + ["register"] * n_registers


def _transform(inner: Any) -> ImageTransform:
    """Return timm's preprocessing for evaluation."""
    given = dict(inner.pretrained_cfg or {})
    size = getattr(getattr(inner, "patch_embed", None), "img_size", None)
    height, width = pair(size if size is not None else tuple(given.get("input_size", (3, 224, 224)))[1:])
    crop_pct, mode = float(given.get("crop_pct") or 0.875), given.get("crop_mode") or "center"
    resized = int(np.floor(height / crop_pct)), int(np.floor(width / crop_pct))
    plain = ImageTransform(
        mean=_three(given.get("mean") or IMAGENET_MEAN),
        std=_three(given.get("std") or IMAGENET_STD),
        resample=_FILTERS.get(given.get("interpolation") or "bicubic", BICUBIC),
        crop_hw=(height, width),
    )
    if mode == "squash":
        return replace(plain, size_hw=resized)
    if mode != "center" or height != width:
        raise InputError(
            f"this timm model crops by '{mode}' to {height} x {width} pixels; known are 'squash', and 'center' to a "
            "square. Use vlascope.wrap(module, preprocess=...)."
        )
    return replace(plain, shortest_edge=resized[0])


def _three(values: Any) -> tuple[float, float, float]:
    a, b, c = values
    return float(a), float(b), float(c)
