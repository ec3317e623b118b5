"""CLIP and SigLIP at other image sizes, and SigLIP 2 with native shapes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.models.families.tiny_vision import TRANSFORMER, build, item
from tests.models.proof import check_family, prove_patch, prove_word
from vlascope.models import load

ALL = {"out", "q", "k", "v", "attn", "mlp"}
NAFLEX = TRANSFORMER | {"num_hidden_layers": 2, "patch_size": 8, "num_patches": 25}


@functools.cache
def naflex():
    return load(build("Siglip2VisionModel", "Siglip2VisionConfig", **NAFLEX), processor=processor())


def processor(n=30):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    return Siglip2ImageProcessorPil(patch_size=8, max_num_patches=n)


def test_naflex_contract():
    done = check_family(naflex(), [item(61, 97), item(97, 61, seed=1, n_images=2)])
    assert done.tensors == ALL and done.n_split == 2


@pytest.mark.parametrize("size", [(61, 97), (97, 61), (50, 50), (20, 211)])
def test_naflex_shapes_and_patches(size):
    model = naflex()
    one = item(*size)
    batch = model.prepare([one])
    theirs = processor()(images=one.image, return_tensors="pt")
    for name in ("pixel_values", "spatial_shapes", "pixel_attention_mask"):
        assert torch.equal(batch.inputs[name], theirs[name].to(batch.inputs[name].dtype)), name
    layout = batch.layouts["vision"][0]
    rows, cols = theirs["spatial_shapes"][0].tolist()
    assert (layout.row.max() + 1, layout.col.max() + 1) == (rows, cols) and len(layout) == rows * cols <= 30
    np.testing.assert_allclose(layout.box[-1, 2:], [size[1], size[0]], rtol=1e-5)
    # The queries: this random model's attention spreads a change over all tokens of the first block.
    assert prove_patch(model, one, "vision.0.q", n_patches=30) >= 12


def test_naflex_filling_changes_nothing():
    """The same image, with more room for patches that do not exist."""
    one = item(61, 97)
    batch = naflex().prepare([one])
    n = len(batch.layouts["vision"][0])
    rows, cols = batch.inputs["spatial_shapes"][0].tolist()
    assert n == rows * cols < 30
    got = naflex().capture(batch, "vision.1")["vision.1"][0]
    with torch.no_grad():
        hidden = []
        handle = (
            naflex().module.encoder.layers[1].register_forward_hook(lambda _m, _a, out: hidden.append(out))
        )
        naflex().module(
            pixel_values=batch.inputs["pixel_values"][:, :n],
            pixel_attention_mask=torch.ones(1, n, dtype=torch.int32),
            spatial_shapes=batch.inputs["spatial_shapes"],
        )
        handle.remove()
    torch.testing.assert_close(got, hidden[0][0], atol=1e-5, rtol=1e-4)


def test_naflex_with_text(make, tiny_models):
    from transformers import Siglip2Config, Siglip2Model

    text = dict(tiny_models.clip("siglip").config.text_config.to_dict())
    keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    text = {name: text[name] for name in (*keep, "max_position_embeddings", "projection_size")}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = Siglip2Model(Siglip2Config(vision_config=NAFLEX, text_config=text)).eval()
    model = load(module, processor=tiny_models.tokenizer())
    one = tiny_models.item(61, 97, prompt="a photo of the red object")
    two = tiny_models.item(97, 61, seed=1, prompt="what colour is the left object")
    assert check_family(model, [one, two]).layouts == {"vision", "text"}
    prove_word(model, one, "text.0", old="red", new="blue")
    prove_patch(model, one, "vision.0")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_other_sizes_by_interpolated_positions(kind):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    module = build(f"{kind}VisionModel", f"{kind}VisionConfig", **TRANSFORMER, image_size=40, patch_size=8)
    theirs = ViTImageProcessorPil(size={"height": 24, "width": 56}, do_center_crop=False)
    model = load(module, processor=theirs)
    batch = model.prepare([item(61, 97)])
    layout = batch.layouts["vision"][0]
    assert (layout.row.max(), layout.col.max()) == (2, 6)
    assert prove_patch(model, item(61, 97), "vision.0.q", n_patches=21) >= 10
