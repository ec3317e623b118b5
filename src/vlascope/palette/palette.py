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

from ..errors import InputError, ItemNotFoundError
from ..files import write_atomic
from .color import srgb_from_oklab
from .farthest import farthest_points

METHODS = ("tsne", "pca")
SCHEMA = 1
N_LANDMARKS = 1024
N_CANDIDATES = 12_288
CHUNK_ROWS = 16_384
GREY = 128
"""Colour of tokens whose eigenvectors are NaN (out of reach of the cut)."""


@dataclass(frozen=True)
class Palette:
    """A map from rows of eigenvectors to colours; similar rows get similar colours.

    Make one with `Palette.fit` and use it for everything that shall be compared: tokens that one cut places alike
    then have one colour in every frame, layer and run.

    Attributes:
        arrays: The fitted numbers (landmarks and their colours, or axes).
        info: method, seed, n_eig, space and sizes; JSON-able.
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
    ) -> Palette:
        """Return a palette for the eigenvectors of a cut.

        Args:
            eigvecs: [n, k] from `NystromNCut`; rows with NaN are left out. Rows are divided by their norm first,
                so that a token's colour does not depend on how many tokens are like it.
            method: "tsne": three-dimensional t-SNE of landmarks, extended to every row by its nearest landmarks:
                separates many concepts. "pca": the first three principal components: plain and linear.
            seed: Seeds the choice of landmark candidates.
            landmarks: Rows that t-SNE places, half of them farthest points (so that rare concepts get a
                colour), half drawn uniformly.
            space: "rgb" fills the RGB cube (vivid); "oklab" keeps lightness even, equal steps look equal.

        Raises:
            InputError: unknown method or space, fewer than 2 finite rows.

        Cost: 1024 landmarks take about 1.5 s on two cores, whatever n is.
        """
        if method not in METHODS:
            soon = " It is not available yet." if method in ("umap", "mspace") else ""
            raise InputError(f"got palette method '{method}'; need one of {', '.join(METHODS)}.{soon}")
        if space not in ("rgb", "oklab"):
            raise InputError(f"got colour space '{space}'; need 'rgb' or 'oklab'.")
        rows = _features(eigvecs)
        finite = rows[torch.isfinite(rows).all(1)]
        if len(finite) < 2:
            raise InputError(f"got {len(finite)} finite rows of eigenvectors; a palette needs at least 2.")
        rng = np.random.default_rng(seed)
        if len(finite) > N_CANDIDATES:
            index = np.sort(rng.choice(len(finite), N_CANDIDATES, replace=False))
            finite = finite[torch.from_numpy(index)]
        info = {"method": method, "seed": seed, "n_eig": int(rows.shape[1]), "space": space}
        if method == "pca":
            arrays = _fit_pca(finite)
        else:
            arrays = _fit_tsne(finite, min(landmarks, len(finite)), rng, space)
            info["landmarks"] = len(arrays["points"])
        return cls(arrays, info)

    def apply(self, eigvecs: Any) -> NDArray[np.uint8]:
        """Return sRGB colours uint8 [n, 3]; rows with NaN become grey. Equal rows get equal colours, always.

        Raises:
            InputError: another number of columns than the palette was fitted on.

        Cost: O(n landmarks); 160,000 rows take about 1 s on two cores.
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
        if self.info["method"] == "pca":
            at = (rows - arrays["mean"]) @ arrays["axes"]
            cube = (at - arrays["low"]) / (arrays["high"] - arrays["low"])
            return _paint(cube.clamp(0, 1).double().numpy(), str(self.info["space"]))
        points = arrays["points"]
        d2 = torch.addmm((points * points).sum(1)[None], rows, points.T, alpha=-2)
        d2.add_((rows * rows).sum(1)[:, None]).clamp_(min=0)
        weight = torch.softmax(d2.mul_(-arrays["sharpness"][None]), dim=1)
        return (weight @ arrays["colors"]).double().numpy()

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


def _fit_pca(rows: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    mean = rows.mean(0)
    x = (rows - mean).double()
    _, vectors = torch.linalg.eigh(x.T @ x)
    axes = torch.zeros((rows.shape[1], 3), dtype=torch.float64)
    found = vectors.flip(1)[:, :3]
    axes[:, : found.shape[1]] = found
    at = x @ axes
    axes = axes * torch.where((at**3).sum(0) >= 0, 1.0, -1.0)
    at = (x @ axes).numpy()
    low, high = np.quantile(at, 0.01, axis=0), np.quantile(at, 0.99, axis=0)
    high = np.where(high - low > 1e-9, high, low + 1.0)
    return {
        "mean": mean.numpy(),
        "axes": axes.float().numpy(),
        "low": low.astype(np.float32),
        "high": high.astype(np.float32),
    }


def _fit_tsne(
    rows: torch.Tensor, n_landmarks: int, rng: np.random.Generator, space: str
) -> dict[str, NDArray[np.float32]]:
    from .tsne import tsne3

    far = farthest_points(rows, max(2, n_landmarks // 2))
    others = np.setdiff1d(np.arange(len(rows)), far)
    n_more = min(n_landmarks - len(far), len(others))
    more = rng.choice(others, n_more, replace=False) if n_more > 0 else others[:0]
    points = torch.unique(rows[torch.from_numpy(np.sort(np.concatenate([far, more])))], dim=0)
    embedded = tsne3(points.numpy())
    cube = _fill_cube(embedded)
    d2 = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    rank = min(5, len(points) - 1)
    local = d2.sort(1).values[:, rank].clamp(min=1e-6) if rank > 0 else torch.ones(len(points))
    return {
        "points": points.numpy(),
        "colors": _paint(cube, space).astype(np.float32),
        "sharpness": (4.0 / local).numpy(),
    }


def _fill_cube(embedded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return coordinates in the unit cube: along the principal axes, half their rank and half their value."""
    x = embedded.astype(np.float64) - embedded.mean(0)
    _, vectors = np.linalg.eigh(x.T @ x)
    x = x @ vectors[:, ::-1]
    x = x * np.where((x**3).sum(0) >= 0, 1.0, -1.0)
    low, high = np.quantile(x, 0.02, axis=0), np.quantile(x, 0.98, axis=0)
    value = np.clip((x - low) / np.maximum(high - low, 1e-12), 0, 1)
    rank = x.argsort(0, kind="stable").argsort(0, kind="stable") / max(len(x) - 1, 1)
    return 0.5 * value + 0.5 * rank


def _paint(cube: NDArray[np.float64], space: str) -> NDArray[np.float64]:
    """Return sRGB colours in [0, 1] of points in the unit cube: bright, no near-black, little grey."""
    if space == "oklab":
        lab = np.stack([0.55 + 0.35 * cube[:, 0], (cube[:, 1] - 0.5) * 0.5, (cube[:, 2] - 0.5) * 0.5], 1)
        return srgb_from_oklab(lab)
    top, bottom = cube.max(1, keepdims=True), cube.min(1, keepdims=True)
    spread = np.maximum(top - bottom, 1e-9)
    saturation = np.minimum(1.0, (spread / np.maximum(top, 1e-9)) ** 0.7)
    value = 0.5 + 0.5 * top
    hue_part = (top - cube) / spread  # 0 at the strongest channel, 1 at the weakest
    return value * (1 - saturation * hue_part)
