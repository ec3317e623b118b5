"""ResNet, RegNet, ConvNeXt, EfficientNet: cells of feature maps, and where they look."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families.tiny_vision import build, item
from tests.models.proof import check_family, prove_patch
from vlascope.errors import SiteNotFoundError
from vlascope.models import load
from vlascope.models.reach import Reach, Step

STAGES = {"hidden_sizes": (8, 12, 20), "depths": (1, 2, 1)}
MODELS = {
    "resnet": ("ResNetModel", "ResNetConfig", {"embedding_size": 8, "layer_type": "basic", **STAGES}),
    "resnet-bottleneck": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": (16, 24), "depths": (1, 1), "downsample_in_first_stage": True},
    ),
    "regnet": ("RegNetModel", "RegNetConfig", {"embedding_size": 8, "groups_width": 4, **STAGES}),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"num_stages": 3, "image_size": 64, "layer_scale_init_value": 0.5, **STAGES},
    ),
    "convnextv2": ("ConvNextV2Model", "ConvNextV2Config", {"num_stages": 3, "image_size": 64, **STAGES}),
    "dinov3": (
        "DINOv3ConvNextModel",
        "DINOv3ConvNextConfig",
        {"layer_scale_init_value": 0.5, **STAGES},
    ),
    "efficientnet": (
        "EfficientNetModel",
        "EfficientNetConfig",
        {
            "image_size": 64,
            "in_channels": (32, 8, 16),
            "out_channels": (8, 16, 16),
            "kernel_sizes": (3, 5, 3),
            "strides": (1, 2, 1),
            "num_block_repeats": (1, 2, 1),
            "expand_ratios": (1, 2, 2),
            "depthwise_padding": (1,),
            "hidden_dim": 1280,
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "initializer_range": 0.2,
        },
    ),
}


def processor(name, size=(56, 88)):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": size[0], "width": size[1]})


@functools.cache
def tiny(name):
    class_name, config_name, config = MODELS[name]
    return load(build(class_name, config_name, **config), processor=processor(name))


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    model = tiny(name)
    done = check_family(model, [item(61, 97), item(97, 61, seed=1, n_images=2)])
    assert done.tensors == ({"out", "mlp"} if "convnext" in name or name == "dinov3" else {"out"})
    assert len(done.layouts) >= 2 and all(layout.startswith("stride") for layout in done.layouts)


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("name", ["convnext", "convnextv2", "dinov3"])
def test_a_changed_patch_moves_its_cell_most(name, size):
    assert prove_patch(tiny(name), item(*size), tiny(name).sites[0].name, min_pixels=4) >= 9


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("name", MODELS)
def test_what_moves_lies_around_the_changed_patch(name, size):
    """Kernels that overlap move neighbours too, sometimes more; on average the patch is in their middle."""
    model = tiny(name)
    site = model.sites[0]
    grey = replace(item(*size), images=(np.full((*size, 3), 90, np.uint8),))
    batch = model.prepare([grey])
    layout, before = batch.layouts[site.layout][0], model.capture(batch, site.name)[site.name][0]
    middles = (layout.box[:, :2] + layout.box[:, 2:]) / 2
    step = layout.box[0, 2:] - layout.box[0, :2]
    rng = np.random.default_rng(0)
    offsets = []
    for token in np.flatnonzero((layout.row >= 2) & (layout.col >= 2))[::7]:
        x0, y0, x1, y1 = np.round(layout.box[token]).astype(int)
        if x1 + 6 > size[1] or y1 + 6 > size[0]:
            continue  # the edge of the image cuts off a side
        image = grey.image.copy()
        image[y0:y1, x0:x1] = rng.integers(0, 256, (y1 - y0, x1 - x0, 3))
        after = model.capture(model.prepare([replace(grey, images=(image,))]), site.name)[site.name][0]
        moved = (after - before).norm(dim=1).numpy() ** 2
        # Pixels are whole: the middle of what was changed, not of the box, is what counts.
        offsets.append(
            ((moved[:, None] * middles).sum(0) / moved.sum() - [(x0 + x1) / 2, (y0 + y1) / 2]) / step
        )
    assert len(offsets) >= 8
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.2, np.mean(offsets, axis=0)


@pytest.mark.parametrize("name", MODELS)
def test_boxes_are_centred_on_what_a_cell_sees(name):
    """The gradient of a cell by the pixels is not zero around the middle of its box, and symmetric in extent."""
    model = tiny(name)
    batch = model.prepare([item(56, 88)])  # shown at its own size: boxes are in pixels of the input
    pixels = batch.inputs["pixel_values"].clone().requires_grad_(True)
    found = {}

    def keep(site):
        return lambda _m, _a, output: found.__setitem__(site.name, output)

    sites = [site for site in model.sites if site.tensor == "out" and site.axes == "bdhw"]
    handles = [
        model.module.get_submodule(site.module_path).register_forward_hook(keep(site)) for site in sites
    ]
    model.module.get_submodule(model._family.root)(pixel_values=pixels)
    for handle in handles:
        handle.remove()
    n_checked = 0
    for site in sites:
        layout = batch.layouts[site.layout][0]
        rows, cols = int(layout.row.max()) + 1, int(layout.col.max()) + 1
        assert found[site.name].shape[1:] == (site.width, rows, cols)
        if name == "efficientnet" and site.name != "stem":
            continue  # squeeze and excitation makes every cell see every pixel
        for row in range(rows):
            for col in range(cols):
                (grad,) = torch.autograd.grad(
                    found[site.name][0, :, row, col].abs().sum(), pixels, retain_graph=True
                )
                ys, xs = torch.nonzero(grad[0].abs().sum(0), as_tuple=True)
                if not len(ys):
                    continue  # every unit of this cell is off
                y0, y1, x0, x1 = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
                if y0 == 0 or x0 == 0 or y1 == 56 or x1 == 88:
                    continue  # cut off by the edge of the image
                box = layout.box[row * cols + col]
                # Dead units may hide a rim; half a step is what would be wrong.
                assert abs((x0 + x1) / 2 - (box[0] + box[2]) / 2) <= 1.5, (site.name, row, col, x0, x1, box)
                assert abs((y0 + y1) / 2 - (box[1] + box[3]) / 2) <= 1.5, (site.name, row, col, y0, y1, box)
                n_checked += 1
    assert n_checked >= 5 or name in ("regnet", "convnextv2")


def test_resnet_50_steps_and_middles():
    """Padded strided convolutions put the first cell's middle on the first pixel, at every stage."""
    seven, three = Step(kernel=7, stride=2, before=3, after=3), Step(kernel=3, stride=2, before=1, after=1)
    reach = Reach.of(224, [seven, three, three, three, three])
    assert reach == Reach(n_cells=7, step=32, middle=0.5)
    assert reach.span == (-15.5, 208.5)
    patchify = [Step(kernel=4, stride=4, before=0, after=0), Step(kernel=2, stride=2, before=0, after=0)]
    assert Reach.of(61, patchify) == Reach(n_cells=7, step=8, middle=4.0)


