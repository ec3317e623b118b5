"""Language models without images: GPT-2's fused layers, grouped heads, answers equal to `generate`."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.models.proof import check_family, prove_word
from vlascope.errors import InputError
from vlascope.items.item import Item
from vlascope.models import load

PROMPTS = ("pick up the red object", "what colour is the left object")
COMMON = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 44,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@functools.cache
def _model(name, words_and_bins):
    import tiny_models
    import transformers

    common = COMMON | {"vocab_size": words_and_bins}
    without_head_dim = {key: value for key, value in common.items() if key != "head_dim"}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=24,
            n_layer=3,
            n_head=4,
            n_positions=64,
            vocab_size=words_and_bins,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "llama": lambda: transformers.LlamaConfig(**common),
        "qwen2": lambda: transformers.Qwen2Config(**without_head_dim),
        "qwen3": lambda: transformers.Qwen3Config(**common),
        "gemma2": lambda: transformers.Gemma2Config(**common),
        "phi3": lambda: transformers.Phi3Config(**without_head_dim),
        "opt": lambda: transformers.OPTConfig(
            hidden_size=24,
            word_embed_proj_dim=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            ffn_dim=40,
            max_position_embeddings=64,
            vocab_size=words_and_bins,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=44,
            max_position_embeddings=64,
            rotary_pct=0.34,
            vocab_size=words_and_bins,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "nemotron": lambda: transformers.NemotronConfig(**common),  # no family lists it: told by its build
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = transformers.AutoModelForCausalLM.from_config(configs[name]()).eval()
    return load(module, processor=tiny_models.tokenizer())


@pytest.fixture
def text(tiny_models):
    return lambda name: _model(name, tiny_models.N_WORDS + tiny_models.N_BINS)


def _items():
    return [Item(item_id=f"t{i}", images=(), prompt=prompt) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox", "opt", "nemotron"]
)
def test_contract(text, name):
    model = text(name)
    assert model.family == "text" and model.answers
    done = check_family(model, _items())
    missing = {"mlp"} if name == "opt" else set()  # OPT's feed-forward part flattens its tokens
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} - missing
    assert done.layouts == {"language"}
    assert done.n_split == 3
    for site in ("embed", "language.0"):
        prove_word(model, _items()[0], site, old="red", new="blue")


def test_sites_follow_the_grouped_heads(text):
    widths = {site.name: site.width for site in text("phi3").sites}
    assert (widths["language.0.q"], widths["language.0.k"], widths["language.0.v"]) == (24, 12, 12)
    widths = {site.name: site.width for site in text("gpt2").sites}
    assert (widths["embed"], widths["language.2.k"], widths["language.2.mlp"]) == (24, 24, 24)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gpt_neox", "opt"])
def test_own_decoding_equals_generate(text, name):
    model = text(name)
    together = model.respond(_items(), max_new_tokens=6)
    for item, answer in zip(_items(), together, strict=True):
        ids = model.prepare([item]).inputs["input_ids"]
        out = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
        expected = out[0, ids.shape[1] :].tolist()
        expected = expected[:-1] if expected[-1] == 2 else expected
        assert list(answer.token_ids) == expected and answer.text is not None


def test_answers_are_read_after_the_prompt(text):
    model = text("llama")
    batch = model.prepare(_items())
    before = [len(layout) for layout in batch.layouts["language"]]
    acts = model.capture(batch, "language.1", with_answer=True)["language.1"]
    assert batch.answers is not None
    for n, answer, values in zip(before, batch.answers, acts, strict=True):
        assert len(values) == n + len(answer.token_ids)


def test_hidden_states_are_those_of_transformers(text):
    model = text("qwen3")
    batch = model.prepare(_items()[:1])
    acts = model.capture(batch, ["embed", "language.0", "language.1"])
    with torch.no_grad():
        states = model.module(**batch.inputs, output_hidden_states=True).hidden_states
    for site, state in zip(("embed", "language.0", "language.1"), states, strict=False):
        torch.testing.assert_close(acts[site][0], state[0])


def test_what_cannot_be_read_is_named(text, tiny_models):
    model = text("llama")
    with pytest.raises(InputError, match="'x' has no prompt"):
        model.prepare([Item(item_id="x", images=())])
    with pytest.raises(InputError, match="has 71 tokens; this model reads 64"):
        model.prepare([Item(item_id="x", images=(), prompt=" ".join(["red"] * 70))])
    with pytest.raises(InputError, match="no tokenizer"):
        load(text("llama").module).prepare(_items())
    item = Item(item_id="x", images=(np.zeros((4, 5, 3), np.uint8),), prompt=PROMPTS[0])
    with_image, without = model.prepare([item]), model.prepare(_items()[:1])
    assert torch.equal(with_image.inputs["input_ids"], without.inputs["input_ids"])


def test_heads_of_gpt_neox_lie_apart_in_one_layer(text):
    """Its layer gives q, k, v of head 0, then those of head 1, ...: four heads of six."""
    model = text("gpt_neox")
    sites = {site.name: site for site in model.sites}
    assert [(sites[f"language.1.{t}"].width, sites[f"language.1.{t}"].n_heads) for t in "qkv"] == [
        (24, 4)
    ] * 3
    batch = model.prepare(_items()[:1])
    layer = model.module.gpt_neox.layers[1].attention.query_key_value
    fused = []
    handle = layer.register_forward_hook(lambda _module, _args, out: fused.append(out))
    names = [f"language.1.{t}{h}" for t in "qkv" for h in ("", ".h2")]
    acts = model.capture(batch, names)
    with model.edit("language.1.k.h2", torch.zeros_like, tokens=[1]):
        edited = model.capture(batch, ["language.1.q", "language.1.k", "language.1.v", "language.1"])
    handle.remove()
    plain, changed = (x[0].detach().view(-1, 4, 3, 6) for x in fused)
    for j, tensor in enumerate("qkv"):
        assert torch.equal(acts[f"language.1.{tensor}"][0], plain[:, :, j].flatten(1))
        assert torch.equal(acts[f"language.1.{tensor}.h2"][0], plain[:, 2, j])
    places = (changed != plain).any(dim=-1).nonzero().tolist()
    assert places == [[1, 2, 1]] and not changed[1, 2, 1].any()
    assert not edited["language.1.k"][0][1, 12:18].any()


def test_attention_of_gpt_neox(text):
    model = text("gpt_neox")
    batch = model.prepare(_items())
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        want = model.module(**batch.inputs, output_attentions=True).attentions
    model.module.set_attn_implementation("sdpa")
    for method in ("auto", "model", "recompute"):
        for row, got in enumerate(model.attention(batch, "language.2", method=method)):
            n = len(batch.layouts["language"][row])
            torch.testing.assert_close(got, want[2][row][:, :n, :n], atol=2e-6, rtol=1e-4)
