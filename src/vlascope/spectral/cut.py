"""Cutting the tokens of a run: one or several sites, one embedding, one palette, saved in the run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RunIncompleteError, RunVersionError
from ..files import read_json, storage_errors, write_json
from ..palette import Palette
from .align import relative_affinity
from .anchors import choose_anchors
from .health import Health
from .kway import kway
from .nystrom import NystromNCut
from .place import color_tokens, fit_and_place
from .rows import Rows, TakenRows, as_rows

if TYPE_CHECKING:
    from ..runs import Engine, Run

SCHEMA = 1
DEFAULT_KINDS = ("patch", "text", "action", "state")
"""Special tokens (such as a beginning-of-text token) and registers are outliers by design and are left out."""

N_ANCHORS = 256


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
class CutResult:
    """A cut of a run's tokens: embedding, groups and colours, and how they were made.

    Attributes:
        run: The run.
        path: Folder that it is saved in.
        params: Everything that it depends on; JSON-able.
        eigvecs: float32 [n, n_eig], sites one under the other (see `parts`), falling eigenvalues, trivial first.
        eigenvalues: float64 [n_eig].
        rgb: uint8 [n, 3], colours by the palette.
        labels: For each k int16 [n], 0..k-1; the levels nest (see `kway`).
        parents: For each k int64 [k], the group at the next smaller k; -1 at the smallest.
        palette: The fitted palette.
        health: Read-outs about the graph.
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
    palette: Palette
    health: Health
    parts: dict[str, CutPart]

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were cut together, in the order of their rows."""
        return tuple(self.parts)

    def cluster_colors(self, k: int) -> NDArray[np.uint8]:
        """Return one colour per group, uint8 [k, 3]: the mean palette colour of its tokens, made distinct.

        Raises:
            InputError: the cut holds no such k.
        """
        if k not in self.labels:
            raise InputError(f"this cut holds k = {', '.join(map(str, self.labels))}, not {k}.")
        return _distinct_means(self.rgb, self.labels[k], k)

    @classmethod
    def load(cls, path: Path | str, *, run: Run | None = None) -> CutResult:
        """Return a saved cut; arrays are memory-mapped.

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
                raise RunVersionError(
                    f"'{path}' was written by a newer vlascope; update this one to read it."
                )
            arrays = {
                name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("eigvecs", "eigenvalues", "rgb")
            }
            labels = {
                int(k): np.load(path / f"labels-{k}.npy", allow_pickle=False) for k in saved["params"]["k"]
            }
            parts, start = {}, 0
            for site in saved["sites"]:
                rows = np.load(path / f"tokens-{saved['layouts'][site]}.npy", allow_pickle=False)
                parts[site] = CutPart(saved["layouts"][site], rows, slice(start, start + len(rows)))
                start += len(rows)
            if start != len(arrays["eigvecs"]):
                raise ValueError("row counts differ")
            health = Health(**{**saved["health"], "notes": tuple(saved["health"]["notes"])})
            palette = Palette.load(path / "palette.npz")
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, RunVersionError):
                raise
            raise RunIncompleteError(
                f"the cut in '{path}' is damaged ({error}); delete that folder and cut again."
            ) from error
        return cls(
            run=Run.open(path.parent.parent) if run is None else run,
            path=path,
            params=saved["params"],
            eigvecs=arrays["eigvecs"],
            eigenvalues=arrays["eigenvalues"],
            rgb=arrays["rgb"],
            labels=labels,
            parents={int(k): np.asarray(v, np.int64) for k, v in saved["parents"].items()},
            palette=palette,
            health=health,
            parts=parts,
        )


