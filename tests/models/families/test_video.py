"""V-JEPA 2 and VideoMAE: tokens in space and time."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families.tiny_vision import TRANSFORMER, build, item
from tests.models.proof import check_family, prove_patch
from vlascope.errors import InputError
from vlascope.models import load

VJEPA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
    "crop_size": 40,
    "patch_size": 8,
    "frames_per_clip": 4,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
MAE = TRANSFORMER | {"num_hidden_layers": 2, "image_size": 40, "patch_size": 8, "num_frames": 6}
MODELS = {
    "vjepa": ("VJEPA2Model", "VJEPA2Config", VJEPA),
    "vjepa-head": ("VJEPA2ForVideoClassification", "VJEPA2Config", VJEPA | {"num_pooler_layers": 1}),
    "videomae": ("VideoMAEModel", "VideoMAEConfig", MAE),
    "videomae-head": ("VideoMAEForVideoClassification", "VideoMAEConfig", MAE),
}


@functools.cache
def tiny(name):
    class_name, config_name, config = MODELS[name]
    return load(build(class_name, config_name, **config))


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    model = tiny(name)
    done = check_family(model, [item(61, 97, n_images=6), item(97, 61, seed=1, n_images=6)])
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 2
    layout = model.prepare([item(61, 97, n_images=6)]).layouts["vision"][0]
    assert len(layout) == 3 * 5 * 5
    np.testing.assert_array_equal(layout.tile, np.repeat([0, 1, 2], 25))
    np.testing.assert_array_equal(layout.camera, np.repeat([0, 2, 4], 25))


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("name", MODELS)
def test_patches_in_space_and_time(name, size):
    """Changing a patch of the frame that the layout names moves the token of that time and place."""
    assert prove_patch(tiny(name), item(*size, n_images=6), "vision.0", n_patches=12) >= 24


@pytest.mark.parametrize("name", ["vjepa", "videomae"])
def test_the_second_frame_of_a_tubelet_belongs_to_it_too(name):
    model = tiny(name)
    grey = replace(item(61, 97, n_images=6), images=(np.full((61, 97, 3), 90, np.uint8),) * 6)
    batch = model.prepare([grey])
    layout, before = batch.layouts["vision"][0], model.capture(batch, "vision.0")["vision.0"][0]
    token = 25 + 12  # second layer, the middle
    x0, y0, x1, y1 = np.round(layout.box[token]).astype(int)
    images = [image.copy() for image in grey.images]
    images[layout.camera[token] + 1][y0:y1, x0:x1] = 255
    after = model.capture(model.prepare([replace(grey, images=tuple(images))]), "vision.0")["vision.0"][0]
    assert int((after - before).norm(dim=1).argmax()) == token


def test_tokens_equal_the_models_own_output():
    model = tiny("vjepa")
    batch = model.prepare([item(61, 97, n_images=4)])
    got = model.capture(batch, "vision.1")["vision.1"][0]
    with torch.no_grad():
        want = model.module.get_vision_features(batch.inputs["pixel_values"])[0]
    torch.testing.assert_close(model.module.encoder.layernorm(got), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name, n_layers", [("vjepa", 1), ("videomae", 3)])
def test_one_image_is_a_clip_that_stands_still(name, n_layers, caplog):
    class_name, config_name, config = MODELS[name]
    model = load(build(class_name, config_name, **config))
    batch = model.prepare([item(61, 97)])
    layout = batch.layouts["vision"][0]
    assert len(layout) == n_layers * 25 and set(layout.camera) == {0}
    assert set(layout.tile) == set(range(n_layers))
    assert "single image" in caplog.text
    assert prove_patch(model, item(61, 97), "vision.0") >= 5


def test_wrong_clips_are_refused():
    one, two = item(61, 97, n_images=4), item(61, 97, n_images=3)
    with pytest.raises(InputError, match="has 4 images; this model reads clips of 6 frames"):
        tiny("videomae").prepare([one])
    with pytest.raises(InputError, match="has 3 images; .*a multiple of 2"):
        tiny("vjepa").prepare([two])
    with pytest.raises(InputError, match=r"have \[2, 4\] frames"):
        tiny("vjepa").prepare([one, item(61, 97, n_images=2)])
    mixed = replace(one, images=(*one.images[:3], np.zeros((5, 7, 3), np.uint8)))
    with pytest.raises(InputError, match="images of 2 sizes"):
        tiny("vjepa").prepare([mixed])


def test_pixels_equal_the_processors():
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    theirs = VideoMAEImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40})
    class_name, config_name, config = MODELS["videomae"]
    model = load(build(class_name, config_name, **config), processor=theirs)
    clip = item(61, 97, n_images=6)
    ours = model.prepare([clip]).inputs["pixel_values"]
    want = theirs([list(clip.images)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, want, atol=1e-6, rtol=0)


def test_the_video_processors_file_is_read(tmp_path):
    """Video checkpoints keep their preprocessing in a file of another name."""
    class_name, config_name, config = MODELS["vjepa"]
    build(class_name, config_name, **config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 50}, "crop_size": {"height": 40, "width": 40}, "do_center_crop": True}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(size))
    model = load(tmp_path)
    box = model.prepare([item(100, 160, n_images=2)]).layouts["vision"][0].box
    # 100 pixels become 50; the middle 40 of them are shown: 10..90 of the rows, 40..120 of the columns.
    np.testing.assert_allclose([*box[0, :2], *box[-1, 2:]], [40, 10, 120, 90])
