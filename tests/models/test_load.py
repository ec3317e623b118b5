"""Loading by folder, name and object; every way it can fail says what to do."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from vlascope.errors import InputError, ModelNotFoundError, SiteNotFoundError
from vlascope.items.item import Item
from vlascope.models import Grid, families, load, wrap
from vlascope.models.checkpoint import read_assets
from vlascope.models.family import Family, register
from vlascope.models.normalizer import datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_models):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_models.llava().save_pretrained(path)
    tiny_models.llava_processor().save_pretrained(path)
    return path


def test_a_folder_loads_as_the_module_it_was_saved_from(folder, make, tiny_models, capfd):
    model = load(folder)
    assert (model.family, model.revision, model.dtype) == ("llava", "local", torch.float32)
    assert model.fingerprint() == make("llava-siglip").fingerprint()
    ours = model.capture(model.prepare(tiny_models.items(2)), "language.1")["language.1"]
    theirs = make("llava-siglip")
    theirs = theirs.capture(theirs.prepare(tiny_models.items(2)), "language.1")["language.1"]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert capfd.readouterr().err == ""
    json.dumps(model.info(), allow_nan=False)
    assert model.info()["dtype"] == "float32"
    rows = {row["site"]: row for row in model.describe()}
    assert rows["vision.0.q"]["module"] == "model.vision_tower.encoder.layers.0.self_attn.q_proj"
    assert rows["vision.0.q"]["n_parameters"] == 24 * 25


def test_small_models_compute_in_float32_unless_asked(tmp_path, tiny_models):
    import copy

    half = copy.deepcopy(tiny_models.dino()).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.float32
    model = load(tmp_path, dtype="bfloat16")
    batch = model.prepare([tiny_models.item()])
    assert model.capture(batch, "vision.0")["vision.0"][0].dtype == torch.bfloat16
    assert model.fingerprint() != load(tmp_path).fingerprint()


def test_unknown_names(tmp_path, folder):
    with pytest.raises(ModelNotFoundError, match="vlascope models") as error:
        load("llava-hf-llava-1.5-7b-hf")
    assert "'llava-hf/llava-1.5-7b-hf'" in str(error.value)
    with pytest.raises(ModelNotFoundError, match="no folder of that name"):
        load("./nowhere/at/all")
    with pytest.raises(ModelNotFoundError, match="no config.json"):
        load(tmp_path)
    with pytest.raises(ModelNotFoundError, match="is a file"):
        load(folder / "config.json")
    with pytest.raises(ModelNotFoundError, match="no config"):
        load(nn.Linear(2, 2))
    with pytest.raises(InputError, match="dtype"):
        load(folder, dtype="int4")


def test_unsupported_and_damaged_checkpoints(tmp_path, folder):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelNotFoundError, match=r"'bert', which no family supports.*dinov2.*wrap"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ModelNotFoundError, match="cannot load"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (
            {"type": "smolvla", "chunk_size": 50},
            [
                "from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy",
                "SmolVLAPolicy.from_pretrained(",
                "make_pre_post_processors(policy.config, pretrained_path=",
                "vlascope.load(policy, processor=preprocessor)",
            ],
        ),
        ({"type": "pi0"}, ['pip install "lerobot[pi]"', "PI0Policy.from_pretrained("]),
        ({"type": "pi05"}, ["PI05Policy.from_pretrained("]),
        ({"type": "act", "input_features": {}}, ["LeRobot of type 'act'", "vlascope.wrap"]),
        ({"action_dim": 32, "paligemma_variant": "gemma_2b"}, ["openpi", "vlascope.load(policy._model,"]),
    ],
)
def test_checkpoints_of_other_libraries_name_the_lines_to_run(tmp_path, config, lines, capsys):
    """Also where the folder's name would make transformers take it for a model of its own."""
    from vlascope.cli import main

    folder = tmp_path / "pi0_base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotFoundError) as error:
        load(folder)
    assert all(line in str(error.value) for line in lines), error.value
    assert main(["sites", str(folder)]) == 2
    assert lines[0] in " ".join(capsys.readouterr().err.split())


