"""The proofs hold for the tiny models, and each of them can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.proof import check_family, prove_patch, prove_word
from vlascope.models import Grid, TokenLayout, wrap

NAMES = [
    "llava-siglip",
    "llava-clip",
    "clip",
    "clip-vision",
    "siglip",
    "siglip-vision",
    "dino",
    "dino-registers",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_tiny_model_keeps_the_contract(make, tiny_models, name):
    done = check_family(make(name), tiny_models.items(2))
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"}
    assert done.n_split >= 3 and done.n_sites >= 18


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
def test_patches_and_words(make, tiny_models, name, size):
    model = make(name)
    item = tiny_models.item(*size, prompt="pick up the red object")
    assert prove_patch(model, item, "vision.0", n_patches=5) >= 4
    names = {site.name for site in model.sites}
    if "projector" in names:
        assert prove_patch(model, item, "projector", n_patches=5) >= 4
        assert prove_patch(model, item, "language.0", n_patches=5, is_flat=False) >= 4
        prove_word(model, item, "language.0", old="red", new="blue")
    elif "text.0" in names:
        prove_word(model, item, "text.0", old="red", new="blue")


def test_two_cameras(make, tiny_models):
    one, two = tiny_models.item(61, 97), tiny_models.item(80, 70, seed=2)
    both = replace(one, images=(one.image, two.image), cameras=("front", "wrist"))
    assert prove_patch(make("dino-registers"), both, "vision.0", n_patches=3) >= 4


def _shuffled(layout: TokenLayout) -> TokenLayout:
    """The same tokens with rows and columns exchanged: a wrong layout."""
    patch = np.flatnonzero(layout.is_kind("patch"))
    side = int(len(patch) ** 0.5)
    order = np.arange(len(layout))
    order[patch] = patch.reshape(side, side).T.reshape(-1)
    return replace(layout, row=layout.row[order], col=layout.col[order], box=layout.box[order])


def test_a_wrong_layout_is_caught(make, tiny_models, monkeypatch):
    model = make("dino")
    prepare = model._family.prepare

    def wrong(items, **more):
        batch = prepare(items, **more)
        return replace(batch, layouts={"vision": [_shuffled(x) for x in batch.layouts["vision"]]})

    monkeypatch.setattr(model._family, "prepare", wrong)
    with pytest.raises(AssertionError, match="moved most"):
        prove_patch(model, tiny_models.item(), "vision.0")


def test_a_word_under_the_wrong_token_is_caught(make, tiny_models, monkeypatch):
    model = make("llava-siglip")
    item = tiny_models.item(prompt="pick up the red object")
    prepare = model._family.prepare

    def wrong(items, **more):
        batch = prepare(items, **more)
        (layout,) = batch.layouts["language"]
        text = (layout.text[0], *layout.text[2:], layout.text[1])
        return replace(batch, layouts={**batch.layouts, "language": [replace(layout, text=text)]})

    monkeypatch.setattr(model._family, "prepare", wrong)
    with pytest.raises(AssertionError):
        prove_word(model, item, "language.0", old="red", new="blue")


def test_swapped_projections_are_caught(make, tiny_models, monkeypatch):
    model = make("dino")
    right = model.sites
    for a, b in [("q", "v"), ("q", "k"), ("k", "v")]:
        path = {site.name: site.module_path for site in right}
        wrong = tuple(
            replace(site, module_path=path[site.name[:-1] + {a: b, b: a}[site.tensor]])
            if site.tensor in (a, b)
            else site
            for site in right
        )
        monkeypatch.setitem(model.__dict__, "sites", wrong)
        with pytest.raises(AssertionError):
            check_family(model, tiny_models.items(2))


def test_a_site_without_effect_is_caught(tiny_models):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 4, 4, stride=4)
            self.idle = nn.Linear(4, 4)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            self.idle(x)
            return x

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(nn.Sequential(Idle()), sites={"a": "0", "a.mlp": "0.idle"}, layout=Grid(3, 5))
    model.__dict__["sites"] = tuple(
        replace(site, width=4, tensor="mlp" if site.name == "a.mlp" else "out") for site in model.sites
    )
    items = [tiny_models.item(12, 20, seed=i) for i in range(2)]
    with pytest.raises(AssertionError, match="does not reach a"):
        check_family(model, items)
