"""Exact eigenvectors of a dense token graph: all pairs, no sampling. For up to about ten thousand tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ._linalg import eigh_falling, orthonormal
from .affinity import Kernel, has_half_products
from .balance import local, uniform_weights

MAX_EXACT_NODES = 10_000
"""Above this many rows the dense affinity matrix (400 MB) costs more than it gives."""

MAX_DENSE_NODES = 512
"""Up to this many rows everything is computed in float64 by one full eigendecomposition."""

HALF_NODES = 2048
"""From this many rows on the affinities are computed in bfloat16 where that moves them by less than HALF_ERROR."""

HALF_ERROR = 1e-3
"""Relative error (Frobenius norm, on a sample of rows) of affinities computed in bfloat16. It is random from pair to
pair, so that it moves an eigenvalue by less than a thousandth of this, far below the iteration's own tolerance."""

LANES = 16
"""Krylov blocks have a multiple of this many columns: 48 take no longer than 37 on processors with 512-bit vectors,
and blocks of fewer than 32 wait for memory."""

MAX_COLUMNS = 16
"""Products with the graph at most, in units of wanted eigenvectors (16 * 20 columns for 20). Eigenvalues that repeat
nearly (the bulk, below the gap) need many for vectors that mean little; small graphs, where a product costs next to
nothing, get up to four times as many."""

TOLERANCE = 4e-2
"""Residual of an eigenpair relative to the smallest wanted eigenvalue; its eigenvalue is right to the square. From
4,096 rows on; fewer rows, where a product costs next to nothing, are solved more tightly, with the cube of n."""

SETTLED = 1e-5
"""Relative change of the eigenvalues between checks below which what is left is a near-repeated eigenvalue."""


