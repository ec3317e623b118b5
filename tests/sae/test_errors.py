"""Reconstruction errors without codes: the same as decoding what was encoded."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from vlascope.errors import InputError
from vlascope.sae import MatryoshkaSAE, SAEConfig
from vlascope.sae.blocks import share_blocks
from vlascope.sae.config import Activation
from vlascope.sae.errors import reconstruction_errors
from vlascope.sae.select import top_k


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make(
    activation: Activation = "topk", *, n_latents: int = 1040, d: int = 23, folded: bool = False
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
    with threads(1):
        again = top_k(values, 16)[1]
    assert torch.equal(where.sort(1).values, again.sort(1).values)
    with threads(3):
        again = top_k(values, 16)[1]
    assert torch.equal(where.sort(1).values, again.sort(1).values)
    assert torch.equal(top_k(values[:0], 16)[1], torch.empty(0, 16, dtype=torch.int64))


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("levels", [False, True])
def test_the_bits_are_those_of_any_number_of_threads(activation, levels):
    sae = make(activation)
    x = 2 + 1.5 * torch.randn(3011, 23, generator=torch.Generator().manual_seed(5))
    found = []
    for n in (1, 2, 3):
        with threads(n):
            found.append(reconstruction_errors(sae, x, levels=levels))
            assert torch.get_num_threads() == n, "what the caller may use stays as it was"
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_blocks_are_shared_out_and_each_is_worked_on_once():
    seen, both = [], threading.Barrier(2, timeout=20)

    def work(worker: int, rows: slice) -> None:
        if rows.start < 14:
            both.wait()  # the first two blocks run at the same time, or this breaks
        seen.append((worker, rows.start, rows.stop, torch.get_num_threads(), torch.is_grad_enabled()))

    with threads(2):
        share_blocks(work, 45, step=7)
        assert torch.get_num_threads() == 2
    assert sorted((a, b) for _, a, b, _, _ in seen) == [(i, min(i + 7, 45)) for i in range(0, 45, 7)]
    assert {one[0] for one in seen} == {0, 1} and {one[3:] for one in seen} == {(1, False)}


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_in_a_block_reaches_the_caller_and_ends_the_work(n):
    seen = []

    def work(worker: int, rows: slice) -> None:
        if rows.start == 3:
            raise InputError("no")
        seen.append(rows.start)
        time.sleep(0.001)

    with threads(n), pytest.raises(InputError, match="no"):
        share_blocks(work, 5000, step=1)
    assert len(seen) < 1000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_makes_threads_of_its_own():
    sae, x = make(), torch.ones(200, 23)
    with threads(2):
        expected = reconstruction_errors(sae, x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(reconstruction_errors(sae, x), expected) else 1)
        for _ in range(600):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the forked process waits for threads that it does not have")
    assert status == 0
