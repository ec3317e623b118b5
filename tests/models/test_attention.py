"""Attention weights: equal to what transformers reports, by both ways of getting them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.models import tiny
from vlascope.errors import InputError, SiteNotFoundError
from vlascope.models import Grid, wrap
from vlascope.models.attention import block_diagonal, recording, weights_from

NAMES = ["llava-siglip", "llava-clip", "clip", "siglip", "dino", "dino-registers"]


def _reference(model, batch):
    """{layout: the weights of each block} by transformers, with eager attention from the start."""
    kind = type(model.module)
    twin = kind._from_config(model.module.config, attn_implementation="eager").eval()
    twin.load_state_dict(model.module.state_dict())
    if model.family == "clip":
        out = {
            "vision": twin.vision_model(batch.inputs["pixel_values"], output_attentions=True).attentions,
            "text": twin.text_model(batch.inputs["input_ids"], output_attentions=True).attentions,
        }
    elif model.family == "llava":
        tower = twin.model.vision_tower
        out = {
            "vision": tower(batch.inputs["pixel_values"], output_attentions=True).attentions,
            "language": twin(**batch.inputs, output_attentions=True).attentions,
        }
    else:
        out = {"vision": twin(**batch.inputs, output_attentions=True).attentions}
    model.module.set_attn_implementation("sdpa")  # `_from_config` shares the configuration
    return out


@pytest.mark.parametrize("method", ["model", "recompute"])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_what_transformers_reports(make, tiny_models, name, method):
    model = make(name)
    items = tiny_models.items(3)  # prompts of different lengths: padding on the right
    batch = model.prepare(items)
    n_checked = 0
    with torch.no_grad():
        reference = _reference(model, batch)
    for layout, blocks in reference.items():
        for i, block in enumerate(blocks):
            for row, got in enumerate(model.attention(items, f"{layout}.{i}", method=method)):
                n = len(batch.layouts[layout][row])
                assert got.shape[1:] == (n, n)
                torch.testing.assert_close(got, block[row][:, :n, :n].float(), atol=2e-6, rtol=1e-4)
                n_checked += 1
    assert n_checked >= 9


def _decoder(kind):
    import transformers

    common = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "vocab_size": 50,
        "head_dim": 6,
        "pad_token_id": 0,
    }
    if kind == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common))
    if kind == "window":
        config = transformers.Qwen2Config(
            **common, use_sliding_window=True, sliding_window=3, max_window_layers=0
        )
        return transformers.Qwen2ForCausalLM(config)
    if kind in _OTHERS:
        name, more = _OTHERS[kind]
        fitting = {k: v for k, v in common.items() if kind == "nemotron" or k != "head_dim"}
        config = getattr(transformers, f"{name}Config")(**fitting, **more)
        return getattr(transformers, f"{name}ForCausalLM")(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))


# What else happens to q and k before the product: parts of heads that turn, norms, clipping.
_OTHERS = {
    "phi": ("Phi", {"partial_rotary_factor": 0.34}),
    "phi-norms": ("Phi", {"partial_rotary_factor": 0.34, "qk_layernorm": True}),
    "stablelm": ("StableLm", {"partial_rotary_factor": 0.34}),
    "stablelm-norms": ("StableLm", {"partial_rotary_factor": 0.34, "qk_layernorm": True}),
    "olmo": ("Olmo", {"clip_qkv": 0.05}),
    "olmo2": ("Olmo2", {}),
    "nemotron": ("Nemotron", {"partial_rotary_factor": 0.34}),
}


class Tokens(nn.Module):
    """Shows each pixel's red value to a decoder as a token, so that `wrap` can hold it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(input_ids=(pixels[:, 0].flatten(1) * 49).long(), use_cache=False)


def _as_language(kind):
    from vlascope.models.structure import block_sites

    with torch.random.fork_rng():
        torch.manual_seed(3)
        inner = _decoder(kind).eval()
    with torch.no_grad():
        for name, value in inner.named_parameters():
            if any(part[:2] in ("q_", "k_") and "norm" in part for part in name.split(".")):
                value.copy_(torch.linspace(0.5, 2, value.numel()))
    model = wrap(Tokens(inner), sites=["model.model.layers.*"], layout=Grid(1, 11))
    model.__dict__["sites"] = tuple(
        block_sites(model.module, blocks="model.model.layers", name="language", layout="vision", width=24)
    )
    return model, inner


