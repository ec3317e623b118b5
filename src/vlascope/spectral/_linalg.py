"""Small linear algebra with reproducible bits: one-thread eigenproblems and Lloyd's k-means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU kernels on one thread: small eigenproblems are faster and repeat bit for bit."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def eigh_falling(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [m] (falling) and eigenvectors [m, m] of a symmetric matrix, float64, on the CPU."""
    matrix = matrix.detach().to("cpu", torch.float64)
    with one_thread():
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.flip(0), vectors.flip(1)


def eigh_top(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues (falling) and eigenvectors [m, k] of a symmetric matrix, float64, on the CPU.

    A few times faster than all of them when k is small against m.
    """
    from scipy.linalg import eigh

    m = len(matrix)
    if 4 * k > m:
        values, vectors = eigh_falling(matrix)
        return values[:k], vectors[:, :k]
    symmetric = matrix.detach().to("cpu", torch.float64)
    found = eigh(((symmetric + symmetric.T) / 2).numpy(), subset_by_index=[m - k, m - 1], driver="evr")
    return torch.from_numpy(found[0][::-1].copy()), torch.from_numpy(found[1][:, ::-1].copy())


def orthonormal(block: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of a tall block, [n, b].

    Cholesky of the Gram matrix, twice: two matrix products instead of a QR, which is many times slower for tall
    blocks. Columns that are dependent to rounding (the Cholesky breaks down) go through Householder QR instead,
    which always gives an orthonormal basis.

    Cost: O(n b²).
    References: Yamamoto et al. 2015 (CholeskyQR2).
    """
    for _ in range(2):
        gram = (block.T @ block).double()
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            return torch.linalg.qr(block, mode="reduced")[0]
        block = torch.linalg.solve_triangular(factor.to(block.dtype).T, block, upper=True, left=False)
    return block


def sq_distances(x_nd: Tensor, y_md: Tensor) -> Tensor:
    """Return squared Euclidean distances [n, m], >= 0, by the expansion |x|² - 2xy + |y|² (centre rows first)."""
    out = torch.addmm((y_md * y_md).sum(1)[None], x_nd, y_md.T, alpha=-2)
    return out.add_((x_nd * x_nd).sum(1)[:, None]).clamp_(min=0)


def lloyd(
    x_nd: Tensor, start_md: Tensor, *, steps: int, is_half: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return centroids [m, d], labels int64 [n] and member counts [m] after Lloyd's steps from `start_md`.

    An empty cluster keeps its centre and gets count 0. Sums run in row order, so results repeat bit for bit.

    Cost: O(steps n m d).
    """
    centers = start_md.clone()
    n_centers = len(centers)
    half_x = x_nd.bfloat16() if is_half else x_nd
    labels = torch.zeros(len(x_nd), dtype=torch.int64, device=x_nd.device)
    counts = torch.zeros(n_centers, device=x_nd.device)
    for step in range(steps + 1):
        if is_half:  # near ties may fall either way
            gram = torch.sub((centers * centers).sum(1)[None] * 0.5, half_x @ centers.T.bfloat16())
        else:
            gram = torch.addmm((centers * centers).sum(1)[None] * 0.5, x_nd, centers.T, alpha=-1)
        labels = gram.argmin(1)
        counts = torch.bincount(labels, minlength=n_centers).to(x_nd.dtype)
        if step == steps:
            break
        order, sizes = labels.argsort(stable=True), counts.to(torch.int64)
        ends = sizes.cumsum(0)
        # Sums by segments of the sorted rows: index_add_ on several threads would not repeat bit for bit.
        sums = torch.cat(
            [
                torch.segment_reduce(
                    x_nd[order[int(ends[a] - sizes[a]) : int(ends[min(a + 128, n_centers) - 1])]],
                    "sum",
                    lengths=sizes[a : a + 128],
                    axis=0,
                )
                for a in range(0, n_centers, 128)  # in pieces, or the sorted copy doubles the memory
            ]
        )
        filled = counts > 0
        centers[filled] = sums[filled] / counts[filled, None]
    return centers, labels, counts


def kmeans_pp(x_nd: Tensor, n_centers: int, *, rng: np.random.Generator) -> Tensor:
    """Return `n_centers` rows of x drawn by k-means++ (D² sampling), [n_centers, d]. Cost: O(n m d)."""
    chosen = [int(rng.integers(len(x_nd)))]
    nearest = sq_distances(x_nd, x_nd[chosen])[:, 0]
    for _ in range(n_centers - 1):
        mass = nearest.double().cumsum(0).cpu().numpy()
        pick = (
            int(np.searchsorted(mass, rng.random() * mass[-1]))
            if mass[-1] > 0
            else int(rng.integers(len(x_nd)))
        )
        chosen.append(min(pick, len(x_nd) - 1))
        nearest = torch.minimum(nearest, sq_distances(x_nd, x_nd[chosen[-1:]])[:, 0])
    return x_nd[chosen]
