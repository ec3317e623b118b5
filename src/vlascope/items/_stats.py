"""Statistics that LeRobot keeps per feature, gathered episode by episode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STAT_NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)


class VectorStats:
    """Statistics over rows [T] or [T, n]; exact, keeps all rows (they are few numbers)."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.float64]] = []

    def add(self, values: NDArray[Any]) -> None:
        """Take rows in."""
        self._rows.append(np.asarray(values, np.float64).reshape(len(values), -1))

    def result(self) -> dict[str, list[Any]]:
        """Return lists of length n (count: one number)."""
        rows = np.concatenate(self._rows)
        found: dict[str, list[Any]] = {
            "min": rows.min(0).tolist(),
            "max": rows.max(0).tolist(),
            "mean": rows.mean(0).tolist(),
            "std": rows.std(0).tolist(),
            "count": [len(rows)],
        }
        return found | {name: np.quantile(rows, q, axis=0).tolist() for name, q in QUANTILES.items()}


class ImageStats:
    """Statistics per colour channel over uint8 frames [T, h, w, 3], scaled to 0..1; exact, by histogram."""

    def __init__(self) -> None:
        self._n_frames = 0
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, values: NDArray[np.uint8]) -> None:
        """Take frames in."""
        self._n_frames += len(values)
        for frame in values:
            for channel in range(3):
                self._counts[channel] += np.bincount(frame[..., channel].reshape(-1), minlength=256)

    def result(self) -> dict[str, list[Any]]:
        """Return nested lists [3][1][1] (count: the number of frames)."""
        levels = np.arange(256) / 255
        n = self._counts.sum(1)
        mean = self._counts @ levels / n
        variance = np.maximum(self._counts @ levels**2 / n - mean**2, 0)
        cumulative = self._counts.cumsum(1)

        def quantile(q: float) -> NDArray[np.float64]:
            rank = np.floor(q * (n - 1)).astype(np.int64)
            return np.array([levels[np.searchsorted(c, r, side="right")] for c, r in zip(cumulative, rank)])

        found = {"min": quantile(0), "max": quantile(1), "mean": mean, "std": np.sqrt(variance)}
        found |= {name: quantile(q) for name, q in QUANTILES.items()}
        lists: dict[str, list[Any]] = {k: v.reshape(3, 1, 1).tolist() for k, v in found.items()}
        return lists | {"count": [self._n_frames]}
