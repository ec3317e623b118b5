"""Idefics3 and SmolVLM: tiles, tags and the pixel shuffle as the processor and the model mean them."""

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
from vlascope.models import KINDS, load
from vlascope.models.families.idefics3 import longest_edge, multiple_of

SIZES = [(61, 97), (97, 61), (30, 31), (140, 45)]


class Parts:
    """What `load` needs of a processor, for classes that cannot be built here."""

    def __init__(self, images, tokenizer) -> None:
        self.image_processor, self.tokenizer, self.chat_template = images, tokenizer, None


@functools.cache
def model(kind: str = "idefics3", longest: int = 120, splits: bool = True):
    images = vlm_tiny.idefics3_images(kind, size={"longest_edge": longest}, do_image_splitting=splits)
    return load(vlm_tiny.idefics3(kind), processor=Parts(images, vlm_tiny.tokenizer()))


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_contract(kind):
    items = [item(61, 97, name="a", prompt="pick up the red object"), item(140, 45, seed=1, name="b")]
    done = check_family(model(kind), items)
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 4


@pytest.mark.parametrize("longest, splits", [(120, True), (48, True), (120, False)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_ids_equal_the_processors(size, longest, splits):
    shown = item(*size, prompt="pick up the red object")
    processor = vlm_tiny.idefics3_processor(size={"longest_edge": longest}, do_image_splitting=splits)
    text = "<|im_start|>User:<image>pick up the red object<end_of_utterance>\nAssistant:"
    given = processor(images=shown.image, text=text, return_tensors="pt")
    inputs = model("idefics3", longest, splits).prepare([shown]).inputs
    assert torch.equal(inputs["input_ids"], given["input_ids"])
    assert torch.equal(inputs["pixel_values"], given["pixel_values"])


@pytest.mark.parametrize("size", [(61, 97), (140, 45)])
def test_smolvlm_pixels_equal_the_processors(size):
    shown = item(*size)
    given = vlm_tiny.idefics3_images("smolvlm")(shown.image, return_tensors="pt")["pixel_values"]
    assert torch.equal(model("smolvlm").prepare([shown]).inputs["pixel_values"], given)


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("site", ["vision.0", "projector"])
def test_patches_are_where_the_layout_says(size, site):
    prove_patch(model(), item(*size), site, n_patches=5)


def test_patches_of_two_cameras_and_without_tiles():
    two = replace(item(61, 97), images=(item(61, 97).image, item(90, 40).image), cameras=("a", "b"))
    prove_patch(model(), two, "projector", n_patches=3)
    prove_patch(model("smolvlm", 120, False), two, "projector", n_patches=5)


def test_one_language_token_stands_for_scale_times_scale_patches():
    batch = model().prepare([item(61, 97)])
    tower, merged = batch.layouts["vision"][0], batch.layouts["projector"][0]
    assert len(tower) == 4 * len(merged)
    for i in range(len(merged)):
        inside = (
            (tower.tile == merged.tile[i])
            & (tower.row // 2 == merged.row[i])
            & (tower.col // 2 == merged.col[i])
        )
        boxes = tower.box[inside]
        assert len(boxes) == 4
        np.testing.assert_allclose(merged.box[i], [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)], atol=1e-3)


def test_the_pixel_shuffle_reads_the_patches_that_the_layout_names():
    """Change one patch behind the tower: only the token with its box changes at the projector."""
    batch = model().prepare([item(61, 97)])
    tower, merged = batch.layouts["vision"][0], batch.layouts["projector"][0]
    plain = model().capture(batch, "projector")["projector"][0]
    for token in (0, 7, 40, len(tower) - 1):
        with model().edit("module:model.vision_model.post_layernorm", torch.zeros_like, tokens=[token]):
            edited = model().capture(batch, "projector")["projector"][0]
        (changed,) = (edited != plain).any(dim=1).nonzero()[:, 0].tolist()
        assert (merged.tile[changed], merged.row[changed], merged.col[changed]) == (
            tower.tile[token],
            tower.row[token] // 2,
            tower.col[token] // 2,
        )


def test_words_tags_and_tiles():
    asked = item(61, 97, prompt="pick up the red object")
    prove_word(model(), asked, "language.0", old="red", new="blue")
    layout = model().prepare([asked]).layouts["language"][0]
    assert [int(n) for n in np.bincount(layout.tile[layout.is_kind("patch")])] == [9] * 7
    tags = [i for i, text in enumerate(layout.text) if text.startswith("<row_")]
    assert [layout.text[i] for i in tags][:4] == [
        "<row_1_col_1>",
        "<row_1_col_2>",
        "<row_1_col_3>",
        "<row_2_col_1>",
    ]
    for i in tags:  # the next token is the first patch of the tile that the tag announces
        row, col = int(layout.text[i].split("_")[1]), int(layout.text[i].split("_")[3].strip(">"))
        assert layout.tile[i] == layout.tile[i + 1] == (row - 1) * 3 + col - 1
        assert (layout.row[i + 1], layout.col[i + 1], layout.camera[i]) == (0, 0, 0)
        assert KINDS[layout.kind[i]] == "special"
    words = [t for t, k in zip(layout.text, layout.kind, strict=True) if KINDS[k] == "text"]
    assert "".join(words).startswith("User:pick") and "\n" in words  # the one behind <end_of_utterance>
    assert words.count("\n") == 1


def test_own_decoding_equals_generate():
    asked = [item(61, 97, prompt="red"), item(140, 45, seed=1, prompt="what colour is the left object")]
    for kind in ("idefics3", "smolvlm"):
        together = model(kind).respond(asked, max_new_tokens=5)
        for one, answer in zip(asked, together, strict=True):
            inputs = model(kind).prepare([one]).inputs
            with torch.no_grad():
                out = model(kind).module.generate(**inputs, max_new_tokens=5, do_sample=False)
            expected = [i for i in out[0, inputs["input_ids"].shape[1] :].tolist() if i != 2]
            assert list(answer.token_ids) == expected


def test_sizes_follow_transformers():
    from transformers.models.idefics3 import image_processing_pil_idefics3 as theirs

    rng = np.random.default_rng(0)
    processor = vlm_tiny.idefics3_images()
    for height, width, longest in rng.integers(3, 6000, (60, 3)).tolist():
        blank = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (3, height, width))
        assert longest_edge(height, width, longest) == theirs.get_resize_output_image_size(blank, longest)
    for height, width in rng.integers(3, 400, (40, 2)).tolist():
        blank = np.zeros((3, height, width), np.uint8)
        assert multiple_of(height, width, 48) == processor.resize_for_vision_encoder(blank, 48).shape[1:]


def test_tiles_that_the_shuffle_cannot_merge_are_refused():
    images = vlm_tiny.idefics3_images(max_image_size={"longest_edge": 40})
    with pytest.raises(InputError, match="multiple of 16"):
        load(vlm_tiny.idefics3(), processor=Parts(images, vlm_tiny.tokenizer()))


@pytest.mark.parametrize("method", ["model", "recompute"])
def test_attention_stays_inside_a_tile(method):
    shown = [item(61, 97), item(140, 45, seed=1)]
    batch = model().prepare(shown)
    first, second = model().attention(batch, "vision.0", method=method)
    layout = batch.layouts["vision"][1]
    assert first.shape[-1] == len(batch.layouts["vision"][0]) and second.shape[-1] == len(layout)
    same = torch.from_numpy(layout.tile[:, None] == layout.tile[None])
    assert (second[:, same] > 0).all() and not second[:, ~same].any()
    torch.testing.assert_close(second.sum(-1), torch.ones(second.shape[:2]))
    alone = model().attention(shown[1:], "vision.0", method=method)[0]
    torch.testing.assert_close(second, alone, atol=1e-5, rtol=1e-4)
