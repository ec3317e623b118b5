"""Reconstruction errors without codes: the same as decoding what was encoded."""

from __future__ import annotations

import pytest
import torch

from vlascope.errors import InputError
from vlascope.sae import MatryoshkaSAE, SAEConfig
from vlascope.sae.errors import reconstruction_errors
from vlascope.sae.select import top_k


def make(
    activation: str = "topk", *, n_latents: int = 1040, d: int = 23, folded: bool = False
) -> MatryoshkaSAE:
    sae = MatryoshkaSAE(
        SAEConfig(d_in=d, n_latents=n_latents, k=5, levels=(31, 257), activation=activation), seed=3
    )
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        sae.b_enc.copy_(0.1 * torch.randn(n_latents, generator=draw) - 0.3)
        sae.b_dec.copy_(0.2 * torch.randn(d, generator=draw))
        sae.threshold.fill_(0.0 if activation == "topk" else 0.9)
        sae.mean.copy_(torch.randn(d, generator=draw))
        sae.scale.fill_(1.7)
    return sae.folded() if folded else sae


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu"])
def test_errors_equal_the_plain_formula(activation, folded):
    sae = make(activation, folded=folded)
    x = 2 + 1.5 * torch.randn(211, 23, generator=torch.Generator().manual_seed(5))
    plain = (x - sae.decode(sae.encode(x))).square().sum(1)
    assert plain.std() > 1
    for size in (1 << 24, 4 * 1040 * 7):  # one block, and blocks of 7 rows
        torch.testing.assert_close(
            reconstruction_errors(sae, x, block_bytes=size), plain, rtol=1e-4, atol=1e-3
        )
    levels = reconstruction_errors(sae, x, levels=True)
    assert levels.shape == (211, 3)
    for i, width in enumerate(sae.levels):
        expected = (x - sae.decode(sae.encode(x), level=width)).square().sum(1)
        torch.testing.assert_close(levels[:, i], expected, rtol=1e-4, atol=1e-3)


def test_tokens_that_it_cannot_read_are_refused():
    sae = make()
    with pytest.raises(InputError, match="Was it trained at another site"):
        reconstruction_errors(sae, torch.zeros(3, 22))
    for bad in (float("nan"), float("inf")):
        x = torch.zeros(9, 23)
        x[4, 2] = bad
        for levels in (False, True):
            with pytest.raises(InputError, match="NaN or infinite"):
                reconstruction_errors(sae, x, levels=levels)


def test_ties_and_threads_do_not_change_the_choice():
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(4001, 2048, generator=draw)
    values[17] = 0.25  # all equal
    values[33, :900] = 9.0
    found, where = top_k(values, 16)
    torch.testing.assert_close(found.sort(1).values, values.topk(16).values.sort(1).values, rtol=0, atol=0)
    assert torch.equal(values.gather(1, where), found)
    assert all(len(set(row.tolist())) == 16 for row in where[[17, 33, 34]])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = top_k(values, 16)[1]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(where.sort(1).values[34:], again.sort(1).values[34:])
