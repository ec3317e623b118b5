"""Which tokens are like a clicked one: exact cosines over memory maps, and a small sketch for many layers at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, VlascopeError
from ..files import derived_folder, write_json
from ..runs.arrays import from_stored
from .kernel import compile_for, cosines
from .workers import each

if TYPE_CHECKING:
    from ..runs import Run

SKETCH_WIDTH = 32
"""Numbers per token in the sketch."""

SAMPLE_ROWS = 4096
"""Tokens that the mean and the axes of the sketch are measured on, evenly spread over the site."""

CHECK_ROWS = 512
"""Tokens of every site, evenly spread, on which the sketch is compared with the truth at every click."""

CHUNK_ROWS = 8192
MEASURE_ROWS = 2048
"""Tokens that are held in float32 at once while a site is measured, per core."""

EXACT_BYTES = 256 * 2**20
"""Up to so many bytes of activations in all, every layer is compared exactly; above, by its sketch."""

_SCHEMA = 2


class Stopping(VlascopeError):
    """The server is shutting down."""


class SiteFeatures:
    """The activations of one site, ready to be compared with any one token of it.

    Tokens are compared by the cosine of their activations after the site's mean is taken away (without that, a
    direction that all tokens share makes them all alike). The mean, the lengths and the sketch are measured in one
    pass and kept in the run (`derived/sketch-...`); activations stay on disk and are read through memory maps.

    Args:
        run: The run.
        site: One of its sites.
        stopping: Once set, whatever is being computed ends with `Stopping`.
    """

    def __init__(self, run: Run, site: str, *, stopping: threading.Event | None = None) -> None:
        self.run, self.site = run, site
        self._stopping = stopping or threading.Event()
        self.acts = run.acts(site)
        self.n_bytes = self.acts.shape[0] * self.acts.shape[1] * (4 if self._dtype == "float32" else 2)
        self._lock = threading.Lock()
        self._measured: _Measured | None = None

    @property
    def _dtype(self) -> str:
        return self.run.site(self.site).dtype

    @property
    def is_ready(self) -> bool:
        """Whether its mean, lengths and sketch are measured."""
        return self._measured is not None

    def prepare(self) -> _Measured:
        """Return what is measured of the site; measures it the first time, or reads it from the run.

        Raises:
            StorageError: the run's folder cannot be written.

        Cost: one pass over the activations, about 1 s for 150,000 x 768; then none.
        """
        with self._lock:
            if self._measured is None:
                params = {
                    "schema": _SCHEMA,
                    "site": self.site,
                    "width": SKETCH_WIDTH,
                    "sample": SAMPLE_ROWS,
                    "check": CHECK_ROWS,
                }
                folder = self.run.derived_dir("sketch", params)
                if not (folder / "params.json").is_file():
                    self._measure(folder, params)
                self._measured = _Measured.load(folder)
            return self._measured

    def exact(self, row: int) -> NDArray[np.float32]:
        """Return the cosine of every token of the site with one of them, float32 [n] in [-1, 1].

        Args:
            row: Row of `run.acts(site)`.

        Raises:
            InputError: no such row.

        Cost: one pass over the stored activations.
        """
        known = self.prepare()
        query = self._query(row, known)
        return cosines(
            self._chunks(),
            query,
            dtype=self._dtype,
            constant=float(known.mean.astype(np.float64) @ query),
            norms_n=known.norms,
            go_on=self._go_on,
        )

    def compile(self) -> None:
        """Compile what `exact` needs, see `kernel.compile_for`."""
        compile_for(self._dtype)

    def _chunks(self, n_rows: int = CHUNK_ROWS) -> Iterator[tuple[int, NDArray[Any]]]:
        at = 0
        for block in self.acts.stored_blocks():
            for start in range(0, len(block), n_rows):
                yield at + start, block[start : start + n_rows]
            at += len(block)

    def sketch_rank(self, row: int) -> float:
        """Return the rank correlation of the sketch's cosines with the true ones, over `CHECK_ROWS` tokens.

        Cost: a product of those tokens with one; they are kept beside the sketch.
        """
        sketch, own = self._sketch(row)
        known = self.prepare()
        rows = sample_rows(len(self.acts), CHECK_ROWS)
        return rank_correlation(known.check @ self._query(row, known), np.asarray(sketch[rows]) @ own)

    def sketched_bytes(self, row: int) -> NDArray[np.uint8]:
        """Return the same cosines of all rows, estimated from the sketch, uint8 [n] (see `to_bytes`).

        Cost: one pass over 32 numbers per token.
        """
        return _products(*self._sketch(row), None)

    def _sketch(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        known = self.prepare()
        self._check(row)
        return known.sketch, np.asarray(known.sketch[row], np.float32)

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Stopping("the server is shutting down.")

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.acts):
            raise InputError(f"site '{self.site}' has no token {row}; it has {len(self.acts)}, from 0 on.")

    def _query(self, row: int, known: _Measured) -> NDArray[np.float32]:
        self._check(row)
        centred = self.acts[row].astype(np.float32) - known.mean
        length = float(np.linalg.norm(centred))
        return centred / np.float32(max(length, 1e-30))

    def _measure(self, folder: Path, params: dict[str, Any]) -> None:
        n, width = self.acts.shape
        sample = np.asarray(self.acts[sample_rows(n)], np.float32)
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        sample -= mean
        sample /= np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), np.float32(1e-30))
        axes = main_axes(sample, n=min(SKETCH_WIDTH, width))
        del sample
        check = np.asarray(self.acts[sample_rows(n, CHECK_ROWS)], np.float32) - mean
        check /= np.maximum(np.linalg.norm(check, axis=1, keepdims=True), np.float32(1e-30))
        with derived_folder(folder) as work:
            norms = np.empty(n, np.float32)
            sketch = np.lib.format.open_memmap(
                work / "sketch.npy", mode="w+", dtype=np.float32, shape=(n, axes.shape[1])
            )

            def fill(task: tuple[int, NDArray[Any]]) -> None:
                self._go_on()
                start, block = task
                x = from_stored(block, self._dtype) - mean  # never in place: float32 is not copied
                length = np.sqrt(np.einsum("nd,nd->n", x, x))
                part = slice(start, start + len(x))
                norms[part] = length
                np.divide(x @ axes, np.maximum(length, np.float32(1e-30))[:, None], out=sketch[part])

            each(fill, self._chunks(MEASURE_ROWS))
            sketch.flush()
            del sketch
            np.save(work / "norms.npy", norms, allow_pickle=False)
            np.save(work / "mean.npy", mean, allow_pickle=False)
            np.save(work / "check.npy", check, allow_pickle=False)
            write_json(work / "params.json", params)


@dataclass(frozen=True)
class _Measured:
    """The mean of a site, the length of each token's difference from it, the sketch, and some tokens to check it by."""

    mean: NDArray[np.float32]
    norms: NDArray[np.float32]
    sketch: NDArray[np.float32]
    check: NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> _Measured:
        return cls(
            mean=np.load(folder / "mean.npy", allow_pickle=False),
            norms=np.load(folder / "norms.npy", mmap_mode="r", allow_pickle=False),
            sketch=np.load(folder / "sketch.npy", mmap_mode="r", allow_pickle=False),
            check=np.load(folder / "check.npy", mmap_mode="r", allow_pickle=False),
        )


