"""Colours of a cut by any palette and any number of its eigenvectors, fitted when asked for and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..palette import METHODS

if TYPE_CHECKING:
    from ..palette import Palette, SavedCut

FIT_ROWS = 16_384
"""Tokens that a palette is fitted on, evenly spread: memory does not grow with the cut."""

KEPT_BYTES = 64 * 2**20


class ColorBook:
    """Colours of the tokens of a cut.

    Every palette but the cut's own is turned towards the cut's colours (`Palette.fit(match=...)`), so that a switch
    of method or of the number of eigenvectors changes what must change and no more.

    Args:
        cut: The cut.
    """

    def __init__(self, cut: SavedCut) -> None:
        self.cut = cut
        self._palettes: dict[tuple[str, int], Palette] = {}
        self._kept: OrderedDict[tuple[str, str, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def rgb(self, site: str, *, method: str, n_eig: int) -> NDArray[np.uint8]:
        """Return uint8 [m, 3], the colours of a site's tokens.

        Args:
            site: A site of the cut.
            method: One of `vlascope.palette.METHODS`.
            n_eig: How many eigenvectors the colours are made of, 2..n_eig of the cut.

        Raises:
            InputError: unknown method, or another number of eigenvectors.

        Cost: the first time a palette is fitted (0.1 s for "pca", 2 s for the others); then little.
        """
        if method not in METHODS:
            raise InputError(f"got palette method '{method}'; need one of {', '.join(METHODS)}.")
        k = self.cut.eigvecs.shape[1]
        if not 2 <= n_eig <= k:
            raise InputError(f"got {n_eig} eigenvectors; colours are made of 2 to {k}.")
        rows = self.cut.parts[site].rows
        if method == self.cut.params["color"] and n_eig == k:
            return np.asarray(self.cut.rgb[rows])
        with self._lock:
            key = (site, method, n_eig)
            if key not in self._kept:
                palette = self._palette(method, n_eig)
                self._kept[key] = palette.apply(self.cut.eigvecs[rows, :n_eig])
                while sum(v.nbytes for v in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _palette(self, method: str, n_eig: int) -> Palette:
        from ..palette import Palette

        if (method, n_eig) not in self._palettes:
            n = len(self.cut.rgb)
            index = np.unique(np.linspace(0, n - 1, min(n, FIT_ROWS)).astype(np.int64))
            self._palettes[method, n_eig] = Palette.fit(
                self.cut.eigvecs[index, :n_eig],
                method=method,
                seed=int(self.cut.params["seed"]),
                match=np.asarray(self.cut.rgb[index]),
            )
        return self._palettes[method, n_eig]
