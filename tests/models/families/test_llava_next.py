"""LLaVA-NeXT: crops, unpadding and newline tokens as the processor and the model mean them."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families import vlm_tiny
from tests.models.proof import check_family, prove_patch, prove_word
from tests.models.tiny import item
from vlascope.errors import InputError
from vlascope.models import KINDS, Response, load
from vlascope.models.families.llava_next import NEWLINE, best_resolution, unpadded

SIZES = [(61, 97), (97, 61), (50, 53), (131, 40), (23, 90)]


@functools.cache
def model(tower: str = "clip"):
    return load(vlm_tiny.llava_next(tower), processor=vlm_tiny.llava_next_processor(tower))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_contract(tower):
    items = [item(61, 97, name="a", prompt="pick up the red object"), item(131, 40, seed=1, name="b")]
    done = check_family(model(tower), items)
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 4


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_ids_equal_the_processors(size):
    shown = item(*size, prompt="pick up the red object")
    text = "USER: <image>\npick up the red object ASSISTANT:"
    given = vlm_tiny.llava_next_processor()(images=shown.image, text=text, return_tensors="pt")
    inputs = model().prepare([shown]).inputs
    assert torch.equal(inputs["input_ids"], given["input_ids"])
    assert torch.equal(inputs["pixel_values"], given["pixel_values"][0])
    assert torch.equal(inputs["image_sizes"], given["image_sizes"])


@pytest.mark.parametrize("size", SIZES[:4])
def test_patches_are_where_the_layout_says(size):
    flat = item(*size, prompt="pick up the red object")
    prove_patch(model(), flat, "vision.0", n_patches=5)
    prove_patch(model(), flat, "projector", n_patches=5)


def test_patches_of_two_cameras():
    two = replace(item(61, 97), images=(item(61, 97).image, item(90, 40).image), cameras=("a", "b"))
    prove_patch(model("siglip"), two, "vision.0", n_patches=3)
    layout = model("siglip").prepare([two]).layouts["language"][0]
    assert set(layout.camera[layout.is_kind("patch")].tolist()) == {0, 1}


def test_words_before_and_after_the_image():
    asked = item(61, 97, prompt="pick up the red object")
    prove_word(model(), asked, "language.0", old="red", new="blue")
    layout = model().prepare([asked]).layouts["language"][0]
    first, last = np.flatnonzero(layout.is_kind("patch"))[[0, -1]]
    assert layout.text[:first] == ("<s>", "USER", ":")
    # The newline that ends the last row of the image comes before the words.
    assert layout.text[last + 1 : last + 4] == (NEWLINE, "\n", "pick")


@pytest.mark.parametrize("size", [(61, 97), (97, 61), (131, 40)])
def test_language_tokens_are_the_projected_patches_they_name(size):
    """What the projector gave for (tile, row, column) enters the language model at that token; else newlines."""
    shown = item(*size, prompt="red")
    batch = model().prepare([shown])
    entered = []
    handle = model().module.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: entered.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        acts = model().capture(batch, ["projector", "language.0"])
    finally:
        handle.remove()
    projected, language = batch.layouts["projector"][0], batch.layouts["language"][0]
    at = {
        (t, r, c): i
        for i, (t, r, c) in enumerate(zip(projected.tile, projected.row, projected.col, strict=True))
    }
    for i in np.flatnonzero(language.is_kind("patch")):
        source = at[language.tile[i], language.row[i], language.col[i]]
        assert torch.equal(entered[0][0, i], acts["projector"][0][source])
        np.testing.assert_allclose(language.box[i], projected.box[source])
    newlines = [i for i, text in enumerate(language.text) if text == NEWLINE]
    assert KINDS[language.kind[newlines[0]]] == "special"
    assert torch.equal(entered[0][0, newlines], model().module.model.image_newline.expand(len(newlines), -1))
    ids = batch.inputs["input_ids"][0] == vlm_tiny.IDS["<image>"]
    assert ids.sum() == language.is_kind("patch").sum() + len(newlines)


def test_an_edit_counts_tokens_as_the_layout_does():
    """Row numbers of a layout go on over the crops: token 60 lies in the third one."""
    shown = item(61, 97, prompt="red")
    batch = model().prepare([shown])
    layout = batch.layouts["projector"][0]
    plain = model().capture(batch, "projector")["projector"][0]
    with model().edit("projector", torch.zeros_like, tokens=[60]):
        edited = model().capture(batch, ["projector", "language.0"])
    changed = (edited["projector"][0] != plain).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == [60] and layout.tile[60] == 2


def test_own_decoding_equals_generate():
    asked = [item(61, 97, prompt="red"), item(131, 40, seed=1, prompt="what colour is the left object")]
    together = model().respond(asked, max_new_tokens=6)
    for one, answer in zip(asked, together, strict=True):
        inputs = model().prepare([one]).inputs
        with torch.no_grad():
            out = model().module.generate(**inputs, max_new_tokens=6, do_sample=False)
        expected = [i for i in out[0, inputs["input_ids"].shape[1] :].tolist() if i != 2]
        assert list(answer.token_ids) == expected


def test_answers_are_read_after_the_prompt():
    asked = item(61, 97, prompt="red")
    plain = model().capture(model().prepare([asked]), "language.1")["language.1"][0]
    batch = model().prepare([asked], answers=[Response(token_ids=(vlm_tiny.IDS["blue"],))])
    acts = model().capture(batch, "language.1")["language.1"][0]
    assert batch.layouts["language"][0].text[-1] == "blue" and len(acts) == len(plain) + 1
    torch.testing.assert_close(acts[:-1], plain, atol=1e-5, rtol=1e-4)


def test_resolutions_and_unpadding_follow_transformers():
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    rng = np.random.default_rng(0)
    for height, width in rng.integers(5, 400, (200, 2)).tolist():
        best = best_resolution(height, width, [(h, w) for h, w in vlm_tiny.PINPOINTS])
        assert best == tuple(select_best_resolution((height, width), vlm_tiny.PINPOINTS))
        grid = torch.arange(best[0] // 8 * (best[1] // 8)).view(1, best[0] // 8, best[1] // 8)
        assert torch.equal(
            grid[0][unpadded(grid.shape[1:], height=height, width=width)],
            unpad_image(grid, (height, width))[0],
        )


def test_files_that_contradict_each_other_are_refused():
    other = vlm_tiny.llava_next_processor()
    other.image_processor.image_grid_pinpoints = [[40, 80]]
    with pytest.raises(InputError, match="image_grid_pinpoints"):
        load(vlm_tiny.llava_next(), processor=other)
    with pytest.raises(InputError, match="has no image"):
        model().prepare([replace(item(61, 97), images=())])
    with pytest.raises(InputError, match="no prompt contains it"):
        model().prepare([item(61, 97, prompt="red <image> blue")])
