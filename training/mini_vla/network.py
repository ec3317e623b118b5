"""The model, its initial weights, and a fast packed forward pass for training on a CPU.

The model is a plain `LlavaForConditionalGeneration`. For training, one image prefix is shared by several text
segments (instructions, questions) in one sequence: text tokens see the prefix and their own segment only, and
positions restart after the prefix. `packed_forward` reads the weights of the Hugging Face modules but runs its
own loop over the layers, which is 1.6 to 2 times faster than the modules themselves; a test holds the two equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.mini_vla.vocabulary import BOS, EOS, IMAGE, N_BINS, PAD, PROMPT_TEMPLATE, VOCAB_SIZE, norm_stats

N_CLASSES = 12  # background, arm, gripper, pad, 4 colours x 2 materials


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of the network."""

    image_px: int = 112
    patch_px: int = 8
    width: int = 128
    heads: int = 4
    vision_layers: int = 6
    vision_mlp: int = 384
    language_layers: int = 6
    language_mlp: int = 352

    @property
    def side(self) -> int:
        """Patches per row and per column."""
        return self.image_px // self.patch_px

    @property
    def n_patches(self) -> int:
        """Image tokens."""
        return self.side**2


def build_model(size: Size, *, seed: int) -> Any:
    """A `LlavaForConditionalGeneration` of the given size with fresh weights (float32, eager attention)."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.vision_mlp,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.heads,
        image_size=size.image_px,
        patch_size=size.patch_px,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=size.width,
        intermediate_size=size.language_mlp,
        num_hidden_layers=size.language_layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=size.n_patches,
        tie_word_embeddings=False,
    )
    config.norm_stats = norm_stats()
    config.n_action_bins = N_BINS
    config.vlascope_prompt = PROMPT_TEMPLATE
    config.vlascope_default_prompt = "pick up the red object"  # for pictures that come without an instruction
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    _initialise(model, size, generator=torch.Generator().manual_seed(seed + 1))
    model.generation_config.pad_token_id = PAD
    model.generation_config.bos_token_id = BOS
    model.generation_config.eos_token_id = EOS
    return model


@torch.no_grad()
def _initialise(model: Any, size: Size, *, generator: torch.Generator) -> None:
    """Scaled normal weights; neighbouring action bins start alike; positions start as 2-D waves."""
    for name, p in model.named_parameters():
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name:
            std = 0.7 / math.sqrt(p.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
                std /= math.sqrt(2 * size.language_layers) / 1.5
            p.normal_(0.0, std, generator=generator)
    language, tower = model.model.language_model, vision_module(model)
    u = torch.linspace(-1, 1, N_BINS).flip(0)[:, None]  # the first action id has the highest value
    k = torch.arange(1, 13)[None] * math.pi / 2
    waves = torch.cat([u, torch.sin(k * u) / k.sqrt(), torch.cos(k * u) / k.sqrt()], 1)
    for rows, std in ((language.embed_tokens.weight, 0.1), (model.lm_head.weight, 0.04)):
        rows.normal_(0.0, std, generator=generator)
        smooth = waves @ torch.randn(waves.shape[1], size.width, generator=generator)
        rows[-N_BINS:] = smooth / smooth.std() * std
    position = tower.embeddings.position_embedding.weight
    side, quarter = size.side, size.width // 4
    frequency = math.pi * 2.0 ** (torch.arange(quarter) / quarter * 4 - 1)
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    angles = axis[:, None] * frequency[None] / 2
    row = torch.cat([angles.sin(), angles.cos()], 1)  # [side, width / 2]
    grid = torch.cat([row[:, None].expand(side, side, -1), row[None].expand(side, side, -1)], -1)
    position.copy_(0.3 * grid.reshape(side * side, size.width))


def vision_module(model: Any) -> Any:
    """The vision transformer inside the tower (transformers versions nest it differently)."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


class AuxiliaryHeads(nn.Module):
    """Heads used only while training; they are not saved with the model."""

    def __init__(self, size: Size, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patch_class = nn.Linear(size.width, N_CLASSES)  # on the vision output
            self.query = nn.Linear(size.width, 64)  # on the last prompt token ...
            self.key = nn.Linear(size.width, 64)  # ... pointing at image tokens inside the language model
            self.delta = nn.Linear(size.width, 3)  # metres / REACH_M, on the last prompt token


class _Attend(torch.autograd.Function):
    """softmax(q k' + bias) v with a backward pass that makes two passes over the weights instead of six."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            scores = q @ k.transpose(-1, -2)
            if bias is not None:
                scores += bias
            weights = torch.softmax(scores, -1)
            out = weights @ v
        ctx.save_for_backward(q, k, v, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q, k, v, weights, out = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grad_v = weights.transpose(-1, -2) @ grad
            scores = grad @ v.transpose(-1, -2)
            scores -= (grad * out).sum(-1, keepdim=True)
            scores *= weights
            return scores @ k, scores.transpose(-1, -2) @ q, grad_v, None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention over already scaled queries; [b, heads, n, d]."""
    return _Attend.apply(q, k, v, bias)  # type: ignore[no-any-return]


def _heads(x: Tensor, heads: int, parts: int) -> Tensor:
    b, n, _ = x.shape
    return x.view(b, n, parts, heads, -1).permute(2, 0, 3, 1, 4)


def _merge(x: Tensor) -> Tensor:
    b, h, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, h * d)


