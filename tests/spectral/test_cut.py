"""Cutting a captured run: one site, several sites, saved and read back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs.fakes import ArraySource, FakeModel
from tests.spectral.data import mixture
from vlascope.errors import InputError, RunIncompleteError, SiteNotFoundError
from vlascope.models.layout import KINDS
from vlascope.runs import Run, capture
from vlascope.spectral import NystromNCut, kway, relative_affinity
from vlascope.spectral.anchors import choose_anchors
from vlascope.spectral.cut import CutResult, cut_run

metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("cut") / "run"
    return capture(FakeModel(), ArraySource(7), sites="*", out=out, block_items=3, quiet=True)  # type: ignore[arg-type]


def cut(run: Run, sites: Any, **more: Any) -> CutResult:
    return cut_run(run, sites=sites, **{"n_eig": 4, "k": (2, 3, 5), "color": "pca", **more})


def test_one_site(run: Run) -> None:
    site = next(s for s in run.sites if run.sites[s].layout == "vision")
    got = cut(run, site)
    part = got.parts[site]
    n = len(part.token_rows)
    assert got.sites == (site,) and part.layout == "vision" and part.rows == slice(0, n)
    table = run.tokens("vision")
    assert {KINDS[i] for i in table.kind[part.token_rows]} <= {"patch", "text", "action", "state"}
    assert got.eigvecs.shape == (n, 4) and got.rgb.shape == (n, 3) and got.rgb.dtype == np.uint8
    assert list(got.labels) == [2, 3, 5] and got.labels[5].dtype == np.int16
    np.testing.assert_array_equal(got.parents[5][got.labels[5]], got.labels[3])
    # Five groups need five eigenvectors; four are kept.
    ncut = NystromNCut(5, seed=0)
    want = ncut.fit_transform(run.acts(site)[part.token_rows])
    np.testing.assert_array_equal(got.eigvecs, want[:, :4])
    groups = kway(want, [2, 3, 5], method="kmeans", eigenvalues=ncut.eigenvalues_)
    np.testing.assert_array_equal(got.labels[3], groups.labels[3])
    np.testing.assert_array_equal(got.palette.apply(got.eigvecs), got.rgb)


def test_it_is_read_back_with_the_same_bits(run: Run) -> None:
    sites = tuple(run.sites)
    first = cut(run, sites)
    stamp = (first.path / "params.json").stat().st_mtime_ns
    again = cut(run, sites)
    assert (again.path / "params.json").stat().st_mtime_ns == stamp
    loaded = CutResult.load(first.path)
    new = cut(run, sites, force=True)
    assert (new.path / "params.json").stat().st_mtime_ns != stamp
    for other in (again, loaded, new):
        np.testing.assert_array_equal(other.eigvecs, first.eigvecs)
        np.testing.assert_array_equal(other.rgb, first.rgb)
        assert other.sites == first.sites and dict(other.params) == dict(first.params)
        assert other.health == first.health
        for k in first.labels:
            np.testing.assert_array_equal(other.labels[k], first.labels[k])
        for site in sites:
            assert other.parts[site].rows == first.parts[site].rows
            np.testing.assert_array_equal(other.parts[site].token_rows, first.parts[site].token_rows)
    assert cut(run, sites, seed=1).path != first.path
    assert not list(first.path.parent.glob(".*"))


def test_rows_of_several_sites_follow_each_other(run: Run) -> None:
    sites = tuple(run.sites)
    got = cut(run, sites)
    stops = [0]
    for site in sites:
        part = got.parts[site]
        assert part.rows.start == stops[-1] and part.rows.stop - part.rows.start == len(part.token_rows)
        assert part.layout == run.sites[site].layout
        stops.append(part.rows.stop)
    assert stops[-1] == len(got.eigvecs) == len(got.rgb) == len(got.labels[5])


def test_cluster_colours_are_distinct(run: Run) -> None:
    got = cut(run, tuple(run.sites))
    colors = got.cluster_colors(5).astype(int)
    assert colors.shape == (5, 3)
    for one, two in itertools.combinations(colors, 2):
        assert np.abs(one - two).max() > 8
    with pytest.raises(InputError, match="k = 2, 3, 5"):
        got.cluster_colors(4)


def test_bad_input(run: Run) -> None:
    site = next(iter(run.sites))
    with pytest.raises(SiteNotFoundError):
        cut(run, "vision.99")
    with pytest.raises(InputError, match="no sites"):
        cut(run, ())
    with pytest.raises(InputError, match="empty list"):
        cut(run, site, k=())
    with pytest.raises(InputError, match="no tokens of kind register"):
        cut(run, site, kinds=("register",))
    with pytest.raises(InputError):
        cut(run, site, color="rainbow")
    with pytest.raises(InputError, match="only"):
        cut(run, site, n_eig=100_000)


def test_a_damaged_cut_says_so(run: Run) -> None:
    got = cut(run, tuple(run.sites), seed=5)
    (got.path / "labels-3.npy").write_bytes(b"broken")
    with pytest.raises(RunIncompleteError, match="delete that folder"):
        CutResult.load(got.path)
    with pytest.raises(RunIncompleteError):
        CutResult.load(Path("nowhere"))


def test_anchors_are_the_same_patches_in_every_layout(run: Run) -> None:
    tables = {name: run.tokens(name) for name in run.layouts}
    chosen = {name: table.select(["patch", "text"]) for name, table in tables.items()}
    anchors = choose_anchors(tables, chosen, n_anchors=40, seed=0)
    assert len({len(a) for a in anchors.values()}) == 1
    for one, two in itertools.combinations(anchors, 2):
        both = (anchors[one] >= 0) & (anchors[two] >= 0)
        rows = [chosen[name][anchors[name][both]] for name in (one, two)]
        np.testing.assert_array_equal(tables[one].item[rows[0]], tables[two].item[rows[1]])
        np.testing.assert_array_equal(tables[one].camera[rows[0]], tables[two].camera[rows[1]])


def test_layers_that_see_the_same_get_the_same_groups() -> None:
    """Four layers of other widths, units and offsets, each a non-linear view of one planted partition."""
    rng = np.random.default_rng(0)
    hidden, truth = mixture(509, d=9, k=5, gap=3.0)
    layers = []
    for width, unit in ((17, 1.0), (64, 100.0), (31, 0.01), (48, 7.0)):
        view = np.tanh(0.3 * hidden @ rng.normal(size=(9, width))) + 0.2 * rng.normal(size=(509, width))
        layers.append((unit * (view + 5)).astype(np.float32))
    aligned = relative_affinity(layers, rng.choice(509, 97, replace=False))
    assert {a.shape for a in aligned} == {(509, 97)}
    np.testing.assert_allclose(np.linalg.norm(aligned[0], axis=1), 1, rtol=1e-5)
    labels = kway(NystromNCut(5).fit_transform(np.concatenate(aligned)), 5).labels[5].reshape(4, 509)
    for mine in labels:
        assert metrics.adjusted_rand_score(truth, mine) > 0.95
        assert (mine == labels[0]).mean() > 0.97  # the same ids, not only the same partition


def test_alignment_refuses_what_it_cannot_do() -> None:
    x = np.random.default_rng(0).normal(size=(31, 5)).astype(np.float32)
    with pytest.raises(InputError, match="no layers"):
        relative_affinity([], [1, 2])
    with pytest.raises(InputError, match="no row"):
        relative_affinity([x], [1, 31])
    with pytest.raises(InputError, match="same number"):
        relative_affinity([x, x], [np.array([1, 2]), np.array([1])])
    with pytest.raises(InputError, match="none of the anchors"):
        relative_affinity([x, x], [np.array([1, 2]), np.array([-1, -1])])
    with pytest.raises(InputError, match="coincide"):
        relative_affinity([np.ones((31, 5))], [1, 2])
    x[3, 2] = np.nan
    with pytest.raises(InputError, match="3"):
        relative_affinity([x], [1, 2])


def test_a_cut_of_some_tokens_places_all(run: Run) -> None:
    """One site and two sites; an engine changes no bit; the number of tokens is part of the question."""
    from vlascope.runs import LocalEngine

    for sites in ("vision.0", ["vision.0", "language.0"]):
        whole = cut(run, sites)
        some = cut(run, sites, fit_tokens=60)
        again = cut(run, sites, fit_tokens=60, engine=LocalEngine(), force=True)
        assert some.eigvecs.shape == whole.eigvecs.shape and not np.array_equal(some.eigvecs, whole.eigvecs)
        for name in ("eigvecs", "rgb"):
            np.testing.assert_array_equal(getattr(some, name), getattr(again, name))
        for level in (2, 3, 5):
            np.testing.assert_array_equal(some.labels[level], again.labels[level])
    np.testing.assert_array_equal(
        cut(run, "vision.0", fit_tokens=10**6).eigvecs, cut(run, "vision.0").eigvecs
    )
    with pytest.raises(InputError, match="at least 2"):
        cut(run, "vision.0", fit_tokens=1)