def cut_run(
    run: Run,
    *,
    sites: str | Sequence[str],
    n_eig: int = 20,
    k: int | Sequence[int] = (5, 10, 25),
    kinds: Sequence[str] = DEFAULT_KINDS,
    seed: int = 0,
    color: str = "tsne",
    color_space: str = "rgb",
    affinity: str = "rbf",
    density: float = 0.05,
    landmarks: str | int = "auto",
    balance: str = "density",
    method: str = "kmeans",
    n_anchors: int = N_ANCHORS,
    force: bool = False,
    fit_tokens: int | None = None,
    engine: Engine | None = None,
) -> CutResult:
    """Cut the tokens of a run and return embedding, groups and colours; saved in the run, read back when asked again.

    One site is cut on its activations. Several sites are cut together, in one graph over all their tokens, on
    affinities to shared anchor tokens (see `align.relative_affinity`), so that one colour and one label mean one
    concept at every site.

    Args:
        run: An opened run.
        sites: One or more sites of the run, by name.
        n_eig: Eigenvectors that are kept (more are computed when a k needs them).
        k: Numbers of groups; they form one hierarchy.
        kinds: Kinds of tokens that are cut.
        seed: Seeds landmarks, anchors, start vectors and the palette. Same run, parameters and seed = same bits.
        color: Palette method, see `Palette.fit`.
        color_space: "rgb" (vivid) or "oklab" (equal steps look equal), see `Palette.fit`.
        affinity: "rbf" or "cosine".
        density: Mean affinity between two tokens.
        landmarks: "auto" or their number, see `NystromNCut`.
        balance: "density" or "uniform", see `NystromNCut`.
        method: How groups are found, see `kway`. k-means on the embedding matched the simulator's masks better
            than the rotation on development frames (`benchmarks/masks.py`).
        n_anchors: Shared tokens, for several sites.
        force: Cut again although the same cut is saved.
        fit_tokens: Fit on so many tokens, drawn at random, and place all others in that cut: for many millions of
            tokens. None fits on all; so does a number that is no smaller than theirs.
        engine: Who places (with `fit_tokens`) and colours the tokens, block by block; None is this process. The bits
            are the same. The cut itself is fitted here.

    Raises:
        SiteNotFoundError: the run holds no such site.
        InputError: no token of these kinds, too few tokens, NaN activations, parameters out of range.
        StorageError: the run's folder cannot be written.

    Cost: 160,000 tokens (12 sites): about 10 s of two cores.
    """
    names = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    if not names:
        raise InputError("got no sites; name at least one, for example 'vision.3'.")
    levels = sorted({int(level) for level in ((k,) if isinstance(k, (int, np.integer)) else k)})
    if not levels:
        raise InputError("got an empty list of k; need at least one number of groups.")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    params: dict[str, Any] = {
        "sites": list(names),
        "n_eig": int(n_eig),
        "k": levels,
        "kinds": list(kinds),
        "seed": int(seed),
        "color": color,
        "color_space": color_space,
        "affinity": affinity,
        "density": float(density),
        "landmarks": landmarks,
        "balance": balance,
        "method": method,
        "n_anchors": int(n_anchors),
    }
    if fit_tokens is not None:
        params["fit_tokens"] = int(
            fit_tokens
        )  # absent otherwise, so that cuts made before it are still found
    layouts = {name: run.site(name).layout for name in names}
    folder = run.derived_dir("cut", {"schema": SCHEMA, **params})
    if (folder / "params.json").is_file() and not force:
        return CutResult.load(folder, run=run)

    chosen = {layout: run.tokens(layout).select(kinds) for layout in dict.fromkeys(layouts.values())}
    for name, layout in layouts.items():
        if not len(chosen[layout]):
            raise InputError(f"site '{name}' has no tokens of kind {', '.join(kinds)}; choose other kinds.")
    features = _features(run, layouts, chosen, params)
    n_solve = max(int(n_eig), levels[-1])
    ncut = NystromNCut(
        n_solve,
        affinity=affinity if len(names) == 1 else "rbf",
        density=density,
        landmarks=landmarks,
        balance=balance,
        seed=seed,
    )
    if fit_tokens is None or fit_tokens >= features.n:
        eigvecs = ncut.fit_transform(features)
    else:
        eigvecs = fit_and_place(ncut, features, n_fit=fit_tokens, seed=seed, engine=engine)
    groups = kway(eigvecs, levels, method=method, seed=seed)
    eigvecs = np.ascontiguousarray(eigvecs[:, : int(n_eig)])
    palette = Palette.fit(eigvecs, method=color, space=color_space, seed=seed)
    saved = {
        "schema": SCHEMA,
        "params": params,
        "sites": list(names),
        "layouts": layouts,
        "parents": {str(level): groups.parents[level].tolist() for level in levels},
        "health": ncut.health_.to_dict(),
    }
    arrays = {
        "eigvecs": eigvecs,
        "eigenvalues": ncut.eigenvalues_[: int(n_eig)],
        "rgb": color_tokens(palette, eigvecs, engine=engine),
        **{f"labels-{level}": groups.labels[level] for level in levels},
        **{f"tokens-{layout}": rows for layout, rows in chosen.items()},
    }
    _save(folder, saved, arrays, palette)
    return CutResult.load(folder, run=run)


def _features(
    run: Run, layouts: Mapping[str, str], chosen: Mapping[str, NDArray[np.int64]], params: Mapping[str, Any]
) -> Rows:
    """Return the rows to cut: a site's own activations, or aligned features of several sites, one under the other."""
    sources = {name: TakenRows(as_rows(run.acts(name)), chosen[layout]) for name, layout in layouts.items()}
    if len(sources) == 1:
        return next(iter(sources.values()))
    tables = {layout: run.tokens(layout) for layout in chosen}
    anchors = choose_anchors(tables, chosen, n_anchors=params["n_anchors"], seed=params["seed"])
    for name, layout in layouts.items():
        if not (anchors[layout] >= 0).any():
            raise InputError(
                f"site '{name}' shares no token with the other sites (no common image); cut it on its own."
            )
    return as_rows(
        relative_affinity(
            list(sources.values()),
            [anchors[layout] for layout in layouts.values()],
            density=params["density"],
            affinity=params["affinity"],
            seed=params["seed"],
        )
    )


def _save(
    folder: Path, saved: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], palette: Palette
) -> None:
    """Write a cut into a temporary folder beside its place and rename it, so that no half of a cut is ever seen."""
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            os.chmod(work, 0o755)
            for name, array in arrays.items():
                np.save(work / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
            palette.save(work / "palette.npz")
            write_json(work / "params.json", saved)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(work, folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


MIN_COLOR_STEP = 0.06
"""Smallest OKLab distance between the colours of two groups that is aimed at."""


def _distinct_means(rgb: NDArray[np.uint8], labels: NDArray[np.int16], k: int) -> NDArray[np.uint8]:
    """Return the mean colour of each group; groups whose means nearly coincide are pushed apart in OKLab."""
    from ..palette.color import oklab_from_srgb, srgb_from_oklab

    counts = np.bincount(labels[labels >= 0], minlength=k).astype(np.float64)
    sums = np.stack([np.bincount(labels[labels >= 0], rgb[labels >= 0, c], minlength=k) for c in range(3)], 1)
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
