"""What a GPU must not change: cuts, captures, edits and dictionaries are those of the CPU, or say so.

These run where PyTorch sees a CUDA device (`python -m pytest -m gpu`) and are skipped elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlascope as vs
from tests.models import tiny
from tests.runs.fakes import ArraySource, tree
from tests.spectral.data import angle, mixture
from vlascope.models import load
from vlascope.runs import capture, verify_run
from vlascope.sae import MatryoshkaSAE, SAEConfig, SAETrainer, TrainConfig
from vlascope.sae.errors import reconstruction_errors
from vlascope.spectral import NystromNCut, click, kway

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize(("n", "balance"), [(1301, "density"), (12_007, "density"), (40_009, "uniform")])
def test_a_cut_is_that_of_the_cpu_and_repeats_bit_for_bit(n: int, balance: Any) -> None:
    x, _ = mixture(n, d=24)
    host = NystromNCut(6, balance=balance)
    want = host.fit_transform(x)
    rows = torch.from_numpy(x).cuda()
    device = NystromNCut(6, balance=balance)
    one, two = device.fit_transform(rows), NystromNCut(6, balance=balance).fit_transform(rows)
    assert one.device == rows.device and torch.equal(one, two)
    np.testing.assert_allclose(device.eigenvalues_, host.eigenvalues_, atol=2e-3)
    assert angle(one.cpu().numpy()[:, :5], want[:, :5]) < 0.02
    placed = device.transform(rows[:97])
    assert float((placed - one[:97]).abs().max()) < 1e-3 * float(one.abs().max()) + 1e-4


@pytest.mark.parametrize("method", ["rotation", "qr", "kmeans"])
def test_groups_are_those_of_the_cpu(method: Any) -> None:
    from sklearn.metrics import adjusted_rand_score

    x, labels = mixture(5003, d=24, gap=3.0)
    eigvecs = NystromNCut(5).fit_transform(x)
    host = kway(eigvecs, 5, method=method)
    device = kway(torch.from_numpy(eigvecs).cuda(), 5, method=method)
    found = torch.as_tensor(device.labels[5]).cpu().numpy()
    assert adjusted_rand_score(found, np.asarray(host.labels[5])) > 0.999
    assert adjusted_rand_score(found, labels) > 0.9


def test_clicks_on_the_device() -> None:
    x, labels = mixture(3001, d=24, gap=3.0)
    eigvecs = torch.from_numpy(NystromNCut(5).fit_transform(x)).cuda()
    mine = np.flatnonzero(labels == 0)[:2].tolist()
    other = np.flatnonzero(labels == 1)[:1].tolist()
    mask = torch.as_tensor(click(eigvecs, mine, other).mask(eigvecs)).cpu().numpy()
    assert mask[labels == 0].mean() > 0.9 and mask[labels == 1].mean() < 0.1


@pytest.mark.parametrize("make", ["llava", "clip", "dino"])
def test_a_capture_is_that_of_the_cpu(tmp_path: Path, make: str) -> None:
    def model(device: str) -> Any:
        if make == "llava":
            return load(tiny.llava(), processor=tiny.llava_processor(), device=device)
        return load(getattr(tiny, make)(), device=device)

    sites = ["*"] if make == "llava" else ["vision.*", "vision.1.q"]
    settings: dict[str, Any] = {"sites": sites, "batch_size": 3, "block_items": 4, "quiet": True}
    source = ArraySource(7)
    try:
        runs = [
            capture(model(device), source, out=tmp_path / name, **settings)
            for device, name in (("cuda", "one"), ("cuda", "two"), ("cpu", "host"))
        ]
    finally:
        model("cpu")  # the tiny models are shared between tests
    for site in runs[0].sites:
        one, two, host = (np.asarray(run.acts(site)[:], np.float32) for run in runs)
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, host, atol=2e-3 * max(1.0, float(np.abs(host).max())))
    assert tree(tmp_path / "one" / "acts.zarr") == tree(tmp_path / "two" / "acts.zarr")
    assert verify_run(runs[0].path, info=runs[0].info).ok


def test_an_edit_that_returns_its_input_changes_no_bit_and_another_does() -> None:
    model = vs.load("mini-vla", device="cuda")
    items = [vs.items("demo:pick")[i] for i in (0, 5)]
    batch = model.prepare(items)
    site, last = "vision.2", "language.5"
    plain = model.capture(batch, [last])[last]
    with model.edit(site, lambda x: x):
        same = model.capture(batch, [last])[last]
    with model.edit(site, lambda x: 2 * x, tokens=lambda layout: layout.is_kind("patch")):
        other = model.capture(batch, [last])[last]
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    host = vs.load("mini-vla", device="cpu")
    assert [r.text for r in model.respond(items)] == [r.text for r in host.respond(items)]


def test_memory_that_runs_out_halves_the_batch(tmp_path: Path) -> None:
    """A real refusal of the device: 64 pictures do not fit into what it may use, a few do."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 512, 8, stride=2), torch.nn.ReLU())
    model = vs.wrap(
        module,
        sites={"conv": "1"},
        layout=vs.Grid(61, 61, channels_first=True),
        preprocess=lambda item: (
            torch.from_numpy(np.resize(item.image, (128, 128, 3))).permute(2, 0, 1).float()
        ),
        device="cuda",
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (used + 400e6) / total))
    try:
        run = capture(
            model,
            ArraySource(64),
            sites=["conv"],
            out=tmp_path / "r",
            batch_size=64,
            block_items=64,
            quiet=True,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.acts("conv").shape == (64 * 61 * 61, 512)
    assert any("halved" in text for text in run.info["warnings"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_dictionary_trains_as_on_the_cpu(precision: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(96, 32, generator=draw), dim=1)
    codes = torch.rand(8192, 96, generator=draw) * (torch.rand(8192, 96, generator=draw) < 0.04)
    x = codes @ atoms + 0.01 * torch.randn(8192, 32, generator=draw)

    def trained(device: str, kind: Any) -> MatryoshkaSAE:
        trainer = SAETrainer(
            SAEConfig(d_in=32, n_latents=128, k=6, levels=(16, 64, 128)),
            TrainConfig(batch=1024, precision=kind),
            n_steps=120,
            sample_td=x,
            device=device,
        )
        order = torch.Generator().manual_seed(1)
        for _ in range(120):
            trainer.step(x[torch.randint(0, len(x), (1024,), generator=order)])
        return trainer.sae

    def fvu(sae: MatryoshkaSAE, rows: torch.Tensor) -> float:
        return float(reconstruction_errors(sae, rows).mean() / (rows - rows.mean(0)).square().sum(1).mean())

    host, device = trained("cpu", "float32"), trained("cuda", precision)
    assert device.encoder.device.type == "cuda"
    assert fvu(device, x.cuda()) == pytest.approx(fvu(host, x), rel=0.15)
    np.testing.assert_allclose(
        reconstruction_errors(device, x.cuda()).cpu(),
        reconstruction_errors(device.cpu(), x),
        rtol=1e-2,
        atol=1e-4,
    )
