"""Tiny random-weight models of the real classes, and items to show them."""

from __future__ import annotations

import functools

import numpy as np
import torch

from vlascope.items.item import Item

WORDS = "In: Out: pick up the red blue fragile object what colour is left right a photo of".split()
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
N_WORDS, N_BINS = 32, 256


def fixed_seed(make):
    """Build once, with weights that do not depend on what ran before, and leave the global state alone."""

    @functools.cache
    def wrapper(*args, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module = make(*args, **kwargs).eval()
        return module

    return wrapper


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate([*SPECIALS, *WORDS])}
    vocab |= {f"<spare_{i}>": i for i in range(len(vocab), N_WORDS)}
    vocab |= {f"<act_{i:03d}>": N_WORDS + i for i in range(N_BINS)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


def _vision(**more):
    return {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "patch_size": 8,
    } | more


@fixed_seed
def llava(tower: str = "siglip", strategy: str = "full", layer: int = -1, actions: bool = True):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    if tower == "siglip":
        vision = SiglipVisionConfig(image_size=56, vision_use_head=False, **_vision())
    else:
        vision = CLIPVisionConfig(image_size=56, **_vision())
    text = LlamaConfig(
        hidden_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=44,
        vocab_size=N_WORDS + N_BINS,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    config.vlascope_prompt = "<image> In: {prompt} Out:"
    config.vlascope_default_prompt = "pick up the red object"
    if actions:
        low, high = [-0.25, -0.25, -0.25, 0.0], [0.25, 0.25, 0.25, 1.0]
        config.norm_stats = {"sim": {"action": {"q01": low, "q99": high, "mask": [True] * 4}}}
        config.n_action_bins = N_BINS
    return LlavaForConditionalGeneration(config)


def llava_processor(tower: str = "siglip", strategy: str = "full"):
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if tower == "siglip":
        images = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    else:
        images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if tower == "clip" else 0,
    )


@fixed_seed
def clip(kind: str = "clip", whole: bool = True):
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionModel,
        SiglipConfig,
        SiglipModel,
        SiglipVisionModel,
    )

    vision = _vision(image_size=40)
    text = {
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 36,
        "vocab_size": N_WORDS + N_BINS,
        "max_position_embeddings": 13,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "clip":
        config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
        return CLIPModel(config) if whole else CLIPVisionModel(config.vision_config)
    config = SiglipConfig(vision_config=vision, text_config=text | {"projection_size": 20})
    return SiglipModel(config) if whole else SiglipVisionModel(config.vision_config)


@fixed_seed
def dino(registers: bool = False):
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    common = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 70,
        "patch_size": 14,
    }
    if registers:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=3, **common))
    return Dinov2Model(Dinov2Config(**common))


def item(
    height: int = 61, width: int = 97, *, seed: int = 0, name: str = "x", prompt: str | None = None
) -> Item:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Item(item_id=name, images=(image,), prompt=prompt)


def items(n: int = 3) -> list[Item]:
    prompts = ["pick up the red object", "what colour is the left object", "pick up the fragile blue object"]
    return [item(61 + i, 97 - 5 * i, seed=i, name=f"i{i}", prompt=prompts[i % 3]) for i in range(n)]
