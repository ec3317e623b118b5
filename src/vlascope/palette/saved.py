"""A cut as it is kept in a run: its arrays, which token is where, and the colours of its groups; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RunIncompleteError, RunVersionError
from ..files import read_json
from .color import oklab_from_srgb, srgb_from_oklab

if TYPE_CHECKING:
    from ..runs import Run

SCHEMA = 1


@dataclass(frozen=True)
class CutPart:
    """Where the tokens of one site are in a cut.

    Attributes:
        layout: Token layout of the site.
        token_rows: int64 [m], rows of `run.tokens(layout)` (and of `run.acts(site)`) that were cut, increasing.
        rows: The rows of the cut's arrays that belong to this site; entry i is token_rows[i].
    """

    layout: str
    token_rows: NDArray[np.int64]
    rows: slice


@dataclass(frozen=True)
class SavedCut:
    """A cut of a run's tokens: embedding, groups and colours, and how they were made.

    Attributes:
        run: The run.
        path: Folder that it is saved in.
        params: Everything that it depends on; JSON-able.
        eigvecs: float32 [n, n_eig], sites one under the other (see `parts`), falling eigenvalues, trivial first.
        eigenvalues: float64 [n_eig].
        rgb: uint8 [n, 3], colours by the palette.
        labels: For each k int16 [n], 0..k-1; the levels nest (see `vlascope.spectral.kway`).
        parents: For each k int64 [k], the group at the next smaller k; -1 at the smallest.
        health: Read-outs about the graph, by name.
        parts: For each site where its tokens are.
    """

    run: Run
    path: Path
    params: Mapping[str, Any]
    eigvecs: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    rgb: NDArray[np.uint8]
    labels: dict[int, NDArray[np.int16]]
    parents: dict[int, NDArray[np.int64]]
    health: Any
    parts: dict[str, CutPart]

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were cut together, in the order of their rows."""
        return tuple(self.parts)

    def _repr_html_(self) -> str:
        from ..card import card

        facts = [
            ("tokens", f"{len(self.rgb):,}"),
            ("eigenvectors", self.eigvecs.shape[1]),
            ("K", ", ".join(map(str, self.labels))),
            ("sites", ", ".join(self.sites)),
            (
                "settings",
                ", ".join(f"{k} {self.params[k]}" for k in ("affinity", "color", "seed") if k in self.params),
            ),
        ]
        return card(f"Cut of {self.run.path.name}", facts)

    def cluster_colors(self, k: int) -> NDArray[np.uint8]:
        """Return one colour per group, uint8 [k, 3]: the mean palette colour of its tokens, made distinct.

        Raises:
            InputError: the cut holds no such k.
        """
        if k not in self.labels:
            raise InputError(f"this cut holds k = {', '.join(map(str, self.labels))}, not {k}.")
        return _distinct_means(self.rgb, self.labels[k], k)


def read_cut(path: Path | str, *, run: Run | None = None) -> SavedCut:
    """Return a saved cut without its palette; arrays are memory-mapped.

    Args:
        path: A folder `derived/cut-...` of a run.
        run: The run, when it is already open.

    Raises:
        RunIncompleteError: the folder is damaged; delete it and cut again.
        RunVersionError: written by a newer vlascope.
    """
    from ..runs import Run

    path = Path(path)
    try:
        saved = read_json(path / "params.json")
        if saved["schema"] > SCHEMA:
            raise RunVersionError(f"'{path}' was written by a newer vlascope; update this one to read it.")
        arrays = {name: _array(path / f"{name}.npy") for name in ("eigvecs", "eigenvalues", "rgb")}
        labels = {int(k): _array(path / f"labels-{k}.npy") for k in saved["params"]["k"]}
        tokens = {layout: np.load(path / f"tokens-{layout}.npy", allow_pickle=False)
                  for layout in dict.fromkeys(saved["layouts"].values())}  # fmt: skip
        parts, start = {}, 0
        for site in saved["sites"]:
            rows = tokens[saved["layouts"][site]]
            parts[site] = CutPart(saved["layouts"][site], rows, slice(start, start + len(rows)))
            start += len(rows)
        if start != len(arrays["eigvecs"]):
            raise ValueError("row counts differ")
        parents = {int(k): np.asarray(v, np.int64) for k, v in saved["parents"].items()}
        health = dict(saved["health"])
        params = saved["params"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunVersionError):
            raise
        raise damaged(path, error) from error
    return SavedCut(
        run=Run.open(path.parent.parent) if run is None else run,
        path=path,
        params=params,
        labels=labels,
        parents=parents,
        health=health,
        parts=parts,
        **arrays,
    )


def damaged(path: Path, error: Exception) -> RunIncompleteError:
    """Return the error that says that the cut in a folder cannot be read."""
    return RunIncompleteError(f"the cut in '{path}' is damaged ({error}); delete that folder and cut again.")


def _array(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


_CHUNK_ROWS = 2**18
"""Tokens whose colours are summed at once: memory does not grow with the cut (sums of bytes are exact in any order)."""

MIN_COLOR_STEP = 0.06
"""Smallest OKLab distance between the colours of two groups that is aimed at."""


def _distinct_means(rgb: NDArray[np.uint8], labels: NDArray[np.int16], k: int) -> NDArray[np.uint8]:
    """Return the mean colour of each group; groups whose means nearly coincide are pushed apart in OKLab."""
    counts, sums = np.zeros(k), np.zeros((k, 3))
    for start in range(0, len(labels), _CHUNK_ROWS):
        here, colors = labels[start : start + _CHUNK_ROWS], rgb[start : start + _CHUNK_ROWS]
        is_known = here >= 0
        if not is_known.all():
            here, colors = here[is_known], colors[is_known]
        counts += np.bincount(here, minlength=k)
        sums += np.stack([np.bincount(here, colors[:, c], minlength=k) for c in range(3)], 1)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 128.0) / 255
    lab = oklab_from_srgb(means)
    lab[:, 1:] *= 1.15  # a mean over many tokens is duller than any of them
    for _ in range(60):
        gap = lab[:, None] - lab[None]
        size = np.linalg.norm(gap, axis=2)
        np.fill_diagonal(size, np.inf)
        close = size < MIN_COLOR_STEP
        if not close.any():
            break
        # Coincident pairs get a fixed direction that depends on their ids only.
        angle = 2.399963 * (np.arange(k)[:, None] + np.arange(k)[None])
        order = np.sign(np.arange(k)[:, None] - np.arange(k)[None])
        fixed = order[..., None] * np.stack([np.zeros_like(angle), np.cos(angle), np.sin(angle)], 2)
        away = np.where(size[..., None] > 1e-6, gap / np.maximum(size, 1e-6)[..., None], fixed)
        lab += 0.5 * (np.where(close, MIN_COLOR_STEP - np.minimum(size, 1), 0)[..., None] * away).sum(1)
        lab[:, 0] = lab[:, 0].clip(0.4, 0.95)
        lab = oklab_from_srgb(np.clip(srgb_from_oklab(lab), 0, 1))
    return np.round(np.clip(srgb_from_oklab(lab), 0, 1) * 255).astype(np.uint8)
