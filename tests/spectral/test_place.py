"""Placing and colouring block by block gives the bits of doing it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.palette import Palette
from vlascope.runs import LocalEngine
from vlascope.spectral import NystromNCut, OutOfReachWarning, kway, place
from vlascope.spectral.place import color_tokens, fit_and_place, place_tokens


class Counting(LocalEngine):
    """The local engine; counts blocks."""

    def __init__(self) -> None:
        self.n_blocks = 0

    def map_blocks(self, fn: Callable[[Any], Any], blocks: Iterable[Any]) -> Iterator[Any]:
        for block in blocks:
            self.n_blocks += 1
            yield fn(block)


@pytest.mark.parametrize("n_fit", [300, 2500])
def test_blocks_have_the_same_bits(n_fit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((place.BLOCK_ROWS + 1301, 7)).astype(np.float32)
    ncut = NystromNCut(5, seed=0).fit(rows[:n_fit])
    engine = Counting()
    want = ncut.transform(rows)
    for given in (None, engine):
        np.testing.assert_array_equal(place_tokens(ncut, rows, engine=given), want)
    assert engine.n_blocks == 2
    palette = Palette.fit(want, method="pca")
    np.testing.assert_array_equal(color_tokens(palette, want, engine=engine), palette.apply(want))
    assert engine.n_blocks == 4
    with pytest.raises(InputError, match="width"):
        place_tokens(ncut, rows[:, :3], engine=engine)


def test_fit_on_some_and_place_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever places, the bits are the same; what is placed agrees with a cut of all rows; strangers get NaN."""
    monkeypatch.setattr(place, "BLOCK_ROWS", 2048)
    rng = np.random.default_rng(1)
    centers = 8 * np.eye(4, 7, dtype=np.float32)
    group = np.arange(5003) % 4
    rows = centers[group] + rng.standard_normal((5003, 7)).astype(np.float32)
    engine = Counting()
    got = [
        fit_and_place(NystromNCut(4, seed=0), rows, n_fit=701, seed=2, engine=one) for one in (None, engine)
    ]
    np.testing.assert_array_equal(got[0], got[1])
    assert engine.n_blocks == 3 and got[0].shape == (5003, 4)
    drawn = np.sort(np.random.default_rng([2, 3]).choice(5003, 701, replace=False))
    want = NystromNCut(4, seed=0).fit(rows[drawn])
    np.testing.assert_array_equal(got[0], want.transform(rows))
    other = fit_and_place(NystromNCut(4, seed=0), rows, n_fit=701, seed=5)
    assert not np.array_equal(other, got[0])
    labels = kway(got[0], [4]).labels[4]
    assert all(len(set(labels[group == g])) == 1 for g in range(4)) and len(set(labels)) == 4
    rows[17] = 500
    keep = next(seed for seed in range(9) if 17 not in _drawn(seed))
    with pytest.warns(OutOfReachWarning, match="1 of 5003 tokens are unlike all 701"):
        far = fit_and_place(NystromNCut(4, seed=0), rows, n_fit=701, seed=keep, engine=engine)
    assert np.isnan(far[17]).all() and np.isnan(far).sum() == 4
    with pytest.raises(InputError, match="at least 2"):
        fit_and_place(NystromNCut(4), rows, n_fit=1, seed=0)


def _drawn(seed: int) -> set[int]:
    return set(np.random.default_rng([seed, 3]).choice(5003, 701, replace=False).tolist())
