"""The estimator against dense float64 references, other libraries, invariances and bad input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spectral.data import angle, dense_cut, mixture
from vlascope.errors import InputError
from vlascope.spectral import NystromNCut, OutOfReachWarning, flatten_maps, kway

SMALL = 60_000  # bytes: forces landmarks and streaming on small data
CACHED = 4_000_000


def nystrom(n_eig: int = 7, *, landmarks: int = 128, memory_limit: int = CACHED, **more: Any) -> NystromNCut:
    return NystromNCut(n_eig, landmarks=landmarks, memory_limit=memory_limit, **more)


@pytest.mark.parametrize("n", [307, 1301])  # full float64 and block Krylov
def test_exact_agrees_with_the_dense_reference(n: int) -> None:
    x, _ = mixture(n)
    ncut = NystromNCut(11)
    eigvecs = ncut.fit_transform(x)
    assert ncut.health_.mode == "exact"
    values, vectors = dense_cut(x, ncut.sigma_, 11)
    np.testing.assert_allclose(ncut.eigenvalues_, values, atol=2e-5)
    assert angle(eigvecs[:, :5], vectors[:, :5]) < 1e-4
    np.testing.assert_allclose(eigvecs.T @ eigvecs, np.eye(11), atol=1e-4)
    np.testing.assert_allclose(ncut.eigenvalues_[0], 1, atol=1e-7)
    assert (eigvecs[:, 0] > 0).all()


@pytest.mark.parametrize("memory_limit", [CACHED, SMALL])
def test_nystrom_agrees_with_the_dense_reference(memory_limit: int) -> None:
    x, _ = mixture(1301)
    ncut = nystrom(memory_limit=memory_limit)
    eigvecs = ncut.fit_transform(x)
    assert ncut.health_.mode == "nystrom"
    values, vectors = dense_cut(x, ncut.sigma_, 7)
    assert angle(eigvecs[:, :5], vectors[:, :5]) < 0.03
    np.testing.assert_allclose(ncut.eigenvalues_[:5], values[:5], atol=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_eigenvalues_hold_what_the_landmarks_miss(seed: int) -> None:
    """64 landmarks alone give 0.863 where 0.872 is right."""
    x, _ = mixture(1301, d=48, k=8)
    ncut = nystrom(12, landmarks=64, seed=seed).fit(x)
    values, _ = dense_cut(x, ncut.sigma_, 12)
    np.testing.assert_allclose(ncut.eigenvalues_[:8], values[:8], atol=5e-4)
    assert (np.diff(ncut.eigenvalues_) <= 0).all()


@pytest.mark.parametrize("balance", ["density", "uniform"])
def test_a_sample_of_rows_gives_nearly_the_sums_of_all(balance: str) -> None:
    """Bounded memory: the small eigenproblem comes from 16,384 of 40,009 rows, with a group of 0.2 %."""
    x, labels = mixture(40_009, d=11, k=5, gap=2.5, shares=[0.5, 0.3, 0.15, 0.048, 0.002])
    options = {"density": 0.1, "balance": balance, "landmarks": 512}
    full, bounded = (nystrom(5, memory_limit=limit, **options) for limit in (2**30, SMALL))
    one, two = full.fit_transform(x), bounded.fit_transform(x)
    np.testing.assert_allclose(bounded.eigenvalues_, full.eigenvalues_, atol=0.01)
    assert angle(one, two) < 0.02
    assert abs(bounded.health_.mean_affinity - full.health_.mean_affinity) < 1e-3
    rare = [(e[labels == 4, 1:] ** 2).sum() / (e[:, 1:] ** 2).sum() for e in (one, two)]
    assert rare[1] == pytest.approx(rare[0], rel=0.1)
    # Under "uniform" a fitted row knows its own weight, a new row does not: it shows in a small part of its degree.
    np.testing.assert_allclose(
        bounded.transform(x[::99]), two[::99], atol=1e-5 if balance == "density" else 5e-5
    )


def test_scikit_learn_spectral_embedding_agrees() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    x, _ = mixture(997, k=4)
    ncut = NystromNCut(4, scale=4.0)
    mine = ncut.fit_transform(x)
    theirs = manifold.SpectralEmbedding(3, affinity="rbf", gamma=1 / 32, eigen_solver="arpack").fit_transform(
        x
    )
    # scikit-learn divides by sqrt(degree), drops the trivial vector and leaves out a row's affinity to itself.
    assert angle(mine[:, 1:] / mine[:, :1], theirs) < 0.02


def test_density_is_met_and_scale_free() -> None:
    x, _ = mixture(2503, d=37)
    for factor in (1e-6, 1.0, 1e6):
        ncut = NystromNCut(5, density=0.11).fit(x * np.float32(factor))
        assert abs(ncut.health_.mean_affinity - 0.11) < 0.01
        assert ncut.sigma_ / factor == pytest.approx(NystromNCut(5, density=0.11).fit(x).sigma_, rel=1e-3)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_rotation_scale_and_shift_do_not_matter(seed: int) -> None:
    x, _ = mixture(211, d=7, seed=seed % 5)
    rng = np.random.default_rng(seed)
    base = NystromNCut(5).fit(x)
    order = rng.permutation(len(x))
    turn = np.linalg.qr(rng.normal(size=(7, 7)))[0].astype(np.float32)
    moved = (x @ turn * 17 + 5)[order]
    again = NystromNCut(5).fit(moved)
    np.testing.assert_allclose(again.eigenvalues_, base.eigenvalues_, atol=1e-4)
    assert angle(again.transform(moved), base.transform(x)[order]) < 0.02


@pytest.mark.parametrize("make", [lambda: NystromNCut(7), nystrom, lambda: nystrom(memory_limit=SMALL)])
def test_transform_is_the_formula_of_fit(make: Any) -> None:
    x, _ = mixture(1301)
    ncut = make()
    eigvecs = ncut.fit_transform(x)
    np.testing.assert_allclose(ncut.transform(x[::3])[:, :5], eigvecs[::3, :5], atol=2e-4)


def test_new_rows_land_beside_their_own_kind() -> None:
    x, labels = mixture(1301)
    ncut = nystrom(5)
    fitted = ncut.fit_transform(x[:1000])
    new = ncut.transform(x[1000:])
    fitted, new = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (fitted, new))
    nearest = (new @ fitted.T).argmax(1)
    assert (labels[:1000][nearest] == labels[1000:]).mean() > 0.99


@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
def test_rows_out_of_reach_are_flagged(make: Any) -> None:
    x, _ = mixture(1301)
    ncut = make().fit(x)
    new = np.concatenate([x[:3], np.full((2, 23), 1e3, np.float32)])
    with pytest.warns(OutOfReachWarning, match="2 of 5"):
        values = ncut.transform(new)
    assert np.isnan(values[3:]).all() and np.isfinite(values[:3]).all()
    _, reach = ncut.transform(new, return_reach=True)
    assert reach.tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
def test_dtypes(make: Any, dtype: torch.dtype) -> None:
    x, _ = mixture(1301)
    got = make().fit_transform(torch.from_numpy(x).to(dtype))
    assert isinstance(got, torch.Tensor) and got.dtype == torch.float32
    assert angle(got.numpy(), make().fit_transform(x)) < 0.05


def test_sources_give_the_same_bits(tmp_path: Any) -> None:
    zarr = pytest.importorskip("zarr")
    x, _ = mixture(1301)
    np.save(tmp_path / "x.npy", x)
    stored = zarr.create_array(store=str(tmp_path / "x.zarr"), data=x, chunks=(200, 23))

    def chunks() -> Iterator[np.ndarray]:
        yield from np.array_split(x, 7)

    want = nystrom().fit_transform(x)
    sources = [
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        stored,
        np.array_split(x, 5),
        chunks(),
        chunks,
        x[::-1][::-1],
        np.asfortranarray(x),
    ]
    for source in sources:
        np.testing.assert_allclose(nystrom().fit_transform(source), want, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: NystromNCut(7), nystrom, lambda: nystrom(memory_limit=SMALL)])
def test_same_seed_same_bits_and_no_global_state(make: Any) -> None:
    x, _ = mixture(1301)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    numpy_state = str(np.random.get_state())  # noqa: NPY002
    before = torch.get_rng_state(), torch.get_num_threads()
    one = make().fit_transform(x)
    two = make().fit_transform(x)
    np.testing.assert_array_equal(one, two)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_num_threads()
    assert numpy_state == str(np.random.get_state())  # noqa: NPY002


def test_a_second_fit_forgets_the_first() -> None:
    x, _ = mixture(701)
    ncut = NystromNCut(5)
    ncut.fit(x * 100)
    np.testing.assert_array_equal(ncut.fit_transform(x), NystromNCut(5).fit_transform(x))


@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
def test_weights_are_copies(make: Any) -> None:
    x, _ = mixture(1103)
    times = np.random.default_rng(1).integers(1, 4, size=len(x))
    weighted = make().fit_transform(x, weights=times)
    # As if every row were there `times` times: same row values (up to the norm over more rows).
    repeated = NystromNCut(5, scale=make().fit(x).sigma_).fit_transform(np.repeat(x, times, axis=0))
    first = np.concatenate([[0], np.cumsum(times)[:-1]])
    weighted_again = make().set_params(scale=make().fit(x).sigma_).fit_transform(x, weights=times)
    assert angle(weighted_again, repeated[first]) < 0.02
    np.testing.assert_allclose((weighted**2 * (times / times.mean())[:, None]).sum(0), 1, atol=0.02)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_name_their_rows(make: Any, bad: float) -> None:
    x, _ = mixture(1301)
    x[[3, 1207], [5, 0]] = bad
    with pytest.raises(InputError, match=r"2 row\(s\): 3, 1207\."):
        make().fit(x)
    x, _ = mixture(1301)
    ncut = make().fit(x)
    x[7, 0] = bad
    with pytest.raises(InputError, match=r"1 row\(s\): 7"):
        ncut.transform(x)


def test_float16_overflow_is_named() -> None:
    x, _ = mixture(307)
    half = torch.from_numpy(x).half() * 60000
    with pytest.raises(InputError, match="float16 overflows"):
        NystromNCut(5).fit(half)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 5)), "at least one row"),
        (np.zeros((5, 0)), "at least one row"),
        (np.zeros(5), "two axes"),
        (np.zeros((2, 3, 4)), "two axes"),
        (np.zeros((2, 3, 5, 7)), r"70 tokens of width 3.*30 tokens of width 7"),
        (np.ones((4, 3)), "only 4 rows"),
        (np.ones((9, 3), dtype=complex), "real"),
        (iter([]), "without chunks"),
        (object(), "array"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], "different widths"),
    ],
)
def test_bad_shapes(x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NystromNCut(5).fit(x)


@pytest.mark.parametrize(
    "bad",
    [
        {"affinity": "dot"},
        {"scale": "auto"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"density": 0.0},
        {"density": 1.5},
        {"landmarks": 1},
        {"landmarks": "few"},
        {"balance": "none"},
    ],
)
def test_bad_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        NystromNCut(2, **bad).fit(mixture(31)[0])
    with pytest.raises(InputError):
        NystromNCut(0).fit(mixture(31)[0])
    with pytest.raises(InputError, match="no parameter"):
        NystromNCut(2).set_params(gamma=1)
    with pytest.raises(InputError, match="not fitted"):
        NystromNCut(2).transform(np.ones((3, 3)))
    with pytest.raises(InputError, match="width"):
        NystromNCut(2).fit(mixture(31)[0]).transform(np.ones((3, 3)))


def test_feature_maps_need_a_declared_layout() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    rows = flatten_maps(maps, layout="bchw")
    assert rows.shape == (24, 5)
    np.testing.assert_array_equal(rows[12 + 1 * 4 + 2], maps[1, :, 1, 2])
    np.testing.assert_array_equal(flatten_maps(maps.transpose(0, 2, 3, 1), layout="bhwc"), rows)
    with pytest.raises(InputError, match="bchw"):
        flatten_maps(maps, layout="hwc")
    assert NystromNCut(3).fit_transform(rows).shape == (24, 3)


def test_one_row() -> None:
    ncut = NystromNCut(1)
    np.testing.assert_allclose(ncut.fit_transform(np.ones((1, 3))), [[1.0]])


@pytest.mark.filterwarnings("ignore:all rows coincide")
@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_constant_rows_give_the_trivial_vector(make: Any, value: float) -> None:
    ncut = make()
    got = ncut.fit_transform(np.full((1301, 3), value, np.float32))
    np.testing.assert_allclose(got[:, 0], 1301**-0.5)
    assert (got[:, 1:] == 0).all() and ncut.eigenvalues_.tolist() == [1, 0, 0, 0, 0]
    assert ncut.health_.mode == "constant" and ncut.health_.notes
    np.testing.assert_allclose(ncut.transform(np.full((2, 3), value, np.float32)), got[:2])
    assert np.isnan(ncut.transform(np.full((2, 3), value + 1, np.float32), return_reach=True)[0]).all()


@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
def test_duplicates_and_fewer_distinct_rows_than_eigenvectors(make: Any) -> None:
    rows = np.array([[0, 0], [1, 0], [0, 3]], np.float32)
    x = rows[np.random.default_rng(0).integers(0, 3, 1301)]
    ncut = make()
    got = ncut.fit_transform(x)
    assert (
        (ncut.eigenvalues_[3:] == 0).all() and (got[:, 3:] == 0).all() and (ncut.eigenvalues_[:3] > 0).all()
    )
    for row in rows:
        mine = got[(x == row).all(1)]
        np.testing.assert_allclose(mine, np.broadcast_to(mine[:1], mine.shape), atol=1e-5)


@pytest.mark.parametrize("make", [lambda: NystromNCut(5), lambda: nystrom(5)])
def test_a_large_offset_changes_little(make: Any) -> None:
    x, _ = mixture(1301)
    want, got = make(), make()
    a, b = want.fit_transform(x), got.fit_transform(x + np.float32(1e4))
    np.testing.assert_allclose(got.eigenvalues_, want.eigenvalues_, atol=2e-3)
    assert angle(a, b) < 0.02


@pytest.mark.parametrize("make", [lambda: NystromNCut(6), lambda: nystrom(6)])
def test_one_far_outlier_is_a_component_of_its_own(make: Any) -> None:
    x, _ = mixture(1301)
    values = make().fit(x).eigenvalues_
    x[77] += 500
    ncut = make()
    got = ncut.fit_transform(x)
    assert ncut.health_.n_components == 2 and ncut.eigenvalues_[1] > 0.999
    np.testing.assert_allclose(ncut.eigenvalues_[2:], values[1:5], atol=0.02)
    assert np.abs(got[:, 1]).argmax() == 77
    assert any("disconnected" in note for note in ncut.health_.notes)


def test_a_rare_different_row_in_constant_data() -> None:
    x = np.ones((12_007, 3), np.float32)
    x[[17, 9001]] = [[5, 1, 1], [1, 9, 1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = NystromNCut(3).fit_transform(x)
    assert np.isfinite(got).all()
    assert len(np.unique(np.round(got, 5), axis=0)) == 3


# ------------------------------------------------------------------ affinities


@pytest.mark.parametrize("make", [lambda **m: NystromNCut(5, **m), lambda **m: nystrom(5, **m)])
def test_cosine_ignores_length(make: Any) -> None:
    x, _ = mixture(1301)
    long = x * np.random.default_rng(0).uniform(0.1, 10, (1301, 1)).astype(np.float32)
    a, b = make(affinity="cosine").fit_transform(x), make(affinity="cosine").fit_transform(long)
    np.testing.assert_allclose(a, b, atol=1e-4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert angle(a, make().fit_transform(unit)) < 1e-3


@pytest.mark.parametrize("make", [lambda **m: NystromNCut(5, **m), lambda **m: nystrom(5, **m)])
def test_a_custom_affinity_equal_to_rbf_gives_the_same_cut(make: Any) -> None:
    x, _ = mixture(1301)

    def gauss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(torch.cdist(a, b) ** 2) / 50)

    got = make(affinity=gauss).fit_transform(x)
    assert angle(got, make(scale=5.0).fit_transform(x)) < 0.05
    assert make(affinity=gauss).fit(x).sigma_ is None


@pytest.mark.parametrize("make", [lambda **m: NystromNCut(5, **m), lambda **m: nystrom(5, **m)])
def test_repulsion_and_bad_affinities_are_refused(make: Any) -> None:
    x, _ = mixture(1301)
    with pytest.raises(InputError, match="repulsion"):
        make(affinity=lambda a, b: a @ b.T).fit(x)
    with pytest.raises(InputError, match="NaN"):
        make(affinity=lambda a, b: torch.full((len(a), len(b)), torch.nan)).fit(x)
    with pytest.raises(InputError, match="shape"):
        make(affinity=lambda a, b: torch.ones(3)).fit(x)


# ------------------------------------------------------------------ balance


@pytest.mark.parametrize("make", [lambda **m: NystromNCut(6, **m), lambda **m: nystrom(6, **m)])
def test_uniform_balance_hears_the_rare(make: Any) -> None:
    """Groups of 48 to 2 % that overlap a little: the partition is nearer the truth, whatever the seed."""
    metrics = pytest.importorskip("sklearn.metrics")
    rand: dict[str, list[float]] = {"density": [], "uniform": []}
    for seed in range(4):
        x, labels = mixture(1301, k=5, gap=1.0, shares=[0.48, 0.3, 0.15, 0.05, 0.02], seed=seed)
        for balance, values in rand.items():
            ncut = make(balance=balance, density=0.2)
            eigvecs = ncut.fit_transform(x)
            values.append(metrics.adjusted_rand_score(labels, kway(eigvecs, 5).labels[5]))
            np.testing.assert_allclose(ncut.transform(x[::9])[:, :4], eigvecs[::9, :4], atol=5e-3)
            assert ncut.eigenvalues_[0] > 0.95 and (np.diff(ncut.eigenvalues_) <= 1e-9).all()
    assert np.mean(rand["uniform"]) > np.mean(rand["density"]) + 0.05
    assert np.min(rand["uniform"]) > np.min(rand["density"])


def test_uniform_weights_are_the_inverse_of_the_crowd() -> None:
    from vlascope.spectral.balance import MAX_BOOST, uniform_weights

    degree = torch.tensor([1e-9, 1.0, 100.0, 100.0, 200.0, 100.0])
    weights = uniform_weights(degree, None)
    assert float(weights.mean()) == pytest.approx(1)
    np.testing.assert_allclose(weights[2] / weights[4], 2)
    np.testing.assert_allclose(weights[0] / weights[2], MAX_BOOST)
    halved = uniform_weights(degree, torch.tensor([0.5, 1, 1, 1, 1, 1], dtype=torch.float64))
    np.testing.assert_allclose(halved[0] / halved[2], MAX_BOOST / 2)


def test_averages_stay_within_a_far_group_and_repeat_for_new_rows() -> None:
    from vlascope.spectral.balance import averaged

    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2], [9.3]])
    values = torch.tensor([[1.0], [2.0], [3.0], [50.0], [60.0], [70.0], [80.0]])
    rows = torch.tensor([[0.0], [0.05]])
    block = torch.exp(-0.5 * (rows - points.T) ** 2)
    got = averaged(torch.tensor([[1.0], [1.0]]), block, values, n_near=4)
    assert 1.0 < got[0] < 2.5 and 1.0 < got[1] < 2.5  # the fourth nearest, 9 away, has weight 0
    assert averaged(torch.tensor([[1.0]]), block[:1], values, n_near=5)[0] < 3.0


def test_many_tiny_islands_are_all_found() -> None:
    # None of them need be near a row that the iteration starts from.
    rng = np.random.default_rng(0)
    islands = [100 * rng.normal(size=(1, 16)) + 0.1 * rng.normal(size=(4, 16)) for _ in range(25)]
    x = np.concatenate([rng.normal(size=(1400, 16)), *islands]).astype(np.float32)
    cut = NystromNCut(26, scale=4.0).fit(x)
    assert cut.health_.mode == "exact" and cut.health_.n_components == 26
    assert cut.eigenvalues_.min() > 0.999
