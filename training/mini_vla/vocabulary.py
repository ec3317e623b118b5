"""The word-level tokenizer and the processor of mini-vla, and the map between actions and its last ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlascope.models.actions import ActionBins
from vlascope.sim.language import PROMPT, VOCABULARY, words

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
N_WORDS = 48  # ids before the action bins: specials, words, and spare rows
N_BINS = 256
VOCAB_SIZE = N_WORDS + N_BINS
PAD, BOS, EOS, UNK, IMAGE = range(5)
WORD_IDS = {word: len(SPECIALS) + i for i, word in enumerate(dict.fromkeys(VOCABULARY))}
OUT_ID = WORD_IDS["Out:"]

DATASET = "vlascope_sim"
ACTION_NAMES = ("dx", "dy", "dz", "grip")
REACH_M = 0.25  # the xyz bins span +- this waypoint delta
BINS = ActionBins(
    vocab_size=VOCAB_SIZE,
    low=(-REACH_M, -REACH_M, -REACH_M, 0.0),
    high=(REACH_M, REACH_M, REACH_M, 1.0),
    mask=(True, True, True, True),
    names=ACTION_NAMES,
    n_bins=N_BINS,
)
# What a user's text becomes; the processor expands <image> and the tokenizer puts <s> in front.
PROMPT_TEMPLATE = "<image> " + PROMPT.format(text="{prompt}")

_cache: dict[str, np.ndarray] = {}


def prompt_ids(text: str) -> np.ndarray:
    """Ids of `In: {text} Out:` (without <s> and image tokens); the fast path of the tokenizer."""
    if text not in _cache:
        _cache[text] = np.array([WORD_IDS[w] for w in words(PROMPT.format(text=text))], dtype=np.int64)
    return _cache[text]


def norm_stats() -> dict[str, object]:
    """The action statistics as OpenVLA stores them in a model's configuration."""
    action = {
        "q01": list(BINS.low),
        "q99": list(BINS.high),
        "mask": list(BINS.mask),
        "names": list(BINS.names),
    }
    return {DATASET: {"action": action}}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose last 256 ids are `<act_000>` (highest values) to `<act_255>` (lowest)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(SPECIALS)} | WORD_IDS
    if len(vocab) > N_WORDS:
        raise ValueError(f"the language has {len(vocab)} words and specials; raise N_WORDS above {N_WORDS}.")
    vocab |= {f"<spare_{i:02d}>": i for i in range(len(vocab), N_WORDS)}
    vocab |= {f"<act_{i:03d}>": N_WORDS + i for i in range(N_BINS)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_processor(*, image_px: int, patch_px: int) -> LlavaProcessor:
    """The processor that is saved with the weights: resize, scale to [-1, 1], expand <image>."""
    from transformers import LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(
        size={"height": image_px, "width": image_px},
        resample=3,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=make_tokenizer(),
        patch_size=patch_px,
        vision_feature_select_strategy="full",
        image_token="<image>",
        num_additional_image_tokens=0,
    )