def test_image_models_say_so_when_an_item_has_none(make, tiny_models):
    text = Item(item_id="words", images=(), prompt="pick up the red object")
    wrapped = wrap(nn.Sequential(nn.Conv2d(3, 4, 2)), sites=["0"], layout=Grid(2, 2, channels_first=True))
    for model in (make("dino"), make("clip"), make("llava-siglip"), wrapped):
        with pytest.raises(InputError, match=r"'words' has no image; .*family text"):
            model.prepare([tiny_models.item(), text])


def test_tokenizer_and_statistics_may_be_given_apart(tiny_models, tmp_path):
    tiny_models.tokenizer().save_pretrained(tmp_path)
    stats = {"state": {"mean": [0.0], "std": [1.0]}, "actions": {"mean": [2.0], "std": [1.0]}}
    for tokenizer in (tiny_models.tokenizer(), str(tmp_path)):
        assets = read_assets({"tokenizer": tokenizer, "norm_stats": stats})
        assert assets.tokenizer.convert_tokens_to_ids("red") == 10
        assert datasets(assets.stats)["data"]["action"]["mean"] == [2.0]


def test_missing_weights_are_never_random(tmp_path, folder):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    name = next(key for key in weights if "layers.1" in key and "q_proj" in key)
    save_file(
        {k: v for k, v in weights.items() if k != name},
        tmp_path / "m" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelNotFoundError, match="lacks 1 weights"):
        load(tmp_path / "m")


def test_the_hub_out_of_reach():
    code = (
        "from vlascope.models import load\n"
        "from vlascope.errors import ModelNotFoundError\n"
        "try: load('facebook/dinov2-of-nobody')\n"
        "except ModelNotFoundError as e: print(e)\n"
    )
    env = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert "cannot load 'facebook/dinov2-of-nobody' from the hub" in done.stdout, done.stderr
    assert "hf download" in done.stdout


def test_importing_the_room_loads_no_torch():
    code = "import sys, vlascope.models as m; assert 'torch' not in sys.modules; print(m.families, m.load)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_verbs_are_not_replaced_by_files_of_the_same_name():
    import vlascope.models.families.clip

    assert callable(vlascope.models.families) and callable(vlascope.models.load)
    assert {"clip", "dino", "llava", "wrapped"} <= set(families())


def test_two_families_of_one_type_clash():
    with pytest.raises(ValueError, match="clashes with 'dino'"):

        @register
        class Other(Family):
            name = "other"
            model_types = ("dinov2",)


