"""One set of pseudo-eigenvectors for the graphs of all layers at once: what and where a whole model groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, SiteNotFoundError
from ..progress import progress
from ._linalg import eigh_falling, orthonormal
from .fitted import signs
from .graphs import attention_affinity, neighbour_affinity

if TYPE_CHECKING:
    from ..runs import Run

MAX_STEPS = 1000
PATIENCE = 20
TOLERANCE = 1e-4
"""Early stop: the objective (in units of one eigenvector's criterion) gained less than this over PATIENCE steps."""

MAX_TOKENS = 30_000
EXTRA = 4
"""Columns beyond those asked for; they speed up the last wanted one."""


@dataclass(frozen=True, kw_only=True)
class JointCut:
    """Pseudo-eigenvectors that fit the graphs of several layers together.

    Attributes:
        eigvecs: float32 [n, n_eig], orthonormal, by falling eigenvalue.
        eigenvalues: float64 [n_eig], x' S x averaged over layers, in [-1, 1].
        by_layer: float64 [n_layers, n_eig], x' S_l x in each layer: which layers a grouping lives in.
        losses: float64 [steps], the objective after each step; empty for the direct solver.
        is_converged: Stopped because nothing was gained, not because the steps ran out.
        params: How it was made.
        token_rows: int64 [n], rows of the run's token table; None for graphs that were given directly.
        layout: Token layout of the rows; None likewise.
    """

    eigvecs: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    by_layer: NDArray[np.float64]
    losses: NDArray[np.float64]
    is_converged: bool
    params: Mapping[str, Any]
    token_rows: NDArray[np.int64] | None = None
    layout: str | None = None


def joint_cut(
    graphs: Sequence[Tensor],
    *,
    n_eig: int = 20,
    pools: Sequence[Tensor | None] | None = None,
    solver: Literal["gradient", "direct"] = "gradient",
    max_steps: int = MAX_STEPS,
    seed: int = 0,
    quiet: bool = True,
) -> JointCut:
    """Return the pseudo-eigenvectors that maximise the mean criterion x' S_l x over layers l.

    The gradient solver minimises -tr(X' S X)/2 + |X' X - I|²/4 with S the mean over layers: its only minima
    span the leading eigenspace (a penalty on normalised columns, as usual for this problem, is too weak for many
    eigenvectors and lets columns collapse into one). The result is then rotated to orthonormal eigenvectors. It
    needs products with the graphs only, so that they may be large and sparse.

    Args:
        graphs: One symmetric normalised affinity [n_l, n_l] per layer, dense or sparse (see `graphs`).
        n_eig: Pseudo-eigenvectors.
        pools: For layers of another resolution: [n_l, n] that averages the common tokens onto the layer's; rows
            are scaled to unit norm. None where a layer has the common tokens.
        solver: "gradient" or "direct" (block power iteration with Rayleigh-Ritz; the oracle in tests).
        max_steps: Gradient steps at most.
        seed: Seeds the start. Same input + same seed = same bits.
        quiet: Show no progress bar.

    Raises:
        InputError: no graphs, shapes that do not fit, too many eigenvectors.

    Cost: O(steps (edges + n n_eig) n_eig).
    References: Zhang, Yunis and Maire 2024 (one set of eigenvectors over all layers); Wen et al. 2016 (trace
    penalty).
    """
    layers = _layers(graphs, pools)
    n = layers[0].n
    if not 1 <= n_eig <= n:
        raise InputError(f"got n_eig={n_eig} for {n} tokens; need 1..{n}.")
    if solver not in ("gradient", "direct"):
        raise InputError(f"got solver={solver!r}; need 'gradient' or 'direct'.")
    width = min(n, n_eig + EXTRA)
    start = torch.randn((n, width), generator=torch.Generator().manual_seed(seed))
    if solver == "direct":
        space, losses, is_converged = _power(layers, start), [], True
    else:
        space, losses, is_converged = _descend(layers, start, max_steps=max_steps, quiet=quiet)
    basis = orthonormal(space)
    values, mix = eigh_falling(basis.double().T @ _apply(layers, basis).double())
    eigvecs = basis @ mix[:, :n_eig].float()
    eigvecs = eigvecs * signs(eigvecs)
    by_layer = [(eigvecs.double() * layer.apply(eigvecs).double()).sum(0).numpy() for layer in layers]
    params = {"n_eig": n_eig, "solver": solver, "max_steps": max_steps, "seed": seed, "n_layers": len(layers)}
    return JointCut(
        eigvecs=eigvecs.numpy(),
        eigenvalues=values[:n_eig].numpy(),
        by_layer=np.stack(by_layer),
        losses=np.asarray(losses),
        is_converged=is_converged,
        params=params,
    )


@dataclass(frozen=True)
class _Layer:
    graph: Tensor
    pool: Tensor | None
    n: int

    def apply(self, x: Tensor) -> Tensor:
        if self.pool is None:
            return self.graph @ x
        return self.pool.T @ (self.graph @ (self.pool @ x))


def _layers(graphs: Sequence[Tensor], pools: Sequence[Tensor | None] | None) -> list[_Layer]:
    if not graphs:
        raise InputError("got no graphs; need one per layer.")
    pools = [None] * len(graphs) if pools is None else pools
    if len(pools) != len(graphs):
        raise InputError(
            f"got {len(pools)} pools for {len(graphs)} graphs; need one per layer (None is fine)."
        )
    out = []
    for graph, pool in zip(graphs, pools, strict=True):
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
            raise InputError(f"got a graph of shape {tuple(graph.shape)}; need [n, n].")
        if pool is not None:
            if pool.shape[0] != graph.shape[0]:
                raise InputError(
                    f"got a pool of shape {tuple(pool.shape)} for a graph of {graph.shape[0]} tokens."
                )
            pool = pool / pool.norm(dim=1, keepdim=True).clamp_(min=1e-30)
        out.append(_Layer(graph.float(), pool, int(graph.shape[0] if pool is None else pool.shape[1])))
    if len({layer.n for layer in out}) != 1:
        raise InputError(
            f"layers have {sorted({layer.n for layer in out})} tokens; give pools to a common grid."
        )
    return out


def _apply(layers: Sequence[_Layer], x: Tensor) -> Tensor:
    """Return the mean of the layers' graphs applied to x."""
    total = layers[0].apply(x)
    for layer in layers[1:]:
        total = total + layer.apply(x)
    return total / len(layers)


def _descend(
    layers: Sequence[_Layer], start: Tensor, *, max_steps: int, quiet: bool
) -> tuple[Tensor, list[float], bool]:
    """Return X after Adam on the trace penalty, the objective at each step, and whether it settled."""
    n, width = start.shape
    x = start / n**0.5
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    losses: list[float] = []
    for step in progress(range(1, max_steps + 1), desc="joint cut", unit="step", quiet=quiet):
        image = _apply(layers, x)
        gram = x.T @ x
        excess = gram - torch.eye(width)
        losses.append(float(-(x * image).sum(dtype=torch.float64) / 2 + excess.double().square().sum() / 4))
        if step > 2 * PATIENCE and losses[-PATIENCE] - losses[-1] < TOLERANCE:
            return x, losses, True
        gradient = x @ excess - image
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient.square()
        rate = 0.05 / n**0.5 * min(1.0, 2 * (1 - step / max_steps) + 0.05)
        x = x - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8 / n**0.5)
    return x, losses, False


