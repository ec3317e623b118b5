"""Single heads of q, k and v: named, read and edited as sites of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlascope.errors import SiteNotFoundError
from vlascope.models.hooks import Hooks
from vlascope.models.structure import block_sites, fused_widths, head_dim


def test_grouped_heads_are_counted_per_tensor(make):
    sites = {site.name: site for site in make("llava-siglip").sites}
    assert [sites[f"language.0.{t}"].n_heads for t in "qkv"] == [4, 2, 2]
    assert {sites[f"language.0.{t}"].head_dim for t in "qkv"} == {6}
    assert sites["language.0"].n_heads == sites["language.0.attn"].n_heads == 0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("vision.1.q.h2", ["vision.1.q.h2"]),
        ("vision.-1.k.h-1", ["vision.2.k.h3"]),
        ("vision.0.v.h1:3", ["vision.0.v.h1", "vision.0.v.h2"]),
        ("language.*.k.h*", [f"language.{i}.k.h{h}" for i in (0, 1) for h in (0, 1)]),
        ("vision.0.q.h1,vision.0.q", ["vision.0.q", "vision.0.q.h1"]),
    ],
)
def test_patterns_of_heads(make, pattern, expected):
    assert [site.name for site in make("llava-siglip").resolve(pattern)] == expected


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("language.0.k.h2", "the heads of 'language.0.k' run 0..1"),
        ("vision.0.mlp.h0", "no heads"),
        ("vision.9.q.h0", "Nearest"),
        ("vision.0.q.h7:9", "run 0..3"),
    ],
)
def test_heads_that_do_not_exist(make, pattern, said):
    with pytest.raises(SiteNotFoundError, match=said):
        make("llava-siglip").resolve(pattern)


def test_a_head_is_a_slice_for_reading_and_editing(make, tiny_models):
    model = make("llava-siglip")
    batch = model.prepare(tiny_models.items(2))
    plain = model.capture(batch, ["language.0.k", "language.0.k.h1", "language.0"])
    for whole, head in zip(plain["language.0.k"], plain["language.0.k.h1"], strict=True):
        assert torch.equal(head, whole[:, 6:12])
    with model.edit("language.0.k.h1", torch.zeros_like, tokens=[3]):
        edited = model.capture(batch, ["language.0.k", "language.0"])
    whole, before = edited["language.0.k"][0], plain["language.0.k"][0].clone()
    assert not whole[3, 6:].any()
    before[3, 6:] = 0
    assert torch.equal(whole, before)
    assert not torch.equal(edited["language.0"][0], plain["language.0"][0])


class Grouped(nn.Module):
    """Four query heads, one key and value head, of width 3, in one projection."""

    def __init__(self):
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.num_heads, self.self_attn.head_dim = 4, 3
        self.self_attn.qkv_proj = nn.Linear(5, 18)
        self.mlp = nn.Linear(18, 5)

    def forward(self, x):
        return x + self.mlp(self.self_attn.qkv_proj(x))


def test_heads_of_a_fused_projection_of_grouped_heads():
    module = nn.Sequential(nn.Sequential(Grouped()))
    sites = {s.name: s for s in block_sites(module, blocks="0", name="vision", layout="vision", width=5)}
    assert [sites[f"vision.0.{t}"].channels for t in "qkv"] == [(0, 12), (12, 15), (15, 18)]
    head = sites["vision.0.q"].head(2)
    assert (head.channels, head.width, head.n_heads) == ((6, 9), 3, 1)
    hooks, x = Hooks(module), torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    with (
        torch.no_grad(),
        hooks.editing(head, torch.zeros_like),
        hooks.reading([sites["vision.0.q"]]) as calls,
    ):
        module(x)
    q = calls["vision.0.q"][0].unflatten(-1, (4, 3))
    assert not q[:, :, 2].any() and q[:, :, [0, 1, 3]].abs().min() > 0


def test_what_modules_tell_of_their_heads():
    attention = nn.Module()
    assert head_dim(attention) == 0 and fused_widths(attention, 12) is None
    attention.qkv, attention.num_heads = nn.Linear(4, 24), 2
    assert head_dim(attention) == 4 and fused_widths(attention, 24) is None
    attention.num_heads = 3  # 8 channels are not three heads
    assert head_dim(attention) == 0
