"""Clicks: planted groups, new images, refusals, speed of the arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.spectral.data import mixture
from vlascope.errors import InputError
from vlascope.spectral import NystromNCut, click


@pytest.fixture(scope="module")
def cut() -> tuple[NystromNCut, np.ndarray, np.ndarray]:
    x, labels = mixture(1301, k=5, gap=2.5)
    return NystromNCut(7).fit(x[:1000]), x, labels


def test_one_click_selects_its_group_here_and_in_new_images(cut: Any) -> None:
    ncut, x, labels = cut
    eigvecs, new = ncut.transform(x[:1000]), ncut.transform(x[1000:])
    for group in range(5):
        found = click(eigvecs, [int(np.flatnonzero(labels == group)[3])], eigenvalues=ncut.eigenvalues_)
        assert (found.mask(eigvecs) == (labels[:1000] == group)).mean() > 0.99
        assert (found.mask(new) == (labels[1000:] == group)).mean() > 0.99
        assert found.scores(new).dtype == np.float32


def test_negative_clicks_take_away(cut: Any) -> None:
    ncut, x, labels = cut
    eigvecs = ncut.transform(x[:1000])
    one, two = (int(np.flatnonzero(labels == group)[0]) for group in (1, 2))
    wide = click(eigvecs, [one], threshold=-0.99, eigenvalues=ncut.eigenvalues_).mask(eigvecs)
    assert wide[labels[:1000] == 2].mean() > 0.9
    less = click(eigvecs, [one], [two], threshold=-0.99, eigenvalues=ncut.eigenvalues_).mask(eigvecs)
    assert less[labels[:1000] == 2].mean() < 0.1 and less[labels[:1000] == 1].mean() > 0.9
    both = click(eigvecs, [one, two], eigenvalues=ncut.eigenvalues_).mask(eigvecs)
    assert (both == np.isin(labels[:1000], [1, 2])).mean() > 0.95


def test_tokens_out_of_reach(cut: Any) -> None:
    ncut, x, _ = cut
    eigvecs = ncut.transform(x[:1000])
    eigvecs[7] = np.nan
    found = click(eigvecs, [3])
    assert not found.mask(eigvecs)[7] and np.isnan(found.scores(eigvecs)[7])
    with pytest.raises(InputError, match="out of the cut's reach"):
        click(eigvecs, [7])


def test_bad_clicks(cut: Any) -> None:
    eigvecs = cut[0].transform(cut[1][:1000])
    for clicks, message in (
        (([], [1]), "no positive click"),
        (([1000], []), "rows run 0..999"),
        (([1], [-2]), "rows run"),
        (([1, 2], [2]), "token 2"),
    ):
        with pytest.raises(InputError, match=message):
            click(eigvecs, *clicks)
    with pytest.raises(InputError, match="threshold"):
        click(eigvecs, [1], threshold=1.0)
    with pytest.raises(InputError, match="eigenvalues"):
        click(eigvecs, [1], eigenvalues=np.ones(3))
    with pytest.raises(InputError, match="made on 7"):
        click(eigvecs, [1]).mask(eigvecs[:, :4])