@pytest.mark.parametrize("kind", ["llama", "qwen3", "window", *_OTHERS])
def test_rotary_positions_grouped_heads_norms_and_windows(kind):
    model, inner = _as_language(kind)
    item = tiny.item(1, 11)
    batch = model.prepare([item])
    ids = (batch.inputs["pixel_values"][:, 0].flatten(1) * 49).long()
    for i in range(2):
        got = [model.attention(batch, f"language.{i}", method=m)[0] for m in ("model", "recompute")]
        inner.set_attn_implementation("eager")
        with torch.no_grad():
            want = inner(input_ids=ids, output_attentions=True).attentions[i][0]
        inner.set_attn_implementation("sdpa")
        assert want.shape == (4, 11, 11)
        for weights in got:
            torch.testing.assert_close(weights, want, atol=2e-6, rtol=1e-4)
        if kind == "window":
            assert not want[:, 10, :8].any()


@pytest.mark.parametrize("change", ["norm", "rotation"])
def test_what_happens_to_q_and_k_in_an_unknown_way_is_an_error(change):
    model, inner = _as_language("llama")
    attention = inner.model.layers[1].self_attn
    if change == "norm":
        attention.qk_norm, said = nn.LayerNorm(6), "cannot work out.*qk_norm"
    else:
        attention.head_dim, said = 6, "in a way of its own.*method='model'"
        attention.q_norm = nn.LayerNorm(5)
    with pytest.raises(InputError, match=said):
        model.attention(model.prepare([tiny.item(1, 11)]), "language.1", method="recompute")


def test_a_head_of_q_is_that_head_of_the_weights(make, tiny_models):
    model = make("llava-siglip")
    items = tiny_models.items(1)
    plain = model.attention(items, "language.1")[0]
    with model.edit("language.1.q.h2", torch.zeros_like):
        edited = model.attention(items, "language.1")[0]
    n = plain.shape[-1]
    uniform = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
    torch.testing.assert_close(edited[2], uniform)
    for head in (0, 1, 3):
        assert torch.equal(edited[head], plain[head])
    assert not torch.allclose(plain[2], uniform, atol=1e-3)


def test_nothing_stays_behind(make, tiny_models):
    model = make("llava-siglip")
    items = tiny_models.items(2)
    before = model.capture(model.prepare(items), "**")
    scope = type(model.module.model.language_model.layers[0].self_attn).forward.__globals__
    original = scope["eager_attention_forward"]
    model.attention(items, "language.0")
    with pytest.raises(RuntimeError, match="in between"):
        with recording(model.module, ["model.language_model.layers.0.self_attn"]):
            raise RuntimeError("in between")
    assert scope["eager_attention_forward"] is original
    assert (
        model.module.config._attn_implementation
        == "sdpa"
        == model.module.config.text_config._attn_implementation
    )
    after = model.capture(model.prepare(items), "**")
    assert all(torch.equal(a, b) for s in before for a, b in zip(before[s], after[s], strict=True))


def test_several_images_do_not_look_at_one_another(make, tiny_models):
    model = make("dino-registers")
    one, two = tiny_models.item(61, 97, seed=1), tiny_models.item(80, 70, seed=2)
    both = replace(one, images=(one.image, two.image), cameras=("front", "wrist"))
    for method in ("model", "recompute"):
        weights = model.attention([both], "vision.1", method=method)[0]
        n = weights.shape[-1] // 2
        assert not weights[:, :n, n:].any() and not weights[:, n:, :n].any()
        alone = model.attention([two], "vision.1", method=method)[0]
        torch.testing.assert_close(weights[:, n:, n:], alone, atol=1e-6, rtol=1e-4)


