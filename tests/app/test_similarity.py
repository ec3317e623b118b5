"""Cosines over stored activations: every stored type, blocks, large means; and the sketch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlascope.app import kernel
from vlascope.app.similarity import ConceptRows, SiteFeatures, main_axes, rank_correlation, to_bytes


class FakeActs:
    def __init__(self, blocks, dtype):
        self.blocks, self.dtype = blocks, dtype
        self.shape = (sum(map(len, blocks)), blocks[0].shape[1])

    def __len__(self):
        return self.shape[0]

    def stored_blocks(self):
        yield from self.blocks

    def __getitem__(self, key):
        whole = np.concatenate(self.blocks)
        if self.dtype == "bfloat16":
            whole = (whole.astype(np.uint32) << 16).view(np.float32)
        return whole[key]


def features_of(tmp_path, values, dtype):
    stored = torch.from_numpy(values).to(getattr(torch, dtype))
    array = stored.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else stored.numpy()
    blocks = [array[:53], array[53:60], array[60:]]
    for block in blocks:
        block.flags.writeable = False  # as memory maps are
    run = SimpleNamespace(
        acts=lambda site: FakeActs(blocks, dtype),
        site=lambda site: SimpleNamespace(dtype=dtype),
        derived_dir=lambda verb, params: tmp_path / "derived" / f"{verb}-{dtype}",
    )
    return SiteFeatures(run, "vision.0"), stored.double().numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("how", ["torch", "numba"])
def test_exact_cosines_hold_for_every_stored_type_and_a_large_mean(tmp_path, rng, monkeypatch, dtype, how):
    monkeypatch.setattr(kernel, "_compiled", {})
    monkeypatch.setattr(kernel, "TORCH_ROWS", 31)
    if how == "numba":
        pytest.importorskip("numba", reason="numba is not installed; torch computes the cosines")
        assert kernel.compile_for(dtype)
        monkeypatch.delattr(torch, "mv")  # so that it is not asked instead
    values = (rng.standard_normal((211, 97)) + 6 * rng.standard_normal(97)).astype(np.float32)
    values[0, :4] = 0, 6e-8, -3e-6, 2**-24  # zero and, in half precision, subnormal numbers
    features, stored = features_of(tmp_path, values, dtype)
    got = features.exact(60)
    mean = np.load(next((tmp_path / "derived").glob("*/mean.npy"))).astype(np.float64)
    centred = stored - mean
    expected = centred @ centred[60] / np.linalg.norm(centred, axis=1) / np.linalg.norm(centred[60])
    # Sums of products as large as 6 x 6 x 97, in float32, of which 97 are left; one step of the picture is 4e-3.
    assert np.abs(got - expected).max() < 2e-5 and got.shape == (211,)
    assert got[60] == pytest.approx(1, abs=2e-5)
    assert np.abs(mean - stored.mean(0)).max() < 1e-5


def test_without_numba_torch_computes_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(kernel, "_compiled", {})
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level("INFO", logger="vlascope.app.kernel"):
        assert not kernel.compile_for("bfloat16")
    assert "pip install numba" in caplog.text


def test_sketch_keeps_the_order_of_tokens_and_is_read_back(tmp_path, rng):
    centres = rng.standard_normal((7, 64)) * 3
    values = (centres[rng.integers(0, 7, 400)] + rng.standard_normal((400, 64))).astype(np.float32)
    features, _ = features_of(tmp_path, values, "float32")
    exact, sketched = features.exact(5), features.sketched_bytes(5)
    likest = exact > 0.1  # bytes end at 0, where what is unlike begins
    assert np.abs(sketched / 255 - np.maximum(exact, 0)).max() < 0.3 and likest.sum() > 50
    assert rank_correlation(exact[likest], sketched[likest].astype(np.float32)) > 0.9
    assert 0.95 < features.sketch_rank(5) < 1  # all 400 tokens are checked
    assert rank_correlation(exact, rng.permutation(exact)) < 0.3
    again, _ = features_of(tmp_path, values, "float32")
    np.testing.assert_array_equal(again.sketched_bytes(5), sketched)
    assert again.sketch_rank(5) == features.sketch_rank(5)


def test_concept_rows_use_the_first_eigenvectors_only(rng):
    vectors = rng.standard_normal((101, 7)).astype(np.float32)
    got = ConceptRows(vectors).alike(13, n_eig=3, rows=slice(10, 50))
    part = vectors[:, :3].astype(np.float64)
    expected = part[10:50] @ part[13] / np.linalg.norm(part[10:50], axis=1) / np.linalg.norm(part[13])
    assert np.abs(got - np.maximum(expected, 0) * 255).max() < 0.501


def test_axes_of_the_sketch_hold_what_the_best_ones_hold(rng):
    rows = (rng.standard_normal((311, 53)) * np.geomspace(3, 0.05, 53)).astype(np.float32)
    axes = main_axes(rows, n=7)
    assert np.abs(axes.T @ axes - np.eye(7)).max() < 1e-5
    best = np.sort(np.linalg.svd(rows, compute_uv=False) ** 2)[::-1][:7]
    held = np.sum((rows @ axes) ** 2, axis=0)
    assert (np.abs(held - best) < 0.01 * best).all()
    assert main_axes(rows[:, :5], n=5).shape == (5, 5)


def test_bytes():
    assert to_bytes(np.array([-1, 0, 0.5, 1, np.nan], np.float32)).tolist() == [0, 0, 128, 255, 0]
