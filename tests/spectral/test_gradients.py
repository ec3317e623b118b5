"""Gradients against finite differences in float64; attribution finds planted channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.spectral.data import mixture
from vlascope.errors import InputError
from vlascope.spectral import attribute_channels, spectral_projector


def loss(x: torch.Tensor, k: int, probe: torch.Tensor, sigma: float) -> torch.Tensor:
    projector, _ = spectral_projector(x, k, sigma=sigma)
    return (projector * probe).sum()


def check_gradient(x: torch.Tensor, k: int, *, sigma: float = 2.0) -> None:
    rng = np.random.default_rng(1)
    probe = torch.from_numpy(rng.normal(size=(len(x), len(x))))
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(x, k, probe, sigma), x)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=x.shape))
        step = 1e-5
        with torch.no_grad():
            up, down = (loss(x + s * step * direction, k, probe, sigma) for s in (1, -1))
        slope = float((up - down) / (2 * step))
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_gradient_equals_finite_differences(k: int) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(23, 5)))
    check_gradient(x, k)


def test_repeated_eigenvalues_inside_the_space_do_no_harm() -> None:
    """A regular hexagon: eigenvalues 2 and 3 coincide exactly, single eigenvectors have no gradient."""
    at = 2 * np.pi * np.arange(6) / 6
    x = torch.from_numpy(np.stack([np.cos(at), np.sin(at)], 1))
    check_gradient(x, 3, sigma=1.0)
    with pytest.raises(InputError, match="coincide"):
        spectral_projector(x, 2, sigma=1.0)


def test_projector_is_the_cut() -> None:
    x, labels = mixture(151, d=5, k=3, gap=3.0)
    projector, degree = spectral_projector(torch.from_numpy(x), 3)
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-8)
    assert float(projector.trace()) == pytest.approx(3)
    same = labels[:, None] == labels[None]
    assert projector[same].mean() > 20 * projector[~same].abs().mean()
    assert (degree >= 1).all()


def test_attribution_finds_the_channels_that_make_a_group() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 181)
    x = rng.normal(size=(181, 13)).astype(np.float32)
    x[:, 4] += 6 * (labels == 0)
    x[:, 9] += 6 * (labels == 1)
    found = attribute_channels(x, labels)
    assert found.groups.tolist() == [0, 1, 2] and (found.scores > 0.7).all()
    assert found.top(0, 1).tolist() == [4] and found.top(1, 1).tolist() == [9]
    where = found.map(0, 4)
    assert where.shape == (181,) and where[labels == 0].mean() == pytest.approx(
        found.channels[0, 4], rel=1e-5
    )


def test_tokens_without_a_group_are_left_out_and_bad_input_is_refused() -> None:
    x, labels = mixture(61, d=5, k=3)
    labels[:5] = -1
    assert attribute_channels(x, labels).groups.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="no token"):
        attribute_channels(x, np.full(61, -1))
    with pytest.raises(InputError, match="labels"):
        attribute_channels(x, labels[:9])
    with pytest.raises(InputError, match="no group 7"):
        attribute_channels(x, labels).top(7)
    with pytest.raises(InputError, match="k=61"):
        spectral_projector(torch.from_numpy(x), 61)
    with pytest.raises(InputError, match="at most"):
        spectral_projector(torch.zeros(4000, 2), 3)
    with pytest.raises(InputError, match="coincide"):
        spectral_projector(torch.zeros(9, 2), 3)
    x[3] = np.nan
    with pytest.raises(InputError, match=": 3"):
        attribute_channels(x, labels)