class PlainAttention(nn.Module):
    """Attention in the manner of timm: one projection, no weights handed out."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 2, 3, 3**-0.5
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 2, 3).permute(2, 0, 3, 1, 4)
        self.seen = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((self.seen @ v).transpose(1, 2).reshape(b, t, 6))


class PlainNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.blocks = nn.ModuleList([nn.Sequential()])
        self.blocks[0].attn = PlainAttention()

    def forward(self, x):
        return self.blocks[0].attn(self.embed(x).flatten(2).transpose(1, 2))


def test_modules_without_weights_of_their_own(tiny_models):
    from vlascope.models.structure import block_sites

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(PlainNet(), sites=["blocks.0.attn"], layout=Grid(3, 5))
    model.__dict__["sites"] = tuple(
        block_sites(model.module, blocks="blocks", name="vision", layout="vision", width=6)
    )
    items = [tiny_models.item(12, 20, seed=i) for i in range(2)]
    got = model.attention(items, "vision.0")
    seen = model.module.blocks[0].attn.seen.detach()
    for weights, want in zip(got, seen, strict=True):
        torch.testing.assert_close(weights, want)
    with pytest.raises(InputError, match="never hands out.*recompute"):
        model.attention(items, "vision.0", method="model")
    model.module.blocks[0].attn.rel_pos_h = nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match="cannot work out.*rel_pos_h"):
        model.attention(items, "vision.0")


@pytest.mark.parametrize(
    ("site", "error", "said"),
    [
        ("projector", InputError, "it has no queries.*vision.0 .. language.1"),
        ("vision.*", InputError, "names 3 sites"),
        ("vision.9", SiteNotFoundError, "Nearest"),
    ],
)
def test_sites_without_weights(make, tiny_models, site, error, said):
    with pytest.raises(error, match=said):
        make("llava-siglip").attention(tiny_models.items(1), site)


def test_other_ways_to_name_the_block(make, tiny_models):
    model, items = make("llava-siglip"), tiny_models.items(1)
    whole = model.attention(items, "language.1")[0]
    for name in ("language.-1", "language.1.mlp", "language.1.weights", "language.1.q"):
        assert torch.equal(model.attention(items, name)[0], whole)
    with pytest.raises(InputError, match="method 'eager'"):
        model.attention(items, "language.1", method="eager")


def test_weights_from_is_the_formula():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(5, 8, generator=g), torch.randn(7, 4, generator=g)
    got = weights_from(q, k, n_heads=4, n_kv_heads=2, scale=0.3, softcap=2.0)
    for h in range(4):
        logits = 2 * torch.tanh(q[:, 2 * h : 2 * h + 2] @ k[:, 2 * (h // 2) : 2 * (h // 2) + 2].T * 0.3 / 2)
        torch.testing.assert_close(got[h], logits.softmax(-1))
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[:, 2] = False
    assert not weights_from(q, k, n_heads=4, n_kv_heads=2, mask=mask)[..., 2].any()
    with pytest.raises(InputError, match="do not fit"):
        weights_from(q, k, n_heads=4)
    assert block_diagonal([torch.ones(2, 3, 3), torch.ones(2, 1, 1)]).sum() == 2 * 10


def test_a_family_may_know_better(make, tiny_models, monkeypatch):
    model, items = make("dino"), tiny_models.items(1)
    given = [torch.zeros(1)]
    monkeypatch.setattr(
        model._family, "attention", lambda batch, *, site: given if site.tensor == "q" else None
    )
    assert model.attention(items, "vision.0") is given


def test_positions_and_masks_that_are_not_known_are_errors(tiny_models):
    """Parts of a block called one by one, or a rotation inside: q and k alone would give wrong weights."""
    from vlascope.models.structure import block_sites

    class LeafOnly(PlainNet):
        def forward(self, x):
            return self.blocks[0].attn.qkv(self.embed(x).flatten(2).transpose(1, 2))

    for net in (LeafOnly(), PlainNet()):
        model = wrap(net, sites=["blocks.0.attn"], layout=Grid(3, 5))
        model.__dict__["sites"] = tuple(
            block_sites(model.module, blocks="blocks", name="vision", layout="vision", width=6)
        )
        said = "never calls 'blocks.0.attn' itself"
        if type(net) is PlainNet:
            net.blocks[0].attn.rope = nn.Identity()
            said = r"in a way of its own \(rope\)"
        with pytest.raises(InputError, match=said):
            model.attention([tiny_models.item(12, 20)], "vision.0")
