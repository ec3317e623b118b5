"""How far tokens are from what a dictionary can say: reconstruction errors alone, as fast as the encoder's product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .module import MatryoshkaSAE
from .select import BLOCK_BYTES, top_k

MAX_ROWS = 4096


@torch.no_grad()
def reconstruction_errors(
    sae: MatryoshkaSAE, x_td: Tensor, *, levels: bool = False, block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """Return the squared distance of every token to its reconstruction, in the units of the site squared.

    For scoring streams: no codes are kept, latents are neither sorted nor counted, and each block of tokens goes
    through product, choice and decode while it is in the processor's cache. The plain formula is
    `(x - sae.decode(sae.encode(x))).square().sum(1)`.

    Args:
        sae: The dictionary.
        x_td: Raw tokens [n, d_in].
        levels: Also for the coarser levels: one column each, from coarse to fine.
        block_bytes: Size of the pre-activations of a block.

    Returns:
        float32 [n], or [n, n_levels]; NaN and infinite tokens are refused.

    Raises:
        InputError: another width, or NaN.

    Cost: one product [n, d_in] x [d_in, n_latents], a selection (about a fifth of the product's time for 256
    channels and 2,048 latents, less for larger ones) and k weighted rows per token (and level).
    """
    if x_td.ndim != 2 or x_td.shape[1] != sae.config.d_in:
        raise InputError(
            f"got tokens of shape {tuple(x_td.shape)}; this dictionary reads [n, {sae.config.d_in}]. Was it trained "
            "at another site?"
        )
    n = sae.config.n_latents
    step = max(1, min(MAX_ROWS, block_bytes // (4 * n)))
    width = len(sae.levels) if levels else 1
    out = torch.empty(len(x_td), width, dtype=torch.float32, device=x_td.device)
    plain = sae.config.activation == "topk" and not levels
    buffer = (
        torch.empty(min(step, len(x_td)), n, dtype=sae.encoder.dtype, device=x_td.device) if plain else None
    )
    shift = sae.mean + sae.scale * sae.b_dec  # the point that is reconstructed by no latent at all
    weight = sae.encoder.t()
    for start in range(0, len(x_td), step):
        x = x_td[start : start + step].to(sae.encoder.dtype)
        if buffer is not None:
            around = x - shift
            if float(sae.scale) != 1.0:
                around /= sae.scale
            pre = torch.addmm(sae.b_enc, around, weight, out=buffer[: len(x)])
            vals, cols = top_k(pre, sae.config.k)
            # An active latent is above zero; the others weigh nothing.
            made = F.embedding_bag(cols, sae.decoder, mode="sum", per_sample_weights=vals.clamp_(min=0))
            out[start : start + step, 0] = torch.linalg.vector_norm(around.sub_(made), dim=1).square_()
        else:
            codes = sae.encode(x)
            if levels:
                for i, (_, made) in enumerate(sae.reconstruct_levels(codes)):
                    out[start : start + step, i] = (x - made).square().sum(1)
            else:
                out[start : start + step, 0] = (x - sae.decode(codes)).square().sum(1)
    if plain:
        out *= sae.scale.square()
    if not torch.isfinite(out.sum(dtype=torch.float64)):
        raise InputError(
            "the tokens hold NaN or infinite values; capture them again, or leave those rows out."
        )
    return out if levels else out[:, 0]