class ConceptRows:
    """The eigenvectors of a cut, ready to be compared with any one token of it, at whatever layer.

    Args:
        eigvecs: float32 [n, k], of all sites (and runs) that were cut together; a memory map stays one.
    """

    def __init__(self, eigvecs: NDArray[np.float32]) -> None:
        self.eigvecs = eigvecs
        self.norms = lru_cache(maxsize=4)(self._norms)

    def alike(self, row: int, *, n_eig: int, rows: slice) -> NDArray[np.uint8]:
        """Return the cosine of the first `n_eig` eigenvectors of some tokens with those of one, uint8 [m].

        Args:
            row: Row of the cut.
            n_eig: How many eigenvectors count, 1..k.
            rows: Which tokens.

        Raises:
            InputError: no such row, or another number of eigenvectors.

        Cost: one pass over the eigenvectors of the tokens.
        """
        n, k = self.eigvecs.shape
        if not 0 <= row < n:
            raise InputError(f"the cut has no token {row}; it has {n}, from 0 on.")
        if not 1 <= n_eig <= k:
            raise InputError(f"got {n_eig} eigenvectors; the cut has 1 to {k}.")
        query = np.zeros(k, np.float32)
        query[:n_eig] = self.eigvecs[row, :n_eig]
        query /= max(float(np.linalg.norm(query)), 1e-30)
        return _products(self.eigvecs[rows], query, self.norms(n_eig)[rows])

    def _norms(self, n_eig: int) -> NDArray[np.float32]:
        out = np.empty(len(self.eigvecs), np.float32)
        for start in range(0, len(out), CHUNK_ROWS):
            out[start : start + CHUNK_ROWS] = np.linalg.norm(
                self.eigvecs[start : start + CHUNK_ROWS, :n_eig], axis=1
            )
        return out


def sample_rows(n: int, most: int = SAMPLE_ROWS) -> NDArray[np.int64]:
    """Return at most so many evenly spread rows of n."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def main_axes(rows_nd: NDArray[np.float32], *, n: int, seed: int = 0) -> NDArray[np.float32]:
    """Return orthonormal axes [d, n] that hold about as much of the rows as any n can, by subspace iteration.

    Cost: some twenty products of the rows with n + 8 vectors. All axes of 4,096 numbers would take minutes per site.
    """
    width = rows_nd.shape[1]
    more = min(width, n + 8)
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, more), np.float32))[0]
    for _ in range(10):
        axes = np.linalg.qr(rows_nd.T @ (rows_nd @ axes))[0]
    part = rows_nd @ axes
    _, within = np.linalg.eigh((part.T @ part).astype(np.float64))
    return np.ascontiguousarray(axes @ within[:, ::-1][:, :n].astype(np.float32))


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation of two estimates; 1 for fewer than three values."""
    if len(a) < 3:
        return 1.0
    x, y = (np.argsort(np.argsort(v)).astype(np.float64) for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def to_bytes(cosine: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return cosines as uint8: 0 for 0 and below (unlike), 255 for 1 (alike)."""
    scaled = cosine * np.float32(255)
    np.fmax(scaled, 0, out=scaled)  # NaN becomes 0
    np.minimum(scaled, 255, out=scaled)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.uint8)


def _cosine(product: NDArray[np.float32], norms: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the cosines that products with a unit vector stand for, in the place of the products."""
    if norms is not None:
        np.divide(product, np.maximum(norms, np.float32(1e-30)), out=product)
    return np.clip(product, -1, 1, out=product)


def _products(
    rows_nd: NDArray[np.float32], query_d: NDArray[np.float32], norms_n: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Return `to_bytes` of the cosines of rows with a unit vector; no norms: the rows are of length 1 as well.

    Millions of tokens go by in pieces that stay in the processor's cache.
    """
    out = np.empty(len(rows_nd), np.uint8)
    for start in range(0, len(out), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        product = np.asarray(rows_nd[part] @ query_d, np.float32)
        out[part] = to_bytes(_cosine(product, None if norms_n is None else norms_n[part]))
    return out
