"""OpenVLA on a stand-in with its module names and calls: towers, layouts, own decoding, units of actions."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.proof import check_family, prove_patch, prove_word
from tests.models.standins import openvla
from vlascope.errors import HookNotFiredError, InputError, ModelNotFoundError, SiteNotFoundError
from vlascope.models import KINDS, Response, VLAPolicy, load
from vlascope.models.actions import ActionFormatError
from vlascope.models.skeleton import skeleton

STATS = {
    "bridge_orig": {
        "action": {
            "q01": [-0.25, -0.5, -0.1, -0.3, -0.2, -0.4, 0.0],
            "q99": [0.25, 0.5, 0.3, 0.3, 0.2, 0.6, 1.0],
            "mask": [True] * 6 + [False],
        }
    }
}
FRACTAL = {"fractal": {"action": {"q01": [-1.0] * 7, "q99": [3.0] * 7, "mask": [True] * 6 + [False]}}}
IMAGES = {
    "image_resize_strategy": "letterbox",
    "interpolations": ["bicubic", "bicubic"],
    "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
    "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
}


def _tokenizer():
    import tiny_models

    tokenizer = tiny_models.tokenizer()
    tokenizer.add_tokens(["\u2581"])  # the empty piece, beyond the bins
    return tokenizer


@functools.cache
def _module(fused=True, two=False, strategy="resize-naive"):
    config = openvla.OpenVLAConfig(
        text_config={
            "hidden_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "intermediate_size": 44,
            "vocab_size": 320,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        use_fused_vision_backbone=fused,
        norm_stats=STATS | FRACTAL if two else STATS,
        image_resize_strategy=strategy,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return openvla.OpenVLAForActionPrediction(config).eval()


@functools.cache
def _model(**options):
    return load(_module(**options), processor=_tokenizer())


def _items(tiny_models):
    return tiny_models.items(3)


@pytest.mark.parametrize("fused", [True, False])
def test_contract(tiny_models, fused):
    model = _model(fused=fused)
    names = [site.name for site in model.sites]
    towers = ["vision.dino", "vision.siglip"] if fused else ["vision"]
    assert [f"{tower}.{i}" for tower in towers for i in range(3)] == [
        name for name in names if name.startswith("vision") and name[-1].isdigit()
    ]
    done = check_family(model, _items(tiny_models)[:2])
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"}
    assert done.layouts == {*towers, "projector", "language"}
    assert done.n_split == 3 * len(towers) + 2


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_patches_and_words_are_where_the_layout_says(tiny_models, size, strategy):
    model = _model(strategy=strategy)
    item = tiny_models.item(*size, prompt="pick up the red object")
    for site in ("vision.dino.0", "vision.siglip.0", "projector", "language.0"):
        prove_patch(model, item, site, n_patches=5)
    prove_word(model, item, "language.0", old="red", new="blue")


def test_layouts(tiny_models):
    batch = _model().prepare([tiny_models.item(61, 97, prompt="Pick UP the Red object")])
    dino = batch.layouts["vision.dino"][0]
    assert [KINDS[k] for k in dino.kind[:6]] == ["class", *["register"] * 4, "patch"] and len(dino) == 5 + 49
    assert len(batch.layouts["vision.siglip"][0]) == len(batch.layouts["projector"][0]) == 49
    language = batch.layouts["language"][0]
    assert language.text[0] == "<s>" and KINDS[language.kind[0]] == "special"
    assert language.is_kind("patch").nonzero()[0].tolist() == list(range(1, 50))
    words = list(language.text[50:])
    # The prompt's form, in lower case; words that the tiny tokenizer lacks are <unk>.
    assert words[0] == "In:" and words[-2:] == ["Out:", "\u2581"]
    assert [w for w in words if w != "<unk>"] == ["In:", "the", "pick", "up", "the", "red", "Out:", "\u2581"]


def test_letterbox_shows_the_whole_image_with_borders(tiny_models):
    layout = (
        _model(strategy="letterbox").prepare([tiny_models.item(61, 97, prompt="x")]).layouts["projector"][0]
    )
    box = layout.box
    np.testing.assert_allclose([box[:, 0].min(), box[:, 2].max()], [0, 97], atol=0.6)
    np.testing.assert_allclose([box[:, 1].min(), box[:, 3].max()], [-18, 79], atol=0.6)


def test_own_decoding_equals_full_forward_passes(tiny_models):
    """The slow way: no cache, one whole pass per token, one item at a time."""
    model = _model()
    together = model.respond(_items(tiny_models))
    for item, answer in zip(_items(tiny_models), together, strict=True):
        inputs = dict(model.prepare([item]).inputs)
        ids = []
        with torch.no_grad():
            while len(ids) < 7 and 2 not in ids:
                ids.append(int(model.module(**inputs).logits[0, -1].argmax()))
                inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[ids[-1]]])], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert list(answer.token_ids) == [i for i in ids if i != 2]


def test_the_answer_depends_on_the_image(tiny_models):
    model = _model()
    item = tiny_models.item(61, 97, prompt="pick up the red object")
    hooks = []
    handle = model.module.vision_backbone.featurizer.blocks[0].register_forward_hook(
        lambda *_: hooks.append(1)
    )
    model.respond([item])
    handle.remove()
    assert len(hooks) == 1
    batch = model.prepare([item])
    logits = model.module(**batch.inputs).logits
    other = replace(item, images=(255 - item.image,))
    assert not torch.allclose(logits, model.module(**model.prepare([other]).inputs).logits)


def test_actions_in_physical_units(tiny_models, monkeypatch):
    model = _model()
    n = 288  # the vocabulary without its padding
    ids = [n - 1, n - 128, n - 255, n - 256, n - 1, n - 128, n - 255]

    def say(step, *, input_ids, lengths, **_):
        first = {"attention_mask": None, "position_ids": None, "past_key_values": None}
        step(input_ids, last=torch.tensor(lengths) - 1, **first)
        return [ids]

    monkeypatch.setattr(sys.modules[type(model._family).__module__], "greedy", say)
    reply = model.respond([tiny_models.item(prompt="x")])[0]
    centre = lambda k: np.linspace(-1, 1, 256)[k : k + 2].mean()  # noqa: E731
    expected = [
        0.25 * centre(0),
        0.5 * centre(127),
        0.1 + 0.2 * centre(254),
        0.3 * centre(254),  # the highest number shares the last interval
        0.2 * centre(0),
        0.1 + 0.5 * centre(127),
        centre(254),  # the gripper is not normalised
    ]
    np.testing.assert_allclose(reply.action, expected, atol=1e-6)
    assert reply.flags == () and reply.action_ids == tuple(ids) and len(reply.action_names) == 7


def test_several_datasets_have_to_be_chosen_from(tiny_models):
    model = load(_module(two=True), processor=_tokenizer())
    item = tiny_models.item(prompt="x")
    assert model.capture(model.prepare([item]), "projector")  # looking needs no statistics
    with pytest.raises(ActionFormatError, match=r"2 datasets \(bridge_orig, fractal\).*use_dataset"):
        model.respond([item])
    with pytest.raises(ActionFormatError, match=r"Nearest: bridge_orig.*It has bridge_orig, fractal"):
        model.use_dataset("bridge")
    first = model.use_dataset("bridge_orig").respond([item])[0]
    second = model.use_dataset("fractal").respond([item])[0]
    assert first.token_ids == second.token_ids
    policy = VLAPolicy(model)
    assert len(policy.action_names) == 7 and policy(item.image, "x")[0].shape == (7,)


def test_answers_are_read_after_the_prompt(tiny_models):
    model = _model()
    items = _items(tiny_models)
    before = [len(layout) for layout in model.prepare(items).layouts["language"]]
    given = [Response(token_ids=(287, 286, 285)), Response(token_ids=(8, 287)), Response()]
    batch = model.prepare(items, answers=given)
    acts = model.capture(batch, "language.1")["language.1"]
    kinds = [[KINDS[k] for k in x.kind[n:]] for x, n in zip(batch.layouts["language"], before, strict=True)]
    assert kinds == [["action"] * 3, ["text", "action"], []]
    assert [len(x) for x in acts] == [n + len(kind) for n, kind in zip(before, kinds, strict=True)]


def test_edits_of_single_tokens_reach_the_answer_where_they_should(tiny_models):
    """Positions count the patches: the third answer token lies behind prompt and two answers."""
    model = _model()
    item = tiny_models.item(61, 97, prompt="pick up the red object")
    plain = model.respond([item])[0].token_ids
    n = len(model.prepare([item]).layouts["language"][0])
    with model.edit("language.0", lambda x: x * 0 + 5, tokens=[n + 1]):
        edited = model.respond([item])[0].token_ids
    assert edited[:2] == plain[:2] and edited != plain


def test_a_tower_that_is_not_called_is_an_error(tiny_models, monkeypatch):
    model = _model()
    monkeypatch.setattr(
        type(model.module.vision_backbone), "forward", lambda self, x: torch.zeros(len(x), 49, 42)
    )
    with pytest.raises(HookNotFiredError, match="did not look at the image"):
        model.capture(model.prepare([tiny_models.item(prompt="x")]), "language.0")
    with pytest.raises(HookNotFiredError, match="did not look at the image"):
        model.respond([tiny_models.item(prompt="x")])


def test_what_cannot_be_read_is_named(tiny_models):
    model = _model()
    with pytest.raises(InputError, match="'x' has no prompt"):
        model.prepare([tiny_models.item()])
    with pytest.raises(InputError, match="'x' has no image"):
        model.prepare([replace(tiny_models.item(prompt="x"), images=(), cameras=())])
    with pytest.raises(SiteNotFoundError, match=r"Nearest: 'vision\.dino\.0'"):
        model.resolve("vision.din.0")
    with pytest.raises(InputError, match="known are resize-naive"):
        load(_module(strategy="squeeze"), processor=_tokenizer())


def test_remote_code_loads_only_when_asked(tmp_path, tiny_models):
    _module().save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    shutil.copy(Path(openvla.__file__), tmp_path / "modeling_prismatic.py")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_prismatic.OpenVLAConfig",
        "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    with pytest.raises(ModelNotFoundError, match="trust_remote_code=True"):
        load(tmp_path)
    model = load(tmp_path, trust_remote_code=True)
    assert model.family == "openvla" and model.fingerprint() == _model().fingerprint()
    bare = skeleton(str(tmp_path), trust_remote_code=True)
    assert [site.name for site in bare.sites] == [site.name for site in model.sites]
    with pytest.raises(ModelNotFoundError, match="trust_remote_code=True"):
        skeleton(str(tmp_path))
    item = tiny_models.item(61, 97, prompt="pick up the red object")
    letterboxed = load(_module(strategy="letterbox"), processor=_tokenizer())
    assert torch.equal(
        model.prepare([item]).inputs["pixel_values"], letterboxed.prepare([item]).inputs["pixel_values"]
    )
