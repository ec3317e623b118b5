"""Edits count tokens as the layout of each item does: over cameras, ragged prompts and decoding steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlascope.errors import InputError


def _two_cameras(tiny_models, n=2):
    items = [tiny_models.items(3)[i] for i in range(n)]
    other = [tiny_models.item(seed=20 + i).image for i in range(n)]
    return [
        replace(item, images=(item.image, image), cameras=("front", "wrist"))
        for item, image in zip(items, other, strict=True)
    ]


def _changed(after, before):
    return [(a != b).any(dim=1).nonzero()[:, 0].tolist() for a, b in zip(after, before, strict=True)]


@pytest.mark.parametrize("name", ["clip", "siglip", "dino-registers"])
def test_a_token_of_one_camera_leaves_the_other_alone(make, tiny_models, name):
    model = make(name)
    batch = model.prepare(_two_cameras(tiny_models))
    (layout, _), site = batch.layouts["vision"], "vision.0"
    token = int(np.flatnonzero((layout.camera == 1) & (layout.row == 1) & (layout.col == 2))[0])
    assert token > len(layout) // 2
    before = model.capture(batch, [site, "vision.2"])
    with model.edit(site, torch.zeros_like, tokens=[token]):
        after = model.capture(batch, [site, "vision.2"])
    assert _changed(after[site], before[site]) == [[token], [token]]
    later = _changed(after["vision.2"], before["vision.2"])
    # Each camera is a row of its own: what follows in the tower moves in the second one alone.
    assert all(rows and min(rows) >= len(layout) // 2 for rows in later)


def test_functions_of_the_layout_and_items_by_place_or_name(make, tiny_models):
    model = make("clip")
    items = _two_cameras(tiny_models)
    batch = model.prepare(items)
    layout, before = batch.layouts["vision"][0], model.capture(batch, "vision.0")["vision.0"]

    def of_camera_0(x):
        return x.is_kind("patch") & (x.camera == 0)

    patches = np.flatnonzero(of_camera_0(layout)).tolist()
    for tokens, wanted in [
        (of_camera_0, [patches, patches]),
        (lambda x: np.flatnonzero(of_camera_0(x))[:2], [patches[:2]] * 2),
        ({1: [3], 0: of_camera_0}, [patches, [3]]),
        ({items[1].item_id: torch.tensor([4, 2])}, [[], [2, 4]]),
        ([], [[], []]),
    ]:
        with model.edit("vision.0", lambda x: x + 1, tokens=tokens):
            after = model.capture(batch, "vision.0")["vision.0"]
        assert _changed(after, before) == wanted


def test_ragged_prompts_are_counted_each_from_its_own_end(make, tiny_models):
    model = make("llava-siglip")
    items = tiny_models.items(3)
    items[2] = replace(items[2], prompt="red")
    batch = model.prepare(items)
    layouts, site = batch.layouts["language"], "language.1"
    n_tokens = [len(layout) for layout in layouts]
    assert len(set(n_tokens)) > 1
    before = model.capture(batch, site)[site]
    with model.edit(site, torch.zeros_like, tokens=lambda layout: np.arange(len(layout)) == len(layout) - 1):
        after = model.capture(batch, site)[site]
    assert _changed(after, before) == [[n - 1] for n in n_tokens]
    with pytest.raises(InputError, match=rf"token {n_tokens[2]} .*in item 'i2'; it has {n_tokens[2]} tokens"):
        with model.edit(site, torch.zeros_like, tokens=[n_tokens[2]]):
            model.capture(batch, site)


def test_decoding_edits_the_new_token_of_the_items_that_were_named(make, tiny_models):
    """Two prompts of different lengths: the same place in the answer is another number in each of them."""
    model = make("llava-siglip")
    items = [tiny_models.items(3)[0], replace(tiny_models.items(3)[1], prompt="red")]
    n_tokens = [len(x) for x in model.prepare(items).layouts["language"]]
    assert n_tokens[0] > n_tokens[1] + 1
    plain = [r.token_ids for r in model.respond(items, max_new_tokens=4)]
    noise = torch.randn(28, generator=torch.Generator().manual_seed(0)) * 50
    for named in (0, 1):
        with model.edit("language.1", lambda x: noise.expand_as(x), tokens={named: [n_tokens[named]]}):
            edited = [r.token_ids for r in model.respond(items, max_new_tokens=4)]
        # Read by the second step: what was said before it stays, what follows does not.
        assert edited[1 - named] == plain[1 - named]
        assert edited[named][0] == plain[named][0] and edited[named] != plain[named]
    # The padding behind the shorter prompt is nobody's token.
    with model.edit("language.0", lambda x: noise.expand_as(x), tokens={1: [n_tokens[0] - 1]}):
        edited = [r.token_ids for r in model.respond(items, max_new_tokens=2)]
    assert edited == [ids[:2] for ids in plain]


def test_functions_see_the_prompt_while_an_answer_is_decoded(make, tiny_models):
    model = make("llava-siglip")
    items, seen = tiny_models.items(2), []

    def spy(x):
        seen.append(tuple(x.shape[:2]))
        return x + 50

    plain = [r.token_ids for r in model.respond(items, max_new_tokens=3)]
    with model.edit("language.1", spy, tokens=lambda layout: layout.is_kind("patch")):
        model.respond(items, max_new_tokens=3)
    assert seen == [(2, max(len(x) for x in model.prepare(items).layouts["language"]))]
    assert [r.token_ids for r in model.respond(items, max_new_tokens=3)] == plain
    # A later batch of other items is counted anew.
    with model.edit("language.1", torch.zeros_like, tokens=lambda layout: layout.is_kind("text")):
        for batch in (model.prepare(items), model.prepare(items[::-1])):
            acts = model.capture(batch, "language.1")["language.1"]
            for values, layout in zip(acts, batch.layouts["language"], strict=True):
                assert ((values == 0).all(dim=1).numpy() == layout.is_kind("text")).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({5: [0]}, "given for item 5; the batch has items 0..1"),
        ({"typo-id": [5]}, r"item 'typo-id', but no batch that was run had it.*There were 'i0', 'i1'"),
        ({"i00": [5], "i1": [3]}, "item 'i00', but no batch.*Nearest: 'i0'"),
        ([True] * 10, "mask for site 'vision.0' has 10 entries; the item 'i0' has"),
        (np.ones(1000, bool), "has 1000 entries; the item 'i0' has"),
        ({"i1": torch.ones(3, dtype=torch.bool)}, "has 3 entries; the item 'i1' has"),
        (lambda layout: [True, False], "has 2 entries; the item 'i0' has"),
        ([[0, 1]], "one-dimensional"),
        ([-1], "row numbers >= 0"),
        ([0.5], "row numbers >= 0"),
        ({0: [0.5]}, "row numbers >= 0"),
    ],
)
def test_tokens_that_make_no_sense_are_errors(make, tiny_models, tokens, message):
    model = make("clip")
    batch = model.prepare(tiny_models.items(2))
    with pytest.raises(InputError, match=message), model.edit("vision.0", torch.neg, tokens=tokens):
        model.capture(batch, "vision.0")
    assert model._hooks.n_hooked == 0 and model._hooks.batch is None


def test_a_direct_call_counts_rows_and_knows_no_items(make, tiny_models):
    model = make("dino")
    batch = model.prepare(tiny_models.items(1))
    plain = model.module(**batch.inputs).last_hidden_state
    with model.edit("vision.2", lambda x: x * 0, tokens=[1]):
        edited = model.module(**batch.inputs).last_hidden_state
    assert _changed(edited, plain) == [[1]]
    with pytest.raises(InputError, match=f"has 3 entries; the item has {len(plain[0])} tokens"):
        with model.edit("vision.2", lambda x: x * 0, tokens=[True, False, True]):
            model.module(**batch.inputs)
    with pytest.raises(InputError, match="called directly"):
        with model.edit("vision.2", lambda x: x, tokens=lambda layout: layout.is_kind("patch")):
            model.module(**batch.inputs)


def test_items_of_several_batches_and_masks_of_a_prompt_that_is_answered(make, tiny_models):
    model = make("llava-siglip")
    items = tiny_models.items(3)
    with model.edit(
        "language.0", torch.zeros_like, tokens={"i0": [3], "i2": [4]}
    ):  # each in a batch of its own
        for item, token in zip(items, (3, None, 4), strict=True):
            acts = model.capture(model.prepare([item]), "language.0")["language.0"][0]
            zero = (acts == 0).all(dim=1).nonzero()[:, 0].tolist()
            assert zero == ([] if token is None else [token])
    with model.edit("language.0", torch.zeros_like, tokens={"nobody": [3]}):
        pass  # no pass, no batch that could have had it
    batch = model.prepare(items[:1])
    mask = np.arange(len(batch.layouts["language"][0])) == 6
    with model.edit("language.0", torch.zeros_like, tokens=mask):
        acts = model.capture(batch, "language.0", with_answer=True)["language.0"][0]
    assert len(acts) > len(mask) and (acts == 0).all(dim=1).nonzero()[:, 0].tolist() == [6]
