"""How unusual one token is: a dictionary's reconstruction error, and two plain detectors on raw activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..sae import MatryoshkaSAE
from ..sae.errors import reconstruction_errors

MIN_TOKENS_PER_CHANNEL = 2
DETECTORS = ("sae", "sae-fall", "mahalanobis", "pca")


class Detector(Protocol):
    """Scores tokens one by one; larger is less usual, or smaller where `sees_falls`."""

    name: ClassVar[str]
    sees_falls: ClassVar[bool]

    def score(self, x_td: Tensor) -> Tensor:
        """Return float32 [n], >= 0, for raw tokens [n, d]."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what it holds, by name; empty when it lies elsewhere."""
        ...


@dataclass(frozen=True)
class SAEError:
    """Squared reconstruction error over the variance of a clean token."""

    sae: MatryoshkaSAE
    variance: float
    name: ClassVar[str] = "sae"
    sees_falls: ClassVar[bool] = False

    def score(self, x_td: Tensor) -> Tensor:
        """Return the errors, float32 [n]."""
        return reconstruction_errors(self.sae, x_td) / self.variance

    def levels(self, x_td: Tensor) -> Tensor:
        """Return the errors of every level, float32 [n, n_levels], from coarse to fine."""
        return reconstruction_errors(self.sae, x_td, levels=True) / self.variance

    def tensors(self) -> Mapping[str, Tensor]:
        """The dictionary has its own folder."""
        return {}


@dataclass(frozen=True)
class SAEFall(SAEError):
    """The same error, unusual when it falls: glare and silenced modules leave less to rebuild."""

    name: ClassVar[str] = "sae-fall"
    sees_falls: ClassVar[bool] = True


@dataclass(frozen=True)
class Mahalanobis:
    """Squared Mahalanobis distance to the clean tokens' mean, over the number of channels.

    References: P. C. Mahalanobis 1936; as a detector on activations: K. Lee et al., 2018, arXiv 1807.03888.
    """

    mean: Tensor
    whitener: Tensor  # [d, d], x -> (x - mean) @ whitener has unit covariance
    name: ClassVar[str] = "mahalanobis"
    sees_falls: ClassVar[bool] = False

    def score(self, x_td: Tensor) -> Tensor:
        """Return the distances, float32 [n]."""
        return ((x_td.float() - self.mean) @ self.whitener).square().mean(1)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return mean and whitener."""
        return {"mean": self.mean, "whitener": self.whitener}


@dataclass(frozen=True)
class PCAResidual:
    """Squared distance to the subspace of the largest principal components, over the variance of a clean token."""

    mean: Tensor
    basis: Tensor  # [d, k], orthonormal columns
    variance: float
    name: ClassVar[str] = "pca"
    sees_falls: ClassVar[bool] = False

    def score(self, x_td: Tensor) -> Tensor:
        """Return the squared residuals, float32 [n]."""
        around = x_td.float() - self.mean
        inside = around @ self.basis
        return (around.square().sum(1) - inside.square().sum(1)).clamp_min_(0) / self.variance

    def tensors(self) -> Mapping[str, Tensor]:
        """Return mean, basis and variance."""
        return {"mean": self.mean, "basis": self.basis, "variance": torch.tensor(self.variance)}


def standardized(
    logs_fp: NDArray[np.floating],
    *,
    centre: NDArray[np.floating],
    spread: NDArray[np.floating],
    detector: Detector,
) -> NDArray[Any]:
    """Return how unusual patches are, [frames, p], in deviations from what the same places score in clean frames.

    Args:
        logs_fp: Logarithms of a detector's scores.
        centre, spread: [p], of clean frames.
        detector: Whose scores these are; for one that `sees_falls`, a fall counts instead of a rise.
    """
    found = (logs_fp - centre) / spread
    return -found if detector.sees_falls else found


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of many tokens, from one pass.

    Attributes:
        n: Tokens.
        mean: float64 [d].
        covariance: float64 [d, d].
    """

    n: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def variance(self) -> float:
        """Mean squared distance of a token to the mean."""
        return float(np.trace(self.covariance))


def moments(chunks: Iterable[NDArray[np.floating]]) -> Moments:
    """Return mean and covariance of tokens that come in chunks [n, d], in memory for d x d numbers.

    Raises:
        InputError: no tokens, too few for their width, NaN, or constant tokens.
    """
    n, centre, first, second = 0, None, 0.0, 0.0
    for chunk in chunks:
        if not len(chunk):
            continue
        x = np.asarray(chunk, np.float64)
        if centre is None:
            centre = x.mean(0)  # near the mean, so that no large sums are subtracted from each other
        x = x - centre
        n += len(x)
        first = first + x.sum(0)
        second = second + x.T @ x
    if centre is None or n < MIN_TOKENS_PER_CHANNEL * len(centre):
        width = 0 if centre is None else len(centre)
        raise InputError(
            f"got {n} clean tokens of {width} channels; need at least {max(1, MIN_TOKENS_PER_CHANNEL * width)} to know "
            "what is usual. Capture more clean episodes."
        )
    shift = np.asarray(first) / n
    covariance = np.asarray(second) / n - np.outer(shift, shift)
    if not np.isfinite(covariance).all():
        raise InputError(
            "the clean tokens hold NaN or infinite values; capture them again, or leave them out."
        )
    found = Moments(n, centre + shift, covariance)
    if not found.variance > 1e-12 * max(1e-30, float(np.square(found.mean).sum())):
        raise InputError("all clean tokens are the same; nothing can be learned about what is usual.")
    return found


def mahalanobis(found: Moments, *, shrinkage: float = 1e-3) -> Mahalanobis:
    """Return the detector; `shrinkage` of the mean variance is added to each direction's."""
    values, vectors = np.linalg.eigh(found.covariance)
    values = values.clip(min=0) + shrinkage * found.variance / len(found.mean)
    whitener = vectors / np.sqrt(values)
    return Mahalanobis(torch.from_numpy(found.mean).float(), torch.from_numpy(whitener).float())


def pca_residual(found: Moments, *, n_components: int) -> PCAResidual:
    """Return the detector with the `n_components` largest components inside (fewer than channels)."""
    d = len(found.mean)
    k = max(1, min(n_components, d - 1))
    _, vectors = np.linalg.eigh(found.covariance)
    basis = np.ascontiguousarray(vectors[:, -k:])
    return PCAResidual(
        torch.from_numpy(found.mean).float(), torch.from_numpy(basis).float(), float(found.variance)
    )


def from_tensors(name: str, tensors: Mapping[str, Any]) -> Detector:
    """Return the detector "mahalanobis" or "pca" that `tensors()` described."""
    if name == "mahalanobis":
        return Mahalanobis(tensors["mean"], tensors["whitener"])
    if name == "pca":
        return PCAResidual(tensors["mean"], tensors["basis"], float(tensors["variance"]))
    raise InputError(f"unknown detector '{name}'; known are {', '.join(DETECTORS)}.")
