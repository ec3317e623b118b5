"""Joint cuts: the gradient solver against dense eigenvectors, graphs against slow formulas, a run end to end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.spectral.data import angle
from vlascope.errors import InputError, SiteNotFoundError
from vlascope.models.layout import concat, grid_tokens, plain_tokens
from vlascope.runs.tables import TokenTable, table_from_layouts
from vlascope.spectral import joint_cut, joint_run, kway
from vlascope.spectral.graphs import attention_affinity, neighbour_affinity, symmetric_normalized

metrics = pytest.importorskip("sklearn.metrics")


def planted(n: int, k: int, *, seed: int, noise: float = 0.4) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    block = (labels[:, None] == labels[None]) + noise * rng.uniform(size=(n, n))
    return symmetric_normalized(torch.from_numpy(block).float()), labels


@pytest.mark.parametrize("solver", ["gradient", "direct"])
def test_both_solvers_reach_the_eigenvectors_of_the_mean_graph(solver: Any) -> None:
    graphs = [planted(151, 5, seed=s)[0] for s in range(3)]
    got = joint_cut(graphs, n_eig=5, solver=solver)
    values, vectors = np.linalg.eigh(torch.stack(graphs).double().mean(0).numpy())
    assert angle(got.eigvecs, vectors[:, ::-1][:, :5]) < 0.01
    np.testing.assert_allclose(got.eigenvalues, values[::-1][:5], atol=1e-3)
    np.testing.assert_allclose(got.eigvecs.T @ got.eigvecs, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(got.by_layer.mean(0), got.eigenvalues, atol=1e-4)
    assert got.is_converged and (len(got.losses) == 0) == (solver == "direct")
    if solver == "gradient":
        assert got.losses[-1] < got.losses[0]


def test_layers_that_disagree_are_told_apart() -> None:
    one, labels = planted(120, 3, seed=0, noise=0.05)
    uniform = torch.full((120, 120), 1 / 120.0)
    got = joint_cut([one, uniform], n_eig=3)
    assert (got.by_layer[0, 1:] > 0.5).all() and (np.abs(got.by_layer[1, 1:]) < 1e-3).all()
    assert metrics.adjusted_rand_score(labels, kway(got.eigvecs, 3).labels[3]) == 1.0


def test_layers_of_other_resolution_are_pooled() -> None:
    fine, labels = planted(120, 3, seed=0, noise=0.1)
    order = np.argsort(labels, kind="stable")
    fine = fine[order][:, order]
    pool = torch.kron(torch.eye(30), torch.full((1, 4), 0.25))  # 30 coarse tokens of four fine ones each
    coarse = symmetric_normalized(pool @ fine @ pool.T)
    got = joint_cut([fine, coarse], pools=[None, pool], n_eig=3)
    assert metrics.adjusted_rand_score(np.repeat(range(3), 40), kway(got.eigvecs, 3).labels[3]) == 1.0
    with pytest.raises(InputError, match="tokens"):
        joint_cut([fine, coarse])


def test_same_seed_same_bits_and_steps_are_bounded() -> None:
    graphs = [planted(83, 4, seed=1)[0]]
    one, two = joint_cut(graphs, n_eig=4), joint_cut(graphs, n_eig=4)
    np.testing.assert_array_equal(one.eigvecs, two.eigvecs)
    short = joint_cut(graphs, n_eig=4, max_steps=7)
    assert not short.is_converged and len(short.losses) == 7


def test_attention_affinity_equals_the_slow_formula(rng: np.random.Generator) -> None:
    q, k = rng.normal(size=(2, 11, 6)).astype(np.float32)
    want = np.zeros((11, 11))
    for head in range(2):
        logits = q[:, 3 * head : 3 * head + 3] @ k[:, 3 * head : 3 * head + 3].T / np.sqrt(3)
        a = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        a = (a + a.T) / 2
        want += a / np.sqrt(a.sum(1)[:, None] * a.sum(1)[None]) / 2
    np.testing.assert_allclose(attention_affinity(q, k, n_heads=2), want, atol=1e-5)
    for bad in (4, 0):
        with pytest.raises(InputError, match="heads"):
            attention_affinity(q, k, n_heads=bad)
    with pytest.raises(InputError, match="same shape"):
        attention_affinity(q, k[:5])


def test_neighbour_affinity_equals_the_slow_formula(rng: np.random.Generator) -> None:
    v = rng.normal(size=(24, 5)).astype(np.float32) + 0.5
    image_of = np.repeat([4, 2, 9], 8)
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    cosine = unit @ unit.T
    want = np.zeros((24, 24))
    for i in range(24):
        for same, count in ((True, 3), (False, 2)):
            allowed = [j for j in range(24) if j != i and (image_of[j] == image_of[i]) == same]
            best = sorted(allowed, key=lambda j: -cosine[i, j])[:count]
            for j in best:
                want[i, j] = cosine[i, j] if cosine[i, j] > 0.1 else 0
    want = (want + want.T) / 2
    half = 1 / np.sqrt(np.where(want.sum(1) > 0, want.sum(1), np.inf))
    got = neighbour_affinity(v, image_of=image_of, n_intra=3, n_inter=2)
    np.testing.assert_allclose(got.to_dense(), half[:, None] * want * half[None], atol=1e-5)


def test_a_token_without_neighbours_does_no_harm(rng: np.random.Generator) -> None:
    v = np.abs(rng.normal(size=(20, 4))).astype(np.float32)
    v[7] = [-1, -1, -1, -1]  # unlike everything: no cosine above the floor
    graph = neighbour_affinity(v, image_of=np.arange(20) // 10, n_intra=3, n_inter=3)
    dense = graph.to_dense().numpy()
    assert np.isfinite(dense).all() and (dense[7] == 0).all()
    assert np.isfinite(joint_cut([graph], n_eig=3).eigvecs).all()
    for bad in ({"n_intra": 0, "n_inter": 0}, {"image_of": np.arange(19)}):
        with pytest.raises(InputError):
            neighbour_affinity(v, **{"image_of": np.arange(20) // 10, **bad})


class FakeRun:
    """Two attention layers over three images of 5 x 7 patches and a class token; values tell halves apart."""

    path = "fake"

    def __init__(self) -> None:
        layout = concat([plain_tokens("class", [""]), grid_tokens(5, 7, frame=(0, 0, 70, 50))])
        self.table = TokenTable(table_from_layouts([layout] * 3, first_item=0))
        rng = np.random.default_rng(0)
        self.half = (self.table.col >= 3).astype(int)
        names = [f"vision.{i}.{t}" for i in range(2) for t in "qkv"]
        self.sites = {name: SimpleNamespace(layout="vision") for name in names}
        centers = rng.normal(size=(2, 12))
        self.values = {name: centers[self.half] + 0.3 * rng.normal(size=(108, 12)) for name in names}

    def tokens(self, layout: str) -> TokenTable:
        return self.table

    def acts(self, site: str) -> np.ndarray:
        return self.values[site].astype(np.float32)


@pytest.mark.parametrize("kind", ["what", "where"])
@pytest.mark.parametrize("items", [[1], [0, 2], None])
def test_a_run_end_to_end(kind: Any, items: list[int] | None) -> None:
    run: Any = FakeRun()
    got = joint_run(
        run, ["vision.0", "vision.1"], kind=kind, items=items, n_eig=4, quiet=True, n_inter=9, n_intra=9
    )
    n_items = 3 if items is None else len(items)
    assert got.eigvecs.shape == (35 * n_items, 4) and got.layout == "vision"
    assert (run.table.row[got.token_rows] >= 0).all()
    if items is not None:
        assert set(run.table.item[got.token_rows]) == set(items)
    labels = kway(got.eigvecs[:, :2], 2).labels[2]
    assert metrics.adjusted_rand_score(run.half[got.token_rows], labels) > 0.9
    assert got.params["kind"] == kind and got.by_layer.shape == (2, 4)


def test_bad_runs() -> None:
    run: Any = FakeRun()
    with pytest.raises(SiteNotFoundError, match=r"vision\.7\.v"):
        joint_run(run, ["vision.7"], quiet=True)
    with pytest.raises(InputError, match="no layers"):
        joint_run(run, [], quiet=True)
    with pytest.raises(InputError, match="kind"):
        joint_run(run, ["vision.0"], kind="who", quiet=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to cut"):
        joint_run(run, ["vision.0"], items=[99], quiet=True)
    with pytest.raises(InputError, match="no graphs"):
        joint_cut([])
    with pytest.raises(InputError, match="n_eig"):
        joint_cut([torch.eye(5)], n_eig=6)
