"""A stand-in for OpenVLA's remote code: the same module names and the same calls, tiny and written anew.

The real classes need timm 0.9 (and with it torchvision). What is kept, because adapters depend on it:
`vision_backbone.featurizer` (class token, four registers) and `.fused_featurizer` are timm vision transformers whose
`forward` is replaced by "the patches after the last block but one"; all blocks run. `projector` has three layers. The
patches are put after the first token. `language_model` is transformers' Llama. One token at a time goes only with a
cache and a batch of one, and there is no `generate`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class OpenVLAConfig(PretrainedConfig):
    model_type = "openvla"

    def __init__(
        self,
        text_config=None,
        image_sizes=(28, 28),
        tower_widths=(24, 18),
        use_fused_vision_backbone=True,
        norm_stats=None,
        n_action_bins=256,
        pad_to_multiple_of=32,
        image_resize_strategy="resize-naive",
        **kwargs,
    ):
        self.text_config = LlamaConfig(**(text_config or {}))
        self.image_sizes, self.tower_widths = list(image_sizes), list(tower_widths)
        self.use_fused_vision_backbone = use_fused_vision_backbone
        self.norm_stats, self.n_action_bins = norm_stats, n_action_bins
        self.pad_to_multiple_of, self.image_resize_strategy = pad_to_multiple_of, image_resize_strategy
        super().__init__(**kwargs)


class PatchEmbed(nn.Module):
    def __init__(self, size, patch, width):
        super().__init__()
        self.patch_size, self.grid_size = (patch, patch), (size // patch, size // patch)
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, size, patch, width, depth, num_heads, n_class, n_register):
        super().__init__()
        self.embed_dim = width
        self.patch_embed = PatchEmbed(size, patch, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width)) if n_class else None
        self.reg_token = nn.Parameter(torch.randn(1, n_register, width)) if n_register else None
        rows, cols = self.patch_embed.grid_size
        self.pos_embed = nn.Parameter(torch.randn(1, rows * cols, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def get_intermediate_layers(self, x, n):
        x = self.patch_embed(x) + self.pos_embed
        extra = [token for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in extra), x], dim=1)
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in n:
                outputs.append(x)
        n_prefix = sum(token.shape[1] for token in extra)
        return tuple(out[:, n_prefix:] for out in outputs)


def unpack_tuple(fn):
    return lambda *args, **kwargs: fn(*args, **kwargs)[0]


class PrismaticVisionBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.use_fused_vision_backbone = config.use_fused_vision_backbone
        a, b = config.tower_widths
        n_prefix = (1, 4) if self.use_fused_vision_backbone else (0, 0)
        self.featurizer = VisionTransformer(config.image_sizes[0], 4, a, 3, 3, *n_prefix)
        self._take(self.featurizer)
        self.embed_dim = a
        if self.use_fused_vision_backbone:
            self.fused_featurizer = VisionTransformer(config.image_sizes[1], 4, b, 3, 3, 0, 0)
            self._take(self.fused_featurizer)
            self.embed_dim += b

    @staticmethod
    def _take(tower):
        tower.forward = unpack_tuple(partial(tower.get_intermediate_layers, n={len(tower.blocks) - 2}))

    def forward(self, pixel_values):
        if not self.use_fused_vision_backbone:
            return self.featurizer(pixel_values)
        first, second = torch.split(pixel_values, [3, 3], dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class PrismaticProjector(nn.Module):
    def __init__(self, vision_dim, llm_dim):
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim)
        self.act_fn1, self.act_fn2 = nn.GELU(), nn.GELU()

    def forward(self, patches):
        return self.fc3(self.act_fn2(self.fc2(self.act_fn1(self.fc1(patches)))))


class OpenVLAForActionPrediction(PreTrainedModel):
    config_class = OpenVLAConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.vision_backbone = PrismaticVisionBackbone(config)
        self.projector = PrismaticProjector(self.vision_backbone.embed_dim, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module):
        pass  # as PyTorch made them

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        inputs_embeds=None,
        past_key_values=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        if input_ids.shape[1] == 1:
            assert input_ids.shape[0] == 1, "Generation is only currently supported for batch size of 1!"
            assert past_key_values is not None
            return self.language_model(
                input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache
            )
        assert past_key_values is None
        patches = self.projector(self.vision_backbone(pixel_values))
        words = self.get_input_embeddings()(input_ids)
        mask = None
        if attention_mask is not None:
            shown = torch.ones(patches.shape[:2], dtype=attention_mask.dtype, device=attention_mask.device)
            mask = torch.cat([attention_mask[:, :1], shown, attention_mask[:, 1:]], dim=1)
        out = self.language_model(
            inputs_embeds=torch.cat([words[:, :1], patches, words[:, 1:]], dim=1),
            attention_mask=mask,
            use_cache=use_cache,
            return_dict=True,
        )
        return CausalLMOutputWithPast(logits=out.logits, past_key_values=out.past_key_values)
