"""Methods on planted objects: found where they are, not found where they are not; truth of real datasets."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from vlascope.errors import InputError, ItemError
from vlascope.measure import (
    concepts,
    evaluate,
    nave,
    nave_layers,
    nave_sweep,
    outlier_patches,
    probe,
    read_truth,
    watermark_saturation,
    with_watermark,
)
from vlascope.measure.localise import _Question
from vlascope.measure.methods import _METHODS, Segments, method_names
from vlascope.measure.objects import lost, pca_threshold, tokencut
from vlascope.measure.patchmaps import patch_maps, resized, spread_sites
from vlascope.measure.region_probe import probe_regions
from vlascope.measure.resample import bootstrap_weights, units_of
from vlascope.measure.segmentation import mean_iou
from vlascope.measure.truth import ImageTruth, Truth, read_bsds
from vlascope.sim import wilson_interval

from .planted import PATCH, PlantedRun, grid

ROWS, COLS = 7, 11


def planted(n: int = 13, *, seed: int = 0, there: bool = True, noise: float = 0.3) -> PlantedRun:
    """Each image has one 3 x 3 object off the borders; one channel shows it (or shows it elsewhere)."""
    rng = np.random.default_rng(seed)
    masks, acts = [], []
    for _ in range(n):
        mask = np.zeros((ROWS, COLS), int)
        row, col = rng.integers(1, ROWS - 3), rng.integers(1, COLS - 3)
        mask[row : row + 3, col : col + 3] = 1
        shown = mask
        if not there:
            shown = np.zeros_like(mask)
            row, col = rng.integers(1, ROWS - 3), rng.integers(1, COLS - 3)
            shown[row : row + 3, col : col + 3] = 1
        features = rng.normal(0, noise, (ROWS * COLS, 3))
        features[:, 0] += 3 * shown.reshape(-1)
        acts.append(features)
        masks.append(np.kron(mask * 4, np.ones((PATCH, PATCH), int)))
    x = np.array(acts)
    images = [rng.integers(0, 256, (ROWS * PATCH, COLS * PATCH, 3)).astype(np.uint8) for _ in range(n)]
    return PlantedRun(
        {"vision.0": ("vision", x), "vision.1": ("vision", 2 * x[..., :2] + 1)},
        layouts={"vision": grid(ROWS, COLS)},
        masks=masks,
        mask_names={0: "background", 4: "cup"},
        images=images,
    )


def test_planted_objects_are_found_by_the_methods_that_can():
    run = planted()
    names = [m for m in method_names() if m != "slic"]
    found = evaluate(
        run, sites=["vision.0", "vision.1"], site="vision.0", k=2, methods=names, n_permutations=99
    )
    assert found.scores == ("best overlap", "oracle mIoU", "Hungarian mIoU", "CorLoc", "AP@50")
    for method in ("ncut", "kmeans"):
        for score, one in found.results[method].items():
            assert one.value == pytest.approx(1.0), (method, score)
            assert one.found and one.controls["raw pixels"] < 0.6 and one.controls["shuffled images"] < 0.7
    assert (found.results["nave"]["best overlap"].value or 0) > 0.6
    assert not any(one.found for one in found.results["pixels"].values())
    gap = found.difference("ncut", "pixels", score="best overlap")
    assert gap.interval is not None and gap.interval[0] > 0.5
    assert "n=" not in found.summary() and "13 images (13 items)" in found.summary()
    assert found.to_json()["methods"]["ncut"]["CorLoc"]["value"] == 1.0


def test_joint_segments_are_matched_once():
    found = evaluate(
        planted(), sites=["vision.0"], k=2, scope="joint", methods=["kmeans", "ncut"], n_permutations=39
    )
    assert found.results["kmeans"]["Hungarian mIoU"].value == pytest.approx(1.0)


def test_scores_of_several_starts_are_averaged():
    run = planted(noise=3.0)  # so noisy that k-means ends elsewhere with every seed

    def score(seed: int, n_starts: int):
        found = evaluate(
            run, sites=["vision.0"], k=4, methods=["kmeans"], n_permutations=19, seed=seed, n_starts=n_starts
        )
        return found.results["kmeans"]

    one, two, both = score(5, 1), score(6, 1), score(5, 2)
    for name in ("best overlap", "CorLoc", "AP@50"):
        assert both[name].value == pytest.approx(((one[name].value or 0) + (two[name].value or 0)) / 2)
    assert one["best overlap"].value != two["best overlap"].value
    with pytest.raises(InputError, match="n_starts=0"):
        score(5, 0)


def test_random_weights_stand_beside():
    found = evaluate(
        planted(),
        sites=["vision.0"],
        k=2,
        methods=["kmeans"],
        n_permutations=39,
        random_run=planted(there=False),
    )
    one = found.results["kmeans"]["best overlap"]
    assert one.controls["random weights"] < 0.5 < (one.value or 0)


def test_a_control_of_other_images_or_of_the_same_weights_is_refused():
    run, other = planted(), planted(there=False)
    other.items = list(reversed(other.items))
    asks = (
        lambda control: evaluate(run, sites=["vision.0"], k=2, random_run=control),
        lambda control: nave_sweep(run, sites=["vision.0"], ks=[2], random_run=control),
        lambda control: outlier_patches(run, sites=["vision.0"], random_run=control),
        lambda control: concepts(run, site="vision.0", random_run=control),
        lambda control: probe(run, site="vision.0", target="x", random_run=control),
        lambda control: probe_regions(run, site="vision.0", words=(), random_run=control),
    )
    for ask in asks:
        with pytest.raises(InputError, match="capture the same items"):
            ask(other)
        with pytest.raises(InputError, match="same weights"):
            ask(planted())


def test_fewer_than_two_clusters_are_refused_at_once():
    run = planted(3)
    for k in (0, 1):
        with pytest.raises(InputError, match=f"got k={k}; need at least 2"):
            nave_sweep(run, sites=["vision.0"], ks=[3, k])
        with pytest.raises(InputError, match=f"got k={k}; need at least 2"):
            nave_layers(run, sites=["vision.0"], k=k)
        with pytest.raises(InputError, match=f"got k={k}; need at least 2"):
            evaluate(run, sites=["vision.0"], k=k)


def test_three_images_have_no_interval_but_that_of_a_share():
    found = evaluate(planted(3), sites=["vision.0"], k=2, methods=["kmeans", "pixels"], n_permutations=39)
    for score, one in found.results["kmeans"].items():
        assert (one.interval is None) == (score != "CorLoc"), score
    assert found.results["kmeans"]["CorLoc"].interval == pytest.approx(wilson_interval(3, 3))
    assert "They need 5 items" in found.summary()


def test_j_weighs_videos_alike_whatever_their_length():
    run = planted(10)
    masks = [run.mask(i) == 4 for i in range(10)]
    # One long video whose object is found in all frames, two short ones where it is not: a third, not four fifths.
    images = {i: ImageTruth(foreground=masks[i] if i < 8 else ~masks[i]) for i in range(10)}
    truth = Truth("videos", images, (), units_of([0] * 8 + [1, 2], over="video"))
    found = evaluate(run, sites=["vision.0"], k=2, methods=["kmeans"], truth=truth, n_permutations=39)
    assert found.results["kmeans"]["J"].value == pytest.approx(1 / 3)


def test_intervals_of_class_means_hold_their_expectation():
    """Draws lose rare classes: plain percentiles would hold the mean IoU of such samples in about 85 of 100."""
    n_classes, rates = 9, np.linspace(0.9, 0.2, 9)
    share = 1 / np.arange(1, n_classes + 1)

    def sample(rng):
        out = np.zeros((12, 3, n_classes))
        for one in out:
            for c in rng.choice(n_classes, 2, replace=False, p=share / share.sum()):
                right = np.clip(rates[c] + 0.2 * rng.normal(), 0, 1)
                one[:, c] = 100 * np.array([right, 1, 1])
        return out

    question = _Question("oracle mIoU", _no_parts, lambda s: float(mean_iou(s.reshape(3, n_classes))))
    units, values, intervals = units_of(range(12)), [], []
    for seed in range(150):
        parts = sample(np.random.default_rng(seed)).reshape(12, -1)
        values.append(question.totals(parts, np.ones((1, 12)))[0])
        draws = question.totals(parts, bootstrap_weights(12, n_draws=300, seed=seed))
        intervals.append(question.interval([parts], values[-1], draws, units))
    mean = np.mean(values)
    held = sum(one is not None and one[0] <= mean <= one[1] for one in intervals)
    assert held >= 136, f"{held} of 150"


def _no_parts(view, seen):
    raise AssertionError("parts are given")


def test_absent_objects_are_found_in_at_most_5_percent():
    n_runs, n_found = 200, 0
    for seed in range(n_runs):
        run = planted(7, seed=seed, there=False)
        found = evaluate(
            run, sites=["vision.0"], k=2, methods=["tokencut"], n_permutations=39, n_draws=2, seed=seed
        )
        n_found += any(one.found for one in found.results["tokencut"].values())
    # 5 % of 200 is 10; more than 17 would happen by chance once in a hundred times.
    assert n_found <= 17, f"{n_found} of {n_runs} null runs are called found"


def test_methods_that_are_equally_good_rarely_differ(monkeypatch):
    """Two ways to draw segments at random: the interval of their paired difference must hold 0 in 95 of 100 runs."""
    for name, key in (("one", 1), ("two", 2)):

        def guess(run, features, k, scope, seed, key=key):
            rng = np.random.default_rng([seed, key])
            return [
                Segments(m, labels := rng.integers(0, k, m.grid), ((labels == 0, float(rng.random())),))
                for m in features.main
            ]

        monkeypatch.setitem(_METHODS, name, (guess, name))
    false = {"best overlap": 0, "J": 0}
    for seed in range(200):
        run = planted(23, seed=seed)
        known = {
            i: ImageTruth(objects=(m := np.asarray(run.mask(i)) > 0).astype(np.int16) - 1, foreground=m)
            for i in range(23)
        }
        truth = Truth("planted", known, (), units_of(range(23)))
        found = evaluate(
            run,
            sites=["vision.0"],
            k=3,
            methods=["one", "two"],
            truth=truth,
            n_permutations=1,
            n_draws=400,
            seed=seed,
        )
        for score in false:
            ends = found.difference("one", "two", score=score).interval
            assert ends is not None
            false[score] += not ends[0] <= 0 <= ends[1]
    assert found.scores == tuple(false) and max(false.values()) <= 16, f"{false} of 200; 10 are expected"


def test_lost_and_tokencut_and_pca_find_a_planted_object():
    mask = np.zeros((ROWS, COLS), bool)
    mask[2:5, 3:6] = True
    rng = np.random.default_rng(0)
    background, thing = np.array([1.0, 0, 0, 0]), np.array([-0.2, 1.0, 0, 0])
    x = np.where(mask[..., None], thing, background) + rng.normal(0, 0.05, (ROWS, COLS, 4))
    for method in (partial(lost, n_seeds=9), tokencut, pca_threshold):
        found = method(x)
        np.testing.assert_array_equal(found.component, mask, err_msg=str(method))
    with pytest.raises(InputError, match="at least 2 patches"):
        tokencut(np.zeros((1, 1, 3)))


def test_the_tokencut_vector_solves_the_published_problem():
    from scipy.linalg import eigh

    x = np.random.default_rng(1).normal(size=(3, 5, 4))
    unit = x.reshape(15, 4) / np.linalg.norm(x.reshape(15, 4), axis=1, keepdims=True)
    weight = np.where(unit @ unit.T > 0.2, 1.0, 1e-5)
    degree = np.diag(weight.sum(1))
    values, vectors = eigh(degree - weight, degree)
    second = vectors[:, 1]
    side = second > second.mean()
    wanted = side if side[np.abs(second).argmax()] else ~side
    found = tokencut(x)
    np.testing.assert_array_equal(found.region.reshape(-1), wanted)
    assert found.score == pytest.approx(1 - values[1])


def test_nave_weighs_layers_alike_and_resizes_them():
    run = planted()
    found = nave(run, sites=["vision.0", "vision.1"], k=2)
    energy = found.maps[0].features.shape[2]
    assert energy == 5 and found.labels[0].shape == (ROWS, COLS)
    all_rows = np.concatenate([one.rows_nd for one in found.maps])
    assert (all_rows[:, :3] ** 2).sum(1).mean() == pytest.approx(1, abs=1e-3)
    assert (all_rows[:, 3:] ** 2).sum(1).mean() == pytest.approx(1, abs=1e-3)
    assert "13 images" in found.summary()
    small = resized(np.arange(24, dtype=np.float32).reshape(4, 6, 1), (2, 3))
    assert small[0, 0, 0] == pytest.approx(np.mean([0, 1, 6, 7]))
    joint = nave(run, sites=["vision.0"], k=2, scope="joint")
    assert len(joint.explained) == 1
    with pytest.raises(InputError, match="at least 2 clusters"):
        nave(run, sites=["vision.0"], k=1)


def test_nave_sweep_and_layers():
    run = planted(7)
    sweep = nave_sweep(run, sites=["vision.0"], ks=(2, 5))
    assert (sweep[0].value or 0) < (sweep[1].value or 0) and "raw pixels" in sweep[0].controls
    layers = nave_layers(run, sites=["vision.0", "vision.1"], k=2)
    assert all((one.value or 0) > one.controls["raw pixels"] for one in layers)


def test_constant_features_cannot_be_clustered():
    flat = PlantedRun({"v": ("vision", np.ones((3, 15, 2)))}, layouts={"vision": grid()})
    with pytest.raises(InputError, match="do not vary"):
        nave(flat, sites=["v"])


def test_patch_maps_follow_the_grid():
    run = planted(2)
    one = patch_maps(run, "vision.0")[1]
    np.testing.assert_array_equal(one.rows_nd, run.acts("vision.0")[ROWS * COLS :])
    painted = one.paint(np.arange(ROWS * COLS).reshape(ROWS, COLS), height=ROWS * PATCH, width=COLS * PATCH)
    assert painted[PATCH * 2 + 3, PATCH * 5 + 1] == 2 * COLS + 5
    assert spread_sites(run) == ("vision.0", "vision.1")


def test_a_watermark_that_is_seen_saturates(tmp_path):
    from vlascope.items import open_items

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (ROWS * PATCH, COLS * PATCH, 3)).astype(np.uint8) for _ in range(9)]
    source = with_watermark(open_items(images), size=0.4)
    mask = source[0].masks["watermark"]
    assert (source[0].image != images[0]).any(2)[mask == 0].sum() == 0 and mask.any()
    seen = PlantedRun(
        {
            "v": (
                "vision",
                np.array([_patch_mask(mask)[:, None] * 3 + rng.normal(0, 0.2, (77, 2)) for _ in range(9)]),
            )
        },
        layouts={"vision": grid(ROWS, COLS)},
    )
    plain = PlantedRun(
        {"v": ("vision", rng.normal(0, 0.2, (9, 77, 2)))}, layouts={"vision": grid(ROWS, COLS)}
    )
    seen.mask = lambda item, name="": mask  # type: ignore[method-assign]
    for run in (seen, plain):
        run.items = [_sized(row, mask.shape) for row in run.items]
    assert watermark_saturation(seen, plain, sites=["v"], k=2).found
    plain.mask = seen.mask
    assert not watermark_saturation(plain, plain, sites=["v"], k=2).found


def test_a_watermark_that_nothing_sees_is_rarely_found():
    mask = np.zeros((3 * PATCH, 5 * PATCH), np.uint8)
    mask[PATCH : 2 * PATCH, : 2 * PATCH] = 1
    false = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        content = rng.normal(
            size=(7, 15, 2)
        )  # the picture, seen alike with and without the mark but for noise
        runs = []
        for _ in range(2):
            x = content + 0.5 * rng.normal(size=content.shape)
            run = PlantedRun({"v": ("vision", x)}, layouts={"vision": grid(3, 5)})
            run.items = [_sized(row, mask.shape) for row in run.items]
            run.mask = lambda item, name="": mask  # type: ignore[method-assign]
            runs.append(run)
        false += watermark_saturation(*runs, sites=["v"], k=2, n_permutations=39, seed=trial).found
    assert false <= 16, f"{false} of 200 null runs; at most 10 are expected"


def _sized(row, shape):
    from dataclasses import replace

    return replace(row, image_sizes=(shape,))


def _patch_mask(mask: np.ndarray) -> np.ndarray:
    return (mask.reshape(ROWS, PATCH, COLS, PATCH).mean((1, 3)) > 0.5).reshape(-1).astype(float)


def test_truth_says_what_is_missing(tmp_path):
    run = PlantedRun({"v": ("vision", np.zeros((2, 15, 2)))}, layouts={"vision": grid()})
    with pytest.raises(InputError, match="nothing is known"):
        read_truth(run)
    (tmp_path / "x.mat").write_bytes(b"no")
    with pytest.raises(InputError, match="knows none of the images"):
        read_truth(run, tmp_path)
    with pytest.raises(ItemError, match="no BSDS ground truth"):
        read_bsds(tmp_path / "x.mat")
    with pytest.raises(InputError, match="no method 'ncat'.*Nearest: 'ncut'"):
        evaluate(planted(3), sites=["vision.0"], methods=["ncat"])


def test_bsds_truth_on_real_images(data_dir):
    from vlascope.items import open_items

    source = open_items(data_dir / "bsds500" / "images")[:2]
    rows = [(item.item_id, item.image.shape[:2]) for item in source]
    run = PlantedRun(
        {"v": ("vision", np.random.default_rng(0).normal(size=(2, 15, 2)))}, layouts={"vision": grid()}
    )
    run.items = [_named(row, *facts) for row, facts in zip(run.items, rows, strict=True)]
    truth = read_truth(run, data_dir / "bsds500" / "groundTruth")
    humans = truth.images[0].humans
    assert len(humans) >= 4 and humans[0].shape == rows[0][1] and all(h.min() == 0 for h in humans)


def _named(row, item_id, shape):
    from dataclasses import replace

    return replace(row, item_id=item_id, image_sizes=(shape,))


def test_davis_truth_counts_videos(data_dir):
    from vlascope.items import open_items

    source = open_items(data_dir / "davis16" / "images")[:9]
    rows = [(item.item_id, item.image.shape[:2]) for item in source]
    run = PlantedRun({"v": ("vision", np.zeros((9, 15, 2)))}, layouts={"vision": grid()})
    run.items = [_named(row, *facts) for row, facts in zip(run.items, rows, strict=True)]
    truth = read_truth(run, data_dir / "davis16" / "masks")
    assert truth.units.over == "video" and truth.units.n == len({r[0].split("/")[0] for r in rows}) == 2
    assert all(t.foreground is not None and t.foreground.any() for t in truth.images.values())


def test_coco_boxes_come_with_their_crowds(data_dir):
    from vlascope.items import open_items

    source = open_items(f"coco:{data_dir}/coco_objects")
    run = PlantedRun({"v": ("vision", np.zeros((len(source), 15, 2)))}, layouts={"vision": grid()})
    run.items = [_named(row, name, (1, 1)) for row, name in zip(run.items, source.item_ids, strict=True)]
    truth = read_truth(run, source)
    assert sum(len(t.boxes) for t in truth.images.values()) == 705
    assert any(t.is_crowd.any() for t in truth.images.values())
