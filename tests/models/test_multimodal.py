"""Prompts and images put together: templates, cameras, checkpoints on disk, answers that are actions."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families import vlm_tiny
from tests.models.tiny import item
from vlascope.errors import InputError
from vlascope.models import load, plain_tokens
from vlascope.models.multimodal import place, take

CHAT = (
    "{% for message in messages %}User:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def two_cameras():
    one, two = item(61, 97), item(90, 40, seed=1)
    return replace(one, images=(one.image, two.image), cameras=("front", "wrist"), prompt="red")


def paligemma(**config):
    module = copy.deepcopy(vlm_tiny.paligemma())
    for key, value in config.items():
        setattr(module.config, key, value)
    return load(module, processor=vlm_tiny.paligemma_processor())


@pytest.mark.parametrize("kind", ["llava_next", "idefics3"])
def test_a_checkpoint_on_disk_is_the_module_it_was_saved_from(tmp_path, kind):
    module, processor = getattr(vlm_tiny, kind)(), getattr(vlm_tiny, f"{kind}_processor")()
    module.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    shown = [item(61, 97, prompt="red")]
    there, here = load(tmp_path), load(module, processor=processor)
    assert there.family == here.family
    a, b = (m.capture(m.prepare(shown), "language.1")["language.1"][0] for m in (there, here))
    assert torch.equal(a, b)


def test_the_chat_template_gets_an_entry_per_image():
    processor = vlm_tiny.llava_next_processor()
    processor.chat_template = CHAT
    model = load(vlm_tiny.llava_next(), processor=processor)
    layout = model.prepare([two_cameras()]).layouts["language"][0]
    assert layout.text[:3] == ("<s>", "User", ":")
    assert layout.text[-4:] == ("red", "\n", "Assistant", ":")
    cameras = layout.camera[layout.camera >= 0]
    assert (np.diff(cameras) >= 0).all() and set(cameras.tolist()) == {0, 1}


def test_a_fixed_prompt_says_how_many_images_are_read(caplog):
    model = paligemma(vlascope_prompt="<image><s>left {prompt} right\n", vlascope_default_prompt="blue")
    with caplog.at_level(logging.WARNING, logger="vlascope.models.multimodal"):
        layout = model.prepare([two_cameras()]).layouts["language"][0]
        model.prepare([two_cameras()])
    assert [record.message for record in caplog.records] == [
        "items have 2 cameras; this model reads the first 1"
    ]
    assert layout.text[49:] == ("<s>", "left", "red", "right", "\n")
    assert model.prepare([item(61, 97)]).prompts == ("blue",)
    pair = paligemma(vlascope_prompt="<image><image><s>{prompt}\n")
    with pytest.raises(InputError, match=r"has 1 image\(s\); this model reads 2"):
        pair.prepare([item(61, 97, prompt="red")])


def test_a_model_without_its_tokenizer_says_so():
    model = load(vlm_tiny.paligemma())
    with pytest.raises(InputError, match="no tokenizer came with it"):
        model.prepare([item(61, 97, prompt="red")])


def test_placing_and_taking_tokens():
    words = plain_tokens("text", ["a", "x", "b", "x"])
    new = plain_tokens("special", ["1", "2"])
    placed = place(words, np.array([1, 3]), new)
    assert placed.text == ("a", "1", "b", "2")
    assert placed.is_kind("special").tolist() == [False, True, False, True]
    assert take(placed, slice(1, 3)).text == ("1", "b") and take(placed, [3, 0]).text == ("2", "a")
