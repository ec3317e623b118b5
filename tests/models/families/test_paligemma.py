"""PaliGemma 1 and 2: the prompt is read in both directions, the answer is not."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families import vlm_tiny
from tests.models.proof import check_family, prove_patch, prove_word
from tests.models.tiny import item
from vlascope.models import Response, load

BLUE, RED = vlm_tiny.IDS["blue"], vlm_tiny.IDS["red"]


@functools.cache
def model(version: int = 1):
    return load(vlm_tiny.paligemma(version), processor=vlm_tiny.paligemma_processor())


@pytest.mark.parametrize("version", [1, 2])
def test_contract(version):
    items = [item(61, 97, name="a", prompt="pick up the red object"), item(97, 61, seed=1, name="b")]
    done = check_family(model(version), items)
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 4


def test_pixels_and_ids_equal_the_processors():
    shown = item(61, 97, prompt="pick up the red object")
    given = vlm_tiny.paligemma_processor()(images=shown.image, text="<image>pick up the red object")
    inputs = model().prepare([shown]).inputs
    for name in ("input_ids", "pixel_values", "token_type_ids"):
        assert torch.equal(inputs[name], torch.as_tensor(np.asarray(given[name]))), name


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("site", ["vision.0", "projector"])
def test_patches_are_where_the_layout_says(size, site):
    prove_patch(model(), item(*size), site)


def test_words_and_two_cameras():
    prove_word(model(), item(prompt="pick up the red object"), "language.0", old="red", new="blue")
    two = replace(item(61, 97), images=(item(61, 97).image, item(90, 40).image), cameras=("a", "b"))
    prove_patch(model(), two, "projector", n_patches=5)
    layout = model().prepare([two]).layouts["language"][0]
    np.testing.assert_array_equal(np.flatnonzero(layout.camera == 1), np.arange(49, 98))
    assert layout.text[98:] == ("<s>", "<unk>", "<unk>", "\n")  # "caption en" is unknown to this tokenizer


def test_the_prompt_sees_ahead_and_the_answer_does_not():
    asked = item(61, 97, prompt="pick up the red object")
    acts = []
    for words in ((BLUE, RED), (BLUE, BLUE), (RED, RED)):
        batch = model().prepare([asked], answers=[Response(token_ids=words)])
        acts.append(model().capture(batch, "language.1")["language.1"][0])
    prompt = model().capture(model().prepare([asked]), "language.1")["language.1"][0]
    for one in acts:
        torch.testing.assert_close(one[: len(prompt)], prompt, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(acts[0][-2], acts[1][-2], atol=1e-5, rtol=1e-4)
    assert (acts[0][-1] - acts[1][-1]).norm() > 0.01
    other = model().prepare([replace(asked, prompt="pick up the blue object")])
    ahead = model().capture(other, "language.1")["language.1"][0]
    assert (ahead[0] - prompt[0]).norm() > 1e-4  # the first patch of the image sees the words


@pytest.mark.parametrize("version", [1, 2])
def test_own_decoding_equals_generate(version):
    asked = [item(61, 97, prompt="red"), item(97, 61, seed=1, prompt="what colour is the left object")]
    together = model(version).respond(asked, max_new_tokens=6)
    for one, answer in zip(asked, together, strict=True):
        inputs = model(version).prepare([one]).inputs
        with torch.no_grad():
            out = model(version).module.generate(**inputs, max_new_tokens=6, do_sample=False)
        expected = [i for i in out[0, inputs["input_ids"].shape[1] :].tolist() if i != 2]
        assert list(answer.token_ids) == expected
