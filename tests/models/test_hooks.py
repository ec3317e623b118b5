"""Reading and editing: one mechanism, nothing left behind, nothing silently without effect."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from vlascope.errors import HookNotFiredError, InputError, SiteNotFoundError
from vlascope.models import Grid, Site, wrap
from vlascope.models.structure import block_sites, split_qkv

NAMES = ["llava-siglip", "llava-clip", "clip", "siglip", "dino-registers"]


def _all(model, batch):
    return model.capture(batch, "**")


@pytest.mark.parametrize("name", NAMES)
def test_identity_edits_change_no_bit_and_no_hook_stays(make, tiny_models, name):
    model = make(name)
    batch = model.prepare(tiny_models.items(2))
    before = _all(model, batch)
    for site in model.sites:
        with model.edit(site, lambda x: x):
            after = model.capture(batch, model.sites[-1:])
        assert torch.equal(after[model.sites[-1].name][1], before[model.sites[-1].name][1])
    assert model._hooks.n_hooked == 0
    again = _all(model, batch)
    assert all(torch.equal(a, b) for site in before for a, b in zip(before[site], again[site], strict=True))


def test_every_tensor_is_what_transformers_says(make, tiny_models):
    model = make("dino")
    batch = model.prepare([tiny_models.item()])
    acts = _all(model, batch)
    out = model.module(**batch.inputs, output_hidden_states=True)
    for i, state in enumerate(out.hidden_states[1:]):
        assert torch.equal(acts[f"vision.{i}"][0], state[0])
    block = model.module.encoder.layer[1]
    normed = block.norm1(out.hidden_states[1])
    torch.testing.assert_close(acts["vision.1.q"][0], block.attention.q_proj(normed)[0])
    torch.testing.assert_close(acts["vision.1.v"][0], block.attention.v_proj(normed)[0])


def test_an_edit_reaches_the_projector_though_transformers_records_hidden_states(make, tiny_models):
    """LLaVA's projector reads what a hook of transformers recorded; ours has to come first."""
    for name, last in [("llava-siglip", "vision.2"), ("llava-clip", "vision.1")]:
        model = make(name)
        batch = model.prepare(tiny_models.items(2))
        before = model.capture(batch, ["projector", "language.1"])  # installs transformers' hooks
        with model.edit(last, torch.zeros_like):
            after = model.capture(batch, [last, "projector", "language.1"])
        assert not after[last][0].any()
        assert (after["projector"][0] - before["projector"][0]).abs().max() > 1e-4
        assert torch.equal(after["projector"][0][0], after["projector"][0][5])  # all patches alike now


def test_nested_edits_compose_in_the_order_entered(make, tiny_models):
    model = make("dino")
    batch = model.prepare([tiny_models.item()])
    plain = model.capture(batch, "vision.1")["vision.1"][0]
    with model.edit("vision.1", lambda x: x + 1), model.edit("vision.1", lambda x: x * 2):
        both = model.capture(batch, "vision.1")["vision.1"][0]
    torch.testing.assert_close(both, (plain + 1) * 2)


def test_edits_of_some_tokens(make, tiny_models):
    model = make("llava-siglip")
    batch = model.prepare(tiny_models.items(3))
    before = model.capture(batch, "language.0")["language.0"]
    masks = {i: [j in (3, 11) for j in range(len(x))] for i, x in enumerate(batch.layouts["language"])}
    for tokens in ([3, 11], torch.tensor([3, 11]), masks):
        with model.edit("language.0", lambda x: x.mul_(0), tokens=tokens):
            after = model.capture(batch, "language.0")["language.0"]
        for a, b in zip(after, before, strict=True):
            assert not a[[3, 11]].any()
            keep = [i for i in range(len(a)) if i not in (3, 11)]
            assert torch.equal(a[keep], b[keep])


def test_edits_of_answer_tokens_reach_the_decoder(make, tiny_models):
    model = make("llava-siglip")
    item = tiny_models.items(1)[0]
    n_prompt = len(model.prepare([item]).layouts["language"][0])
    seen = []

    def spy(x):
        seen.append(tuple(x.shape))
        return x

    plain = model.respond([item], max_new_tokens=4)[0]
    with model.edit("language.1", spy, tokens=[n_prompt + 1]):
        assert model.respond([item], max_new_tokens=4)[0].token_ids == plain.token_ids
    assert seen == [(1, 1, 28)]
    noise = torch.randn(28, generator=torch.Generator().manual_seed(0)) * 50
    with model.edit("language.1", lambda x: noise.expand_as(x), tokens=[n_prompt]):
        changed = model.respond([item], max_new_tokens=4)[0]
    assert changed.token_ids[0] == plain.token_ids[0] and changed.token_ids[1:] != plain.token_ids[1:]


