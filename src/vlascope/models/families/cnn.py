"""Convolutional networks of transformers: ResNet, RegNet, ConvNeXt (1, 2 and DINOv3's), EfficientNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ...errors import ModelNotFoundError
from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..image_family import read_transform
from ..images import BICUBIC, BILINEAR, IMAGENET_MEAN, IMAGENET_STD, ImageTransform, crop
from ..maps import Maps
from ..reach import Steps, steps_of
from ..sites import Site
from ..structure import first_path, has, module_width

_BESIDE = ("shortcut", "drop_path")  # children of a block that do not lie on its main path
_MLP = ("pwconv2", "pointwise_conv2")  # ConvNeXt's last layer before the residual is added
_INNER = ("resnet", "regnet", "convnext", "convnextv2", "efficientnet")


@register
class CnnFamily(Family):
    """Feature maps as tokens: `stem`, then `vision.0`, `vision.1`, ... after each block of each stage.

    Blocks are counted through; the last block of a stage is the stage's output. A site's layout is named by the
    pixels between two cells ("stride8"); boxes are one such step wide and centred on what the cell looks at.
    ConvNeXt also has `vision.N.mlp`, what the block adds to its input.
    """

    name = "cnn"
    model_types = ("resnet", "regnet", "convnext", "convnextv2", "dinov3_convnext", "efficientnet")
    examples = (
        "microsoft/resnet-50",
        "facebook/convnext-tiny-224",
        "facebook/convnextv2-tiny-1k-224",
        "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
        "google/efficientnet-b0",
        "facebook/regnet-y-040",
    )
    summary = "CNNs: ResNet, RegNet, ConvNeXt, EfficientNet feature maps"

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        root = next((name for name in _INNER if has(module, name)), "")
        self.root, dotted = root, f"{root}." if root else ""
        self.maps = Maps(transform=_transform(assets.image_config, config))
        self._sites: list[Site] = []
        self._roots: dict[str, str] = {}
        stem = next((p for p in ("embedder", "embeddings") if has(module, dotted + p)), None)
        steps: Steps = ()
        if stem is not None:
            steps = self._add("stem", dotted + stem, steps)
        if has(module, f"{dotted}encoder.blocks"):
            self._add_blocks(f"{dotted}encoder.blocks", steps)
        else:
            candidates = [f"{dotted}encoder.stages", f"{dotted}model.stages", f"{dotted}stages"]
            stages = first_path(module, candidates, needed_for="list of stages")
            for name, _ in module.get_submodule(stages).named_children():
                steps = self._add_stage(f"{stages}.{name}", steps)

    def sites(self) -> list[Site]:
        return list(self._sites)

    @property
    def layout_roots(self) -> Mapping[str, str]:
        return self._roots

    def native_site(self, path: str) -> Site:
        # Modules without a name of their own are taken to give maps, channels first, as CNNs do.
        return replace(super().native_site(path), axes="bdhw")

    def must_fire(self) -> dict[str, str]:
        return {self._sites[0].module_path: "the network did not look at the image"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        return self.maps.prepare(items)

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        self.module.get_submodule(self.root)(pixel_values=batch.inputs["pixel_values"])

    def _add_stage(self, path: str, steps: Steps) -> Steps:
        stage = self.module.get_submodule(path)
        for down in ("downsampling_layer", "downsample_layers"):
            if has(stage, down):
                steps += steps_of(stage.get_submodule(down))
        steps = self._add_blocks(f"{path}.layers", steps)
        self._roots[path] = self.maps.add(steps)
        return steps

    def _add_blocks(self, path: str, steps: Steps) -> Steps:
        for name, block in self.module.get_submodule(path).named_children():
            base = f"vision.{sum(site.tensor == 'out' and site.name != 'stem' for site in self._sites)}"
            steps = self._add(base, f"{path}.{name}", steps)
            for leaf in _MLP:
                if has(block, leaf):
                    self._sites.append(
                        Site(
                            name=f"{base}.mlp",
                            module_path=f"{path}.{name}.{leaf}",
                            layout=self.maps.add(steps),
                            tensor="mlp",
                            width=module_width(block.get_submodule(leaf)),
                            axes="bhwd",
                        )
                    )
        return steps

    def _add(self, name: str, path: str, steps: Steps) -> Steps:
        module = self.module.get_submodule(path)
        steps += steps_of(module, skip=_BESIDE)
        layout = self.maps.add(steps)
        self._roots[path] = layout
        self._sites.append(
            Site(name=name, module_path=path, layout=layout, width=_channels(module), axes="bdhw")
        )
        return steps


def _channels(module: nn.Module) -> int:
    """Return the channels after the last convolution (or linear layer) on the module's main path."""
    widths = [
        module_width(part)
        for name, part in module.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear)) and not any(p in _BESIDE for p in name.split("."))
    ]
    if not widths:
        raise ModelNotFoundError(f"{type(module).__name__} holds no convolution, so its width is not known.")
    return widths[-1]


def _transform(given: Mapping[str, Any], config: Any) -> ImageTransform:
    """Return the preprocessing; without a file that of the published checkpoints."""
    imagenet = ImageTransform(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if config.model_type == "efficientnet":
        size = int(config.image_size)
        default = replace(imagenet, size_hw=(size, size), resample=BICUBIC)
        made = read_transform(given, default=default)
        if given.get("rescale_offset"):
            # Values end in -1..1: v * scale - 1, then normalised; both are one affine map.
            made = replace(made, mean=_three(m + 1 for m in made.mean))
        if given.get("include_top", True) and given.get("do_normalize", True):
            made = replace(made, std=_three(s * s for s in made.std))  # normalised twice, as it was trained
        return made
    size = int(getattr(config, "image_size", 224))
    if config.model_type == "dinov3_convnext":
        return read_transform(given, default=replace(imagenet, size_hw=(224, 224), resample=BILINEAR))
    default = crop(size, resize=round(size * 256 / 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pct, wanted = given.get("crop_pct"), given.get("size")
    if pct is None or wanted is None:
        return read_transform(given, default=default)
    edge = int(wanted if isinstance(wanted, int) else wanted["shortest_edge"])
    rest = {key: value for key, value in given.items() if key not in ("size", "crop_size", "do_center_crop")}
    if edge >= 384:
        # Large images are squashed whole.
        squashed = replace(default, size_hw=(edge, edge), shortest_edge=None, crop_hw=None)
        return read_transform(rest, default=squashed)
    cut = replace(default, shortest_edge=int(edge / pct), crop_hw=(edge, edge))
    return read_transform({**rest, "do_center_crop": True}, default=cut)


def _three(values: Any) -> tuple[float, float, float]:
    a, b, c = values
    return float(a), float(b), float(c)
