"""SAELens opens our folders with its own loader and computes what we compute."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlascope.sae import MatryoshkaSAE, SAEConfig, save_sae

ROOT = Path(__file__).resolve().parents[2]

# SAELens' loader, without the packages that it imports for other purposes (see benchmarks/_sae_peers.py).
SCRIPT = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from benchmarks._sae_peers import peer_module
registry = peer_module("sae_lens.registry")
topk, jump = (peer_module(f"sae_lens.saes.{name}_sae") for name in ("topk", "jumprelu"))
for name, module, kind in (("topk", topk, "TopK"), ("jumprelu", jump, "JumpReLU")):
    known = registry.SAE_CLASS_REGISTRY
    if name not in known:
        registry.register_sae_class(name, getattr(module, kind + "SAE"), getattr(module, kind + "SAEConfig"))
SAE = peer_module("sae_lens.saes.sae").SAE
folder = sys.argv[1]
sae = SAE.load_from_disk(folder, device="cpu")
x = load_file(folder + "/x.safetensors")["x"]
with torch.no_grad():
    z = sae.encode(x)
    out = sae.decode(z)
save_file({"z": z.contiguous(), "out": out.contiguous()}, folder + "/theirs.safetensors")
print(json.dumps({"class": type(sae).__name__, "name": sae.cfg.metadata.model_name}))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None,
    reason="needs SAELens (pip install --no-deps sae-lens); its dependencies are not needed",
)
@pytest.mark.parametrize(("activation", "kind"), [("topk", "TopKSAE"), ("batchtopk", "JumpReLUSAE")])
def test_saelens_loads_and_agrees(activation, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(0)
    sae = MatryoshkaSAE(SAEConfig(d_in=23, n_latents=53, k=4, levels=(9,), activation=activation), seed=1)
    with torch.no_grad():
        sae.b_enc.copy_(0.1 * torch.randn(53, generator=draw))
        sae.b_dec.copy_(torch.randn(23, generator=draw))
        sae.mean.copy_(torch.randn(23, generator=draw))
        sae.scale.fill_(1.9)
        sae.threshold.fill_(0.0 if activation == "topk" else 0.7)
    x = 3 * torch.randn(61, 23, generator=draw)
    save_sae(sae, tmp_path / "s", origin={"model": "mini", "site": "vision.3"}, proof_td=x.numpy())
    save_file({"x": x}, tmp_path / "s" / "x.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    assert facts == {"class": kind, "name": "mini"}
    theirs = load_file(tmp_path / "s" / "theirs.safetensors")
    folded = sae.folded()
    torch.testing.assert_close(theirs["z"], folded.encode(x).dense(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs["out"], sae(x), rtol=1e-4, atol=1e-4)