def test_hooks_go_also_after_an_exception(make, tiny_models):
    model = make("clip")
    batch = model.prepare([tiny_models.item()])

    def fail(_):
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own"), model.edit("vision.1", fail):
        model.capture(batch, "vision.*")
    assert model._hooks.n_hooked == 0
    assert not any(m._forward_hooks for m in model.module.modules() if type(m) is nn.Linear)
    with pytest.raises(InputError, match="returned shape"), model.edit("vision.1", lambda x: x[:, 1:]):
        model.capture(batch, "vision.1")
    for tokens in (None, [1]):
        elsewhere = model.edit("vision.1", lambda x: x.to("meta"), tokens=tokens)
        with pytest.raises(InputError, match="returned a tensor on meta.*site is on cpu"), elsewhere:
            model.capture(batch, "vision.1")
    with pytest.raises(InputError, match="does not exist"), model.edit("vision.1", torch.neg, tokens=[999]):
        model.capture(batch, "vision.1")
    with pytest.raises(InputError, match="names 3 sites"), model.edit("vision.*", torch.neg):
        pass


@pytest.mark.parametrize("tokens", [None, [1]])
@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "returned None: does it lack its `return`"), (0, "returned int, which is no tensor"),
     (np.zeros((1, 26, 24), np.float32), "returned ndarray, which is no tensor")],
)  # fmt: skip
def test_an_edit_has_to_return_a_tensor(make, tiny_models, value, said, tokens):
    model = make("clip")
    batch = model.prepare([tiny_models.item()])
    shape = r"Need a torch tensor of shape \(1, 26, 24\) on cpu"
    with pytest.raises(InputError, match=f"'vision.1' {said}.*{shape}"):
        with model.edit("vision.1", lambda x: value, tokens=tokens):
            model.capture(batch, "vision.1")


class Named(NamedTuple):
    hidden: torch.Tensor
    note: str


class Several(nn.Module):
    """Gives its tokens with something beside them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"named": Named(x, "kept"), "tuple": (x, "kept"), "list": [x, "kept"]}[self.kind]


class Unpacks(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.several, self.last = Several(kind), nn.Identity()
        self.seen = None

    def forward(self, x):
        self.seen = self.several(x.flatten(2).transpose(1, 2))
        return self.last(self.seen[0])


@pytest.mark.parametrize("kind", ["named", "tuple", "list"])
def test_modules_that_return_several_things(tiny_models, kind):
    model = wrap(Unpacks(kind), sites=["several", "last"], layout=Grid(3, 5))
    batch = model.prepare([tiny_models.item(3, 5)])
    plain = model.capture(batch, "several")["several"][0]
    with model.edit("several", lambda x: x + 1, tokens=[2]):
        edited = model.capture(batch, "last")["last"][0]
    assert (edited != plain).any(dim=1).nonzero()[:, 0].tolist() == [2]
    assert type(model.module.seen) is {"named": Named, "tuple": tuple, "list": list}[kind]
    assert model.module.seen[1] == "kept"


class LeafOnly(nn.Module):
    """Calls the parts of its block itself, as joint passes of robot models do: block hooks never fire."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(2)])
        self.dead = nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.relu(block[1](block[0](x)))
        return x


def test_a_site_that_is_not_reached_is_an_error(tiny_models):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(LeafOnly(), sites=["blocks.*", "blocks.1.1", "dead"], layout=Grid(3, 5))
    batch = model.prepare([tiny_models.item(12, 20)])
    for site in ("blocks.0", "dead"):
        with pytest.raises(HookNotFiredError, match=f"'{site}'"):
            model.capture(batch, site)
    # An in-place ReLU follows this leaf: what was read must be the values before it.
    assert (model.capture(batch, "blocks.1.1")["blocks.1.1"][0] < 0).any()


def test_an_edit_that_no_pass_reaches_is_an_error(tiny_models):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(LeafOnly(), sites=["blocks.*", "blocks.1.1", "dead"], layout=Grid(3, 5))
    batch = model.prepare([tiny_models.item(12, 20)])
    for site, tokens in (("blocks.0", None), ("dead", None), ("dead", [3])):
        said = f"'{site}'.*was not reached by the forward pass of LeafOnly.*(Nearest:|There are) 'blocks"
        with pytest.raises(HookNotFiredError, match=said):
            with model.edit("blocks.1.1", lambda x: x), model.edit(site, torch.zeros_like, tokens=tokens):
                model.capture(batch, "blocks.1.1")
    assert model._hooks.n_hooked == 0
    with model.edit("dead", torch.zeros_like):
        pass  # nothing was run
    with pytest.raises(ZeroDivisionError), model.edit("dead", torch.zeros_like):
        model.capture(batch, "blocks.1.1")
        raise ZeroDivisionError  # is not hidden behind ours


