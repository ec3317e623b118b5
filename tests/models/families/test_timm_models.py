"""timm models, on stand-ins with timm's module names and attributes: timm needs torchvision, tests do not."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.models.families.tiny_vision import item
from tests.models.proof import check_family, prove_patch
from vlascope.errors import InputError, MissingExtraError, ModelNotFoundError
from vlascope.models import KINDS, load
from vlascope.models.families.timm_models import TimmFamily, require_timm

CFG = {
    "input_size": (3, 40, 40),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 40), nn.GELU(), nn.Linear(40, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, size, patch, dim):
        super().__init__()
        self.img_size, self.patch_size = (size, size), (patch, patch)
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(self, *, n_registers, cfg=None, dim=24):
        super().__init__()
        self.pretrained_cfg = CFG if cfg is None else cfg
        self.embed_dim, self.num_prefix_tokens = dim, 1 + n_registers
        self.patch_embed = PatchEmbed(40, 8, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.reg_token = nn.Parameter(torch.randn(1, n_registers, dim)) if n_registers else None
        self.pos_embed = nn.Parameter(torch.randn(1, 25, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, 4) for _ in range(3)))

    def forward_features(self, x):
        x = self.patch_embed(x) + self.pos_embed
        heads = [self.cls_token] + ([self.reg_token] if self.reg_token is not None else [])
        return self.blocks(torch.cat([*(head.expand(len(x), -1, -1) for head in heads), x], dim=1))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.pretrained_cfg = CFG | {"crop_mode": "squash", "crop_pct": 1.0}
        self.layer1, self.layer2 = nn.Conv2d(3, 7, 4, 4), nn.Conv2d(7, 11, 2, 2)
        self.feature_info = [
            {"num_chs": 7, "reduction": 4, "module": "layer1"},
            {"num_chs": 11, "reduction": 8, "module": "layer2"},
        ]

    def forward_features(self, x):
        return self.layer2(functional.relu(self.layer1(x)))


def made(cls, **more):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return load(cls(**more).eval())


@pytest.mark.parametrize("n_registers", [0, 4])
def test_transformer_contract_and_patches(n_registers):
    model = made(VisionTransformer, n_registers=n_registers)
    assert model.family == "timm"
    done = check_family(model, [item(61, 97), item(97, 61, seed=1, n_images=2)])
    assert done.tensors == {"out", "q", "k", "v", "attn", "mlp"} and done.n_split == 3
    layout = model.prepare([item(61, 97)]).layouts["stride8"][0]
    assert [KINDS[k] for k in layout.kind] == ["class"] + ["register"] * n_registers + ["patch"] * 25
    for size in [(61, 97), (97, 61)]:
        assert prove_patch(model, item(*size, n_images=2), "vision.0") >= 8


def test_feature_maps():
    model = made(ResNet)
    assert check_family(model, [item(61, 97), item(97, 61, seed=1)]).layouts == {"stride4", "stride8"}
    for site in ("vision.0", "vision.1"):
        assert prove_patch(model, item(61, 97), site) >= 9


def test_models_inside_the_wrapper_of_transformers():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.timm_model = inner
            self.config = SimpleNamespace(model_type="timm_wrapper")

    bare = made(VisionTransformer, n_registers=4)
    model = load(Wrapper(bare.module).eval())
    assert model.family == "timm"
    batch = model.prepare([item(61, 97)])
    ours, theirs = (m.capture(batch, "vision.1.q")["vision.1.q"][0] for m in (model, bare))
    assert torch.equal(ours, theirs)


def test_what_is_not_known_is_said():
    with pytest.raises(InputError, match="crops by 'border'"):
        made(VisionTransformer, n_registers=0, cfg=CFG | {"crop_mode": "border"})

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained_cfg, self.layer = CFG, nn.Linear(3, 3)

        def forward_features(self, x):
            return x

    with pytest.raises(ModelNotFoundError, match="neither blocks over patches nor a feature_info"):
        made(Odd)


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'timm'"), RuntimeError("operator torchvision::nms")]
)
def test_missing_or_broken_timm(monkeypatch, error):
    def fail(name):
        assert name == "timm"
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingExtraError, match="pip install timm torchvision"):
        require_timm()
    with pytest.raises(MissingExtraError, match=str(error).split(":", maxsplit=1)[0]):
        TimmFamily.load_module("timm/x", config=None, dtype=None, revision=None, trust_remote_code=False)


def test_a_timm_checkpoint_without_timm(tmp_path, monkeypatch):
    """Not the bare ImportError of another library."""
    import transformers

    def fail(*_args, **_more):
        raise ImportError("TimmWrapperConfig requires the timm library")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingExtraError, match="requires the timm library"):
        load(tmp_path)
