"""Agreement numbers against closed forms and slow formulas."""

from __future__ import annotations

import numpy as np
import pytest

from tests.spectral.data import mixture
from vlascope.errors import InputError
from vlascope.spectral import agreement, agreement_matrix, cka, subspace_overlap


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA by the formula on n x n matrices (Song et al. 2012)."""

    def hsic(k: np.ndarray, other: np.ndarray) -> float:
        n = len(k)
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        one = np.ones(n)
        return (
            np.trace(k @ other)
            + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ other @ one)
        ) / (n * (n - 3))

    x, y = x.astype(float) - x.mean(0), y.astype(float) - y.mean(0)
    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def test_cka_equals_the_slow_formula_and_ignores_rotation_shift_and_scale(rng: np.random.Generator) -> None:
    x = rng.normal(size=(53, 7))
    y = np.tanh(x @ rng.normal(size=(7, 11))) + 0.3 * rng.normal(size=(53, 11))
    assert cka(x, y) == pytest.approx(slow_cka(x, y), abs=1e-10)
    turn = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    assert cka(x, 3 * x @ turn + 100) == pytest.approx(1, abs=1e-9)
    assert cka(x, y) == pytest.approx(cka(y, x @ turn), abs=1e-10)


def test_cka_of_unrelated_features_is_about_zero_with_few_tokens(rng: np.random.Generator) -> None:
    values = [cka(rng.normal(size=(29, 211)), rng.normal(size=(29, 307))) for _ in range(20)]
    assert abs(np.mean(values)) < 0.05  # the plain estimate would be about 0.9


def test_subspace_overlap(rng: np.random.Generator) -> None:
    q = np.linalg.qr(rng.normal(size=(101, 8)))[0]
    turn = rng.normal(size=(4, 4))
    assert subspace_overlap(q[:, :4], q[:, :4] @ turn) == pytest.approx(1)
    assert subspace_overlap(q[:, :4], q[:, 4:]) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(q[:, :4], q[:, 2:6]) == pytest.approx(0.5)
    assert subspace_overlap(q[:, :2], q) == pytest.approx(1)
    padded = np.concatenate([q[:, :3], np.zeros((101, 2))], 1)
    assert subspace_overlap(padded, q[:, :3]) == pytest.approx(1)


def test_layers_of_one_scene_agree_and_others_do_not(rng: np.random.Generator) -> None:
    x, _ = mixture(601, d=9, k=5)
    view = np.tanh(0.3 * x @ rng.normal(size=(9, 33)))
    other, _ = mixture(601, d=9, k=5, seed=1)
    table = agreement_matrix({"a": x, "b": view, "c": other}, n_eig=4)
    assert set(table) == {("a", "b"), ("a", "c"), ("b", "c")}
    same, different = table["a", "b"], table["a", "c"]
    assert same.subspace > 0.8 and same.cka > 0.5
    assert different.subspace < 0.1 and abs(different.cka) < 0.1
    for one in table.values():
        assert one.subspace_chance < 0.1 and one.n == 601 and one.n_eig == 4
    assert agreement(x, view, n_eig=4) == same


def test_bad_input(rng: np.random.Generator) -> None:
    x = rng.normal(size=(31, 5))
    with pytest.raises(InputError, match="same tokens"):
        agreement(x, x[:30])
    with pytest.raises(InputError, match="same tokens"):
        cka(x, x[:30])
    with pytest.raises(InputError, match="at least 4"):
        cka(x[:3], x[:3])
    with pytest.raises(InputError, match="constant"):
        cka(x, np.ones((31, 2)))
    x[4, 1] = np.nan
    with pytest.raises(InputError, match="4"):
        cka(x, x)
    with pytest.raises(InputError, match="4"):
        agreement(x, x)
