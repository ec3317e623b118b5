"""The fast packed pass equals the plain Hugging Face model, segment by segment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.mini_vla.network import Size, build_model, encode_image, packed_forward
from training.mini_vla.vocabulary import (
    BINS,
    BOS,
    IMAGE,
    N_BINS,
    PROMPT_TEMPLATE,
    VOCAB_SIZE,
    make_processor,
    prompt_ids,
)

SMALL = Size(
    image_px=24, patch_px=8, width=32, vision_layers=3, vision_mlp=40, language_layers=3, language_mlp=48
)
TEXTS = ("pick up the red object", "put the blue rigid object on the pad", "is the gripper open?")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(SMALL, seed=3).eval()


def _pack(rows: list[np.ndarray], n_patches: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(np.concatenate(rows))
    positions = torch.cat([torch.arange(len(r)) + 1 + n_patches for r in rows])
    segments = torch.cat([torch.full((len(r),), i) for i, r in enumerate(rows)])
    return ids[None], positions[None], segments[None]


def test_packed_segments_equal_plain_forward(model: torch.nn.Module) -> None:
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    action = BINS.encode(np.array([0.1, -0.2, 0.05, 1.0]))
    rows = [np.concatenate([prompt_ids(t), action]) for t in TEXTS]
    with torch.no_grad():
        states, _ = packed_forward(model, encode_image(model, pixels), *_pack(rows, 9))
        fast = model.lm_head(states)[0]
        start = 0
        for row in rows:
            plain_ids = torch.tensor([[BOS, *[IMAGE] * 9, *row.tolist()]])
            plain = model(input_ids=plain_ids, pixel_values=pixels).logits[0, 10:]
            torch.testing.assert_close(fast[start : start + len(row)], plain, atol=2e-5, rtol=1e-4)
            start += len(row)


def test_gradients_equal_plain_forward(model: torch.nn.Module) -> None:
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    row = prompt_ids(TEXTS[0])
    model.zero_grad()
    states, _ = packed_forward(model, encode_image(model, pixels), *_pack([row], 9))
    model.lm_head(states).square().mean().backward()
    fast = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ids = torch.tensor([[BOS, *[IMAGE] * 9, *row.tolist()]])
    model(input_ids=ids, pixel_values=pixels).logits[:, 10:].square().mean().backward()
    plain = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert fast.keys() == plain.keys() and len(fast) > 60
    for name, grad in plain.items():
        torch.testing.assert_close(fast[name], grad, atol=1e-6, rtol=2e-3, msg=name)


def test_keeping_every_patch_changes_nothing(model: torch.nn.Module) -> None:
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    every = torch.arange(9).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(encode_image(model, pixels, every), encode_image(model, pixels))
        few = encode_image(model, pixels, every[:, [1, 5, 7]])
    assert few.shape == (2, 3, 32)


def test_processor_round_trip(tmp_path: object) -> None:
    from transformers import AutoProcessor

    processor = make_processor(image_px=24, patch_px=8)
    processor.save_pretrained(str(tmp_path))
    loaded = AutoProcessor.from_pretrained(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for text in TEXTS:
        batch = loaded(images=image, text=PROMPT_TEMPLATE.format(prompt=text), return_tensors="pt")
        expected = [BOS, *[IMAGE] * 9, *prompt_ids(text).tolist()]
        assert batch["input_ids"][0].tolist() == expected
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
        torch.testing.assert_close(batch["pixel_values"][0], pixels, atol=1e-6, rtol=0)
    tokenizer = loaded.tokenizer
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.convert_ids_to_tokens([VOCAB_SIZE - 1, VOCAB_SIZE - N_BINS]) == [
        "<act_255>",
        "<act_000>",
    ]
    assert tokenizer.decode([VOCAB_SIZE - 1, BOS]) == "<act_255> <s>"