def test_an_edit_waits_for_a_pass_that_is_to_reach_it(make, tiny_models):
    """Passes stop where what they are asked for is known: an edit behind that place is no mistake."""
    model = make("llava-siglip")
    batch = model.prepare(tiny_models.items(2))
    plain = [r.token_ids for r in model.respond(tiny_models.items(2), max_new_tokens=2)]
    with model.edit("language.0", lambda x: x.flip(-1) * 9):
        model.capture(batch, "vision.1, projector")
    with model.edit("language.0", lambda x: x.flip(-1) * 9), model.edit("vision.0", lambda x: x):
        model.capture(batch, "vision.1")
        edited = [r.token_ids for r in model.respond(tiny_models.items(2), max_new_tokens=2)]
    assert edited != plain
    model = make("clip")
    batch = model.prepare(tiny_models.items(2))
    for read, other in (("vision.1", "text.1"), ("text.1", "vision.1")):
        with model.edit(other, torch.zeros_like):
            model.capture(batch, read)


def test_an_edit_that_an_answer_does_not_reach_is_an_error(make, tiny_models, monkeypatch):
    model = make("llava-siglip")
    layer = model.module.model.language_model.layers[1]
    monkeypatch.setattr(layer.mlp, "forward", lambda x: x)
    up = "module:model.language_model.layers.1.mlp.up_proj"
    with model.edit(up, torch.zeros_like):
        model.capture(model.prepare(tiny_models.items(1)), "vision.0, projector")
    for run in (
        lambda: model.respond(tiny_models.items(1), max_new_tokens=3),
        lambda: model.capture(model.prepare(tiny_models.items(1)), "language.0"),
    ):
        with pytest.raises(HookNotFiredError, match=r"'module:.*up_proj' \(module 'model"):
            with model.edit(up, torch.zeros_like):
                run()


def test_a_model_that_ignores_the_image_is_an_error(make, tiny_models, monkeypatch):
    model = make("llava-siglip")
    batch = model.prepare(tiny_models.items(1))
    inner = model.module.model

    def blind(input_ids, pixel_values=None, **more):
        return type(inner).forward(inner, input_ids=input_ids, **more)

    monkeypatch.setattr(inner, "forward", blind)
    with pytest.raises(HookNotFiredError, match="did not look at the image"):
        model.capture(batch, "language.0")
    with pytest.raises(HookNotFiredError, match="did not look at the image"):
        model.respond(tiny_models.items(1))


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(6, 18)
        self.attn.proj = nn.Linear(6, 6)
        self.mlp = nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.attn.qkv(x).chunk(3, -1)
        return x + self.mlp(self.attn.proj(q * k + v))


def test_fused_projections_are_split_for_reading_and_editing():
    module = nn.Sequential(nn.Sequential(Fused(), Fused()))
    sites = {s.name: s for s in block_sites(module, blocks="0", name="vision", layout="vision", width=6)}
    assert sites["vision.1.k"].module_path == "0.1.attn.qkv" and sites["vision.1.k"].channels == (6, 12)
    assert {s.tensor for s in sites.values()} == {"out", "q", "k", "v", "attn", "mlp"}
    from vlascope.models.hooks import Hooks

    hooks, x = Hooks(module), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    whole = Site(name="whole", module_path="0.1.attn.qkv", layout="vision")
    with torch.no_grad(), hooks.editing(sites["vision.1.k"], lambda k: k * 0):
        with hooks.reading([sites["vision.1.v"], whole]) as calls:
            module(x)
    assert torch.equal(calls["vision.1.v"][0], calls["whole"][0][..., 12:])
    assert not calls["whole"][0][..., 6:12].any() and calls["whole"][0][..., :6].any()
    assert split_qkv(10, "v", widths=(6, 2, 2)) == (8, 10)


def test_native_paths(make, tiny_models):
    model = make("llava-siglip")
    batch = model.prepare(tiny_models.items(2))
    path = "module:model.language_model.layers.1.post_attention_layernorm"
    acts = model.capture(batch, [path, "language.1"])
    assert [len(a) for a in acts[path]] == [len(a) for a in acts["language.1"]]
    with pytest.raises(SiteNotFoundError, match=r"layers\.1"):
        model.resolve("module:model.language_model.layers.1.nothing")
    with pytest.raises(SiteNotFoundError, match="cannot tell"):
        model.resolve("module:lm_head")


def test_batches_do_not_change_results(make, tiny_models):
    """Texts of different lengths are padded; padding shows neither in rows nor in values."""
    items = tiny_models.items(3)
    for name in ("llava-siglip", "clip", "siglip"):
        model = make(name)
        together = _all(model, model.prepare(items))
        for i, item in enumerate(items):
            batch = model.prepare([item])
            alone = _all(model, batch)
            for site in model.sites:
                assert len(alone[site.name][0]) == len(batch.layouts[site.layout][0])
                torch.testing.assert_close(together[site.name][i], alone[site.name][0], atol=2e-5, rtol=1e-4)
        again = _all(model, model.prepare(items))
        assert all(torch.equal(a, b) for s in together for a, b in zip(together[s], again[s], strict=True))


def test_an_empty_prompt_is_not_a_missing_one(make, tiny_models):
    model = make("llava-siglip")
    none, empty = tiny_models.item(), replace(tiny_models.item(), prompt="")
    assert model.prepare([none]).prompts == ("pick up the red object",)
    assert model.prepare([empty]).prompts == ("",)
