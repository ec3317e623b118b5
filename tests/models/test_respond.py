"""Answers: own decoding equals `generate`, actions are decoded in physical units, nothing is guessed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlascope.errors import InputError
from vlascope.models import KINDS, Response, VLAPolicy
from vlascope.models.decode import greedy
from vlascope.models.hooks import Hooks
from vlascope.models.replies import action_reply


@pytest.mark.parametrize("name", ["llava-siglip", "llava-clip"])
def test_own_decoding_equals_generate(make, tiny_models, name):
    model = make(name)
    items = tiny_models.items(3)
    together = model.respond(items, max_new_tokens=7)
    for item, answer in zip(items, together, strict=True):
        inputs = model.prepare([item]).inputs
        with torch.no_grad():
            out = model.module.generate(**inputs, max_new_tokens=7, do_sample=False)
        expected = out[0, inputs["input_ids"].shape[1] :].tolist()
        expected = expected[:-1] if expected[-1] == 2 else expected
        assert list(answer.token_ids) == expected
        assert model.respond([item], max_new_tokens=7)[0].token_ids == answer.token_ids


def test_greedy_stops_each_row_at_its_own_end_and_masks_padding():
    """A stand-in model that counts: next = last true token + 1; 9 ends."""
    masks = []

    def step(input_ids, *, attention_mask, position_ids, past_key_values, last):
        masks.append((attention_mask, position_ids))
        token = input_ids[torch.arange(len(last)), last]
        return torch.nn.functional.one_hot(token + 1, 20).float(), object()

    ids = torch.tensor([[5, 6, 0], [1, 2, 3]])
    options = {"input_ids": ids, "lengths": [2, 3], "hooks": Hooks(torch.nn.Identity()), "eos_ids": {9}}
    assert greedy(step, max_new_tokens=5, **options) == [[7, 8, 9], [4, 5, 6, 7, 8]]
    assert masks[0][0].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert masks[2][0].tolist() == [[1, 1, 0, 1, 1], [1] * 5]
    assert masks[2][1].tolist() == [[3], [4]]
    assert len(masks) == 5


def _reply(family, ids):
    return action_reply(ids, words=family.words, bins=family.bins, eos_ids=family.eos_ids)


def test_replies_become_actions_or_words_or_flags(make):
    family = make("llava-siglip")._family
    n = family.bins.vocab_size
    good = _reply(family, [n - 1, n - 128, n - 255, n - 1, 2])
    assert good.flags == () and good.action.dtype == np.float32
    np.testing.assert_allclose(good.action, [-0.249, 0, 0.249, 0.002], atol=1e-4)
    assert good.action_ids == (n - 1, n - 128, n - 255, n - 1) and len(good.action_names) == 4
    word = _reply(family, [n - 1, 8, n - 2, 2])
    assert np.isnan(word.action[[1, 3]]).all() and word.flags == ("too_few_tokens:3", "word_in_action:1")
    red = family.words.encode("red")[1]
    answer = _reply(family, [red, 2])
    assert (answer.text, answer.action, answer.flags) == ("red", None, ())
    assert _reply(family, [red]).flags == ("length_limit",)


def test_answers_are_read_after_the_prompt(make, tiny_models):
    model = make("llava-siglip")
    items = tiny_models.items(3)
    prompts = model.prepare(items)
    plain = model.capture(prompts, "language.1")["language.1"]
    lengths = [len(layout) for layout in prompts.layouts["language"]]
    n = model._family.bins.vocab_size
    words = model._family.words.encode("red")[1:]
    given = [
        Response(token_ids=(n - 1, n - 2, n - 3, n - 4)),
        Response(token_ids=tuple(words)),
        Response(token_ids=()),
    ]
    batch = model.prepare(items, answers=given)
    acts = model.capture(batch, "language.1")["language.1"]
    for i, answer in enumerate(given):
        layout = batch.layouts["language"][i]
        assert len(acts[i]) == len(layout) == lengths[i] + len(answer.token_ids)
        kinds = {KINDS[k] for k in layout.kind[lengths[i] :]}
        assert kinds == [{"action"}, {"text"}, set()][i]
        torch.testing.assert_close(acts[i][: lengths[i]], plain[i], atol=2e-5, rtol=1e-4)
    own = model.prepare(items)
    acts = model.capture(own, "language.1", with_answer=True)["language.1"]
    assert own.answers is not None and len(acts[0]) == len(own.layouts["language"][0]) > lengths[0]
    assert own.answers[0].token_ids == model.respond(items)[0].token_ids


def test_policy(make, tiny_models):
    policy = VLAPolicy(make("llava-siglip"))
    image = tiny_models.item(64, 48).image
    action, facts = policy(image, "pick up the red object")
    reply = make("llava-siglip").respond(
        [tiny_models.item(64, 48, prompt="pick up the red object")], max_new_tokens=4
    )
    assert action.shape == (4,) and action.dtype == np.float32
    assert facts["token_ids"] == reply[0].token_ids and len(policy.action_names) == 4
    assert bool(facts["flags"]) == bool(np.isnan(action).any())
    with pytest.raises(InputError, match="cannot act"):
        VLAPolicy(make("dino"))


def test_models_without_text_answer_nothing(make, tiny_models):
    answers = make("dino").respond(tiny_models.items(2))
    assert [a.text for a in answers] == [None, None]


def test_a_policy_can_stand_still_when_the_reply_is_no_action(make, tiny_models, monkeypatch):
    model = make("llava-siglip")
    n = model._family.bins.vocab_size
    replies = [[n - 1, n - 1, n - 1, n - 255], [n - 1, 8, n - 1, n - 1], [8, 2]]
    monkeypatch.setattr(model, "respond", lambda *_, **__: [_reply(model._family, replies[policy.n_calls])])
    image = tiny_models.item().image
    policy = VLAPolicy(model, malformed="hold")
    first, facts = policy(image, "x")
    assert not facts["held"] and first[3] == pytest.approx(0.998, abs=0.001)
    for flag in ("word_in_action:1", "no_action"):
        action, facts = policy(image, "x")
        assert facts["held"] and flag in facts["flags"]
        np.testing.assert_array_equal(action, [0, 0, 0, first[3]])
    assert (policy.n_calls, policy.n_malformed) == (3, 2)
    policy = VLAPolicy(model)
    policy(image, "x")
    assert np.isnan(policy(image, "x")[0]).tolist() == [False, True, False, False]
