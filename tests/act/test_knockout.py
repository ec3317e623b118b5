"""Knock-outs: what is cut cannot be known any more, and nothing else changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vlascope.act import Ablate, CutAttention, baseline, effect, mean_values
from vlascope.act.effects import read_log_probs
from vlascope.errors import InputError, SiteNotFoundError


def logs(model, items, answers):
    return torch.stack(read_log_probs(model, items, answers, batch_size=len(items)))


@pytest.fixture(scope="module")
def twins(mini, picks):
    """One prompt with two pictures and one picture with two prompts, and answers to read."""
    item = picks[0]
    other_image = dataclasses.replace(item, images=picks[4].images, item_id="image")
    other_noun = dataclasses.replace(item, prompt="pick up the blue object", item_id="noun")
    items = [item, other_image, other_noun]
    return items, [mini.respond([item])[0]] * 3


def test_who_cannot_look_at_the_image_does_not_know_it(mini, twins):
    items, answers = twins
    before = logs(mini, items, answers)
    with CutAttention(source="patch", reader="all").on(mini):
        after = logs(mini, items, answers)
    assert (before[0] - before[1]).abs().max() > 0.1
    torch.testing.assert_close(after[0], after[1], atol=1e-4, rtol=1e-4)
    assert (after[0] - after[2]).abs().max() > 1e-3  # the text still counts
    torch.testing.assert_close(logs(mini, items, answers), before)  # and all is as it was


def test_an_action_that_cannot_look_at_the_text_does_not_know_the_noun(mini, twins):
    items, answers = twins
    before = logs(mini, items, answers)
    with CutAttention(source="text").on(mini):
        after = logs(mini, items, answers)
    assert (before[0] - before[2]).abs().max() > 0.1
    torch.testing.assert_close(after[0], after[2], atol=1e-4, rtol=1e-4)
    assert (after[0] - after[1]).abs().max() > 1e-3  # the image still counts


def test_only_the_patches_of_the_camera_are_cut(mini, twins):
    items, answers = twins
    before = logs(mini, items, answers)
    with CutAttention(source="patch", reader="all").on(mini):
        after = logs(mini, items, answers)
    for camera, expected in ((0, after), (1, before)):  # the only camera, and one that there is not
        with CutAttention(source="patch", reader="all", camera=camera).on(mini):
            torch.testing.assert_close(logs(mini, items, answers), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "edit",
    [
        CutAttention(source="text"),
        CutAttention(source="patch", blocks="language.1:4"),
        CutAttention(source="patch", reader="text"),
        CutAttention(source="answer"),
        Ablate(site="language.1.mlp"),
        Ablate(site="language.2.attn", tokens="readout"),
    ],
    ids=lambda edit: edit.name,
)
def test_decoding_and_reading_are_cut_alike(mini, picks, edit):
    # Prompts of several lengths: rows are padded, and answers come after the padding.
    with edit.on(mini):
        replies = mini.respond(picks[:3])
        found = read_log_probs(mini, picks[:3], replies, batch_size=3)
    for log_probs, reply in zip(found, replies, strict=True):
        assert log_probs.argmax(-1).tolist() == list(reply.token_ids)


def test_cut_weights_are_zero_and_the_rest_sums_to_one(mini, picks):
    batch = mini.prepare(picks[:1])
    layout = batch.layouts["language"][0]
    text, last = layout.is_kind("text"), len(layout) - 1
    whole = mini.attention(batch, "language.2")[0]
    with CutAttention(source="text", heads=(1, 3), blocks="language.2").on(mini):
        cut = mini.attention(batch, "language.2")[0]
    torch.testing.assert_close(cut.sum(-1), torch.ones(cut.shape[:2]), atol=1e-5, rtol=0)
    hidden = np.flatnonzero(text & (np.arange(len(layout)) != last))
    for head in range(4):
        weight = float(cut[head, last, hidden].sum())
        assert weight == 0 if head in (1, 3) else weight > 0
    torch.testing.assert_close(cut[:, :last], whole[:, :last], atol=1e-5, rtol=1e-4)


def test_a_module_is_zero_or_its_mean(mini, picks):
    sites = ("language.3.mlp", "language.3.v.h2")
    means = mean_values(mini, picks[:4], sites=sites, batch_size=3)
    batch = mini.prepare(picks[4:6])
    captured = mini.capture(mini.prepare(picks[:4]), sites[0])[sites[0]]
    np.testing.assert_allclose(means[sites[0]], torch.cat(captured).mean(0).numpy(), atol=1e-4)
    with Ablate(site=sites[0]).on(mini), Ablate(site=sites[1], means=means).on(mini):
        found = mini.capture(batch, [*sites, "language.3.v"])
    for value in found[sites[0]]:
        assert not value.any()
    for value, whole in zip(found[sites[1]], found["language.3.v"], strict=True):
        torch.testing.assert_close(value, torch.from_numpy(means[sites[1]]).expand_as(value))
        assert whole[:, :64].std() > 0
    with pytest.raises(InputError, match="mean_values"), Ablate(site="language.1.mlp", means=means).on(mini):
        pass


def test_a_knock_out_is_measured_like_any_edit(mini, picks):
    base = baseline(mini, picks, batch_size=4)
    found = effect(mini, CutAttention(source="patch"), base)
    assert found.changed.mean() > 0.5 and np.nanmean(found.kl) > 0.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"source": "patches"}, "need a source"),
        ({"source": "patch", "reader": "hand"}, "a reader of"),
        ({"source": "patch", "blocks": "vision.*"}, "blocks of the language model"),
        ({"source": "patch", "heads": (4,)}, r"heads 0\.\.3"),
    ],
)
def test_what_cannot_be_cut_is_refused(mini, wrong, said):
    with pytest.raises(InputError, match=said), CutAttention(**wrong).on(mini):
        pass


def test_unknown_blocks_are_refused(mini):
    with pytest.raises(SiteNotFoundError), CutAttention(source="patch", blocks="language.9").on(mini):
        pass