def _power(layers: Sequence[_Layer], start: Tensor, *, n_rounds: int = 60) -> Tensor:
    """Return a basis of the leading eigenspace by block power iteration on (S + I)/2 with Chebyshev-free restarts."""
    basis = orthonormal(start)
    for _ in range(n_rounds):
        for _ in range(4):  # the shift keeps negative eigenvalues from winning
            basis = (_apply(layers, basis) + basis) / 2
        basis = orthonormal(basis)
    return basis


def joint_run(
    run: Run,
    layers: Sequence[str],
    *,
    kind: Literal["what", "where"] = "what",
    items: Sequence[int] | None = None,
    n_eig: int = 20,
    n_heads: int = 1,
    n_intra: int = 50,
    n_inter: int = 50,
    solver: Literal["gradient", "direct"] = "gradient",
    seed: int = 0,
    quiet: bool = False,
) -> JointCut:
    """Return the joint cut of a run's attention layers over the patches of some items.

    "what" links tokens whose values are alike (semantics); "where" links tokens that attend to each other
    (layout). One item: "where" takes the softmaxed attention itself. Several items: nearest neighbours within and
    between images, of values, or of queries to keys.

    Args:
        run: Captured with the sites `LAYER.v` ("what") or `LAYER.q` and `LAYER.k` ("where").
        layers: Layers of one token layout, for example ("vision.0", "vision.3").
        kind: "what" or "where".
        items: Rows of the items; None takes all.
        n_eig: Pseudo-eigenvectors.
        n_heads: Attention heads, for the softmaxed attention.
        n_intra: Neighbours in the same image.
        n_inter: Neighbours in other images.
        solver: See `joint_cut`.
        seed: Seeds the start.
        quiet: Show no progress bar.

    Raises:
        SiteNotFoundError: a needed site was not captured.
        InputError: layers of different layouts, no patches, more than 30,000 tokens.

    Cost: building the neighbour graph takes O(n² d) per layer.
    """
    if kind not in ("what", "where"):
        raise InputError(f"got kind={kind!r}; need 'what' or 'where'.")
    if not layers:
        raise InputError("got no layers; name at least one, for example 'vision.3'.")
    tensors = ("v",) if kind == "what" else ("q", "k")
    missing = [f"{layer}.{t}" for layer in layers for t in tensors if f"{layer}.{t}" not in run.sites]
    if missing:
        wanted = " ".join(f"'{layer}.{t}'" for layer in layers for t in tensors)
        raise SiteNotFoundError(
            f"run '{run.path}' has no site '{missing[0]}'; a joint cut of {kind!r} needs {wanted}. Capture them too."
        )
    layouts = {run.sites[f"{layer}.{t}"].layout for layer in layers for t in tensors}
    if len(layouts) != 1:
        raise InputError(
            f"layers follow different token layouts ({', '.join(sorted(layouts))}); cut one at a time."
        )
    layout = layouts.pop()
    table = run.tokens(layout)
    token_rows = table.select(["patch"])
    if items is not None:
        token_rows = token_rows[np.isin(table.item[token_rows], np.asarray(list(items)))]
    if not len(token_rows):
        raise InputError(f"layout '{layout}' has no patches in these items; there is nothing to cut.")
    if len(token_rows) > MAX_TOKENS:
        raise InputError(
            f"{len(token_rows)} tokens; a joint cut takes at most {MAX_TOKENS}. Choose fewer items (`items=`)."
        )
    image_of = table.item[token_rows].astype(np.int64)
    is_single = len(np.unique(image_of)) == 1
    graphs = []
    for layer in progress(layers, desc=f"graphs of {kind}", unit="layer", quiet=quiet):
        acts = [run.acts(f"{layer}.{t}")[token_rows] for t in tensors]
        if kind == "where" and is_single:
            graphs.append(attention_affinity(*acts, n_heads=n_heads))
        else:
            inter = 0 if is_single else n_inter
            graphs.append(neighbour_affinity(*acts, image_of=image_of, n_intra=n_intra, n_inter=inter))
    found = joint_cut(graphs, n_eig=n_eig, solver=solver, seed=seed, quiet=quiet)
    params = {
        **found.params,
        "layers": list(layers),
        "kind": kind,
        "n_items": len(np.unique(image_of)),
        "n_heads": n_heads,
        "n_intra": n_intra,
        "n_inter": n_inter,
    }
    return JointCut(
        eigvecs=found.eigvecs,
        eigenvalues=found.eigenvalues,
        by_layer=found.by_layer,
        losses=found.losses,
        is_converged=found.is_converged,
        params=params,
        token_rows=token_rows,
        layout=layout,
    )
