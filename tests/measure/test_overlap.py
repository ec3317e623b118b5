"""Best-overlap IoU and its interval against hand-counted answers, slow references and null data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.measure import best_overlap, best_overlap_iou, paired_interval
from vlascope.measure.overlap import PixelClusters
from vlascope.models.layout import grid_tokens

ROWS, COLS, PATCH = 3, 5, 7


def test_iou_by_hand():
    labels = np.array([[0, 0, 1], [0, 1, 1]])
    mask = np.array([[False, True, True], [False, False, True]])
    # cluster 0: 1 of 5 pixels; cluster 1: 2 of 4 pixels
    assert best_overlap_iou(labels, mask) == pytest.approx(2 / 4)


def test_iou_agrees_with_slow_formula():
    rng = np.random.default_rng(3)
    for _ in range(20):
        labels = rng.integers(-1, 5, (11, 13))
        mask = rng.random((11, 13)) < 0.3
        slow = max(
            ((labels == c) & mask).sum() / ((labels == c) | mask).sum()
            for c in np.unique(labels[labels >= 0])
        )
        assert best_overlap_iou(labels, mask) == pytest.approx(slow)


def test_iou_of_nothing_is_nan_and_of_uncovered_is_zero():
    labels = np.zeros((2, 3), int)
    assert np.isnan(best_overlap_iou(labels, np.zeros((2, 3), bool)))
    assert best_overlap_iou(labels - 1, np.ones((2, 3), bool)) == 0.0
    with pytest.raises(InputError, match="shape"):
        best_overlap_iou(labels, np.ones((3, 2), bool))


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        low, high = paired_interval(rng.normal(0.3, 1.0, 40), seed=trial)
        hits += low <= 0.3 <= high
    assert hits >= 85, "a 95 % interval that covers less than 85 of 100 times is too narrow"


def test_interval_of_episodes_is_wider_than_of_their_copied_frames():
    rng = np.random.default_rng(1)
    per_episode = rng.normal(0, 1, 8)
    frames, episodes = np.repeat(per_episode, 25), np.repeat(np.arange(8), 25)
    low_f, high_f = paired_interval(frames)
    low_e, high_e = paired_interval(frames, groups=list(episodes))
    assert (high_e - low_e) > 3 * (high_f - low_f)


def test_frames_of_too_few_episodes_have_no_interval():
    assert paired_interval(np.array([0.5, 0.4]), groups=[7, 7]) is None
    run, cut = _fake_run(20, planted=True, seed=5)
    for i, row in enumerate(run.items):
        row.episode = i // 5
    found = best_overlap(run, cut, site="vision.0", k=2)
    assert found.interval is None and (found.unit, found.n_units) == ("episode", 4)
    assert found.summary().endswith("no interval: 4 independent episodes, need 5")


def _fake_run(n_items: int, *, planted: bool, seed: int):
    """A run whose region is one known patch block, and a cut that knows it (planted) or is random."""
    rng = np.random.default_rng(seed)
    layout = grid_tokens(ROWS, COLS, frame=(0, 0, COLS * PATCH, ROWS * PATCH))
    masks, labels, images = [], [], []
    for _ in range(n_items):
        row, col = rng.integers(0, ROWS - 1), rng.integers(0, COLS - 1)
        patch_is_in = np.zeros((ROWS, COLS), bool)
        patch_is_in[row : row + 2, col : col + 2] = True
        mask = np.kron(patch_is_in, np.ones((PATCH, PATCH), int)) * 4
        masks.append(mask)
        labels.append(patch_is_in.reshape(-1).astype(int) if planted else rng.integers(0, 2, ROWS * COLS))
        images.append(rng.integers(0, 256, (*mask.shape, 3)).astype(np.uint8))
    n_tokens = n_items * ROWS * COLS
    tokens = SimpleNamespace(
        item=np.repeat(np.arange(n_items), ROWS * COLS),
        camera=np.tile(layout.camera, n_items),
        box=np.tile(layout.box, (n_items, 1)),
    )
    run = SimpleNamespace(
        tokens=lambda layout: tokens,
        items=[SimpleNamespace(episode=None, index=i) for i in range(n_items)],
        image=lambda i: images[i],
        mask=lambda i, name: masks[i] if name == "segmentation" else None,
        mask_names=lambda i, name: {0: "background", 4: "object"},
    )
    part = SimpleNamespace(layout="vision", token_rows=np.arange(n_tokens), rows=slice(0, n_tokens))
    cut = SimpleNamespace(parts={"vision.0": part}, labels={2: np.concatenate(labels)})
    return run, cut


def test_planted_region_is_found_and_noise_is_not():
    run, cut = _fake_run(23, planted=True, seed=5)
    found = best_overlap(run, cut, site="vision.0", k=2)
    assert found.mean == pytest.approx(1.0)
    assert found.names == ("object",)
    assert found.interval is not None and found.interval[0] > 0.2
    run, cut = _fake_run(23, planted=False, seed=5)
    missed = best_overlap(run, cut, site="vision.0", k=2)
    assert missed.mean < 0.6
    assert missed.interval is not None and missed.interval[0] < 0.1


def test_missing_masks_say_so():
    run, cut = _fake_run(3, planted=True, seed=0)
    with pytest.raises(InputError, match="no item of this run has a mask 'depth'"):
        best_overlap(run, cut, site="vision.0", k=2, mask="depth")


def test_one_control_for_layers_with_the_same_patches(monkeypatch):
    from vlascope.measure import overlap

    run, cut = _fake_run(11, planted=True, seed=3)
    alone = best_overlap(run, cut, site="vision.0", k=2)
    asked = []
    whole = overlap.patch_pixels
    monkeypatch.setattr(overlap, "patch_pixels", lambda *a: asked.append(1) or whole(*a))
    pixels = PixelClusters(run, k=2)
    for _ in range(2):
        again = best_overlap(run, cut, site="vision.0", k=2, pixels=pixels)
        np.testing.assert_array_equal(again.control_iou, alone.control_iou)
        np.testing.assert_array_equal(again.iou, alone.iou)
        assert again.interval == alone.interval
    assert len(asked) == 1, "the pixels of the same patches are grouped once"
    table = run.tokens("vision")
    half = pixels.labels(range(11), table.item, table.box / 2)
    assert len(asked) == 2, "other patches are grouped anew"
    assert (half != pixels.labels(range(11), table.item, table.box)).any()
    assert (pixels.labels([4], table.item, table.box) >= 0).sum() == ROWS * COLS, "only the items asked for"
    with pytest.raises(InputError, match="k=2 and seed=0; need k=3, seed=0"):
        best_overlap(run, cut, site="vision.0", k=3, pixels=pixels)
