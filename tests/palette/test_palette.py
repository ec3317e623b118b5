"""Colours: stable, bright, distinct; saved and loaded unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlascope.errors import InputError, ItemNotFoundError
from vlascope.palette import Palette, discrete
from vlascope.palette.color import VISIONS, oklab_from_srgb, seen_by, srgb_from_oklab, worst_distance
from vlascope.palette.farthest import farthest_points
from vlascope.palette.palette import METHODS
from vlascope.palette.tsne import tsne3


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 1201, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.04, 0.01])
    centers = np.linalg.qr(rng.normal(size=(11, 7)))[0].T
    return (centers[labels] + 0.05 * rng.normal(size=(1201, 11))).astype(np.float32), labels


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
