"""Cutting the tokens of a run: one or several sites, one embedding, one palette, saved in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import derived_folder, write_json
from ..palette.palette import Palette
from ..palette.saved import SCHEMA, SavedCut, damaged, read_cut
from ..palette.saved import CutPart as CutPart
from ..progress import stepper
from .align import relative_affinity
from .anchors import choose_anchors
from .health import Health
from .kway import kway
from .nystrom import NystromNCut
from .place import color_tokens, fit_and_place
from .rows import Rows, TakenRows, as_rows

if TYPE_CHECKING:
    from ..runs import Engine, Run

DEFAULT_KS = (5, 10, 25)
"""Numbers of concepts, coarse to fine."""

DEFAULT_KINDS = ("patch", "text", "action", "state")
"""Special tokens (such as a beginning-of-text token) and registers are outliers by design and are left out."""

N_ANCHORS = 256


@dataclass(frozen=True)
class CutResult(SavedCut):
    """A saved cut with the palette that it was coloured with.

    Attributes:
        palette: The fitted palette.
        health: Read-outs about the graph.
    """

    palette: Palette
    health: Health

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
        saved = read_cut(path, run=run)
        try:
            palette = Palette.load(saved.path / "palette.npz")
            health = Health(**{**saved.health, "notes": tuple(saved.health["notes"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(saved.path, error) from error
        return cls(**{**vars(saved), "health": health}, palette=palette)


def cut_run(
    run: Run,
    *,
    sites: str | Sequence[str],
    n_eig: int = 20,
    k: int | Sequence[int] = DEFAULT_KS,
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
    # Cuts by k-means from before their columns were weighed are other cuts.
    version = {"weights": "eigenvalues"} if method == "kmeans" else {}
    folder = run.derived_dir("cut", {"schema": SCHEMA, **version, **params})
    if (folder / "params.json").is_file() and not force:
        return CutResult.load(folder, run=run)

    chosen = {layout: run.tokens(layout).select(kinds) for layout in dict.fromkeys(layouts.values())}
    for name, layout in layouts.items():
        if not len(chosen[layout]):
            raise InputError(f"site '{name}' has no tokens of kind {', '.join(kinds)}; choose other kinds.")
    step = stepper("cut", 5)
    step("tokens of all sites")
    features = _features(run, layouts, chosen, params)
    step("eigenvectors")
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
    eigenvalues = ncut.eigenvalues_ if method == "kmeans" else None
    step("groups")
    groups = kway(eigvecs, levels, method=method, eigenvalues=eigenvalues, seed=seed)
    eigvecs = np.ascontiguousarray(eigvecs[:, : int(n_eig)])
    step("palette")
    palette = Palette.fit(eigvecs, method=color, space=color_space, seed=seed)
    step("colours")
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
    step(None)
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
    with derived_folder(folder) as work:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        palette.save(work / "palette.npz")
        write_json(work / "params.json", saved)
