"""Two runs in one cut: the same items seen by two models or checkpoints, with one palette and one set of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import derived_folder, read_json, write_json
from ..palette.palette import Palette
from ..palette.saved import CutPart, SavedCut
from ..spectral.align import relative_affinity
from ..spectral.anchors import choose_anchors
from ..spectral.cut import CutResult
from ..spectral.health import Health
from ..spectral.kway import kway
from ..spectral.nystrom import NystromNCut
from ..spectral.rows import TakenRows, as_rows
from .book import shared_items

_SCHEMA = 1
_NAMES = ("eigvecs", "eigenvalues", "rgb")


def compare_cuts(first: SavedCut, second: SavedCut) -> tuple[CutResult, CutResult]:
    """Return the cuts of two runs made anew as one, so that one colour and one label mean one concept in both.

    Tokens of both runs are described by their affinity to shared anchors, the same patches of the same items (see
    `vlascope.spectral.align`), and cut in one graph with the settings of the first cut. The result is kept in the
    first run (`derived/compare-...`).

    Args:
        first: A cut of one run; gives the settings.
        second: A cut of another run that holds items of the same ids.

    Returns:
        Both cuts. Their arrays are shared; their `parts` say which rows are whose.

    Raises:
        InputError: no item is in both runs, or the token kinds differ in every item.
        StorageError: the first run's folder cannot be written.

    Cost: that of a cut of both runs' tokens.
    """
    cuts = (first, second)
    params = {
        **{
            k: first.params[k]
            for k in ("n_eig", "k", "kinds", "seed", "color", "affinity", "density", "n_anchors")
        },
        "sites": [list(c.sites) for c in cuts],
        "other": second.run.info["content_sha256"],
    }
    folder = first.run.derived_dir("compare", {"schema": _SCHEMA, "weights": "eigenvalues", **params})
    if not (folder / "params.json").is_file():
        _make(folder, cuts, params)
    saved = read_json(folder / "params.json")
    arrays: dict[str, Any] = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _NAMES
    }
    labels = {int(k): np.load(folder / f"labels-{k}.npy", allow_pickle=False) for k in params["k"]}
    shared = {
        "path": folder,
        "params": {**params, "sites": [*first.sites, *second.sites]},
        "labels": labels,
        "parents": {int(k): np.asarray(v, np.int64) for k, v in saved["parents"].items()},
        "palette": Palette.load(folder / "palette.npz"),
        "health": Health(**{**saved["health"], "notes": tuple(saved["health"]["notes"])}),
        **arrays,
    }
    made, start = [], 0
    for cut in cuts:
        parts = {}
        for name, part in cut.parts.items():
            parts[name] = CutPart(part.layout, part.token_rows, slice(start, start + len(part.token_rows)))
            start += len(part.token_rows)
        made.append(CutResult(run=cut.run, parts=parts, **shared))
    return made[0], made[1]


def _make(folder: Path, cuts: tuple[SavedCut, SavedCut], params: dict[str, Any]) -> None:
    features = relative_affinity(
        [
            TakenRows(as_rows(c.run.acts(name)), part.token_rows)
            for c in cuts
            for name, part in c.parts.items()
        ],
        _anchors(cuts, n_anchors=params["n_anchors"], seed=params["seed"]),
        density=params["density"],
        affinity=params["affinity"],
        seed=params["seed"],
    )
    ncut = NystromNCut(
        max(params["n_eig"], max(params["k"])),
        density=params["density"],
        balance="density",
        seed=params["seed"],
    )
    eigvecs = ncut.fit_transform(as_rows(features))
    groups = kway(eigvecs, params["k"], method="kmeans", eigenvalues=ncut.eigenvalues_, seed=params["seed"])
    eigvecs = np.ascontiguousarray(eigvecs[:, : params["n_eig"]])
    palette = Palette.fit(eigvecs, method=params["color"], seed=params["seed"])
    arrays = {
        "eigvecs": eigvecs,
        "eigenvalues": ncut.eigenvalues_[: params["n_eig"]],
        "rgb": palette.apply(eigvecs),
        **{f"labels-{k}": groups.labels[k] for k in params["k"]},
    }
    saved = {
        "schema": _SCHEMA,
        "params": params,
        "parents": {str(k): groups.parents[k].tolist() for k in params["k"]},
        "health": ncut.health_.to_dict(),
    }
    with derived_folder(folder) as work:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        palette.save(work / "palette.npz")
        write_json(work / "params.json", saved)


class _Table:
    """A token table of the second run whose items carry the first run's numbers (what `choose_anchors` reads)."""

    def __init__(self, table: Any, item: NDArray[np.int64]) -> None:
        self.item = item
        self.kind, self.camera, self.box = table.kind, table.camera, table.box


def _anchors(cuts: tuple[SavedCut, SavedCut], *, n_anchors: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the anchors of every site of both cuts as positions in its cut tokens, -1 where it lacks one."""
    first, second = cuts
    number = shared_items(first.run, second.run)
    if not (number >= 0).any():
        raise InputError(
            f"the runs '{first.run.path}' and '{second.run.path}' share no item: no id is in both. One palette "
            "needs the same items seen by both; capture the second with the same data."
        )
    tables: dict[str, Any] = {}
    chosen: dict[str, NDArray[np.int64]] = {}
    places: dict[str, NDArray[np.int64]] = {}
    for which, cut in enumerate(cuts):
        wanted = np.unique(number[number >= 0])
        for part in cut.parts.values():
            name = f"{which}/{part.layout}"
            if name in tables:
                continue
            table = cut.run.tokens(part.layout)
            item = np.asarray(table.item, np.int64) if which == 0 else number[np.asarray(table.item)]
            rows = np.asarray(part.token_rows)
            place = np.flatnonzero(np.isin(item[rows], wanted))
            place = place[np.argsort(item[rows[place]], kind="stable")]  # look-ups need items in rising order
            tables[name] = _Table(table, item)
            chosen[name], places[name] = rows[place], place
    found = choose_anchors(tables, chosen, n_anchors=n_anchors, seed=seed)
    out = []
    for which, cut in enumerate(cuts):
        for part in cut.parts.values():
            name = f"{which}/{part.layout}"
            mine = found[name]
            out.append(np.where(mine >= 0, places[name][np.maximum(mine, 0)], -1))
    return out
