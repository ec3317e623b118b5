"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: packed towers, windows and merged patches unfolded to the image."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families import vlm_tiny
from tests.models.proof import check_family, prove_patch, prove_word
from tests.models.tiny import item
from vlascope.errors import HookNotFiredError, InputError
from vlascope.models import load
from vlascope.models.families.qwen_vl import fitted, patch_order
from vlascope.models.packed import Packing, one_after_another

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SIZES = [(61, 97), (97, 61), (20, 90)]


class Parts:
    """What `load` needs of a processor; the real class asks for a video processor, which needs torchvision."""

    def __init__(self, **more) -> None:
        self.image_processor = vlm_tiny.qwen_images(**more)
        self.tokenizer, self.chat_template = vlm_tiny.tokenizer(bos=False), None


@functools.cache
def model(kind: str = "qwen2_5_vl"):
    return load(vlm_tiny.qwen(kind), processor=Parts())


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    items = [item(61, 97, name="a", prompt="pick up the red object"), item(97, 40, seed=1, name="b")]
    done = check_family(model(kind), items)
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 5


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_ids_equal_the_processors(size):
    shown = item(*size, prompt="pick up the red object")
    given = vlm_tiny.qwen_images()(shown.image, return_tensors="pt")
    inputs = model().prepare([shown]).inputs
    assert torch.equal(inputs["pixel_values"], given["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], given["image_grid_thw"])
    n_tokens = int(given["image_grid_thw"].prod()) // 4
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * n_tokens
        + "<|vision_end|>pick up the red object<|im_end|>\n<|im_start|>assistant\n"
    )
    assert inputs["input_ids"][0].tolist() == vlm_tiny.tokenizer(bos=False)(text)["input_ids"]
    is_image = inputs["input_ids"] == vlm_tiny.IDS["<|image_pad|>"]
    assert torch.equal(inputs["mm_token_type_ids"] == 1, is_image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
def test_patches_are_where_the_layout_says(kind, size):
    prove_patch(model(kind), item(*size), "vision.0", n_patches=7)
    prove_patch(model(kind), item(*size), "projector", n_patches=7)


def test_patches_of_two_cameras_of_different_shape():
    two = replace(item(61, 97), images=(item(61, 97).image, item(90, 40).image), cameras=("a", "b"))
    prove_patch(model(), two, "vision.0", n_patches=5)
    prove_patch(model("qwen3_vl"), two, "projector", n_patches=5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_tokens_enter_the_language_model_where_the_layout_says(kind):
    """Also for two images in one item, and an item behind it."""
    both = replace(item(61, 97), images=(item(61, 97).image, item(90, 40).image), cameras=("a", "b"))
    batch = model(kind).prepare([both, item(20, 90, seed=2)])
    entered = []
    handle = model(kind).module.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: entered.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        merged = model(kind).capture(batch, ["projector", "language.0"])["projector"]
    finally:
        handle.remove()
    for i in range(2):
        layout, projected = batch.layouts["language"][i], batch.layouts["projector"][i]
        at = np.flatnonzero(layout.is_kind("patch"))
        assert torch.equal(entered[0][i, at], merged[i])
        np.testing.assert_array_equal(layout.box[at], projected.box)
        np.testing.assert_array_equal(layout.camera[at], projected.camera)


def test_the_merger_reads_the_patches_that_the_layout_names():
    batch = model().prepare([item(61, 97)])
    tower, merged = batch.layouts["vision"][0], batch.layouts["projector"][0]
    last = f"vision.{2}"
    plain = model().capture(batch, "projector")["projector"][0]
    for token in (0, 5, 31, len(tower) - 1):
        with model().edit(last, torch.zeros_like, tokens=[token]):
            edited = model().capture(batch, "projector")["projector"][0]
        (changed,) = (edited != plain).any(dim=1).nonzero()[:, 0].tolist()
        assert (merged.row[changed], merged.col[changed]) == (tower.row[token] // 2, tower.col[token] // 2)


def test_a_windowed_block_moves_only_its_window():
    """Windows are 2 x 2 merged tokens, 4 x 4 patches; block 0 is windowed, block 1 sees everything."""
    batch = model().prepare([item(61, 97)])
    layout = batch.layouts["vision"][0]
    plain = model().capture(batch, ["vision.0", "vision.1"])
    for token in (0, 21, len(layout) - 1):
        with model().edit("vision.0.v", lambda x: x + 9, tokens=[token]):
            edited = model().capture(batch, ["vision.0", "vision.1"])
        moved = {s: (edited[s][0] - plain[s][0]).abs().amax(dim=1).numpy() > 1e-6 for s in plain}
        inside = (layout.row // 4 == layout.row[token] // 4) & (layout.col // 4 == layout.col[token] // 4)
        np.testing.assert_array_equal(moved["vision.0"], inside)
        assert moved["vision.1"].all() and not inside.all()


def test_attention_is_read_in_raster_order():
    batch = model().prepare([item(97, 40, seed=1), item(61, 97)])
    layout = batch.layouts["vision"][1]
    windowed, whole = (model().attention(batch, f"vision.{i}")[1] for i in range(2))
    same = (layout.row[:, None] // 4 == layout.row[None] // 4) & (
        layout.col[:, None] // 4 == layout.col[None] // 4
    )
    np.testing.assert_array_equal((windowed > 0).all(0).numpy(), same)
    assert (whole > 0).all() and not same.all()
    torch.testing.assert_close(windowed.sum(-1), torch.ones(windowed.shape[:2]))
    with pytest.raises(InputError, match="folded"):
        model().attention(batch, "vision.0", method="recompute")


@pytest.mark.parametrize("kind", KINDS)
def test_words(kind):
    asked = item(61, 97, prompt="pick up the red object")
    prove_word(model(kind), asked, "language.0", old="red", new="blue")


@pytest.mark.parametrize("kind", KINDS)
def test_own_decoding_equals_generate(kind):
    asked = [item(61, 97, prompt="red"), item(97, 40, seed=1, prompt="what colour is the left object")]
    together = model(kind).respond(asked, max_new_tokens=5)
    for one, answer in zip(asked, together, strict=True):
        inputs = model(kind).prepare([one]).inputs
        with torch.no_grad():
            out = model(kind).module.generate(**inputs, max_new_tokens=5, do_sample=False)
        expected = [i for i in out[0, inputs["input_ids"].shape[1] :].tolist() if i != 2]
        assert list(answer.token_ids) == expected


def test_deepstack_is_what_is_added_behind_the_first_language_blocks():
    third = model("qwen3_vl")
    batch = third.prepare([item(61, 97, prompt="red")])
    names = [site.name for site in third.sites]
    assert names.index("projector") < names.index("deepstack.0") < names.index("language.0")
    entered = []
    handle = third.module.model.language_model.layers[1].register_forward_pre_hook(
        lambda _m, args: entered.append(args[0])
    )
    try:
        acts = third.capture(batch, ["deepstack.0", "language.0", "language.1"])
    finally:
        handle.remove()
    at = np.flatnonzero(batch.layouts["language"][0].is_kind("patch"))
    want = acts["language.0"][0].clone()
    want[at] += acts["deepstack.0"][0]
    torch.testing.assert_close(entered[0][0], want)


def test_native_modules_of_the_tower_are_read_in_raster_order():
    batch = model().prepare([item(61, 97), item(97, 40, seed=1)])
    acts = model().capture(batch, ["module:model.visual.blocks.0.attn.proj", "vision.0.attn"])
    for a, b in zip(*acts.values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="Name another module"):  # before the merger's patches are joined
        model().capture(batch, "module:model.visual.merger.ln_q")


@pytest.mark.parametrize("window", [None, 2, 3])
@pytest.mark.parametrize("rows, cols", [(6, 10), (14, 4), (2, 2)])
def test_orders_follow_transformers(rows, cols, window):
    from transformers.vision_utils import get_vision_window_index

    raster = torch.arange(rows * cols).view(rows // 2, 2, cols // 2, 2).permute(0, 2, 1, 3).reshape(-1, 4)
    if window is not None:
        index, _ = get_vision_window_index(
            torch.tensor([[1, rows, cols]]), spatial_merge_size=2, window_size=window * 16, patch_size=8
        )
        raster = raster[index]
    place = patch_order(rows, cols, merge=2, window=window)
    assert torch.equal(place[raster.reshape(-1)], torch.arange(rows * cols))


def test_sizes_follow_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for height, width in np.random.default_rng(0).integers(8, 900, (200, 2)).tolist():
        theirs = smart_resize(height, width, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 100)
        assert fitted(height, width, step=28, limits=(56 * 56, 28 * 28 * 100)) == theirs
    with pytest.raises(InputError, match="too long"):
        fitted(2, 1000, step=28, limits=(1, 10**6))


def test_packing_there_and_back():
    packing = Packing()
    with pytest.raises(InputError, match="outside a forward pass"):
        packing.unfold(torch.zeros(5, 3))
    first, second = torch.tensor([2, 0, 1]), torch.tensor([1, 0])
    packing.set(one_after_another([first, second]))
    tensor = torch.arange(15.0).view(5, 3)
    items = packing.unfold(tensor)
    assert torch.equal(items[0], tensor[first]) and torch.equal(items[1, :2], tensor[3 + second])
    assert not items[1, 2].any()
    items[1, 2] = 99  # filling is never written back
    assert torch.equal(packing.fold(items, into=tensor), tensor)
    with pytest.raises(InputError, match="5 tokens"):
        packing.unfold(torch.zeros(6, 3))


def test_a_tower_that_is_not_called_is_an_error():
    batch = model().prepare([item(61, 97)])
    family = model()._family
    forward = family.forward
    family.forward = lambda *_a, **_k: None
    try:
        with pytest.raises(HookNotFiredError, match="did not look at the image"):
            model().capture(batch, "language.0")
    finally:
        family.forward = forward


def test_processors_of_another_patch_size_are_refused():
    parts = Parts()
    parts.image_processor.patch_size = 14
    with pytest.raises(InputError, match="patch_size is 14, the model's is 8"):
        load(vlm_tiny.qwen("qwen2_vl"), processor=parts)
