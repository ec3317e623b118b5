"""openpi, LeRobot's pi0 and pi0.5, and SmolVLA, on stand-ins with their names and calls."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.proof import check_family, prove_patch, prove_state, prove_word
from tests.models.standins import flow
from vlascope.errors import InputError
from vlascope.models import KINDS, load

STATS = {
    "state": {"mean": [0.5, 0.0, -1.0], "std": [0.5, 2.0, 1.0]},
    "action": {"mean": [1.0, 0.0, 2.0, 0.0, 0.5], "std": [0.5, 2.0, 1.0, 4.0, 0.1]},
}
MAKERS = {
    "openpi": lambda n: flow.OpenPi(n_steps=n),
    "lerobot-pi0": lambda n: flow.Policy(flow.Pi0Pytorch(n_steps=n), stats=STATS),
    "lerobot-pi05": lambda n: flow.Policy(flow.Pi0Pytorch(pi05=True, n_steps=n)),
    "smolvla": lambda n: flow.Policy(flow.SmolVLA(n_steps=n), stats=STATS),
    "smolvla-special": lambda n: flow.SmolVLA(n_steps=n, special=True, prefix_length=80),
}
EVEN = {"even": lambda site: not site.name.startswith("expert"), "atol": 1e-4}


@functools.cache
def _module(name, n_steps=1):
    with torch.random.fork_rng():
        torch.manual_seed(13)
        return MAKERS[name](n_steps).eval()


@functools.cache
def _model(name, n_steps=1):
    import tiny_models

    return load(_module(name, n_steps), processor=tiny_models.tokenizer())


def _item(tiny_models, *sizes, seed=0, prompt="pick up the red object"):
    images = tuple(tiny_models.item(*size, seed=seed + i).image for i, size in enumerate(sizes))
    cameras = tuple(f"cam{i}" for i in range(len(images)))
    state = np.array([0.25, 0.5, -0.5], np.float32)
    return replace(
        tiny_models.item(name=f"i{seed}", prompt=prompt), images=images, cameras=cameras, state=state
    )


@pytest.mark.parametrize("name", ["openpi", "lerobot-pi05", "smolvla", "smolvla-special"])
def test_contract(tiny_models, name):
    model = _model(name)
    assert model.family == ("smolvla" if "smolvla" in name else "openpi")
    long = "pick up the fragile blue object left"
    items = [
        _item(tiny_models, (40, 90), seed=5, prompt=long),
        _item(tiny_models, (61, 97), (97, 61), (50, 50)),
    ]
    if name == "smolvla-special":
        with pytest.raises(InputError, match="different numbers of cameras"):
            model.prepare(items)
        items[1] = _item(tiny_models, (61, 97))
    if name == "openpi":  # counts steps in the call, ten by default; one is enough here
        model._family.parts = replace(model._family.parts, n_steps=1)
        model.__dict__.pop("sites", None)
    done = check_family(model, items, **EVEN)
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"}
    assert done.layouts == {"vision", "projector", "language", "expert", "action"}


@pytest.mark.parametrize("name", MAKERS)
def test_patches_words_and_state_are_where_the_layout_says(tiny_models, name):
    model = _model(name)
    item = _item(tiny_models, (61, 97), (97, 61), (50, 50))
    for site in ("vision.0", "projector", "language.0"):
        assert prove_patch(model, item, site, n_patches=3) >= 6
    prove_word(model, item, "language.0", old="red", new="blue")
    if "pi05" not in name:
        prove_state(model, item, "language.0" if "smolvla" in name else "expert.0")


def test_layouts(tiny_models):
    item = _item(tiny_models, (61, 97), (97, 61))
    smolvla = _model("smolvla-special").prepare([item]).layouts["language"][0]
    kinds = [KINDS[k] for k in smolvla.kind]
    assert kinds[:3] == ["special", "special", "patch"] and kinds[-1] == "state"
    assert [int((smolvla.camera == c).sum()) for c in range(2)] == [16, 16]
    box = smolvla.box[smolvla.camera == 0]
    # 61 x 97 fitted into a square with the padding above: boxes begin over the image.
    np.testing.assert_allclose([box[:, 0].max(), box[:, 3].max()], [97 * 3 / 4, 61], atol=1)
    assert box[:, 1].min() == pytest.approx(-36, abs=1)
    pi = _model("lerobot-pi0").prepare([item]).layouts["language"][0]
    box = pi.box[pi.camera == 0]
    np.testing.assert_allclose([box[:, 1].min(), box[:, 3].max()], [-18, 79], atol=3)


def test_smolvla_keys_of_every_second_block_are_the_prefix(tiny_models):
    sites = {site.name: site for site in _model("smolvla").sites}
    assert [sites[f"expert.{i}.k"].layout for i in range(4)] == ["expert", "language"] * 2
    assert [sites[f"expert.{i}.q"].layout for i in range(4)] == ["expert"] * 4


def test_pi05_writes_the_state_into_the_text(tiny_models):
    model = _model("lerobot-pi05")
    text = []
    family = model._family
    encode = family.words.encode
    family.words.encode = lambda words: text.append(words) or encode(words)
    try:
        batch = model.prepare([_item(tiny_models, (61, 97), prompt="Pick_up\nit")])
    finally:
        family.words.encode = encode
    assert text == ["Task: Pick up it, State: 160 192 64;\nAction: "]
    assert "state" not in batch.inputs and set(batch.layouts["expert"][0].kind) == {KINDS.index("action")}


@pytest.mark.parametrize("name", ["lerobot-pi0", "smolvla"])
def test_chunks_in_physical_units(tiny_models, name):
    model = _model(name, 3)
    item = _item(tiny_models, (61, 97), (97, 61))
    answer = model.respond([item])[0]
    batch = model.prepare([item])
    noise = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))
    given = batch.inputs
    np.testing.assert_allclose(given["state"][0, :4], [-0.5, 0.25, 0.5, 0], atol=1e-6)
    own = model.module.model.sample_actions(
        list(given["pixel_values"].unbind(1)),
        list(given["pixel_mask"].unbind(1)),
        given["input_ids"],
        given["text_mask"],
        given["state"],
        noise=noise,
    )[0, :, :5].numpy()
    mean, std = (np.array(STATS["action"][key]) for key in ("mean", "std"))
    np.testing.assert_allclose(answer.action_chunk, own * std + mean, atol=1e-4)
    assert answer.flags == ()


def test_statistics_of_a_lerobot_pipeline(tiny_models):
    steps = [SimpleNamespace(), SimpleNamespace(input_tokenizer=tiny_models.tokenizer())]
    stats = {"observation.state": STATS["state"], "action": STATS["action"]}
    steps.append(SimpleNamespace(stats=stats))
    with torch.random.fork_rng():
        torch.manual_seed(13)
        module = flow.Policy(flow.Pi0Pytorch(), normalization={"STATE": "MEAN_STD", "ACTION": "IDENTITY"})
    model = load(module.eval(), processor=SimpleNamespace(steps=steps))
    item = _item(tiny_models, (61, 97))
    answer = model.respond([item])[0]
    assert answer.flags == () and answer.action_chunk.shape == (5, 7)  # IDENTITY: the numbers are the units
    np.testing.assert_allclose(model.prepare([item]).inputs["state"][0, 0], -0.5)


@pytest.mark.parametrize("name", ["lerobot-pi0", "smolvla"])
def test_steps_and_cameras(tiny_models, name):
    model = _model(name, 3)
    item = _item(tiny_models, (61, 97), (97, 61))
    acts = model.capture(model.prepare([item]), ["expert.1", "expert.1@0", "expert.1@2", "projector"])
    assert torch.equal(acts["expert.1"][0], acts["expert.1@2"][0])
    assert not torch.equal(acts["expert.1"][0], acts["expert.1@0"][0])
    alone = model.capture(model.prepare([replace(item, images=item.images[1:], cameras=("b",))]), "projector")
    n = len(alone["projector"][0])
    torch.testing.assert_close(acts["projector"][0][n:], alone["projector"][0])


@pytest.mark.parametrize("name", ["lerobot-pi05", "smolvla"])
def test_an_edit_of_the_residual_stream_replaces_all_of_it(tiny_models, name):
    """Also what is added later, past the norm where it is read: nothing of the image is left behind it."""
    model = _model(name)
    items = [_item(tiny_models, (61, 97), seed=seed) for seed in (0, 1)]
    for stream in ("language", "expert"):
        sites = f"{stream}.1, {stream}.1.q"
        with model.edit(f"{stream}.0", torch.ones_like):
            acts = model.capture(model.prepare(items), sites)
        assert torch.equal(*acts[f"{stream}.1.q"])
        if stream == "language":
            assert torch.equal(*acts[f"{stream}.1"])


def test_leaves_fire_in_the_joint_pass_where_blocks_do_not(tiny_models):
    model = _model("lerobot-pi0")
    item = _item(tiny_models, (61, 97))
    given = model.prepare([item]).inputs
    core, blocks = model.module.model, []
    stack = core.paligemma_with_expert.paligemma.model.language_model
    handle = stack.layers[0].register_forward_hook(lambda *_: blocks.append(1))
    args = (list(given["pixel_values"].unbind(1)), list(given["pixel_mask"].unbind(1)))
    args += (given["input_ids"], given["text_mask"], given["state"])

    def joint():
        return core.joint(*args, torch.zeros(1, 5, 7), torch.ones(1))

    plain = joint()
    with model._hooks.reading(model.resolve("language.*, expert.*, language.*.q")) as calls:
        joint()
    assert not blocks and all(len(found) == 1 for found in calls.values()) and len(calls) == 9
    with model.edit("language.0", lambda x: x + 3):
        assert not torch.allclose(joint(), plain)
    assert torch.equal(joint(), plain)
    handle.remove()