def exact_cut(
    x_nd: Tensor, kernel: Kernel, *, n_eig: int, weights: Tensor | None, seed: int, power: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the leading eigenvectors of the Normalized Cut of all rows.

    With A the affinity, w the weights and q = A w, the symmetric operator S = diag(w/q)^1/2 A diag(w/q)^1/2 has
    eigenvectors u; what is returned is u / sqrt(w), so that a token of weight 1 and four equal tokens of weight
    1/4 give the same rows. The trivial pair (1, sqrt(w q)) is known and deflated, never searched for.

    Args:
        x_nd: Rows prepared by `kernel.prepare`, [n, d].
        kernel: The affinity.
        n_eig: Eigenvectors wanted, 1 <= n_eig <= n.
        weights: float64 [n], > 0, mean 1; None means equal weights.
        seed: Seeds the start block of the iteration.
        power: For balance="uniform", from `balance.local_power`: multiply the weights by `uniform_weights`.

    Returns:
        (eigenvectors float32 [n, n_eig], eigenvalues float64 [n_eig] falling, degrees q float32 [n], weights
        used, float64 [n]).

    Cost: O(n² d) for the graph, O(n² n_eig) per iteration; n = 8192, d = 768, 20 eigenvectors: about 1 s on two
    cores and 4 n² bytes.
    References: Shi and Malik 2000 (Normalized Cut); Musco and Musco 2015 (block Krylov iteration).
    """
    n = len(x_nd)
    affinity = _affinity64(x_nd, kernel) if n <= MAX_DENSE_NODES else _affinity32(x_nd, kernel)
    w = torch.ones(n, dtype=torch.float64, device=x_nd.device) if weights is None else weights.to(x_nd.device)
    degree = (affinity @ w.to(affinity.dtype)).double()
    if power is not None:
        crowd = torch.cat([local(part, power) @ w.to(affinity.dtype) for part in affinity.split(1024)])
        w = uniform_weights(crowd, w.cpu()).to(x_nd.device)
        degree = (affinity @ w.to(affinity.dtype)).double()
    half = (w / degree).sqrt()
    trivial = (w * degree).sqrt()
    trivial = trivial / trivial.norm()
    if n <= MAX_DENSE_NODES:
        # Moving the trivial pair from 1 to 2 keeps it first even when the graph falls apart (repeated 1).
        values, vectors = eigh_falling(
            (half[:, None] * affinity * half[None]) + torch.outer(trivial, trivial)
        )
        values, vectors = values[:n_eig].clone(), vectors[:, :n_eig].to(x_nd.device)
        values[0] -= 1
    else:
        values, vectors = _krylov(
            affinity, half.float()[:, None], trivial.float()[:, None], n_eig=n_eig, seed=seed
        )
    eigvecs = (vectors.double() / w.sqrt()[:, None]).float()
    return eigvecs, values.cpu(), degree.float(), w


def _affinity64(x_nd: Tensor, kernel: Kernel) -> Tensor:
    if kernel.fn is not None:
        block = kernel.block(x_nd, x_nd).double()
        return (block + block.T) / 2
    return torch.exp(
        -0.5 * torch.cdist(x_nd.double(), x_nd.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    )


def _affinity32(x_nd: Tensor, kernel: Kernel) -> Tensor:
    """Return the dense affinity matrix, float32 [n, n], from its upper blocks."""
    n, size = len(x_nd), 512
    if n >= HALF_NODES and has_half_products(x_nd.device) and _half_error(x_nd, kernel) < HALF_ERROR:
        kernel = replace(kernel, is_half=True)
    out = torch.empty((n, n), dtype=torch.float32, device=x_nd.device)
    for i in range(0, n, size):
        block = kernel.block(x_nd[i : i + size], x_nd[i:], out=out[i : i + size, i:])
        out[i + size :, i : i + size] = block[:, size:].T
    if kernel.fn is None:
        out.fill_diagonal_(1.0)
    return out


def _half_error(x_nd: Tensor, kernel: Kernel) -> float:
    """Return how far bfloat16 products move the affinities among a sample of 512 rows, relative to their size."""
    if kernel.fn is not None:
        return float("inf")
    some = x_nd[:: max(1, len(x_nd) // 512)]
    full = kernel.block(some, some).fill_diagonal_(1.0)
    half = replace(kernel, is_half=True).block(some, some).fill_diagonal_(1.0)
    return float((half - full).norm() / full.norm())


def _krylov(
    affinity: Tensor, half: Tensor, trivial: Tensor, *, n_eig: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the trivial and the next n_eig - 1 eigenpairs by block Lanczos with full orthogonalisation."""
    n, device = len(affinity), affinity.device
    if n_eig == 1:
        return torch.ones(1, dtype=torch.float64), trivial
    wanted = n_eig - 1
    width = min(LANES * max(2, -(-2 * (wanted + 6) // (3 * LANES))), n - 1)
    n_most = min(5 * wanted + 6 * width, n - 1)  # columns before a restart
    tolerance = TOLERANCE * min(1.0, (n / 4096) ** 3)
    budget = int(MAX_COLUMNS * max(wanted, 2 * LANES) * min(4.0, max(1.0, (4096 / n) ** 2)))

    def apply(block: Tensor) -> Tensor:
        out = half * (affinity @ (half * block))
        return out - trivial @ (trivial.T @ out)

    def next_block(block: Tensor, basis: Tensor) -> Tensor:
        # Twice is enough (Kahan and Parlett). Before a restart the product with a block has next to nothing in the
        # basis but the last two blocks, so that the first time these do.
        near = basis[:, -2 * width :] if basis.shape[1] == n_applied else basis
        for part in (near, basis):
            block = block - part @ (part.T @ block) - trivial @ (trivial.T @ block)
            block = orthonormal(block)
        return block

    start = _start(affinity, half, width, seed=seed)
    n_applied = 0
    basis = next_block(start, start[:, :0])
    small = torch.zeros((0, 0), dtype=torch.float64)  # the operator within the basis
    values, mix = torch.zeros(wanted, dtype=torch.float64), torch.zeros(0)
    next_check = min(wanted + 2 * width, n_most)
    while True:
        last = apply(basis[:, -width:])
        n_applied += width
        small = _extended(small, (basis.T @ last).double().cpu())
        fresh = next_block(last, basis)
        is_full = basis.shape[1] + width > n_most
        if basis.shape[1] >= next_check or is_full or n_applied >= budget:
            found, mix = eigh_falling(small)
            change, values = float((found[:wanted] - values).abs().max()), found[:wanted]
            # All that a Ritz vector misses lies in the next block.
            miss = (fresh.T @ last).double().cpu() @ mix[-width:, :wanted]
            floor = max(1e-3, float(values[-1]))
            if (
                float(miss.norm(dim=0).max()) < tolerance * floor
                or change < SETTLED * floor
                or n_applied >= budget
            ):
                break
            if is_full:  # thick restart: keep what is nearest to the answer
                basis = basis @ mix[:, : wanted + width].to(device, torch.float32)
                small = torch.diag(found[: wanted + width])
            next_check = basis.shape[1] + width
        basis = torch.cat([basis, fresh], 1)
    vectors = basis @ mix[:, :wanted].to(device, torch.float32)
    return torch.cat([torch.ones(1, dtype=torch.float64), values]), torch.cat([trivial, vectors], 1)


def _start(affinity: Tensor, half: Tensor, width: int, *, seed: int) -> Tensor:
    """Return the block that the iteration starts from, [n, width]: one or two products ahead of a random one.

    Three quarters are the Nystrom approximations from a few random rows of the graph, with some noise, the rest is
    random: parts of the graph that no such row touches must be in it as well, or they are never found.
    """
    n, device = len(affinity), affinity.device
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn((n, width), generator=rng).to(device)
    picks = torch.randperm(n, generator=rng)[: 4 * width].sort().values.to(device)
    some = affinity[picks] * half[picks]
    values, vectors = eigh_falling(some[:, picks] * half[picks].T)
    keep = values > 1e-5 * values[0]
    features = (some * half.T).T @ (vectors[:, keep] * values[keep].rsqrt()).to(device, torch.float32)
    _, mix = eigh_falling(features.T @ features)
    found = features @ mix[:, 1 : 1 + 3 * width // 4].to(device, torch.float32)  # the first one is trivial
    found = found / found.norm(dim=0).clamp(min=1e-30)
    start[:, : found.shape[1]] = found + 0.2 * n**-0.5 * start[:, : found.shape[1]]
    return start


def _extended(small: Tensor, columns: Tensor) -> Tensor:
    """Return the symmetric matrix `small` with its last columns (and rows) added."""
    n_old, n_all = len(small), len(columns)
    out = torch.empty((n_all, n_all), dtype=small.dtype)
    out[:n_old, :n_old] = small
    out[:, n_old:] = columns
    out[n_old:, :n_old] = columns[:n_old].T
    return out


def extend(block_bn: Tensor, *, map_nk: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors [b, k] and degrees [b] of rows from their affinities to all fitted rows.

    Args:
        block_bn: Affinities to the fitted rows.
        map_nk: w f / (sqrt(q) lambda) of the fitted rows, f their eigenvectors.
        weights: float64 [n] weights of the fitted rows; None means ones.

    Cost: O(b n k).
    """
    degree = block_bn @ weights.to(block_bn) if weights is not None else block_bn.sum(1)
    return (block_bn @ map_nk) / degree.clamp(min=1e-30).sqrt()[:, None], degree
