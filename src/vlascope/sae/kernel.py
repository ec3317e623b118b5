"""Decoding, losses and gradients that touch only the active latents.

With k of n latents active, the products of a training step other than the encoder's are sparse: a decode is k
weighted rows per token, the gradient of an activation is one dot product, and the gradients of both dictionaries are
sums of the tokens in which a latent is active. They cost k / n of the dense products. Everything is built from two
primitives: weighted sums of rows (`weighted_rows`) and dot products at chosen places (`sampled_dots`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .codes import row_of_entry


def weighted_rows(table_md: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return for each bag the weighted sum of its rows of a table.

    Args:
        table_md: [m, d].
        index: int64 [e], rows of the table, bag after bag.
        offsets: int64 [bags + 1].
        weights: [e].

    Returns:
        [bags, d]; zeros for empty bags. Each bag is summed in order, so the result does not depend on threads.
    """
    return F.embedding_bag(
        index, table_md, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def sampled_dots(left_rd: Tensor, offsets: Tensor, cols: Tensor, right_nd: Tensor) -> Tensor:
    """Return left[r] . right[c] for the entries (r, c) of a compressed sparse matrix, [e]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        warnings.filterwarnings(
            "ignore", message="Sparse invariant checks are implicitly disabled"
        )  # on GPUs
        pattern = torch.sparse_csr_tensor(
            offsets,
            cols,
            left_rd.new_zeros(len(cols)),
            size=(len(left_rd), len(right_nd)),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, left_rd, right_nd.t(), beta=0.0, alpha=1.0).values()


@dataclass(frozen=True)
class Pattern:
    """Where the entries of sparse codes are, seen by token, by token and level, and by latent.

    Attributes:
        n_tokens, n_latents, n_levels: Sizes.
        cols: int64 [e], latent of each entry.
        rows: int64 [e], token of each entry.
        offsets: int64 [n_tokens + 1].
        cells: int64 [e], token * n_levels + group, the group being the level at which the latent joins.
        cell_offsets: int64 [n_tokens * n_levels + 1].
        by_latent: int64 [e], entries in the order of latents.
        latent_offsets: int64 [n_latents + 1].
    """

    n_tokens: int
    n_latents: int
    n_levels: int
    cols: Tensor
    rows: Tensor
    offsets: Tensor
    cells: Tensor
    cell_offsets: Tensor
    by_latent: Tensor
    latent_offsets: Tensor


def make_pattern(offsets: Tensor, cols: Tensor, *, n_latents: int, levels: Tensor) -> Pattern:
    """Return the pattern of codes whose latents increase within each token.

    Args:
        offsets: int64 [n_tokens + 1].
        cols: int64 [e].
        n_latents: Latents in all.
        levels: int64 [n_levels], increasing; the last is `n_latents`.
    """
    n_levels, n_tokens = len(levels), len(offsets) - 1
    rows = row_of_entry(offsets)
    cells = rows * n_levels + torch.bucketize(cols, levels, right=True)
    return Pattern(
        n_tokens=n_tokens,
        n_latents=n_latents,
        n_levels=n_levels,
        cols=cols,
        rows=rows,
        offsets=offsets,
        cells=cells,
        cell_offsets=_offsets(cells, n_tokens * n_levels),
        by_latent=torch.argsort(cols, stable=True),
        latent_offsets=_offsets(cols, n_latents),
    )


def _offsets(ids: Tensor, n: int) -> Tensor:
    out = torch.zeros(n + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(torch.bincount(ids, minlength=n), 0, out=out[1:])
    return out


class SparseEncode(Function):
    """Pre-activations of chosen latents; gradients for the chosen entries only.

    forward: pre_e = x[row_e] . encoder[col_e] + bias[col_e] (passed in, as the choice has worked them out already).
    """

    @staticmethod
    def forward(
        ctx: Any, x_bd: Tensor, encoder_nd: Tensor, bias_n: Tensor, pre_e: Tensor, pattern: Pattern
    ) -> Tensor:
        ctx.save_for_backward(x_bd, encoder_nd)
        ctx.pattern = pattern
        return pre_e.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_bd, encoder_nd = ctx.saved_tensors
        p: Pattern = ctx.pattern
        by_latent = grads[0][p.by_latent]
        d_encoder = weighted_rows(x_bd, p.rows[p.by_latent], p.latent_offsets, by_latent)
        d_bias = weighted_rows(grads[0][:, None], p.by_latent, p.latent_offsets, torch.ones_like(by_latent))[
            :, 0
        ]
        d_x = weighted_rows(encoder_nd, p.cols, p.offsets, grads[0]) if ctx.needs_input_grad[0] else None
        return d_x, d_encoder, d_bias, None, None


class GroupDecode(Function):
    """Each level's own share of the reconstruction, [n_tokens, n_levels, d]: sums over the latents that it adds."""

    @staticmethod
    def forward(ctx: Any, vals_e: Tensor, decoder_nd: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(vals_e, decoder_nd)
        ctx.pattern = pattern
        parts = weighted_rows(decoder_nd, pattern.cols, pattern.cell_offsets, vals_e)
        return parts.view(pattern.n_tokens, pattern.n_levels, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        vals_e, decoder_nd = ctx.saved_tensors
        return (*_decode_gradients(grads[0].contiguous(), vals_e, decoder_nd, ctx.pattern), None)


def _decode_gradients(
    grad_tld: Tensor, vals_e: Tensor, decoder_nd: Tensor, p: Pattern
) -> tuple[Tensor, Tensor]:
    grad = grad_tld.view(p.n_tokens * p.n_levels, -1)
    d_vals = sampled_dots(grad, p.cell_offsets, p.cols, decoder_nd)
    d_decoder = weighted_rows(grad, p.cells[p.by_latent], p.latent_offsets, vals_e[p.by_latent])
    return d_vals, d_decoder


class NestedLoss(Function):
    """Weighted sum of the squared errors of all nested reconstructions, with its gradients in the same pass.

    The plain formula, [n_tokens, n_levels, d] and several copies of it:
        parts = GroupDecode(vals, decoder); errors = (x - bias)[:, None] - parts.cumsum(1)
        sums = errors.square().sum((0, 2)); loss = (weights * sums).sum()
    Here the parts are turned into errors, and these into gradients, in place. (Gradients are worked out in the
    forward pass, while the errors are at hand.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        vals_e: Tensor,
        decoder_nd: Tensor,
        bias_d: Tensor,
        x_td: Tensor,
        pattern: Pattern,
        weights: tuple[float, ...],
        n_keep: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = pattern
        work = weighted_rows(decoder_nd, p.cols, p.cell_offsets, vals_e).view(p.n_tokens, p.n_levels, -1)
        error = x_td - bias_d
        sums = []
        for level in range(p.n_levels):
            error.sub_(work[:, level])
            work[:, level] = error
            sums.append(torch.linalg.vector_norm(error).square())
        level_sums = torch.stack(sums)
        kept = work[:n_keep].clone()
        if any(ctx.needs_input_grad[:3]):
            total = torch.zeros_like(error)
            for level in reversed(range(p.n_levels)):
                total.add_(work[:, level], alpha=-2.0 * weights[level])
                work[:, level] = total
            d_vals, d_decoder = _decode_gradients(work, vals_e, decoder_nd, p)
            ctx.save_for_backward(d_vals, d_decoder, total.sum(0))
        ctx.mark_non_differentiable(level_sums, kept)
        loss = (level_sums * level_sums.new_tensor(weights)).sum()
        return loss, level_sums, kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_vals, d_decoder, d_bias = ctx.saved_tensors
        g = grads[0]
        return d_vals * g, d_decoder * g, d_bias * g, None, None, None, None


class JumpReLU(Function):
    """z = pre where pre > threshold, else 0; the threshold learns from entries within a window around it.

    References: S. Rajamanoharan et al., 2024, arXiv 2407.14435 (straight-through estimator with a rectangle kernel).
    """

    @staticmethod
    def forward(ctx: Any, pre_e: Tensor, threshold_e: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre_e, threshold_e)
        ctx.width = width
        return pre_e * (pre_e > threshold_e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        d_pre = grads[0] * (pre > threshold)
        return d_pre, -threshold / ctx.width * near * grads[0], None


class CountActive(Function):
    """1 where pre > threshold, else 0, with the same straight-through gradient for the threshold."""

    @staticmethod
    def forward(ctx: Any, pre_e: Tensor, threshold_e: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre_e, threshold_e)
        ctx.width = width
        return (pre_e > threshold_e).to(pre_e.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        return None, -near.to(pre.dtype) / ctx.width * grads[0], None