def encode_image(model: Any, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
    """The vision tower's output, [b, n_kept, width].

    Args:
        model: The LLaVA model.
        pixels: float [b, 3, image_px, image_px] in [-1, 1].
        keep: int64 [b, n_kept] patches to process (None for all): training may leave out background.
    """
    tower = vision_module(model)
    config = model.config.vision_config
    b, p = pixels.shape[0], config.patch_size
    side = config.image_size // p
    x = pixels.view(b, 3, side, p, side, p).permute(0, 2, 4, 1, 3, 5).reshape(b, side * side, 3 * p * p)
    place = tower.embeddings.position_embedding.weight.expand(b, -1, -1)
    if keep is not None:
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        place = place.gather(1, keep[..., None].expand(-1, -1, place.shape[-1]))
    conv = tower.embeddings.patch_embedding
    h = F.linear(x, conv.weight.flatten(1), conv.bias).to(place.dtype) + place
    scale = (config.hidden_size // config.num_attention_heads) ** -0.5
    for layer in tower.encoder.layers:
        a = layer.self_attn
        weight = torch.cat([a.q_proj.weight * scale, a.k_proj.weight, a.v_proj.weight])
        bias = torch.cat([a.q_proj.bias * scale, a.k_proj.bias, a.v_proj.bias])
        q, k, v = _heads(F.linear(layer.layer_norm1(h), weight, bias), config.num_attention_heads, 3)
        h = h + a.out_proj(_merge(attend(q, k, v)))
        h = h + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.layer_norm2(h)), approximate="tanh"))
    return h  # LLaVA reads the last block's output: `post_layernorm` is in the file but unused


def packed_forward(
    model: Any, features: Tensor, ids: Tensor, positions: Tensor, segments: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Final hidden states of packed text segments that share one image prefix.

    Args:
        model: The LLaVA model.
        features: Vision output, [b, n_patches, width].
        ids: int64 [b, t] text tokens, segments one after the other.
        positions: int64 [b, t]; the first token after the image has position 1 + all patches (also with `keep`).
        segments: int64 [b, t] number of the segment; padding has -1.
        keep: As in `encode_image`.

    Returns:
        Normed text states [b, t, width] (the input of `lm_head`) and the image tokens' states before the last
        layer, [b, n_patches, width]. The last layer of the image tokens is never computed: no text needs it.
    """
    projector, language = model.model.multi_modal_projector, model.model.language_model
    config = model.config.text_config
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    b, n_image = features.shape[:2]
    image = projector.linear_2(F.gelu(projector.linear_1(features)))
    start = language.embed_tokens.weight[BOS].expand(b, 1, -1)
    h = torch.cat([start, image.to(start.dtype), language.embed_tokens(ids)], 1)
    n_prefix = 1 + n_image
    place = keep if keep is not None else torch.arange(n_image).expand(b, -1)
    cos, sin = language.rotary_emb(
        h, torch.cat([torch.zeros(b, 1, dtype=place.dtype), place + 1, positions], 1)
    )
    half = cos.shape[-1] // 2
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else h.dtype
    cos = cos[:, None].to(dtype)
    sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, None].to(dtype)

    with torch.no_grad():  # additive masks, shared by all layers
        same = segments[:, :, None] == segments[:, None, :]
        t = torch.arange(ids.shape[1])
        open_ = same & (t[:, None] >= t[None, :])
        text_bias = torch.zeros(b, 1, ids.shape[1], n_prefix + ids.shape[1], dtype=dtype)
        text_bias[:, 0, :, n_prefix:].masked_fill_(~open_, float("-inf"))
        causal = torch.full((n_prefix, n_prefix), float("-inf")).triu(1).to(dtype)
    cut = n_prefix // 2  # two causal blocks: the upper right quarter is never computed
    scale = config.head_dim**-0.5
    last = len(language.layers) - 1
    image_states = h
    for i, layer in enumerate(language.layers):
        a = layer.self_attn
        n = F.rms_norm(h, (h.shape[-1],), layer.input_layernorm.weight, eps)
        weight = torch.cat([a.q_proj.weight * scale, a.k_proj.weight, a.v_proj.weight])
        qkv = _heads(F.linear(n, weight), heads, 3)
        qk = qkv[:2]
        qk = qk * cos + torch.cat([qk[..., half:], qk[..., :half]], -1) * sin
        (q, k), v = qk, qkv[2]
        text = attend(q[:, :, n_prefix:], k, v, text_bias)
        if i < last:
            first = attend(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], causal[:cut, :cut])
            second = attend(q[:, :, cut:n_prefix], k[:, :, :n_prefix], v[:, :, :n_prefix], causal[cut:])
            mixed = torch.cat([first, second, text], 2)
        else:
            image_states = h[:, 1:n_prefix]
            mixed, h = text, h[:, n_prefix:]
        h = h + a.o_proj(_merge(mixed))
        n = F.rms_norm(h, (h.shape[-1],), layer.post_attention_layernorm.weight, eps)
        h = h + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(n)) * layer.mlp.up_proj(n))
    return F.rms_norm(h, (h.shape[-1],), language.norm.weight, eps), image_states
