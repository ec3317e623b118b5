"""How far tokens are from what a dictionary can say: reconstruction errors alone, as fast as the encoder's product."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .blocks import share_blocks
from .module import MatryoshkaSAE
from .select import BLOCK_BYTES, Chooser, Selector, block_rows

MIN_ROWS = 64
N_BLOCKS = 16
"""Blocks that few tokens are cut into."""


@torch.no_grad()
def reconstruction_errors(
    sae: MatryoshkaSAE, x_td: Tensor, *, levels: bool = False, block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """Return the squared distance of every token to its reconstruction, in the units of the site squared.

    For scoring streams: no codes are kept, latents are neither sorted nor counted, and each block of tokens goes
    through product, choice and decode in one thread, while it is in the processor's cache. The plain formula is
    `(x - sae.decode(sae.encode(x))).square().sum(1)`. Results are the same bits for any number of threads.

    Args:
        sae: The dictionary.
        x_td: Raw tokens [n, d_in].
        levels: Also for the coarser levels: one column each, from coarse to fine.
        block_bytes: Largest size of the pre-activations of a block.

    Returns:
        float32 [n], or [n, n_levels]; NaN and infinite tokens are refused.

    Raises:
        InputError: another width, or NaN.

    Cost: one product [n, d_in] x [d_in, n_latents], a selection and k weighted rows per token (and level); the product
    takes about 85 % of the time for 256 channels and 2,048 latents, more for larger ones. Memory: a block for each
    thread.
    """
    if x_td.ndim != 2 or x_td.shape[1] != sae.config.d_in:
        raise InputError(
            f"got tokens of shape {tuple(x_td.shape)}; this dictionary reads [n, {sae.config.d_in}]. Was it trained "
            "at another site?"
        )
    n = len(x_td)
    out = torch.empty(n, len(sae.levels) if levels else 1, dtype=torch.float32, device=x_td.device)
    step = min(max(MIN_ROWS, -(-n // N_BLOCKS)), block_rows(sae.config.n_latents, block_bytes=block_bytes))
    plain = sae.config.activation == "topk" and not levels
    makers = [_plain_scorer if plain else _general_scorer] * torch.get_num_threads()
    scorers = [make(sae, x_td, out) for make in makers]
    on_gpu = x_td.device.type != "cpu"
    share_blocks(lambda worker, rows: scorers[worker](rows), n, step=step, alone=on_gpu)
    if not torch.isfinite(out.sum(dtype=torch.float64)):
        raise InputError(
            "the tokens hold NaN or infinite values; capture them again, or leave those rows out."
        )
    return out if levels else out[:, 0]


def _plain_scorer(sae: MatryoshkaSAE, x_td: Tensor, out: Tensor) -> Callable[[slice], None]:
    """Return what writes the errors of some rows into `out`: the k largest, the whole dictionary."""
    d, n, k = sae.config.d_in, sae.config.n_latents, sae.config.k
    scale = float(sae.scale)
    shift = sae.mean + sae.scale * sae.b_dec  # the point that is reconstructed by no latent at all
    choose, weight = Chooser(), sae.encoder.t()

    def score(rows: slice) -> None:
        x = x_td[rows]
        u = torch.sub(x, shift, out=choose.take("around", weight, len(x), d))
        if scale != 1.0:
            u /= scale
        vals, cols = choose(torch.addmm(sae.b_enc, u, weight, out=choose.take("pre", u, len(x), n)), k)
        # An active latent is above zero; the others weigh nothing.
        made = F.embedding_bag(cols, sae.decoder, mode="sum", per_sample_weights=vals.clamp_(min=0))
        out[rows, 0] = torch.linalg.vector_norm(u.sub_(made), dim=1).mul_(scale).square_()

    return score


def _general_scorer(sae: MatryoshkaSAE, x_td: Tensor, out: Tensor) -> Callable[[slice], None]:
    """The same for every choice of latents and for all levels."""
    own = copy.copy(sae)  # shares the weights; the work space of the choice is its own
    own._select = Selector()

    def score(rows: slice) -> None:
        x = x_td[rows].to(own.encoder.dtype)
        codes = own.encode(x)
        if out.shape[1] == 1:
            out[rows, 0] = (x - own.decode(codes)).square().sum(1)
            return
        for i, (_, made) in enumerate(own.reconstruct_levels(codes)):
            out[rows, i] = (x - made).square().sum(1)

    return score
