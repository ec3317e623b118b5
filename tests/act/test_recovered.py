"""Loss recovered: all of it by a dictionary that rebuilds every token, none by one that gives their mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlascope.act import baseline, loss_recovered
from vlascope.act.edits import tokens_at
from vlascope.act.effects import read_log_probs
from vlascope.act.recovered import _mean
from vlascope.errors import InputError
from vlascope.sae import MatryoshkaSAE, SAEConfig

SITE, D = "vision.5", 128


@pytest.fixture(scope="module")
def base(mini, picks):
    return baseline(mini, picks[:3], batch_size=3)


@pytest.fixture(scope="module")
def exact(mini, base):
    """A dictionary of both signs of every channel, around the mean: exact as a whole, half of it at level 128."""
    sae = MatryoshkaSAE(SAEConfig(d_in=D, n_latents=2 * D, k=D, levels=(1, D)))
    with torch.no_grad():
        both = torch.cat([torch.eye(D), -torch.eye(D)])
        sae.encoder.copy_(both)
        sae.decoder.copy_(both)
        sae.b_dec.copy_(torch.from_numpy(_mean(mini, base, site=SITE, tokens="patch")))
    return sae


def test_what_is_rebuilt_is_recovered(mini, base, exact):
    coarse, half, whole = loss_recovered(mini, exact, base, site=SITE)
    assert whole.name == "level 256 / loss recovered" and whole.value == pytest.approx(1, abs=1e-3)
    assert half.value is not None and half.value < 0.9
    assert coarse.value is not None and coarse.value < 0.5
    losses = whole.details
    assert losses["mean in place of all"] > losses["as they are"] + 0.1
    assert losses["reconstructed"] == pytest.approx(losses["as they are"], abs=1e-3)
    assert whole.n == 3 and whole.interval is None  # too few items to resample
    with torch.no_grad():
        exact_decoder = exact.decoder.clone()
        exact.decoder.zero_()
    try:
        (nothing,) = loss_recovered(mini, exact, base, site=SITE, levels=[D])
    finally:
        with torch.no_grad():
            exact.decoder.copy_(exact_decoder)
    assert nothing.value == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("tokens", ["last", "answer", "readout", "text", "all"])
def test_the_mean_is_of_the_tokens_that_are_replaced(mini, base, tokens):
    site = "language.2"
    read = []
    # What the edit is given is what it replaces: with one item, the mean of those tokens.
    one = baseline(mini, base.items[:1], batch_size=1)
    found = _mean(mini, one, site=site, tokens=tokens)
    where = {} if tokens == "all" else {"tokens": tokens_at(mini, tokens, layout_name="language")}
    with mini.edit(site, lambda x: read.append(x.detach().clone()) or torch.full_like(x, 7.0), **where):
        with mini._hooks.reading(mini.resolve(site)) as calls:
            read_log_probs(mini, one.items, one.replies, batch_size=1)
    replaced = (calls[site][0] == 7.0).all(-1)
    assert 0 < replaced.sum()
    np.testing.assert_allclose(found, read[0][replaced].mean(0).numpy(), atol=1e-3)
    with pytest.raises(InputError, match="no 'text' tokens"):
        _mean(mini, one, site="vision.2", tokens="text")


def test_only_trained_levels_and_tokens_that_matter(mini, base, exact):
    with pytest.raises(InputError, match="not trained to be cut at 77"):
        loss_recovered(mini, exact, base, site=SITE, levels=[77])
    # After the last block only the last token is read: patches there are needed by nothing.
    found = loss_recovered(mini, exact, base, site="language.5", levels=[D])
    assert found[0].value is None and "does not need" in str(found[0].to_json())
    assert mini._hooks.n_hooked == 0 and np.isfinite(base.expected).all()
