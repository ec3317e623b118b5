"""Colours: stable, bright, distinct; saved and loaded unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlascope.errors import InputError, ItemNotFoundError
from vlascope.palette import Palette, discrete
from vlascope.palette import mspace as mspace_module
from vlascope.palette.color import VISIONS, oklab_from_srgb, seen_by, srgb_from_oklab, worst_distance
from vlascope.palette.cube import cube_knots, fill_cube, fill_cube_by, principal_turn
from vlascope.palette.farthest import farthest_points
from vlascope.palette.palette import METHODS
from vlascope.palette.tsne import tsne3
from vlascope.palette.umap import fuzzy_graph, umap3


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 1201, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.04, 0.01])
    centers = np.linalg.qr(rng.normal(size=(11, 7)))[0].T
    return (centers[labels] + 0.05 * rng.normal(size=(1201, 11))).astype(np.float32), labels


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """M-space needs far fewer steps for seven groups."""
    monkeypatch.setattr(mspace_module, "N_STEPS", 60)
    monkeypatch.setattr(mspace_module, "BATCH", 128)


@pytest.mark.parametrize("space", ["rgb", "oklab"])
@pytest.mark.parametrize("method", METHODS)
def test_groups_get_colours_of_their_own(
    rows: tuple[np.ndarray, np.ndarray], method: str, space: str
) -> None:
    x, labels = rows
    rgb = Palette.fit(x, method=method, space=space, landmarks=211).apply(x)
    assert rgb.shape == (1201, 3) and rgb.dtype == np.uint8
    means = np.stack([rgb[labels == c].mean(0) for c in range(7)])
    spread = np.mean([rgb[labels == c].std(0).max() for c in range(7)])
    gaps = np.linalg.norm(means[:, None] - means[None], axis=2)[np.triu_indices(7, 1)]
    assert np.median(gaps) > 3 * spread
    if method != "pca":
        assert gaps.min() > 25
    assert rgb.max(1).mean() > 120  # bright


@pytest.mark.parametrize("method", METHODS)
def test_new_rows_and_a_saved_palette_keep_colours(
    rows: tuple[np.ndarray, np.ndarray], method: str, tmp_path: Path
) -> None:
    x, _ = rows
    palette = Palette.fit(x, method=method, landmarks=211)
    rgb = palette.apply(x)
    again = Palette.load(palette.save(tmp_path / "deep" / "palette.npz"))
    np.testing.assert_array_equal(again.apply(x), rgb)
    assert dict(again.info) == dict(palette.info)
    # Alone, in another order, longer: the same colours (rounding may turn a value by one).
    assert np.abs(palette.apply(x[::-7] * 3).astype(int) - rgb[::-7]).max() <= 1
    np.testing.assert_array_equal(Palette.fit(x, method=method, landmarks=211).apply(x), rgb)
    palette.save(tmp_path / "two.npz")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "deep" / "palette.npz").read_bytes()


def test_rows_out_of_reach_are_grey(rows: tuple[np.ndarray, np.ndarray]) -> None:
    x = rows[0].copy()
    x[5, 3] = np.nan
    rgb = Palette.fit(x, landmarks=101).apply(x)
    assert rgb[5].tolist() == [128, 128, 128]


def test_few_or_equal_rows() -> None:
    for x in (np.eye(2, 4), np.ones((9, 4)), np.eye(3, 4)[np.arange(12) % 3], np.eye(4, 2) + 1):
        for method in METHODS:
            rgb = Palette.fit(x, method=method).apply(x)
            assert rgb.shape == (len(x), 3)


def test_bad_input(rows: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    x, _ = rows
    for method in ("tsen", "rainbow"):
        with pytest.raises(InputError, match="need one of"):
            Palette.fit(x, method=method)
    with pytest.raises(InputError, match="space"):
        Palette.fit(x, space="hsv")
    with pytest.raises(InputError, match="finite rows"):
        Palette.fit(np.full((5, 3), np.nan))
    with pytest.raises(InputError, match="fitted on 11"):
        Palette.fit(x, method="pca").apply(x[:, :4])
    with pytest.raises(ItemNotFoundError):
        Palette.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no palette")
    with pytest.raises(InputError, match="not a palette"):
        Palette.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(InputError, match="not a palette"):
        Palette.load(tmp_path / "other.npz")


@pytest.mark.parametrize("method", METHODS)
def test_shuffled_rows_get_the_same_colours(rows: tuple[np.ndarray, np.ndarray], method: str) -> None:
    x, _ = rows
    order = np.random.default_rng(5).permutation(len(x))
    one = Palette.fit(x, method=method, landmarks=101).apply(x).astype(int)
    other = Palette.fit(x[order], method=method, landmarks=101).apply(x).astype(int)
    assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_rows_near_to_known_ones_get_colours_near_to_theirs(
    rows: tuple[np.ndarray, np.ndarray], method: str
) -> None:
    x, _ = rows
    palette = Palette.fit(x[::2], method=method, landmarks=211)
    noise = np.random.default_rng(6).normal(size=x.shape).astype(np.float32)
    near = np.abs(palette.apply(x + 1e-3 * noise).astype(int) - palette.apply(x).astype(int))
    assert np.quantile(near, 0.99) < 12
    assert (
        near.mean() < 0.2 * np.abs(palette.apply(x).astype(int) - palette.apply(x[::-1]).astype(int)).mean()
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_matched_palette_comes_near_to_the_colours_it_was_given(
    rows: tuple[np.ndarray, np.ndarray], method: str
) -> None:
    x, _ = rows
    reference = Palette.fit(x, method=method, landmarks=101)
    wanted = reference.apply(x)
    # Another cut of the same tokens: eigenvectors turned, so that signs and axes of the cloud change.
    turned = x @ np.linalg.qr(np.random.default_rng(8).normal(size=(11, 11)))[0].astype(np.float32)
    mirrored = wanted[:, [2, 0, 1]]
    mirrored[:, 0] = 255 - mirrored[:, 0]

    def gap(palette: Palette, rows: np.ndarray, colors: np.ndarray) -> float:
        return float(np.abs(palette.apply(rows).astype(int) - colors.astype(int)).mean())

    for colors in (wanted, mirrored):
        free = Palette.fit(turned, method=method, landmarks=101, seed=3)
        matched = Palette.fit(turned, method=method, landmarks=101, seed=3, match=colors)
        assert gap(matched, turned, colors) <= gap(free, turned, colors) + 1
    assert gap(matched, turned, mirrored) < 0.7 * gap(free, turned, mirrored)
    same = Palette.fit(x, method=method, landmarks=101, match=reference)
    assert gap(same, x, wanted) < 6
    assert same.info["match_distance"] < 0.03 and "match_distance" not in reference.info


def test_colours_of_other_rows_cannot_be_matched(rows: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = rows
    for wrong in (np.zeros((5, 3), np.uint8), np.zeros((len(x), 3)), np.zeros((len(x), 4), np.uint8)):
        with pytest.raises(InputError, match="to match"):
            Palette.fit(x, method="pca", match=wrong)
    with pytest.raises(InputError, match="fitted on 4"):
        Palette.fit(x, method="pca", match=Palette.fit(x[:, :4], method="pca"))
    with pytest.raises(InputError, match="landmarks"):
        Palette.fit(x, landmarks=1)


def test_mspace_that_diverges_raises(
    rows: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mspace_module, "RATE", 1e30)
    with pytest.raises(InputError, match="diverged"):
        Palette.fit(rows[0], method="mspace")


def test_flag_loss_has_the_gradient_it_claims() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(13, 7, generator=generator, dtype=torch.float64), dim=1)
    z = torch.randn(13, 3, generator=generator, dtype=torch.float64)
    _, slope = mspace_module._flag_loss(x, z, (4, 7))
    numeric = torch.zeros_like(z)
    for at in range(z.numel()):
        moved = [z.clone(), z.clone()]
        moved[0].view(-1)[at] += 1e-6
        moved[1].view(-1)[at] -= 1e-6
        up, down = (mspace_module._flag_loss(x, m, (4, 7))[0] for m in moved)
        numeric.view(-1)[at] = (up - down) / 2e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-8)


def test_umap_keeps_neighbours() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), 31)
    x = (np.eye(5, 8)[labels] * 3 + 0.1 * rng.normal(size=(155, 8))).astype(np.float32)
    y = umap3(x)
    d2 = ((y[:, None] - y[None]) ** 2).sum(2)
    np.fill_diagonal(d2, np.inf)
    assert (labels[d2.argmin(1)] == labels).mean() > 0.99
    np.testing.assert_array_equal(umap3(x), y)


def test_fuzzy_graph_gives_every_point_the_wanted_weight() -> None:
    import torch

    x = torch.randn(61, 5, generator=torch.Generator().manual_seed(1))
    graph = fuzzy_graph(x, neighbours=8)
    np.testing.assert_array_equal(graph.numpy(), graph.T.numpy())
    assert float(graph.diagonal().abs().max()) == 0
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    nearest = graph[torch.arange(61), distance.argmin(1)]
    torch.testing.assert_close(nearest, torch.ones(61))  # the nearest neighbour counts fully
    assert float(graph.sum(1).min()) >= 3.0 - 1e-3  # log2(8), more where others chose the point


def test_ranks_off_knots_are_the_ranks() -> None:
    z = np.random.default_rng(2).normal(size=(997, 3)) * [3, 2, 1] + 5
    turn = principal_turn(z)
    np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=1e-12)
    by_knots = fill_cube_by(z, turn, cube_knots(z, turn))
    np.testing.assert_allclose(by_knots, fill_cube(z, turn), atol=0.02)


def test_tsne_keeps_neighbours() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), 31)
    x = (np.eye(5, 8)[labels] * 3 + 0.1 * rng.normal(size=(155, 8))).astype(np.float32)
    y = tsne3(x)
    d2 = ((y[:, None] - y[None]) ** 2).sum(2)
    np.fill_diagonal(d2, np.inf)
    assert (labels[d2.argmin(1)] == labels).mean() > 0.99
    np.testing.assert_array_equal(tsne3(x), y)


def test_farthest_points_find_the_rare() -> None:
    import torch

    x = torch.zeros((101, 3))
    x[97], x[13] = torch.tensor([5.0, 0, 0]), torch.tensor([0.0, 4, 0])
    assert farthest_points(x, 10).tolist()[1:] == [97, 13]


def test_discrete_colours_are_distinct_for_everybody() -> None:
    colors = discrete(12)
    np.testing.assert_array_equal(discrete(20)[:12], colors)
    np.testing.assert_array_equal(discrete(100)[:12], colors)
    assert len(np.unique(discrete(256), axis=0)) == 256
    unit = colors / 255
    for at in range(12):
        others = np.delete(unit, at, axis=0)
        assert worst_distance(unit[at], others).min() > 0.05
    for bad in (0, 257):
        with pytest.raises(InputError):
            discrete(bad)


def test_colour_spaces() -> None:
    rgb = np.random.default_rng(0).uniform(size=(50, 3))
    np.testing.assert_allclose(srgb_from_oklab(oklab_from_srgb(rgb)), rgb, atol=1e-5)
    np.testing.assert_allclose(oklab_from_srgb(np.ones(3)), [1, 0, 0], atol=1e-5)
    for vision in VISIONS:  # greys look grey to everybody
        np.testing.assert_allclose(seen_by(np.full(3, 0.5), vision), 0.5, atol=1e-4)
    red, green = np.array([0.8, 0.2, 0.2]), np.array([[0.35, 0.45, 0.1]])
    assert worst_distance(red, green) < np.linalg.norm(oklab_from_srgb(red) - oklab_from_srgb(green[0]))
