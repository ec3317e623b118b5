"""The sparse path against dense formulas in float64: choice, losses, gradients."""

from __future__ import annotations

import pytest
import torch

from vlascope.errors import InputError
from vlascope.sae.codes import Codes, join
from vlascope.sae.config import SAEConfig
from vlascope.sae.kernel import CountActive, GroupDecode, JumpReLU, SparseEncode, make_pattern, sampled_dots
from vlascope.sae.module import MatryoshkaSAE
from vlascope.sae.select import Selector, top_k

N, D, B, K = 37, 7, 53, 3
LEVELS = (5, 11, 23)


def make(activation: str = "topk", **changes) -> MatryoshkaSAE:
    torch.manual_seed(3)
    sae = MatryoshkaSAE(
        SAEConfig(d_in=D, n_latents=N, k=K, levels=LEVELS, activation=activation, **changes), seed=1
    ).double()
    sae.b_dec.data.normal_()
    sae.b_enc.data.normal_(std=0.1)
    if activation == "jumprelu":
        sae.threshold.data.uniform_(0.5, 1.5)
    return sae


def tokens(n: int = B) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def dense_codes(sae: MatryoshkaSAE, u: torch.Tensor) -> torch.Tensor:
    """Dense activations [b, n] by the plain formulas."""
    pre = (u - sae.b_dec) @ sae.encoder.T + sae.b_enc
    chosen = torch.zeros_like(pre)
    if sae.config.activation == "topk":
        chosen.scatter_(1, pre.topk(K, 1).indices, 1.0)
    elif sae.config.activation == "batchtopk":
        chosen.view(-1)[pre.detach().flatten().topk(K * len(u)).indices] = 1.0
    else:
        chosen = (pre > sae.threshold).double()
    return torch.relu(pre) * chosen


