"""Stand-ins for openpi's and LeRobot's pi0 and pi0.5 and for LeRobot's SmolVLA: same names, same calls, tiny, new.

Kept, because adapters depend on it: names of modules; the vision tower is called once per camera; sampling is a
prefix pass, then one pass of the expert per step. pi: `language_model.forward` (not the module itself) calls its
blocks; norms return (x, gate); the joint pass of training calls only the layers inside the blocks. SmolVLA: no block
is ever called; in every second block the expert makes keys and values from those of the prefix; sums are in place.
Left out: rotary positions, and everything that touches only numbers.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

HEADS, KV_HEADS, HEAD = 4, 2, 6
PREFIX_WIDTH, EXPERT_WIDTH, VOCAB = 28, 20, 300


class Norm(nn.Module):
    def __init__(self, width, cond=0, gated=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.dense = nn.Linear(cond, 3 * width) if cond else None
        self.gated = gated

    def forward(self, x, cond=None):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
        if not self.gated:
            return x
        if self.dense is None or cond is None:
            return x, None
        scale, shift, gate = self.dense(cond)[:, None].chunk(3, dim=-1)
        return x * (1 + scale) + shift, gate


class SelfAttention(nn.Module):
    def __init__(self, width, kv_in=None):
        super().__init__()
        self.head_dim = HEAD
        self.q_proj = nn.Linear(width, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(kv_in or width, KV_HEADS * HEAD, bias=False)
        self.v_proj = nn.Linear(kv_in or width, KV_HEADS * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, width, bias=False)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(width, 2 * width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, width, *, cond=0, gated=True, kv_in=None):
        super().__init__()
        self.self_attn, self.mlp = SelfAttention(width, kv_in), Mlp(width)
        self.input_layernorm = Norm(width, cond, gated)
        self.post_attention_layernorm = Norm(width, cond, gated)

    def forward(self, x, *, mask, past, cond):
        normed, gate = self.input_layernorm(x, cond)
        q, k, v = (split(getattr(self.self_attn, f"{n}_proj")(normed)) for n in "qkv")
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        x = gated(x, self.self_attn.o_proj(attend(q, k, v, mask)), gate)
        normed, gate = self.post_attention_layernorm(x, cond)
        return gated(x, self.mlp(normed), gate), (k, v)


class Stack(nn.Module):
    def __init__(self, width, n_layers, **block):
        super().__init__()
        self.layers = nn.ModuleList(Block(width, **block) for _ in range(n_layers))
        self.norm = Norm(width, block.get("cond", 0), block.get("gated", True))
        self.embed_tokens = nn.Embedding(VOCAB, width)

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, x, *, mask, past=None, cond=None):
        caches = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, mask=mask, past=past[i] if past else None, cond=cond)
            caches.append(cache)
        return self.norm(x, cond)[0], caches


def split(x):
    return x.unflatten(-1, (-1, HEAD))


def gated(x, y, gate):
    return x + y if gate is None else x + y * gate


def attend(q, k, v, mask):
    """q, k, v: [b, t, heads, HEAD]; mask: bool [b, queries, keys]."""
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=2).transpose(1, 2) for x in (k, v))
    scores = (q.transpose(1, 2) @ k.transpose(2, 3)) * HEAD**-0.5
    weights = torch.where(mask[:, None], scores, torch.finfo(scores.dtype).min).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def mask_2d(pad, blocks):
    n = blocks.cumsum(1)
    return (n[:, None, :] <= n[:, :, None]) & (pad[:, None, :] & pad[:, :, None])


def timed(time, width):
    angle = time[:, None] * torch.arange(1, width // 2 + 1)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        patch_size=8,
        image_size=40,
        vision_use_head=False,
    )
    module = SiglipVisionModel(config)
    next(m for m in module.modules() if isinstance(m, nn.Conv2d)).weight.data.normal_(0, 0.3)
    return module


class PaliGemmaModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_tower = siglip()
        self.multi_modal_projector = nn.Linear(24, PREFIX_WIDTH)
        self.language_model = Stack(PREFIX_WIDTH, 3)


class Pi0Pytorch(nn.Module):
    """`PI0Pytorch` of LeRobot (`state` given to `sample_actions`); pi0.5 with `pi05=True`."""

    def __init__(self, *, pi05=False, n_steps=1, chunk=5, dof=7, state=11):
        super().__init__()
        self.config = SimpleNamespace(
            chunk_size=chunk,
            max_action_dim=dof,
            max_state_dim=state,
            num_inference_steps=n_steps,
            image_resolution=(40, 40),
        )
        cond = EXPERT_WIDTH if pi05 else 0
        stack = self.paligemma_with_expert = nn.Module()
        stack.paligemma, stack.gemma_expert = nn.Module(), nn.Module()
        stack.paligemma.model = PaliGemmaModel()
        stack.gemma_expert.model = Stack(EXPERT_WIDTH, 3, cond=cond)
        stack.gemma_expert.model.embed_tokens = None
        self.action_in_proj = nn.Linear(dof, EXPERT_WIDTH)
        self.action_out_proj = nn.Linear(EXPERT_WIDTH, dof)
        if pi05:
            self.time_mlp_in = nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH)
            self.time_mlp_out = nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH)
        else:
            self.state_proj = nn.Linear(state, EXPERT_WIDTH)
            self.action_time_mlp_in = nn.Linear(2 * EXPERT_WIDTH, EXPERT_WIDTH)
            self.action_time_mlp_out = nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH)
        self.pi05 = pi05

    def embed_prefix(self, images, masks, tokens, text_mask):
        model = self.paligemma_with_expert.paligemma.model
        parts, pads = [], []
        for image, mask in zip(images, masks, strict=True):
            parts.append(model.multi_modal_projector(model.vision_tower(image).last_hidden_state))
            pads.append(mask[:, None].expand(-1, parts[-1].shape[1]))
        parts.append(model.language_model.get_input_embeddings()(tokens))
        x, pad = torch.cat(parts, 1), torch.cat([*pads, text_mask], 1)
        return x, pad, torch.zeros_like(pad, dtype=torch.long)

    def embed_suffix(self, state, noisy, time):
        x, t, cond, parts = self.action_in_proj(noisy), timed(time, EXPERT_WIDTH), None, []
        if self.pi05:
            cond = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(t))))
        else:
            parts.append(self.state_proj(state)[:, None])
            both = torch.cat([x, t[:, None].expand(-1, x.shape[1], -1)], -1)
            x = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
        x = torch.cat([*parts, x], 1)
        blocks = torch.zeros(x.shape[:2], dtype=torch.long)
        blocks[:, : len(parts) + 1] = 1
        return x, torch.ones_like(blocks, dtype=torch.bool), blocks, cond

    @torch.no_grad()
    def sample_actions(self, images, img_masks, tokens, masks, state=None, noise=None, num_steps=None):
        stack = self.paligemma_with_expert
        num_steps = num_steps or self.config.num_inference_steps
        x, pad, blocks = self.embed_prefix(images, img_masks, tokens, masks)
        _, caches = stack.paligemma.model.language_model.forward(x, mask=mask_2d(pad, blocks))
        for step in range(num_steps):
            time = torch.full((len(noise),), 1.0 - step / num_steps)
            y, y_pad, y_blocks, cond = self.embed_suffix(state, noise, time)
            to_prefix = pad[:, None].expand(-1, y.shape[1], -1)
            mask = torch.cat([to_prefix, mask_2d(y_pad, y_blocks)], 2)
            out, _ = stack.gemma_expert.model.forward(y, mask=mask, past=caches, cond=cond)
            noise = noise - self.action_out_proj(out[:, -self.config.chunk_size :]) / num_steps
        return noise

    @torch.no_grad()
    def joint(self, images, img_masks, tokens, masks, state, noisy, time):
        """The pass of training: both stacks side by side, blocks never called."""
        stack = self.paligemma_with_expert
        x, pad, blocks = self.embed_prefix(images, img_masks, tokens, masks)
        y, y_pad, y_blocks, cond = self.embed_suffix(state, noisy, time)
        mask = mask_2d(torch.cat([pad, y_pad], 1), torch.cat([blocks, y_blocks], 1))
        models, conds = [stack.paligemma.model.language_model, stack.gemma_expert.model], [None, cond]
        streams = [x, y]
        for layers in zip(*(model.layers for model in models), strict=True):
            normed, gates = zip(
                *(
                    layer.input_layernorm(s, cond=c)
                    for layer, s, c in zip(layers, streams, conds, strict=True)
                ),
                strict=True,
            )
            q, k, v = (
                torch.cat(
                    [
                        split(getattr(layer.self_attn, f"{name}_proj")(h))
                        for layer, h in zip(layers, normed, strict=True)
                    ],
                    1,
                )
                for name in "qkv"
            )
            mixed = attend(q, k, v, mask).split([s.shape[1] for s in streams], dim=1)
            for i, layer in enumerate(layers):
                s = gated(streams[i], layer.self_attn.o_proj(mixed[i]), gates[i])
                h, gate = layer.post_attention_layernorm(s, cond=conds[i])
                streams[i] = gated(s, layer.mlp(h), gate)
        outs = [model.norm(s, cond=c)[0] for model, s, c in zip(models, streams, conds, strict=True)]
        return self.action_out_proj(outs[1][:, -self.config.chunk_size :])


class OpenPi(Pi0Pytorch):
    """`PI0Pytorch` of openpi: three named cameras in one observation."""

    def __init__(self, **options):
        super().__init__(**options)
        config = self.config
        self.config = SimpleNamespace(
            action_horizon=config.chunk_size, action_dim=config.max_action_dim, image_resolution=(40, 40)
        )
        self.n_steps = config.num_inference_steps
        self.state_proj = nn.Linear(config.max_action_dim, EXPERT_WIDTH)

    def _preprocess_observation(self, observation, *, train=True):
        keys = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
        assert set(keys) <= set(observation.images)
        return (
            [observation.images[key] for key in keys],
            [observation.image_masks[key] for key in keys],
            observation.tokenized_prompt,
            observation.tokenized_prompt_mask,
            observation.state,
        )

    @torch.no_grad()
    def sample_actions(self, device, observation, noise=None, num_steps=10):
        self.config.chunk_size = self.config.action_horizon
        given = self._preprocess_observation(observation, train=False)
        return Pi0Pytorch.sample_actions(self, *given, noise=noise, num_steps=num_steps)


class SmolVLA(nn.Module):
    """`VLAFlowMatching` of LeRobot: blocks 0, 2 of the expert attend to themselves too, 1 and 3 to the prefix."""

    def __init__(self, *, n_steps=1, chunk=5, dof=7, state=11, special=False, prefix_length=-1):
        super().__init__()
        self.config = SimpleNamespace(
            chunk_size=chunk,
            max_action_dim=dof,
            max_state_dim=state,
            num_steps=n_steps,
            resize_imgs_with_padding=(64, 64),
            add_image_special_tokens=special,
            attention_mode="cross_attn",
            self_attn_every_n_layers=2,
            prefix_length=prefix_length,
        )
        stack = self.vlm_with_expert = nn.Module()
        stack.vlm = nn.Module()
        stack.vlm.model = self._vlm()
        stack.config = stack.vlm.model.config
        stack.vlm.model.text_model = Stack(PREFIX_WIDTH, 4, gated=False)
        stack.lm_expert = Stack(EXPERT_WIDTH, 4, gated=False)
        for i in (1, 3):
            stack.lm_expert.layers[i].self_attn = SelfAttention(EXPERT_WIDTH, kv_in=KV_HEADS * HEAD)
        stack.lm_expert.embed_tokens = None
        self.state_proj = nn.Linear(state, PREFIX_WIDTH)
        self.action_in_proj = nn.Linear(dof, EXPERT_WIDTH)
        self.action_out_proj = nn.Linear(EXPERT_WIDTH, dof)
        self.action_time_mlp_in = nn.Linear(2 * EXPERT_WIDTH, EXPERT_WIDTH)
        self.action_time_mlp_out = nn.Linear(EXPERT_WIDTH, EXPERT_WIDTH)

    @staticmethod
    def _vlm():
        from transformers import SmolVLMConfig, SmolVLMModel

        config = SmolVLMConfig(
            vision_config={
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 40,
                "patch_size": 8,
                "image_size": 64,
            },
            text_config={
                "model_type": "llama",
                "hidden_size": PREFIX_WIDTH,
                "num_hidden_layers": 1,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HEAD,
                "intermediate_size": 40,
                "vocab_size": VOCAB,
                "pad_token_id": 0,
            },
            scale_factor=2,
            pad_token_id=0,
        )
        model = SmolVLMModel(config)
        next(m for m in model.vision_model.modules() if isinstance(m, nn.Conv2d)).weight.data.normal_(0, 0.3)
        return model

    @torch.no_grad()
    def sample_actions(self, images, img_masks, lang_tokens, lang_masks, state, noise=None):
        vlm, expert = self.vlm_with_expert.vlm.model, self.vlm_with_expert.lm_expert
        parts, pads = [], []
        embed = vlm.text_model.get_input_embeddings()
        special = self.config.add_image_special_tokens
        ends = embed(torch.tensor([5, 6, 5]))[None].expand(len(state), -1, -1)
        for image, mask in zip(images, img_masks, strict=True):
            seen = vlm.connector(
                vlm.vision_model(pixel_values=image, patch_attention_mask=None).last_hidden_state
            )
            parts += [ends[:, :2], seen, ends[:, 2:]] if special else [seen]
            shown = mask[:, None].expand(-1, seen.shape[1])
            pads += [torch.ones(len(state), 2).bool(), shown, torch.ones(len(state), 1).bool()]
            pads[-3:] = pads[-3:] if special else [shown]
        parts += [embed(lang_tokens), self.state_proj(state)[:, None]]
        pads += [lang_masks, torch.ones(len(state), 1, dtype=torch.bool)]
        x, pad = torch.cat(parts, 1), torch.cat(pads, 1)
        blocks = torch.zeros_like(pad, dtype=torch.long)
        blocks[:, -1] = 1
        if (more := self.config.prefix_length - x.shape[1]) > 0:
            x, pad, blocks = F.pad(x, (0, 0, 0, more)), F.pad(pad, (0, more)), F.pad(blocks, (0, more))
        cache = []
        for layer in vlm.text_model.layers:
            q, k, v = self._qkv(layer, x)
            cache.append((k, v))
            x = self._rest(layer, x, attend(q, k, v, mask_2d(pad, blocks)))
        vlm.text_model.norm(x)
        n_steps = self.config.num_steps
        for step in range(n_steps):
            t = timed(torch.full((len(noise),), 1.0 - step / n_steps), EXPERT_WIDTH)
            y = self.action_in_proj(noise)
            both = torch.cat([y, t[:, None].expand(-1, y.shape[1], -1)], -1)
            y = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
            to_prefix = pad[:, None].expand(-1, y.shape[1], -1)
            own = torch.ones(y.shape[1], y.shape[1]).tril().bool().expand(len(y), -1, -1)
            for i, layer in enumerate(expert.layers):
                k, v = cache[i]
                if i % 2:
                    h = layer.input_layernorm(y)
                    q = split(layer.self_attn.q_proj(h))
                    k = split(layer.self_attn.k_proj(k.flatten(2)))
                    v = split(layer.self_attn.v_proj(v.flatten(2)))
                    mask = to_prefix
                else:
                    q, k_own, v_own = self._qkv(layer, y)
                    k, v = torch.cat([k, k_own], 1), torch.cat([v, v_own], 1)
                    mask = torch.cat([to_prefix, own], 2)
                y = self._rest(layer, y, attend(q, k, v, mask))
            noise = noise - self.action_out_proj(expert.norm(y)) / n_steps
        return noise

    @staticmethod
    def _qkv(layer, x):
        h = layer.input_layernorm(x)
        return tuple(split(getattr(layer.self_attn, f"{name}_proj")(h)) for name in "qkv")

    @staticmethod
    def _rest(layer, x, mixed):
        out = layer.self_attn.o_proj(mixed)
        out += x
        middle = out.clone()
        out = layer.mlp(layer.post_attention_layernorm(out))
        out += middle
        return out


class Policy(nn.Module):
    """LeRobot's policy around the model, with its configuration and (in older versions) statistics as buffers."""

    def __init__(self, model, *, stats=None, normalization=None):
        super().__init__()
        self.model, self.config = model, model.config
        if normalization:
            self.config.normalization_mapping = {
                k: SimpleNamespace(value=v) for k, v in normalization.items()
            }
        if stats:
            self.normalize_inputs = self._kept("buffer_observation_state", stats["state"])
            self.unnormalize_outputs = self._kept("buffer_action", stats["action"])

    @staticmethod
    def _kept(name, values):
        part = nn.Module()
        tensors = {k: nn.Parameter(torch.tensor(v), requires_grad=False) for k, v in values.items()}
        setattr(part, name, nn.ParameterDict(tensors))
        return part
