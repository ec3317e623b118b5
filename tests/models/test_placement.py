"""Loading for many devices and few bits; a model without weights; what the hub's refusals are turned into."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

import vlascope as vs
from tests.models import tiny
from vlascope.errors import InputError, MissingExtraError, ModelNotFoundError
from vlascope.models import load, placement
from vlascope.models.family import Family
from vlascope.models.skeleton import skeleton


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino")
    tiny.dino().save_pretrained(path)
    return path


def _installed(monkeypatch, *names):
    real = importlib.util.find_spec
    known = ("accelerate", "bitsandbytes")
    monkeypatch.setattr(
        placement.importlib.util, "find_spec", lambda n: (n in names or None) if n in known else real(n)
    )


def test_missing_packages_are_named(folder, monkeypatch):
    _installed(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"device_map='auto' needs the package 'accelerate'.*large"):
        load(folder, device_map="auto")
    _installed(monkeypatch, "accelerate")
    with pytest.raises(MissingExtraError, match="quantize='4bit' needs the package 'bitsandbytes'"):
        load(folder, quantize="4bit")


def test_arguments_that_do_not_go_together(folder, monkeypatch):
    _installed(monkeypatch, "accelerate", "bitsandbytes")
    with pytest.raises(InputError, match="give one of them"):
        load(folder, device_map="auto", device="cpu")
    with pytest.raises(InputError, match="need '4bit' or '8bit'"):
        load(folder, quantize="int3")
    with pytest.raises(InputError, match="in memory"):
        load(tiny.dino(), device_map="auto")


def test_what_transformers_is_asked_for(folder, monkeypatch):
    _installed(monkeypatch, "accelerate", "bitsandbytes")
    asked = []

    class Stop(Exception):
        pass

    def spy(cls, name, **options):
        asked.append(options["placement"])
        raise Stop

    monkeypatch.setattr(
        Family,
        "load_module",
        classmethod(lambda cls, name, *, placement, **o: spy(cls, name, placement=placement)),
    )
    for options in ({"device_map": "auto"}, {"quantize": "4bit", "dtype": "bfloat16"}, {"quantize": "8bit"}):
        with pytest.raises(Stop):
            load(folder, **options)
    assert asked[0] == {"device_map": "auto"}
    config = asked[1]["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked[2]["quantization_config"].load_in_8bit and set(asked[2]["device_map"]) == {""}


def test_families_that_load_in_their_own_way_say_so(folder, monkeypatch):
    _installed(monkeypatch, "accelerate")

    def own(cls, name, *, config, dtype, revision, trust_remote_code):
        raise AssertionError("not reached")

    monkeypatch.setattr(Family, "load_module", classmethod(own))
    with pytest.raises(InputError, match="family 'dino' load in a way of their own.*device_map"):
        load(folder, device_map="auto")


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_a_spread_model_computes_the_same(folder, make):
    model = vs.load(folder, device_map="auto")
    assert model.device.type in ("cpu", "cuda")
    items = tiny.items(2)
    got = model.capture(model.prepare(items), "vision.2")["vision.2"]
    one = make("dino")
    want = one.capture(one.prepare(items), "vision.2")["vision.2"]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-5, rtol=1e-4)


def test_a_module_in_memory_with_its_processor():
    model = vs.load(tiny.llava(), processor=tiny.llava_processor())
    assert (model.revision, model.quantize, model.info()["quantize"]) == ("memory", None, None)
    assert model.respond(tiny.items(1), max_new_tokens=2)[0].token_ids


@pytest.mark.parametrize("maker", ["llava", "clip", "dino"])
def test_a_skeleton_has_the_same_sites(tmp_path, maker):
    module = getattr(tiny, maker)()
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(tmp_path)  # a configuration and nothing else
    bare, whole = skeleton(str(tmp_path)), load(module)
    ours, theirs = ([replace(site, packing=None) for site in model.sites] for model in (bare, whole))
    assert ours == theirs and bare.n_parameters == whole.n_parameters
    assert all(p.device.type == "meta" for p in bare.module.parameters())
    rows = bare.describe("vision.0.q,vision.0.q.h1")
    assert [(r["site"], r["n_heads"], r["head_dim"]) for r in rows] == [
        ("vision.0.q", 4, 6),
        ("vision.0.q.h1", 1, 6),
    ]
    with pytest.raises(ModelNotFoundError, match="cannot load"):
        load(tmp_path)


def test_the_program_lists_sites_without_weights(tmp_path, capsys):
    from vlascope.cli import main

    module = tiny.llava()
    module.config.architectures = ["LlavaForConditionalGeneration"]
    module.config.save_pretrained(tmp_path)
    assert main(["sites", str(tmp_path), "language.*.k.h*", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["site"] for row in facts["sites"]] == [f"language.{i}.k.h{h}" for i in (0, 1) for h in (0, 1)]
    assert facts["weights"] == "not read"
    assert main(["sites", str(tmp_path)]) == 0
    assert "without weights" in capsys.readouterr().out


HUB = {
    "You are trying to access a gated repo.\n401 Client Error": "Ask for access at .*/a/b, then run `hf auth",
    "a/b is not a valid model identifier\n401 Client Error": "Check the spelling; for a private model",
    "v9 is not a valid git identifier that exists": "branch, tag or commit that is listed at",
    "a/b does not appear to have a file named config.json": "tree/main for the files",
    "We couldn't connect to the hub": "hf download a/b --local-dir",
}


@pytest.mark.parametrize(("message", "step"), HUB.items())
def test_what_the_hub_refuses_comes_with_the_next_step(monkeypatch, message, step):
    import transformers

    def refuse(*args, **options):
        raise OSError(message)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    # config.json is asked for first; without a network the hub's own retries take half a minute.
    monkeypatch.setattr("vlascope.models.checkpoint.beside_weights", lambda *args, **options: None)
    with pytest.raises(ModelNotFoundError, match=step):
        load("a/b")
