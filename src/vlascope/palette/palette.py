"""A palette: a fitted, saved map from eigenvectors to colours, reused over frames, layers and runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, ItemNotFoundError, nearest_text
from ..files import write_atomic
from . import METHODS
from .color import oklab_from_srgb
from .cube import cube_knots, fill_cube, fill_cube_by, paint, principal_turn, turns_towards
from .landmarks import choose_landmarks, landmark_arrays, weights
from .mspace import encode, fit_mspace

SPACES = ("rgb", "oklab")
SCHEMA = 2
N_LANDMARKS = 1024
N_CANDIDATES = 12_288
N_SHARED = 1024
CHUNK_ROWS = 16_384
GREY = 128
"""Colour of tokens whose eigenvectors are NaN (out of reach of the cut)."""


@dataclass(frozen=True)
class Palette:
    """A map from rows of eigenvectors to colours; similar rows get similar colours.

    Make one with `Palette.fit` and use it for everything that shall be compared: tokens that one cut places alike
    then have one colour in every frame, layer and run.

    Attributes:
        arrays: The fitted numbers (landmarks and their colours, axes, or a network's weights).
        info: method, seed, n_eig, space and sizes; JSON-able. A palette fitted with `match` has `match_distance`,
            the mean OKLab distance that remains to the colours it was matched to.
    """

    arrays: Mapping[str, NDArray[np.float32]]
    info: Mapping[str, Any]

    @classmethod
    def fit(
        cls,
        eigvecs: Any,
        *,
        method: str = "tsne",
        seed: int = 0,
        landmarks: int = N_LANDMARKS,
        space: str = "rgb",
        match: Palette | NDArray[np.uint8] | None = None,
    ) -> Palette:
        """Return a palette for the eigenvectors of a cut.

        Args:
            eigvecs: [n, k] from `NystromNCut`; rows with NaN are left out. Rows are divided by their norm first,
                so that a token's colour does not depend on how many tokens are like it. The order of the rows
                does not matter.
            method: "tsne": three-dimensional t-SNE of landmarks, extended to every row by its nearest landmarks:
                separates many concepts. "umap": the same with UMAP: rounder groups, wider apart. "mspace": a small
                network that keeps the cut's nested subspaces: neighbouring concepts get neighbouring colours.
                "pca": the first three principal components: plain and linear.
            seed: Seeds the choice of landmark candidates, and M-space's weights and batches.
            landmarks: Rows that t-SNE or UMAP places, half of them farthest points (so that rare concepts get a
                colour), half drawn uniformly.
            space: "rgb" fills the RGB cube (vivid); "oklab" keeps lightness even, equal steps look equal.
            match: Colours that these rows shall keep as nearly as possible: uint8 [n, 3] for the same rows (from
                another cut of the same tokens, say), or a palette of the same cut. The new palette's cloud is
                rotated or reflected in the colour cube towards them; nothing else changes.

        Raises:
            InputError: unknown method or space, fewer than 2 finite rows, `match` of other rows or columns, or
                M-space diverged.

        Cost: on one core, whatever n is: pca 0.1 s; tsne and umap (1024 landmarks) 2 s; mspace 3 s. `match` adds
        about 0.5 s.
        """
        if method not in METHODS:
            raise InputError(
                f"got palette method '{method}'; need one of {', '.join(METHODS)}.{nearest_text(method, METHODS)}"
            )
        if space not in SPACES:
            raise InputError(f"got colour space '{space}'; need 'rgb' or 'oklab'.")
        if landmarks < 2:
            raise InputError(f"got {landmarks} landmarks; a palette needs at least 2.")
        rows = _features(eigvecs)
        is_fine = torch.isfinite(rows).all(1)
        finite = rows[is_fine]
        if len(finite) < 2:
            raise InputError(f"got {len(finite)} finite rows of eigenvectors; a palette needs at least 2.")
        wanted = None if match is None else _wanted(match, eigvecs, n_rows=len(rows))[is_fine.numpy()]
        order = _order(finite)
        rng = np.random.default_rng(seed)
        if len(finite) > N_CANDIDATES:
            order = order[np.sort(rng.choice(len(finite), N_CANDIDATES, replace=False))]
        candidates = finite[torch.from_numpy(order)]
        info: dict[str, Any] = {"method": method, "seed": seed, "n_eig": int(rows.shape[1]), "space": space}
        if method == "pca":
            arrays = _fit_pca(candidates)
            z = ((candidates - torch.from_numpy(arrays["mean"])) @ torch.from_numpy(arrays["axes"])).numpy()
        elif method == "mspace":
            arrays = fit_mspace(candidates, seed=seed)
            z = encode(candidates, {name: torch.from_numpy(value) for name, value in arrays.items()}).numpy()
        else:
            points = choose_landmarks(candidates, min(landmarks, len(candidates)), rng=rng)
            arrays = landmark_arrays(points)
            z = _embedder(method)(points.numpy())
            info["landmarks"] = len(points)
        z = z.astype(np.float64)
        turn = principal_turn(z)
        if wanted is None:
            return cls(_colored(arrays, z, turn, info), info)
        shared = order[np.linspace(0, len(order) - 1, min(N_SHARED, len(order))).astype(np.int64)]
        x, wanted = finite[torch.from_numpy(shared)], wanted[shared]
        best, distance = None, np.inf
        for candidate in turns_towards(_places(x, arrays, z, method), wanted, first=turn):
            palette = cls(_colored(arrays, z, candidate, info), info)
            gap = oklab_from_srgb(np.clip(palette._colors(x), 0, 1)) - oklab_from_srgb(wanted)
            if (mean := float(np.linalg.norm(gap, axis=1).mean())) < distance:
                best, distance = palette, mean
        if best is None:
            raise InputError("got eigenvectors that no turn of the colour cube could match; are they finite?")
        return cls(best.arrays, {**info, "match_distance": round(distance, 6)})

    def apply(self, eigvecs: Any) -> NDArray[np.uint8]:
        """Return sRGB colours uint8 [n, 3]; rows with NaN become grey. Equal rows get equal colours, always.

        Raises:
            InputError: another number of columns than the palette was fitted on.

        Cost: O(n landmarks); 160,000 rows take about 1 s on two cores (tsne, umap), less by pca and mspace.
        """
        rows = _features(eigvecs)
        if rows.shape[1] != self.info["n_eig"]:
            raise InputError(
                f"got {rows.shape[1]} eigenvectors; this palette was fitted on {self.info['n_eig']} of its own cut."
            )
        out = np.empty((len(rows), 3), dtype=np.uint8)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS]
            is_fine = torch.isfinite(part).all(1)
            color = self._colors(torch.nan_to_num(part))
            color[~is_fine.numpy()] = GREY / 255
            out[start : start + CHUNK_ROWS] = np.round(np.clip(color, 0, 1) * 255).astype(np.uint8)
        return out

    def _colors(self, rows: torch.Tensor) -> NDArray[np.float64]:
        arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in self.arrays.items()}
        method, space = self.info["method"], str(self.info["space"])
        if method == "pca":
            at = (rows - arrays["mean"]) @ arrays["axes"]
            cube = (at - arrays["low"]) / (arrays["high"] - arrays["low"])
            return paint(cube.clamp(0, 1).double().numpy(), space)
        if method == "mspace":
            z = encode(rows, arrays).double().numpy()
            return paint(
                fill_cube_by(z, arrays["turn"].double().numpy(), arrays["knots"].double().numpy()), space
            )
        return (weights(rows, arrays) @ arrays["colors"]).double().numpy()

    def save(self, path: Path | str) -> Path:
        """Write the palette to one .npz file (arrays and a JSON text, no pickle), atomically."""
        meta = json.dumps({"schema": SCHEMA, **self.info}, sort_keys=True)
        content = {name: np.asarray(value, dtype=np.float32) for name, value in self.arrays.items()}
        return write_atomic(path, lambda handle: np.savez(handle, meta=np.array(meta), **content))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path | str) -> Palette:
        """Return a saved palette. Colours are the same bits as before saving.

        Raises:
            ItemNotFoundError: no such file.
            InputError: not a palette, or written by a newer vlascope.
        """
        path = Path(path)
        if not path.is_file():
            raise ItemNotFoundError(f"there is no palette at '{path}'.")
        try:
            with np.load(path, allow_pickle=False) as content:
                info = json.loads(str(content["meta"]))
                arrays = {name: content[name] for name in content.files if name != "meta"}
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"'{path}' is not a palette that vlascope saved.") from error
        if info.pop("schema") > SCHEMA:
            raise InputError(f"'{path}' was written by a newer vlascope; update this one to read it.")
        return cls(arrays, info)


def _features(eigvecs: Any) -> torch.Tensor:
    if isinstance(eigvecs, torch.Tensor):
        rows = eigvecs.detach().to("cpu", torch.float32)
    else:
        rows = torch.from_numpy(np.array(eigvecs, dtype=np.float32))
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"got eigenvectors of shape {tuple(rows.shape)}; need [n, n_eig].")
    return rows / rows.norm(dim=1, keepdim=True).clamp_(min=1e-30)


def _order(rows: torch.Tensor) -> NDArray[np.int64]:
    """Return an order of the rows that depends on their values only, so that shuffled rows give the same palette."""
    along = torch.from_numpy(np.random.default_rng(0).normal(size=rows.shape[1]))
    key = torch.cat([(part.double() * along).sum(1) for part in rows.split(CHUNK_ROWS)])
    return np.argsort(key.numpy(), kind="stable")


def _wanted(match: Palette | NDArray[np.uint8], eigvecs: Any, *, n_rows: int) -> NDArray[np.float64]:
    """Return the sRGB colours in [0, 1] that the rows shall keep, [n, 3]."""
    rgb = match.apply(eigvecs) if isinstance(match, Palette) else np.asarray(match)
    if rgb.shape != (n_rows, 3) or rgb.dtype != np.uint8:
        raise InputError(
            f"got colours to match of shape {rgb.shape} and type {rgb.dtype}; need uint8 [{n_rows}, 3], "
            "one colour for each row of the eigenvectors, or a palette of the same cut."
        )
    return rgb / 255.0


def _embedder(method: str) -> Any:
    if method == "umap":
        from .umap import umap3

        return umap3
    from .tsne import tsne3

    return tsne3


def _fit_pca(rows: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    mean = rows.mean(0)
    x = (rows - mean).double()
    _, vectors = torch.linalg.eigh(x.T @ x)
    axes = torch.zeros((rows.shape[1], 3), dtype=torch.float64)
    found = vectors.flip(1)[:, :3]
    axes[:, : found.shape[1]] = found
    return {"mean": mean.numpy(), "axes": axes.float().numpy()}


def _places(
    rows: torch.Tensor, arrays: Mapping[str, NDArray[np.float32]], z: NDArray[np.float64], method: str
) -> NDArray[np.float64]:
    """Return where rows lie in the three dimensions before they are turned, [n, 3]."""
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    if method == "pca":
        return ((rows - tensors["mean"]) @ tensors["axes"]).double().numpy()
    if method == "mspace":
        return encode(rows, tensors).double().numpy()
    return weights(rows, tensors).double().numpy() @ z


def _colored(
    arrays: Mapping[str, NDArray[np.float32]],
    z: NDArray[np.float64],
    turn: NDArray[np.float64],
    info: Mapping[str, Any],
) -> dict[str, NDArray[np.float32]]:
    """Return the fitted arrays together with what turns places into colours."""
    if info["method"] == "pca":
        at = z @ turn
        low, high = np.quantile(at, 0.01, axis=0), np.quantile(at, 0.99, axis=0)
        more = {
            "axes": arrays["axes"] @ turn,
            "low": low,
            "high": np.where(high - low > 1e-9, high, low + 1.0),
        }
    elif info["method"] == "mspace":
        more = {"turn": turn, "knots": cube_knots(z, turn)}
    else:
        more = {"colors": paint(fill_cube(z, turn), str(info["space"]))}
    return {**arrays, **{name: np.asarray(value, dtype=np.float32) for name, value in more.items()}}
