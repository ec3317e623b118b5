"""ViT, DeiT, MSN, MAE, DINOv2 and DINOv3: one stack of blocks over image patches."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.models.families.tiny_vision import TRANSFORMER, build, item
from tests.models.proof import check_family, prove_patch
from vlascope.errors import InputError
from vlascope.models import KINDS, load

ALL = {"out", "q", "k", "v", "attn", "mlp"}
MODELS = {
    "vit": ("ViTModel", "ViTConfig", {"image_size": 40, "patch_size": 8}),
    "vit-head": ("ViTForImageClassification", "ViTConfig", {"image_size": 40, "patch_size": 8}),
    "deit": ("DeiTModel", "DeiTConfig", {"image_size": 40, "patch_size": 8}),
    "msn": ("ViTMSNModel", "ViTMSNConfig", {"image_size": 40, "patch_size": 8}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {"image_size": 40, "patch_size": 8, "mask_ratio": 0.75}),
    "mae-head": ("ViTMAEForPreTraining", "ViTMAEConfig", {"image_size": 40, "patch_size": 8}),
    "dinov3": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"hidden_size": 32, "image_size": 40, "patch_size": 8, "num_register_tokens": 3},
    ),
    "dinov3-gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"hidden_size": 32, "image_size": 40, "patch_size": 8, "use_gated_mlp": True},
    ),
}
PREFIX = {"deit": ["class"] * 2, "dinov3": ["class"] + ["register"] * 3}


@functools.cache
def tiny(name, size=None):
    class_name, config_name, more = MODELS[name]
    module = build(class_name, config_name, **(TRANSFORMER | more))
    return load(module, processor=processor(size) if size else None)


def processor(size):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": size[0], "width": size[1]})


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    model = tiny(name)
    done = check_family(model, [item(61, 97), item(97, 61, seed=1, n_images=2)])
    assert done.tensors == ALL and done.n_split == 3
    layout = model.prepare([item(61, 97)]).layouts["vision"][0]
    prefix = PREFIX.get(name, ["class"])
    assert [KINDS[k] for k in layout.kind] == prefix + ["patch"] * 25


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("name", MODELS)
def test_patches(name, size):
    assert prove_patch(tiny(name), item(*size, n_images=2), "vision.0") >= 8


@pytest.mark.parametrize("name", ["vit", "deit", "msn", "mae", "dinov3"])
def test_other_sizes_by_interpolated_positions(name):
    """A checkpoint's processor may ask for another size than the positions were trained for."""
    model = tiny(name, (24, 56))
    batch = model.prepare([item(61, 97)])
    layout = batch.layouts["vision"][0]
    patches = layout.is_kind("patch")
    assert (layout.row.max(), layout.col.max(), patches.sum()) == (2, 6, 21)
    np.testing.assert_allclose(layout.box[patches][-1], [97 * 6 / 7, 61 * 2 / 3, 97, 61], rtol=1e-5)
    assert len(model.capture(batch, "vision.2")["vision.2"][0]) == len(layout)
    assert prove_patch(model, item(61, 97), "vision.0", n_patches=21) > 8


def test_vit_pixels_equal_the_processors():
    model = tiny("vit", (24, 56))
    ours = model.prepare([item(61, 97)]).inputs["pixel_values"]
    theirs = processor((24, 56))(images=item(61, 97).image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["mae", "mae-head"])
def test_mae_sees_the_whole_image_in_order(name):
    model = tiny(name)
    config = model.module.config
    before = config.mask_ratio
    assert before > 0
    batch = model.prepare([item(61, 97)])
    got = model.capture(batch, "vision.2")["vision.2"][0]
    assert config.mask_ratio == before, "the model was left changed"
    # By hand: embed, add positions, run the blocks; nothing of the masking code.
    inner = model.module if name == "mae" else model.module.vit
    embeddings = inner.embeddings
    with torch.no_grad():
        x = embeddings.patch_embeddings(batch.inputs["pixel_values"]) + embeddings.position_embeddings[:, 1:]
        head = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        x = torch.cat([head, x], dim=1)
        for layer in inner.layers:
            x = layer(x)
    torch.testing.assert_close(got, x[0], atol=1e-5, rtol=1e-4)


def test_mae_is_restored_after_an_exception():
    model = tiny("mae")

    def fail(_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), model.edit("vision.1", fail):
        model.capture(model.prepare([item()]), "vision.2")
    assert model.module.config.mask_ratio == 0.75


def test_images_of_many_shapes_are_refused_together():
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    class_name, config_name, more = MODELS["dinov3"]
    module = build(class_name, config_name, **(TRANSFORMER | more))
    model = load(module, processor=ViTImageProcessorPil(do_resize=False))
    assert len(model.prepare([item(61, 97)]).layouts["vision"][0]) == 4 + 7 * 12
    with pytest.raises(InputError, match="61 x 97, 97 x 61.*batches of one"):
        model.prepare([item(61, 97), item(97, 61)])
