"""Boxes: COCO's average precision against pycocotools, the inner-box rule by hand, CorLoc."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from vlascope.measure.boxes import (
    Proposals,
    average_precision,
    borders_touched,
    box_iou,
    components,
    corloc,
    inner_segments,
    mask_box,
    match_boxes,
)


def made_up(rng: np.random.Generator, n_images: int):
    """Boxes near and far from the truth, some of it crowds."""
    out = []
    for _ in range(n_images):
        n = int(rng.integers(0, 6))
        corner = rng.uniform(0, 60, (n, 2))
        truth = np.c_[corner, corner + rng.uniform(5, 40, (n, 2))]
        crowd = rng.random(n) < 0.25
        near = truth[rng.integers(0, n, 7)] + rng.normal(0, 4, (7, 4)) if n else np.zeros((0, 4))
        far = rng.uniform(0, 50, (3, 2))
        boxes = np.concatenate([near, np.c_[far, far + rng.uniform(5, 30, (3, 2))]])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        out.append((Proposals(boxes, rng.permutation(len(boxes)) / 10 + rng.random() / 20), truth, crowd))
    return out


def coco_ap(data) -> float:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    notes, found = [], []
    for i, (proposals, truth, crowd) in enumerate(data):
        for box, is_crowd in zip(truth, crowd, strict=True):
            size = xywh(box)
            area = size[2] * size[3]
            notes.append(
                {"id": len(notes) + 1, "image_id": i + 1, "category_id": 1,
                 "bbox": size, "area": area, "iscrowd": int(is_crowd)}
            )  # fmt: skip
        for box, score in zip(proposals.boxes, proposals.scores, strict=True):
            found.append({"image_id": i + 1, "category_id": 1, "bbox": xywh(box), "score": float(score)})
    truth = coco.COCO()
    truth.dataset = {
        "info": {}, "images": [{"id": i + 1} for i in range(len(data))], "categories": [{"id": 1}], "annotations": notes
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[1])


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_agrees_with_pycocotools(seed):
    data = made_up(np.random.default_rng(seed), 13)
    scores = np.concatenate([p.scores for p, _, _ in data])
    assert len(np.unique(scores)) == len(scores), "COCO's tool breaks ties by the order of images, we do not"
    mine = average_precision([match_boxes(p, t, is_crowd=c) for p, t, c in data])
    assert mine == pytest.approx(coco_ap(data), abs=1e-9)
    assert 0.01 < mine < 0.99


def test_tied_scores_do_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(4)
    data = [(Proposals(p.boxes, np.ones(len(p.scores))), t, c) for p, t, c in made_up(rng, 17)]
    matches = [match_boxes(p, t, is_crowd=c) for p, t, c in data]
    orders = [rng.permutation(17) for _ in range(9)]
    found = {round(average_precision([matches[i] for i in order]), 12) for order in orders}
    hits, wrong = (sum(int((h & ~m.is_ignored).sum()) for m, h in zip(matches, one, strict=True))
                   for one in ([m.is_hit for m in matches], [~m.is_hit for m in matches]))  # fmt: skip
    recall = hits / sum(m.n_objects for m in matches)
    # One threshold: one precision, at every recall up to the one that is reached.
    assert found == {round(hits / (hits + wrong) * (np.linspace(0, 1, 101) <= recall).mean(), 12)}


def test_weights_count_images_as_often_as_they_are_drawn():
    data = made_up(np.random.default_rng(3), 7)
    matches = [match_boxes(p, t, is_crowd=c) for p, t, c in data]
    weights = np.array([2, 0, 1, 3, 1, 0, 1])
    repeated = [m for m, w in zip(matches, weights, strict=True) for _ in range(w)]
    assert average_precision(matches, weights=weights) == pytest.approx(average_precision(repeated), abs=1e-2)
    assert np.isnan(average_precision(matches, weights=weights * 0)), "nothing drawn, nothing to find"


def test_difficult_objects_count_neither_way():
    one = Proposals(np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), np.array([0.9, 0.8]))
    truth = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    full = average_precision([match_boxes(one, truth, is_ignored=np.array([True, False]))])
    assert full == pytest.approx(1.0)
    found = match_boxes(one, truth[:1], is_ignored=np.array([True]))
    assert found.n_objects == 0 and found.is_ignored.tolist() == [True, False]


def test_iou_and_corloc_by_hand():
    a = np.array([[0.0, 0, 2, 2]])
    b = np.array([[1.0, 0, 3, 2], [5, 5, 6, 6], [0, 0, 2, 4]])
    np.testing.assert_allclose(box_iou(a, b), [[2 / 6, 0, 0.5]])
    assert corloc(a[0], b) and not corloc(a[0], b[:2]) and not corloc(a[0], np.zeros((0, 4)))


def test_the_inner_box_rule_prefers_what_lies_inside():
    labels = np.zeros((7, 11), int)
    labels[2:5, 3:8] = 1  # inside
    labels[6, 0:3] = 2  # touches two borders
    found = inner_segments(labels)
    assert len(found) == 1 and mask_box(found[0][0]) == (3, 2, 8, 5)
    assert found[0][1] == pytest.approx(1.0), "a full rectangle inside is as compact as can be"
    assert borders_touched(labels == 0) == 4
    halves = np.repeat([[0], [1]], [3, 4], axis=0) * np.ones((1, 11), int)
    only = inner_segments(halves)
    assert len(only) == 1, "with no inner segment the one that touches fewest borders stands in"
    assert only[0][0].sum() == 44
    assert inner_segments(np.full((3, 5), -1)) == []


def test_components_are_largest_first():
    mask = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]], bool)
    assert [int(part.sum()) for part in components(mask)] == [3, 1, 1]
    assert mask_box(np.zeros((2, 3), bool)) is None