class Maps(nn.Module):
    """A small CNN: [b, 4, 3, 5] from 12 x 20 images, then [b, 5, 3, 7] tokens-last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4, bias=False)
        self.last = nn.Linear(4, 7)

    def forward(self, x):
        return self.last(self.stem(x).permute(0, 2, 3, 1))


def test_wrap_reads_and_edits_declared_maps(tiny_models):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Maps()
    model = wrap(
        module,
        sites=["stem", "last"],
        layout={"stem": Grid(3, 5, channels_first=True), "last": Grid(3, 5, channels_first=False)},
    )
    item = tiny_models.item(12, 20)
    batch = model.prepare([item])
    acts = model.capture(batch, "**")
    pixels = torch.from_numpy(item.image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    expected = module.stem(pixels)[0]
    layout = batch.layouts["vision"][0]
    for t in range(15):
        torch.testing.assert_close(acts["stem"][0][t], expected[:, layout.row[t], layout.col[t]])
    np.testing.assert_array_equal(layout.box[7], [8, 4, 12, 8])
    with model.edit("stem", lambda x: x + 1, tokens=[7]):
        edited = model.capture(batch, "**")
    moved = (edited["last"][0] - acts["last"][0]).norm(dim=1)
    assert (moved > 0).nonzero()[:, 0].tolist() == [7]


def test_wrap_never_guesses(tiny_models):
    batch_of = lambda model: model.prepare([tiny_models.item(12, 20)])  # noqa: E731
    model = wrap(Maps(), sites=["stem"], layout=Grid(3, 5))
    with pytest.raises(InputError, match="3 x 5 places of width 4.*or 4 x 3 places of width 5"):
        model.capture(batch_of(model), "stem")
    model = wrap(Maps(), sites=["stem"], layout=Grid(5, 4, channels_first=True))
    with pytest.raises(InputError, match="map of 3 rows x 5 columns.*declares 5 rows x 4 columns. If"):
        model.capture(batch_of(model), "stem")
    with pytest.raises(SiteNotFoundError, match="Nearest: 'stem'"):
        wrap(Maps(), sites=["stm"], layout=Grid(3, 5))
    with pytest.raises(InputError, match="no layout"):
        wrap(Maps(), sites=["stem"], layout={})
    with pytest.raises(InputError, match="different sizes"):
        model.prepare([tiny_models.item(12, 20), tiny_models.item(12, 24)])


@pytest.mark.parametrize("site", ["stem", "last"])
@pytest.mark.parametrize("grid", [(5, 3), (1, 15), (15, 1)])
def test_a_grid_of_as_many_places_but_another_shape_is_an_error(tiny_models, site, grid):
    """A 3 x 5 map read as 5 x 3 would scramble every picture, though the number of tokens is right."""
    model = wrap(Maps(), sites=[site], layout=Grid(*grid, channels_first=site == "stem"))
    batch = model.prepare([tiny_models.item(12, 20)])
    said = f"'{site}' gives a map of 3 rows x 5 columns.*declares {grid[0]} rows x {grid[1]} columns"
    with pytest.raises(InputError, match=said) as error:
        model.capture(batch, site)
    assert ("rows and columns are swapped" in str(error.value)) == (grid == (5, 3))
    with pytest.raises(InputError, match=said), model.edit(site, lambda x: x + 1):
        model.module(batch.inputs["pixel_values"])


FIRST = Grid(3, 5, channels_first=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": None}, r"got None as layout; need vlascope.Grid\(rows, cols\)"),
        ({"layout": (3, 5)}, r"got \(3, 5\) as layout; need vlascope.Grid"),
        ({"layout": {"stem": (3, 5)}}, r"got \(3, 5\) as layout"),
        ({"module": Maps}, "got type as module; need a torch.nn.Module"),
        ({"module": "mini-vla"}, "got str as module.*vlascope.load"),
        ({"sites": None}, "got None as sites"),
        ({"sites": {"stem": 3}}, "as sites; need module paths"),
        ({"sites": {"..": "stem"}}, r"got the site name '\.\.'"),
        ({"sites": {"a/b": "stem"}}, "got the site name 'a/b'"),
        ({"sites": {"": "stem"}}, "got the site name ''"),
        ({"sites": {"x" * 101: "stem"}}, "at most 100 characters"),
        ({"preprocess": 3}, "got 3 as preprocess; need a function"),
        ({"device": "cudaa"}, "got device 'cudaa'; here are cpu"),
    ],
)
def test_what_cannot_be_wrapped_is_said_at_once(change, said):
    given = {"module": Maps(), "sites": ["stem"], "layout": FIRST} | change
    with pytest.raises(InputError, match=said):
        wrap(given.pop("module"), **given)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned NoneType for item 'x'; need a float tensor"),
        ("pixels", "returned str for item"),
        ({"pixel_values": torch.zeros(3, 12, 20)}, "returned dict for item"),
        (torch.zeros(3, 12, 20, dtype=torch.uint8), "numbers of type uint8 for item 'x'; need floats"),
        (np.zeros((3, 12, 20), np.uint8), "numbers of type uint8"),
        (torch.zeros(1, 3, 12, 20), r"shape \(1, 3, 12, 20\)"),
        ((torch.zeros(3, 12, 20), (0, 0, 20)), r"the frame \(0, 0, 20\) for item 'x'; need four numbers"),
        ((torch.zeros(3, 12, 20), (20, 0, 0, 12)), "x0 < x1"),
        ((torch.zeros(3, 12, 20), None), "the frame None"),
        ((torch.zeros(3, 12, 20), (0, 0, float("nan"), 12)), "the frame"),
    ],
)
def test_what_preprocess_may_return(value, said, tiny_models):
    model = wrap(Maps(), sites=["stem"], layout=FIRST, preprocess=lambda item: value)
    with pytest.raises(InputError, match=said):
        model.prepare([tiny_models.item(12, 20)])


def test_preprocess_may_return_an_array(tiny_models):
    pixels = np.random.default_rng(0).random((12, 20, 3)).transpose(2, 0, 1)[:, ::-1]
    model = wrap(Maps(), sites=["stem"], layout=FIRST, preprocess=lambda item: (pixels, [0, 0, 40, 24]))
    batch = model.prepare([tiny_models.item(24, 40)])
    np.testing.assert_array_equal(batch.layouts["vision"][0].box[-1], [32, 16, 40, 24])
    assert model.capture(batch, "stem")["stem"][0].dtype == torch.float32


@pytest.mark.parametrize("device", ["cudaa", "cuda:x", "meta", "", "cuda:99", "vulkan", None])
def test_devices_that_are_not_there_list_those_that_are(device, folder):
    for run in (
        lambda: load(folder, device=device),
        lambda: wrap(Maps(), sites=["stem"], layout=FIRST, device=device),
    ):
        with pytest.raises(InputError, match=rf"got device '{device}'; here are cpu.*or leave it at 'auto'"):
            run()


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_kinds_of_devices_that_this_machine_lacks(kind, monkeypatch):
    monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
    for device in (kind, f"{kind}:0", torch.device(kind)):
        with pytest.raises(InputError, match=f"got device '{kind}.*here are cpu"):
            wrap(Maps(), sites=["stem"], layout=FIRST, device=device)


def test_a_second_device_can_be_chosen(monkeypatch):
    from vlascope.models.loading import _device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _device("cuda:1") == torch.device("cuda", 1) and _device("auto").type == "cuda"
    with pytest.raises(InputError, match="got device 'cuda:2'; here are cpu, cuda:0, cuda:1, or leave"):
        _device("cuda:2")


def test_a_revision_of_what_has_only_one_is_refused(folder, capsys):
    from vlascope.cli import main
    from vlascope.models.skeleton import skeleton

    for name, said in (("mini-vla", "travels with vlascope"), (str(folder), "is a folder")):
        for make in (load, skeleton):
            with pytest.raises(InputError, match=f"got revision 'main', but the model '{name}' {said}"):
                make(name, revision="main")
    assert main(["sites", "mini-vla", "--revision", "0123abc"]) == 2
    assert "got revision '0123abc'" in " ".join(capsys.readouterr().err.split())


def test_models_in_memory_have_no_name_for_the_program(folder):
    with pytest.raises(SiteNotFoundError, match=r"Nearest: 'stem'. All are in model.sites\.$"):
        wrap(Maps(), sites=["stem"], layout=FIRST).resolve("stm")
    with pytest.raises(SiteNotFoundError, match="List all with `vlascope sites "):
        load(folder).resolve("vision.99")


def test_wrap_with_own_preprocessing_and_prefix(tiny_models, make):
    inner = make("dino-registers")
    transform = inner._family.vision.transform

    def preprocess(item):
        return torch.from_numpy(transform(item.image)), transform.frame(*item.image.shape[:2])

    model = wrap(
        inner.module, sites={"mid": "encoder.layer.1"}, layout=Grid(5, 5, prefix=4), preprocess=preprocess
    )
    items = tiny_models.items(2)
    ours, theirs = model.prepare(items), inner.prepare(items)
    for a, b in zip(ours.layouts["vision"], theirs.layouts["vision"], strict=True):
        np.testing.assert_allclose(a.box, b.box)
    got = model.capture(ours, "mid")["mid"]
    want = inner.capture(theirs, "vision.1")["vision.1"]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
