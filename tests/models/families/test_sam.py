"""SAM and SAM 2: windows are unfolded to the image's grid, for reading and for editing."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.families.tiny_vision import build, item
from tests.models.proof import check_family, prove_patch
from vlascope.errors import InputError
from vlascope.models import KINDS, load
from vlascope.models.skeleton import skeleton
from vlascope.models.windows import Windows

SAM = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "output_channels": 12,
    "image_size": 56,
    "patch_size": 8,
    "window_size": 3,  # does not divide the grid of 7
    "global_attn_indexes": (2,),
    "mlp_ratio": 2.0,
    "initializer_range": 0.2,  # the default, 1e-10, would leave nothing to see
}
HIERA = {
    "hidden_size": 8,
    "image_size": (48, 80),  # grids 12 x 20, 6 x 10 (in windows of 4: padded to 8 x 12), 3 x 5
    "num_attention_heads": 2,
    "blocks_per_stage": (1, 2, 2),
    "embed_dim_per_stage": (8, 16, 24),
    "num_attention_heads_per_stage": (2, 2, 4),
    "window_size_per_stage": (4, 4, 3),
    "window_positional_embedding_background_size": (7, 11),
    "global_attention_blocks": (4,),
    "num_query_pool_stages": 3,
}


def _positions(module):
    """Give positions that differ: they start as zeros, and would hide that windows were put back wrongly."""
    generator = torch.Generator().manual_seed(3)
    for name, value in module.named_parameters():
        if "pos_embed" in name or "rel_pos" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.5
    return module


@functools.cache
def tiny(name):
    if name == "sam":
        return load(_positions(build("SamVisionModel", "SamVisionConfig", **SAM)))
    if name == "sam-whole":
        from transformers import SamConfig, SamModel, SamVisionConfig

        vision = SamVisionConfig(**{k: list(v) if isinstance(v, tuple) else v for k, v in SAM.items()})
        config = SamConfig(vision_config=vision.to_dict())
        return load(_positions(SamModel(config).eval()))
    return load(_positions(build("Sam2HieraDetModel", "Sam2HieraDetConfig", **HIERA)))


ITEMS = [item(61, 97), item(97, 61, seed=1)]


def test_sam_contract():
    done = check_family(tiny("sam"), [*ITEMS, item(61, 97, seed=2, n_images=2)], even=lambda site: False)
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 3


def test_sam2_contract():
    # The first block of a stage pools its queries: its attn has a coarser grid than its q.
    model = tiny("sam2")
    done = check_family(model, ITEMS, skip=["vision.1.q", "vision.3.q"])
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 3
    assert done.layouts == {"stride4", "stride8", "stride16"}
    layouts = {site.name: site.layout for site in model.sites}
    assert [layouts[f"vision.1{t}"] for t in ("", ".q", ".v", ".attn")] == [
        "stride8",
        "stride4",
        "stride4",
        "stride8",
    ]
    batch = model.prepare(ITEMS[:1])
    shapes = {n: (layout[0].row.max() + 1, layout[0].col.max() + 1) for n, layout in batch.layouts.items()}
    assert shapes == {"stride4": (12, 20), "stride8": (6, 10), "stride16": (3, 5)}


@pytest.mark.parametrize("size", [(61, 97), (97, 61)])
@pytest.mark.parametrize("name", ["sam", "sam-whole"])
def test_sam_patches(name, size):
    model = tiny(name)
    for site in ("vision.0", "vision.0.q", "vision.0.v"):  # windowed q and v: folded away from the grid
        assert prove_patch(model, item(*size), site, n_patches=35) >= 30
    layout = model.prepare([item(*size)]).layouts["stride8"][0]
    # 97 pixels become 56, so that 61 become 35: the filling begins in the fifth of seven rows.
    n_pad = 2 * 7
    assert (layout.kind == KINDS.index("special")).sum() == n_pad == layout.text.count("<pad>")
    assert len(layout) == 49


@pytest.mark.parametrize("site", ["vision.0.q", "vision.0.k", "vision.0.v"])
def test_sam2_windowed_patches(site):
    """The kernel of 7 at steps of 4 sees neighbours: what moves lies around the changed patch, in q, k and v."""
    model = tiny("sam2")
    grey = replace(item(48, 80), images=(np.full((48, 80, 3), 90, np.uint8),))
    batch = model.prepare([grey])
    layout, before = batch.layouts["stride4"][0], model.capture(batch, site)[site][0]
    n_tried = 0
    for token in range(2 * 20 + 2, 10 * 20, 11):
        if not 2 <= layout.col[token] < 17:
            continue
        x0, y0, x1, y1 = np.round(layout.box[token]).astype(int)
        image = grey.image.copy()
        image[y0:y1, x0:x1] = np.random.default_rng(token).integers(0, 256, (y1 - y0, x1 - x0, 3))
        after = model.capture(model.prepare([replace(grey, images=(image,))]), site)[site][0]
        moved = (after - before).norm(dim=1)
        far = np.maximum(np.abs(layout.row - layout.row[token]), np.abs(layout.col - layout.col[token]))
        assert moved[token] > 0 and not moved[torch.from_numpy(far > 1)].any()
        n_tried += 1
    assert n_tried > 10


def test_windowed_q_is_the_projection_of_the_unfolded_input():
    """The slow way: normalise the block's input on the grid and project it; no windows anywhere."""
    model = tiny("sam")
    batch = model.prepare(ITEMS)
    acts = model.capture(batch, ["vision.0", "vision.1.q", "vision.1.k", "vision.1.v"])
    layer = model.module.vision_encoder.layers[1]
    assert layer.window_size == 3
    for i in range(2):
        with torch.no_grad():
            qkv = layer.attn.qkv(layer.layer_norm1(acts["vision.0"][i]))
        for j, tensor in enumerate("qkv"):
            torch.testing.assert_close(acts[f"vision.1.{tensor}"][i], qkv[:, 24 * j : 24 * (j + 1)])


