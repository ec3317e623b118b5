"""pi0 of transformers: cameras, state, text, denoising steps, chunks in physical units."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.proof import check_family, prove_patch, prove_state, prove_word
from vlascope.errors import HookNotFiredError, InputError, SiteNotFoundError
from vlascope.models import KINDS, VLAPolicy, load
from vlascope.models.actions import ActionFormatError

STATS = {
    "state": {"mean": [0.5, 0.0, -1.0], "std": [0.5, 2.0, 1.0]},
    "action": {"mean": [1.0, 0.0, 2.0, 0.0, 0.5], "std": [0.5, 2.0, 1.0, 4.0, 0.1]},
}
H, DOF, STATE = 5, 7, 11


@functools.cache
def _module(n_steps=3, stats=True):
    from transformers import PI0Config, PI0ForConditionalGeneration

    text = {
        "hidden_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 44,
        "vocab_size": 288,
    }
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {"model_type": "gemma", **text},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 40,
                "patch_size": 8,
                "image_size": 40,
                "vision_use_head": False,
            },
            "projection_dim": 28,
            "image_token_id": 4,
        },
        dit_config={"model_type": "gemma", **text, "hidden_size": 20},
        chunk_size=H,
        max_state_dim=STATE,
        max_action_dim=DOF,
        num_inference_steps=n_steps,
    )
    if stats:
        config.norm_stats = STATS
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = PI0ForConditionalGeneration(config).eval()
        # As initialised, pixels are lost beside the positions.
        module.model.vlm.vision_tower.embeddings.patch_embedding.weight.data.normal_(0, 0.3)
        return module


@functools.cache
def _model(**options):
    import tiny_models

    return load(_module(**options), processor=tiny_models.tokenizer())


def _item(tiny_models, *sizes, seed=0, prompt="pick up the red object"):
    images = tuple(tiny_models.item(*size, seed=seed + i).image for i, size in enumerate(sizes))
    state = np.array([0.25 + seed, 1.0, -0.5], np.float32)
    cameras = tuple(f"cam{i}" for i in range(len(images)))
    return replace(
        tiny_models.item(name=f"i{seed}", prompt=prompt), images=images, cameras=cameras, state=state
    )


def _items(tiny_models):
    long = "pick up the fragile blue object left"
    return [
        _item(tiny_models, (61, 97), (97, 61), (50, 50)),
        _item(tiny_models, (40, 90), seed=5, prompt=long),
    ]


def test_contract(tiny_models):
    """One step: with several, what an edit does at the last step is no longer linear in it."""
    model = _model(n_steps=1)
    done = check_family(
        model, _items(tiny_models)[::-1], even=lambda site: not site.name.startswith("expert"), atol=5e-5
    )
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"}
    assert done.layouts == {"vision", "projector", "language", "expert", "action"}
    assert done.n_split == 2 + 2 + 2


def test_patches_words_and_state_are_where_the_layout_says(tiny_models):
    model = _model(n_steps=1)
    item = _item(tiny_models, (61, 97), (97, 61), (50, 50))
    for site in ("vision.0", "projector", "language.0"):
        assert prove_patch(model, item, site, n_patches=4) >= 8
    prove_word(model, item, "language.0", old="red", new="blue")
    prove_state(model, item, "expert.0")


def test_layouts_of_items_with_other_numbers_of_cameras(tiny_models):
    model = _model()
    batch = model.prepare(_items(tiny_models))
    first, second = batch.layouts["language"]
    assert [int((first.camera == c).sum()) for c in range(3)] == [25, 25, 25]
    assert second.camera.tolist()[:26] == [0] * 25 + [-1] and second.text[25] == "<s>"
    expert = batch.layouts["expert"][0]
    assert [KINDS[k] for k in expert.kind] == ["state", *["action"] * H]
    assert len(batch.layouts["action"][0]) == H
    box = batch.layouts["projector"][0].box[:25]
    # 61 x 97 fitted into a square, with the padding below.
    np.testing.assert_allclose([box[:, 0].min(), box[:, 1].min(), box[:, 2].max()], [0, 0, 97], atol=0.1)
    assert box[:, 3].max() == pytest.approx(97, abs=3)


def test_steps_are_read_and_edited_by_number(tiny_models):
    model = _model()
    batch = model.prepare(_items(tiny_models))
    sites = ["expert.1", "expert.1@0", "expert.1@2", "action_in@0", "language.1"]
    acts = model.capture(batch, sites)
    assert list(acts) == ["language.1", "expert.1", "expert.1@0", "expert.1@2", "action_in@0"]
    assert torch.equal(acts["expert.1"][0], acts["expert.1@2"][0])
    assert not torch.equal(acts["expert.1"][0], acts["expert.1@0"][0])
    with model.edit("expert.1@2", lambda x: x + 1):
        late = model.capture(model.prepare(_items(tiny_models)), sites)
    assert torch.equal(late["expert.1@0"][0], acts["expert.1@0"][0])
    torch.testing.assert_close(late["expert.1@2"][0], acts["expert.1@2"][0] + 1)
    with model.edit("expert.1@0", lambda x: x + 1):
        early = model.capture(model.prepare(_items(tiny_models)), sites)
    assert not torch.equal(early["expert.1@2"][0], acts["expert.1@2"][0])
    # The noise goes in first, and it is the same for all items.
    assert torch.equal(acts["action_in@0"][0], acts["action_in@0"][1])
    with pytest.raises(SiteNotFoundError, match=r"steps run 0\.\.2"):
        model.resolve("expert.1@3")
    with pytest.raises(SiteNotFoundError, match="computed once per pass"):
        model.resolve("language.1@0")
    assert [s.name for s in model.resolve("expert.*@-1")] == [f"expert.{i}@2" for i in range(2)]


def test_chunks_are_the_models_own_in_physical_units(tiny_models):
    model = _model()
    items = _items(tiny_models)
    together = model.respond(items)
    for item, answer in zip(items, together, strict=True):
        batch = model.prepare([item])
        noise = torch.randn(1, H, DOF, generator=torch.Generator().manual_seed(0))
        ids = torch.cat([torch.full((1, 25 * len(item.images)), 4), batch.inputs["input_ids"]], dim=1)
        own = model.module.sample_actions(
            state=batch.inputs["state"],
            input_ids=ids,
            pixel_values=batch.inputs["pixel_values"],
            noise=noise,
            attention_mask=torch.ones_like(ids),
            pixel_attention_mask=batch.inputs["pixel_mask"],
        )
        mean, std = (np.array(STATS["action"][key]) for key in ("mean", "std"))
        assert answer.action_chunk.shape == (H, 5) and answer.action_chunk.dtype == np.float32
        np.testing.assert_allclose(answer.action_chunk, own[0, :, :5].numpy() * std + mean, atol=1e-4)
        np.testing.assert_array_equal(answer.action, answer.action_chunk[0])
        assert answer.flags == () and answer.text is None and len(answer.action_names) == 5
    state = model.prepare(items[:1]).inputs["state"][0]
    np.testing.assert_allclose(state[:4], [-0.5, 0.5, 0.5, 0.0], atol=1e-6)


def test_without_statistics_the_units_are_flagged(tiny_models):
    answer = _model(stats=False).respond([_item(tiny_models, (61, 97))])[0]
    assert answer.flags == ("normalized_units",) and answer.action_chunk.shape == (H, DOF)


def test_statistics_of_a_processor(tiny_models):
    processor = SimpleNamespace(
        tokenizer=tiny_models.tokenizer(),
        state_mean=STATS["state"]["mean"],
        state_std=STATS["state"]["std"],
        actions_mean=STATS["action"]["mean"],
        actions_std=STATS["action"]["std"],
    )
    item = _item(tiny_models, (61, 97))
    ours = load(_module(stats=False), processor=processor).respond([item])[0]
    np.testing.assert_array_equal(ours.action_chunk, _model().respond([item])[0].action_chunk)


def test_several_datasets(tiny_models):
    module = _module(n_steps=2, stats=False)
    other = {"state": STATS["state"], "action": {"mean": [9.0] * 5, "std": [1.0] * 5}}
    module.config.norm_stats = {"bridge": STATS, "aloha": other}
    model = load(module, processor=tiny_models.tokenizer())
    item = _item(tiny_models, (61, 97))
    with pytest.raises(ActionFormatError, match=r"2 datasets \(aloha, bridge\)"):
        model.respond([item])
    with pytest.raises(ActionFormatError, match="it has aloha, bridge"):
        model.use_dataset("libero")
    assert model.use_dataset("aloha").respond([item])[0].action_chunk.mean() > 5


def test_what_cannot_be_read_is_named(tiny_models, monkeypatch):
    model = _model()
    item = _item(tiny_models, (61, 97))
    with pytest.raises(InputError, match="no robot state"):
        model.prepare([replace(item, state=None)])
    with pytest.raises(InputError, match="state of 2 numbers; the policy's statistics have 3"):
        model.prepare([replace(item, state=item.state[:2])])
    with pytest.raises(InputError, match="no prompt"):
        model.prepare([replace(item, prompt=None)])
    with pytest.raises(InputError, match="no image"):
        model.prepare([replace(item, images=(), cameras=())])
    monkeypatch.setattr(
        type(model.module.model.vlm),
        "get_image_features",
        lambda self, x, **_: SimpleNamespace(pooler_output=torch.zeros(len(x), 25, 28)),
    )
    with pytest.raises(HookNotFiredError, match="did not look at the images"):
        model.capture(model.prepare([item]), "language.0")


def test_policy_plays_a_chunk(tiny_models):
    model = _model()
    item = _item(tiny_models, (61, 97))
    chunk = model.respond([item])[0].action_chunk
    policy = VLAPolicy(model, n_action_steps=2)
    actions = [policy(item.image, item.prompt, state=item.state)[0] for _ in range(3)]
    np.testing.assert_array_equal(actions[:2], chunk[:2])
    np.testing.assert_array_equal(actions[2], chunk[0])  # asked again
    assert policy.action_names == tuple(f"a{i}" for i in range(5)) and policy.n_calls == 2
    policy(item.image, item.prompt, state=item.state)
    policy.reset()
    np.testing.assert_array_equal(policy(item.image, item.prompt, state=item.state)[0], chunk[0])
