"""Layouts are proved, not believed: change one patch or one word, and the named token moves most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlascope.models import KINDS
from vlascope.models.layout import token_from_pixel

NAMES = [
    "llava-siglip",
    "llava-clip",
    "clip",
    "clip-vision",
    "siglip",
    "siglip-vision",
    "dino",
    "dino-registers",
]


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("name", NAMES)
def test_changing_a_patch_moves_its_token_most(make, tiny_models, name, size):
    model = make(name)
    sites = [s for s in ("vision.0", "projector") if s in {x.name for x in model.sites}]
    item = tiny_models.item(*size)
    smooth = np.full_like(item.image, 90)
    item = replace(item, images=(smooth,))
    batch = model.prepare([item])
    before = model.capture(batch, sites)
    layout = batch.layouts["vision"][0]
    grid = token_from_pixel(layout.box, height=size[0], width=size[1])
    patches = np.flatnonzero(layout.is_kind("patch"))
    inside = [t for t in patches if (grid == t).sum() > 20]
    assert len(inside) > 0.6 * len(patches)
    for token in inside[:: max(1, len(inside) // 7)]:
        changed = smooth.copy()
        changed[grid == token] = np.random.default_rng(int(token)).integers(
            0, 256, ((grid == token).sum(), 3)
        )
        batch = model.prepare([replace(item, images=(changed,))])
        after = model.capture(batch, sites)
        for site in sites:
            part = batch.layouts["projector" if site == "projector" else "vision"][0]
            moved = (after[site][0] - before[site][0]).norm(dim=1)
            winner = int(moved.argmax())
            assert (part.row[winner], part.col[winner]) == (layout.row[token], layout.col[token])


@pytest.mark.parametrize("name", NAMES)
def test_kinds_and_boxes(make, tiny_models, name):
    batch = make(name).prepare([tiny_models.item(61, 97)])
    layout = batch.layouts["vision"][0]
    kinds = [KINDS[k] for k in layout.kind]
    n_class = 0 if "siglip" in name else 1
    n_registers = 3 if "registers" in name else 0
    assert kinds[: n_class + n_registers] == ["class"] * n_class + ["register"] * n_registers
    assert set(kinds[n_class + n_registers :]) == {"patch"}
    boxes = layout.box[layout.is_kind("patch")]
    x0, y0, x1, y1 = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
    if "siglip" in name:
        np.testing.assert_allclose([x0, y0, x1, y1], [0, 0, 97, 61], atol=1e-4)
    else:  # centre crop: square, in the middle of the wide image
        assert (x0 + x1) / 2 == pytest.approx(97 / 2, abs=1.0)
        assert x1 - x0 == pytest.approx(y1 - y0, rel=0.03)


@pytest.mark.parametrize("name", ["llava-siglip", "llava-clip"])
def test_language_layout_names_words_and_image_tokens(make, tiny_models, name):
    model = make(name)
    item = tiny_models.item(61, 97, prompt="pick up the red object")
    batch = model.prepare([item])
    layout = batch.layouts["language"][0]
    words = [text for text, k in zip(layout.text, layout.kind, strict=True) if KINDS[k] == "text"]
    assert words == "In: pick up the red object Out:".split()
    assert layout.text[0] == "<s>" and KINDS[layout.kind[0]] == "special"
    np.testing.assert_array_equal(np.flatnonzero(layout.is_kind("patch")), np.arange(1, 50))
    np.testing.assert_array_equal(layout.row[1:50], np.repeat(np.arange(7), 7))
    before = model.capture(batch, "language.0")["language.0"][0]
    other = model.prepare([replace(item, prompt="pick up the blue object")])
    after = model.capture(other, "language.0")["language.0"][0]
    assert layout.text[int((after - before).norm(dim=1).argmax())] == "red"
    # An image token: the one named for the changed patch moves most in the language model too.
    grid = token_from_pixel(batch.layouts["projector"][0].box, height=61, width=97)
    changed = item.image.copy()
    changed[grid == 17] = 255 - changed[grid == 17]
    moved = model.capture(model.prepare([replace(item, images=(changed,))]), "language.0")["language.0"][0]
    winner = int((moved - before).norm(dim=1).argmax())
    assert (layout.row[winner], layout.col[winner]) == (17 // 7, 17 % 7)


@pytest.mark.parametrize("name, site", [("clip", "text.0"), ("siglip", "text.0")])
def test_text_tower_words(make, tiny_models, name, site):
    model = make(name)
    item = tiny_models.item(prompt="a photo of the red object")
    batch = model.prepare([item])
    layout = batch.layouts["text"][0]
    assert list(layout.text) == ["<s>", *"a photo of the red object".split()]
    before = model.capture(batch, site)[site][0]
    after = model.capture(model.prepare([replace(item, prompt="a photo of the blue object")]), site)[site][0]
    assert layout.text[int((after - before).norm(dim=1).argmax())] == "red"


def test_two_cameras_follow_one_another(make, tiny_models):
    model = make("dino-registers")
    one, two = tiny_models.item(61, 97, seed=1), tiny_models.item(80, 70, seed=2)
    both = replace(one, images=(one.image, two.image), cameras=("front", "wrist"))
    batch = model.prepare([both, one])
    acts = model.capture(batch, "vision.1")["vision.1"]
    layout = batch.layouts["vision"][0]
    assert len(acts[0]) == len(layout) == 2 * len(batch.layouts["vision"][1])
    alone = model.capture(model.prepare([two]), "vision.1")["vision.1"][0]
    torch.testing.assert_close(acts[0][layout.camera == 1], alone, atol=1e-5, rtol=1e-4)


def test_image_tokens_equal_the_processors(make, tiny_models):
    """Same ids and pixel values as `LlavaProcessor`."""
    for tower, strategy, name in [("siglip", "full", "llava-siglip"), ("clip", "default", "llava-clip")]:
        item = tiny_models.item(61, 97, prompt="pick up the red object")
        processor = tiny_models.llava_processor(tower, strategy)
        given = processor(
            images=item.image, text="<image> In: pick up the red object Out:", return_tensors="pt"
        )
        batch = make(name).prepare([item])
        assert torch.equal(batch.inputs["input_ids"], given["input_ids"])
        assert torch.equal(batch.inputs["pixel_values"], torch.as_tensor(given["pixel_values"]))