def test_windowed_attn_adds_up():
    """Residual before + attn + mlp = residual after, on the grid: each token got its own row back."""
    for name in ("sam", "sam2"):
        model = tiny(name)
        batch = model.prepare(ITEMS)
        block = 1 if name == "sam" else 2
        acts = model.capture(
            batch, [f"vision.{block - 1}", *(f"vision.{block}{t}" for t in ("", ".attn", ".mlp"))]
        )
        for i in range(2):
            total = sum(acts[f"vision.{n}"][i] for n in (block - 1, f"{block}.attn", f"{block}.mlp"))
            torch.testing.assert_close(total, acts[f"vision.{block}"][i], atol=1e-5, rtol=1e-4)


def test_editing_one_windowed_token_moves_its_own_residual():
    model = tiny("sam")
    batch = model.prepare(ITEMS[:1])
    before = model.capture(batch, ["vision.1", "vision.1.attn"])
    for token in (0, 6, 23, 30, 48):  # corners, the rims of windows, the last window (mostly padding)
        with model.edit("vision.1.attn", lambda x: x + 5, tokens=[token]):
            after = model.capture(batch, ["vision.1", "vision.1.attn"])
        for site in before:
            moved = (after[site][0] - before[site][0]).norm(dim=1)
            assert moved.nonzero()[:, 0].tolist() == [token], site


@pytest.mark.parametrize("rows, cols, size", [(7, 5, 3), (6, 9, 3), (4, 4, 7), (5, 5, 5)])
def test_fold_is_the_inverse_of_unfold(rows, cols, size):
    windows = Windows(rows=rows, cols=cols, size=size)
    folded = torch.arange(2 * windows.n_windows * size * size * 3.0).reshape(-1, size, size, 3)
    kept = folded.clone()
    grid = windows.unfold(folded)
    assert grid.shape == (2, rows, cols, 3)
    assert torch.equal(windows.fold(grid, into=folded), folded)
    new = windows.fold(grid + 1, into=folded)
    assert torch.equal(folded, kept), "the tensor was overwritten"
    assert torch.equal(windows.unfold(new), grid + 1)
    assert int((new != folded).sum()) == grid.numel(), "the padding was changed"
    with pytest.raises(InputError, match=r"needs \[b \*"):
        windows.unfold(folded[:, :-1])


def test_sam_pixels_equal_the_processors():
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    theirs = SamImageProcessorPil(size={"longest_edge": 56}, pad_size={"height": 56, "width": 56})
    model = load(build("SamVisionModel", "SamVisionConfig", **SAM), processor=theirs)
    for one in ITEMS:
        ours = model.prepare([one]).inputs["pixel_values"]
        want = theirs(images=one.image, return_tensors="pt")["pixel_values"]
        assert torch.equal(ours, want)
    with pytest.raises(InputError, match="fills up to 1024"):
        load(build("SamVisionModel", "SamVisionConfig", **SAM), processor=SamImageProcessorPil())


def test_sam2_checkpoints_made_for_video_load_as_image_models(tmp_path):
    from transformers import Sam2Config, Sam2Model

    config = {k: list(v) if isinstance(v, tuple) else v for k, v in HIERA.items()}
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": {"model_type": "sam2_hiera_det_model", **config},
        "backbone_channel_list": [24, 16, 8],
        "fpn_hidden_size": 32,
        "fpn_top_down_levels": [1],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = Sam2Model(Sam2Config(vision_config=vision)).eval()
    whole.save_pretrained(tmp_path)
    text = (
        (tmp_path / "config.json").read_text().replace('"model_type": "sam2"', '"model_type": "sam2_video"')
    )
    (tmp_path / "config.json").write_text(text.replace('"Sam2Model"', '"Sam2VideoModel"'))
    model = load(tmp_path)
    assert type(model.module).__name__ == "Sam2Model" and model.family == "sam2"
    assert [site.name for site in skeleton(str(tmp_path)).sites] == [site.name for site in model.sites]
    batch = model.prepare(ITEMS[:1])
    got = model.capture(batch, "vision.4")["vision.4"][0]
    with torch.no_grad():
        want = whole.vision_encoder(batch.inputs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(got, want[0].flatten(0, 1))