def dense_loss(sae: MatryoshkaSAE, u: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Level-weighted shares of variance, each level decoded anew."""
    total = torch.zeros((), dtype=u.dtype)
    for level, weight in zip(sae.config.levels, sae.config.level_weights, strict=True):
        out = sae.b_dec + z[:, :level] @ sae.decoder[:level]
        total = total + weight * (u - out).square().mean()
    return total


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu"])
def test_loss_and_gradients_equal_dense_autograd(activation):
    sae, u, l1 = make(activation), tokens(), 0.3
    found = sae.losses(u, l1=l1, jump_weight=0.0, n_keep=2)
    found.total.backward()
    names = ("encoder", "b_enc", "decoder", "b_dec")
    sparse = {name: getattr(sae, name).grad.clone() for name in names}
    sae.zero_grad()
    z = dense_codes(sae, u)
    slow = dense_loss(sae, u, z) + l1 * z.sum() / (B * D**0.5)
    slow.backward()
    assert found.total.item() == pytest.approx(slow.item(), rel=1e-12)
    for name in names:
        assert sparse[name].abs().max() > 1e-4, "a gradient of zero would compare equal to nothing"
        torch.testing.assert_close(sparse[name], getattr(sae, name).grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.codes.active().dense(), z.detach())
    assert found.l0 == pytest.approx(float((z > 0).sum()) / B)
    for i, level in enumerate(sae.levels):
        out = sae.b_dec + z[:2, :level] @ sae.decoder[:level]
        torch.testing.assert_close(found.kept_errors[:, i], (u[:2] - out).detach())


def test_revival_asks_the_dead_of_each_level_to_explain_what_that_level_leaves():
    sae, u = make(), tokens()
    dead = torch.tensor([1, 3, 6, 13, 14, 20, 30])  # two, one, three and one of the four levels
    found = sae.losses(u, n_keep=9)
    sae.aux_loss(found, u[:9], dead=dead, k=4).backward()
    names = ("encoder", "b_enc", "decoder", "b_dec")
    sparse = {name: getattr(sae, name).grad.clone() for name in names if getattr(sae, name).grad is not None}
    sae.zero_grad()
    pre = (u[:9] - sae.b_dec) @ sae.encoder[dead].T + sae.b_enc[dead]
    z = torch.relu(pre) * torch.zeros_like(pre).scatter(1, pre.topk(4, 1).indices, 1.0)
    terms = []
    for i, (low, high) in enumerate(zip((0, *LEVELS), (*LEVELS, N), strict=True)):
        own = (dead >= low) & (dead < high)
        error = found.kept_errors[:, i]
        left = error - z[:, own] @ sae.decoder[dead[own]]
        terms.append(left.square().sum() / error.square().sum())
    slow = torch.stack(terms).mean()
    slow.backward()
    assert set(sparse) == set(names)
    for name in names:
        assert sparse[name].abs().max() > 1e-6
        torch.testing.assert_close(sparse[name], getattr(sae, name).grad, rtol=1e-9, atol=1e-12)
    # Levels without dead latents are left out of the mean.
    some = sae.aux_loss(found, u[:9], dead=dead[:2], k=2)
    pre = pre[:, :2]
    left = found.kept_errors[:, 0] - torch.relu(pre) @ sae.decoder[dead[:2]]
    torch.testing.assert_close(some, left.square().sum() / found.kept_errors[:, 0].square().sum())


def test_sparse_pieces_have_the_gradients_of_finite_differences():
    levels, u = torch.tensor([*LEVELS, N]), tokens(6)
    sae = make()
    codes = Selector().top_k(u, sae.encoder, sae.b_enc, k=K)
    pattern = make_pattern(codes.offsets, codes.cols, n_latents=N, levels=levels)
    x, w, b = (
        u.clone().requires_grad_(),
        sae.encoder.detach().requires_grad_(),
        sae.b_enc.detach().requires_grad_(),
    )

    def encode(x, w, b):
        pre = sampled_dots(x.detach(), codes.offsets, codes.cols, w.detach()) + b.detach()[codes.cols]
        return SparseEncode.apply(x, w, b, pre, pattern)

    assert torch.autograd.gradcheck(encode, (x, w, b))
    vals = codes.vals.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, d: GroupDecode.apply(v, d, pattern), (vals, w))


def test_thresholds_learn_inside_their_window_only():
    pre = torch.tensor([0.2, 0.97, 1.04, 3.0], dtype=torch.float64, requires_grad=True)
    threshold = torch.ones(4, dtype=torch.float64, requires_grad=True)
    JumpReLU.apply(pre, threshold, 0.1).sum().backward()
    assert pre.grad is not None and threshold.grad is not None
    assert pre.grad.tolist() == [0, 0, 1, 1]
    assert threshold.grad.tolist() == pytest.approx([0, -10, -10, 0])
    threshold.grad = None
    CountActive.apply(pre, threshold, 0.1).sum().backward()
    assert threshold.grad.tolist() == pytest.approx([0, -10, -10, 0])


@pytest.mark.parametrize(("n", "k"), [(37, 5), (1024, 16), (2048, 7), (2048, 32)])
def test_grouped_choice_equals_torch(n, k):
    values = torch.randn(101, n, generator=torch.Generator().manual_seed(n))
    found, where = top_k(values, k)
    torch.testing.assert_close(found.sort(1).values, values.topk(k).values.sort(1).values, rtol=0, atol=0)
    assert torch.equal(values.gather(1, where), found)
    assert all(len(set(row.tolist())) == k for row in where)


def test_search_in_bfloat16_gives_exact_values():
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(211, 64, generator=draw), torch.randn(512, 64, generator=draw)
    bias = torch.randn(512, generator=draw)
    exact = Selector().top_k(x, w, bias, k=8)
    screened = Selector().top_k(x, w, bias, k=8, screen=torch.bfloat16)
    same = exact.cols.view(-1, 8) == screened.cols.view(-1, 8)
    assert same.all(1).float().mean() > 0.98
    torch.testing.assert_close(
        screened.vals.view(-1, 8)[same], exact.vals.view(-1, 8)[same], rtol=1e-5, atol=1e-4
    )


def test_blocks_of_rows_do_not_change_the_answer(monkeypatch):
    sae, u = make("jumprelu"), tokens()
    whole = Selector().above(u, sae.encoder, sae.b_enc, threshold_n=sae.threshold)
    monkeypatch.setattr("vlascope.sae.select.BLOCK_BYTES", 11 * N * 8)
    parts = Selector().above(u, sae.encoder, sae.b_enc, threshold_n=sae.threshold)
    for name in ("offsets", "cols", "vals"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_codes_are_cut_and_joined():
    codes = Codes(
        torch.tensor([0, 2, 2, 5]), torch.tensor([1, 4, 0, 3, 6]), torch.tensor([1.0, 2, 0, 4, 5]), 7
    )
    dense = codes.dense()
    assert (
        torch.equal(codes.below(4).dense()[:, :4], dense[:, :4]) and not codes.below(4).dense()[:, 4:].any()
    )
    assert len(codes.active().cols) == 4 and torch.equal(codes.active().dense(), dense)
    assert torch.equal(join([codes, codes]).dense(), torch.cat([dense, dense]))
    assert (codes.scipy().toarray() == dense.numpy()).all()


def test_levels_are_decoded_as_cuts_are():
    sae, u = make(), tokens()
    sae.mean.normal_()
    sae.scale.fill_(2.5)
    x = sae.denormalize(u)
    codes = sae.encode(x)
    z = codes.dense()
    for level, out in sae.reconstruct_levels(codes):
        slow = (sae.b_dec + z[:, :level] @ sae.decoder[:level]) * 2.5 + sae.mean
        torch.testing.assert_close(out, slow.detach())
        torch.testing.assert_close(sae.decode(codes, level=level), slow.detach())
    torch.testing.assert_close(sae(x), slow.detach())
    with pytest.raises(InputError, match="not trained to be cut at 6.*5, 11, 23, 37"):
        sae.decode(codes, level=6)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_folding_centre_and_scale_changes_units_only(activation):
    sae, u = make(activation), tokens()
    sae.mean.normal_()
    sae.scale.fill_(3.25)
    x = sae.denormalize(u)
    folded = sae.folded()
    assert not folded.mean.any() and folded.scale == 1
    torch.testing.assert_close(folded(x), sae(x))
    torch.testing.assert_close(folded.encode(x).dense(), sae.encode(x).dense() * 3.25)
    torch.testing.assert_close(folded.decoder, sae.decoder)


def test_random_prefixes_may_be_cut_anywhere():
    sae = make(random_prefixes=4)
    sae.decode(sae.encode(tokens()), level=6)
    with pytest.raises(InputError):
        sae.decode(sae.encode(tokens()), level=N + 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 300}, "k=300"),
        ({"levels": (8, 4)}, "increasing"),
        ({"levels": (4,), "level_weights": (1.0,)}, "name it as the last level"),
        ({"level_weights": (1.0, -1.0)}, "positive"),
        ({"activation": "gelu"}, "unknown activation"),
        ({"d_in": 0}, "at least one channel"),
    ],
)
def test_impossible_shapes_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        SAEConfig(**{"d_in": 8, **changes})


def test_the_whole_dictionary_is_always_a_level():
    config = SAEConfig(d_in=64)
    assert config.levels == (64, 256) and SAEConfig(d_in=2048).levels == (64, 256, 1024, 4096, 8192)
    assert config.level_weights == pytest.approx((2 / 3, 1 / 3)), "decreasing, sum one"
    assert SAEConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_tokens_are_refused(bad):
    sae, x = make(), tokens()
    with pytest.raises(InputError, match=r"\[n, 7\].*another site"):
        sae.encode(x[:, :5])
    x[4, 2] = bad
    with pytest.raises(InputError, match="NaN"):
        sae.encode(x)
