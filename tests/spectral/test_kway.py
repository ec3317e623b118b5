"""Groups and their hierarchy against planted partitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.spectral.data import mixture
from vlascope.errors import InputError
from vlascope.spectral import NystromNCut, kway

metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(scope="module")
def cut() -> tuple[np.ndarray, np.ndarray]:
    x, labels = mixture(1201, k=7, gap=2.5)
    return NystromNCut(13).fit_transform(x), labels


@pytest.mark.parametrize("method", ["rotation", "qr", "kmeans"])
def test_planted_groups_are_found(cut: Any, method: str) -> None:
    eigvecs, truth = cut
    found = kway(eigvecs, 7, method=method)
    assert metrics.adjusted_rand_score(truth, found.labels[7]) > 0.99
    assert found.scores[7].shape == (1201, 7) and found.labels[7].dtype == np.int16
    assert (found.scores[7].argmax(1) == found.labels[7]).all()
    np.testing.assert_array_equal(found.parents[7], -1)
    sizes = np.bincount(found.labels[7])
    assert (np.diff(sizes) <= 0).all()  # ids by falling size


@pytest.mark.parametrize("method", ["rotation", "qr", "kmeans"])
def test_several_k_nest_and_ids_are_stable(cut: Any, method: str) -> None:
    found = kway(cut[0], [13, 3, 7], method=method)
    assert list(found.labels) == [3, 7, 13]
    np.testing.assert_array_equal(found.labels[3], kway(cut[0], 3, method=method).labels[3])
    for coarse, fine in ((3, 7), (7, 13)):
        parent = found.parents[fine]
        np.testing.assert_array_equal(parent[found.labels[fine]], found.labels[coarse])
        np.testing.assert_array_equal(parent[:coarse], np.arange(coarse))
        assert found.scores[fine].shape[1] == fine


def test_levels_need_not_nest(cut: Any) -> None:
    found = kway(cut[0], [3, 7], nested=False)
    assert metrics.adjusted_rand_score(found.labels[7], kway(cut[0], 7).labels[7]) == 1.0


def test_order_of_rows_does_not_matter(cut: Any) -> None:
    order = np.random.default_rng(0).permutation(1201)
    one, two = kway(cut[0], [3, 7]), kway(cut[0][order], [3, 7])
    for k in (3, 7):
        assert metrics.adjusted_rand_score(one.labels[k][order], two.labels[k]) > 0.99


def test_same_bits_and_new_rows(cut: Any) -> None:
    one, two = kway(cut[0], [3, 7]), kway(torch.from_numpy(cut[0]), [3, 7])
    for k in (3, 7):
        np.testing.assert_array_equal(one.labels[k], two.labels[k])
        np.testing.assert_array_equal(one.scores[k], two.scores[k])
        np.testing.assert_array_equal(one.assign(cut[0][::5])[k], one.labels[k][::5])


def test_rows_out_of_reach_get_no_label(cut: Any) -> None:
    eigvecs = cut[0].copy()
    eigvecs[[5, 900]] = np.nan
    found = kway(eigvecs, [3, 7])
    for k in (3, 7):
        assert np.flatnonzero(found.labels[k] == -1).tolist() == [5, 900]
        assert np.isnan(found.scores[k][5]).all()
        assert found.assign(eigvecs[4:6])[k].tolist() == [found.labels[k][4], -1]


def test_columns_weigh_by_their_eigenvalues_in_kmeans() -> None:
    x, truth = mixture(1201, k=4, gap=2.5)
    rng = np.random.default_rng(0)
    eigvecs = np.hstack([NystromNCut(4).fit_transform(x), rng.normal(size=(1201, 8))])
    values = np.r_[np.ones(4), np.full(8, 1e-3)]

    plain, weighed = (
        kway(eigvecs, 12, method="kmeans"),
        kway(eigvecs, 12, method="kmeans", eigenvalues=values),
    )
    purity = [
        metrics.homogeneity_score(truth, found.labels[12]) for found in (plain, weighed)
    ]  # noise columns tear groups apart unless they weigh little
    assert purity[1] > 0.99 > 0.8 > purity[0]
    np.testing.assert_array_equal(weighed.assign(eigvecs[::7])[12], weighed.labels[12][::7])
    same = kway(eigvecs * values.astype(np.float32), 12, method="kmeans")
    np.testing.assert_array_equal(same.labels[12], weighed.labels[12])


def test_groups_may_use_more_eigenvectors_than_their_number() -> None:
    truth = np.repeat([0, 1, 2], 100)
    noise = np.random.default_rng(0).normal(size=(300, 6)) * 0.05
    eigvecs = noise + np.array([[1, 1, 0, 1, 0, 0], [1, 1, 0, -1, 0, 0], [1, -1, 0, 0, 0, 0]])[truth]
    few, more = (kway(eigvecs, 3, method="kmeans", per_group=m) for m in (1, 2))
    assert metrics.adjusted_rand_score(truth, few.labels[3]) < 0.9  # the fourth column tells 0 from 1
    assert metrics.adjusted_rand_score(truth, more.labels[3]) == 1
    assert more.directions[3].shape == (6, 3)
    np.testing.assert_array_equal(more.assign(eigvecs[::7])[3], more.labels[3][::7])
    levels = kway(eigvecs, [1, 2, 5], method="kmeans", per_group=2)
    assert [levels.directions[k].shape for k in (1, 2, 5)] == [(2, 1), (4, 2), (6, 5)]
    assert (levels.labels[1] == 0).all()


def test_rotation_beats_its_start_on_the_cut_objective() -> None:
    x, _ = mixture(701, k=9, gap=1.2)
    ncut = NystromNCut(9, scale=4.0)
    eigvecs = ncut.fit_transform(x)
    affinity = np.exp(-((x[:, None].astype(float) - x[None]) ** 2).sum(2) / 32)

    def kept(labels: np.ndarray) -> float:
        one = np.eye(9)[labels]
        inside, total = np.einsum("nk,nm,mk->k", one, affinity, one), one.T @ affinity.sum(1)
        return float((inside / np.maximum(total, 1e-9)).sum())

    assert kept(kway(eigvecs, 9).labels[9]) >= kept(kway(eigvecs, 9, method="qr").labels[9]) - 1e-3


def test_bad_input(cut: Any) -> None:
    for bad in (0, 14, [3, 99], []):
        with pytest.raises(InputError):
            kway(cut[0], bad)
    with pytest.raises(InputError, match="method"):
        kway(cut[0], 3, method="ward")
    with pytest.raises(InputError, match="only 'kmeans'"):
        kway(cut[0], 3, eigenvalues=np.ones(13))
    with pytest.raises(InputError, match="one finite number per column"):
        kway(cut[0], 3, method="kmeans", eigenvalues=np.ones(12))
    with pytest.raises(InputError, match="for method='kmeans' only"):
        kway(cut[0], 3, per_group=2)
    with pytest.raises(InputError, match="per_group=0"):
        kway(cut[0], 3, method="kmeans", per_group=0)
    with pytest.raises(InputError, match="finite rows"):
        kway(np.full((9, 4), np.nan), 3)
    with pytest.raises(InputError, match="shape"):
        kway(np.zeros(5), 3)


def test_fewer_distinct_rows_than_groups() -> None:
    eigvecs = np.eye(3, 5, dtype=np.float32)[np.arange(30) % 3]
    found = kway(eigvecs, [2, 5])
    assert len(np.unique(found.labels[5])) == 3
    np.testing.assert_array_equal(found.parents[5][found.labels[5]], found.labels[2])
    one = kway(eigvecs, 1)
    assert (one.labels[1] == 0).all()
