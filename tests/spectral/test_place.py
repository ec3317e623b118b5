"""Placing and colouring block by block gives the bits of doing it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.palette import Palette
from vlascope.runs import LocalEngine
from vlascope.spectral import NystromNCut, place
from vlascope.spectral.place import color_tokens, place_tokens


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