def test_native_paths_of_stages():
    model = tiny("convnext")
    batch = model.prepare([item(61, 97)])
    acts = model.capture(batch, ["module:encoder.stages.1", "vision.2", "stem"])
    assert torch.equal(acts["module:encoder.stages.1"][0], acts["vision.2"][0])
    assert model.resolve("vision.2")[0].layout == "stride8"
    with pytest.raises(SiteNotFoundError, match="no module"):
        model.resolve("module:encoder.stages.7")


def test_pixels_equal_the_processors():
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    for name, theirs in [
        ("resnet", ConvNextImageProcessorPil(size={"shortest_edge": 48}, crop_pct=0.875)),
        ("resnet", ConvNextImageProcessorPil(size={"shortest_edge": 384})),
        ("efficientnet", EfficientNetImageProcessorPil(size={"height": 48, "width": 64})),
        ("efficientnet", EfficientNetImageProcessorPil(size={"height": 48, "width": 64}, include_top=False)),
        (
            "efficientnet",
            EfficientNetImageProcessorPil(size={"height": 48, "width": 64}, rescale_offset=True),
        ),
    ]:
        class_name, config_name, config = MODELS[name]
        model = load(build(class_name, config_name, **config), processor=theirs)
        ours = model.prepare([item(61, 97)]).inputs["pixel_values"]
        want = theirs(images=item(61, 97).image, return_tensors="pt")["pixel_values"]
        assert ours.shape == want.shape
        np.testing.assert_allclose(ours.numpy(), want.numpy(), atol=2e-6 if name == "resnet" else 2e-5)
