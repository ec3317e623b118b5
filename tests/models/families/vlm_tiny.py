"""Tiny random-weight vision-language models of the real classes, with tokenizers and processors built here."""

from __future__ import annotations

from tests.models.tiny import N_BINS, N_WORDS, WORDS, fixed_seed

SPECIALS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)),
]
PLAIN = [*WORDS, "\n", "user", "User", "USER", "Assistant", "ASSISTANT", ":", "."]
N_VOCAB = len(SPECIALS) + len(PLAIN) + 3
IDS = {word: i for i, word in enumerate([*SPECIALS, *PLAIN])}
assert N_WORDS + N_BINS > N_VOCAB


def tokenizer(*, bos: bool = True):
    """Return a word-level tokenizer that knows the placeholders of all these families."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(dict(IDS), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Split(Regex(" "), "removed"),
            pre_tokenizers.Split(Regex("(?<=[A-Za-z]):"), "isolated"),
        ]
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIALS[4:],
        clean_up_tokenization_spaces=False,
    )


def text(**more):
    return {
        "hidden_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 44,
        "vocab_size": N_VOCAB,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | more


def vision(**more):
    return {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "patch_size": 8,
    } | more


PINPOINTS = [[40, 80], [80, 40], [80, 80], [120, 40]]


@fixed_seed
def llava_next(tower: str = "clip"):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        SiglipVisionConfig,
    )

    clip = CLIPVisionConfig(image_size=40, **vision())
    siglip = SiglipVisionConfig(image_size=40, vision_use_head=False, **vision())
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=clip if tower == "clip" else siglip,
            text_config=LlamaConfig(**text()),
            image_token_id=IDS["<image>"],
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-2 if tower == "clip" else -1,
            vision_feature_select_strategy="default" if tower == "clip" else "full",
        )
    )


def llava_next_processor(tower: str = "clip"):
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        num_additional_image_tokens=1 if tower == "clip" else 0,
    )


@fixed_seed
def idefics3(kind: str = "idefics3"):
    import transformers

    prefix = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    config_class = getattr(transformers, f"{prefix}Config")
    model_class = getattr(transformers, f"{prefix}ForConditionalGeneration")
    config = config_class(
        vision_config=vision(image_size=48),
        text_config=transformers.LlamaConfig(**text()),
        image_token_id=IDS["<image>"],
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return model_class(config)


def idefics3_images(kind: str = "idefics3", **more):
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    make = Idefics3ImageProcessorPil if kind == "idefics3" else SmolVLMImageProcessorPil
    options = {"size": {"longest_edge": 120}, "max_image_size": {"longest_edge": 48}} | more
    return make(**options)


def idefics3_processor(**more):
    from transformers import Idefics3Processor

    return Idefics3Processor(idefics3_images(**more), tokenizer(), image_seq_len=9)


@fixed_seed
def paligemma(version: int = 1):
    from transformers import (
        Gemma2Config,
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    options = text()
    words = GemmaConfig(**options) if version == 1 else Gemma2Config(**options, query_pre_attn_scalar=6)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(image_size=56, vision_use_head=False, **vision()),
        text_config=words,
        image_token_index=IDS["<image>"],
        projection_dim=28,
        hidden_size=28,
        vocab_size=N_VOCAB,
    )
    return PaliGemmaForConditionalGeneration(config)


def paligemma_processor():
    from transformers import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 49
    # As Gemma's tokenizer does when the processor sets its add_bos_token to False.
    words = tokenizer(bos=True)
    words._tokenizer.post_processor = tokenizer(bos=False)._tokenizer.post_processor
    words.image_token, words.image_token_id = "<image>", IDS["<image>"]
    return PaliGemmaProcessor(image_processor=images, tokenizer=words)


@fixed_seed
def qwen(kind: str = "qwen2_5_vl"):
    import transformers

    prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    config_class = getattr(transformers, f"{prefix}Config")
    model_class = getattr(transformers, f"{prefix}ForConditionalGeneration")
    words = text(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]})
    words |= {"hidden_size": 32, "head_dim": 8}
    tower = {"depth": 3, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if kind == "qwen2_vl":
        tower |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        words.pop("head_dim")
    elif kind == "qwen2_5_vl":
        tower |= {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 32}
        tower |= {"window_size": 32, "fullatt_block_indexes": [1]}
        words.pop("head_dim")
    else:
        tower |= {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 32}
        tower |= {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    return model_class(
        config_class(
            vision_config=tower,
            text_config=words,
            image_token_id=IDS["<|image_pad|>"],
            video_token_id=IDS["<|video_pad|>"],
            vision_start_token_id=IDS["<|vision_start|>"],
            vision_end_token_id=IDS["<|vision_end|>"],
        )
    )


def qwen_images(**more):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    options = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2VLImageProcessorPil(**options, min_pixels=32 * 32, max_pixels=80 * 96, **more)
