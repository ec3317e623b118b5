"""Constant features, empty masks, single frames, unknown labels and words: each measure says what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.measure.planted import PATCH, PlantedRun, grid, language
from vlascope import measure
from vlascope.errors import InputError
from vlascope.measure.association import association

N, FEW = 60, {"n_permutations": 19}
VISION = ("vision.0", "vision.1")

ASK: dict[str, Callable[[Any], str]] = {
    "trace": lambda r: measure.trace(r, sites=VISION, k=3, color="pca", **FEW).verdict(),
    "trace of a label": lambda r: measure.trace(
        r, sites=VISION, label="colour", k=3, color="pca", **FEW
    ).verdict(),
    "debug": lambda r: association(r, sites=VISION, label="colour", answers=None, **FEW).verdict(),
    "probe": lambda r: measure.probe(r, site="vision.0", target="colour", **FEW).verdict(),
    "regions": lambda r: measure.probe_regions(r, site="vision.0", words=("red", "blue"), **FEW).verdict(),
    "world model": lambda r: measure.world_model(
        r, site="vision.0", state_site="vision.1", horizons=(1,), **FEW
    ).verdict(),
    "temporal": lambda r: measure.temporal(r, site="vision.0", k=3, color="pca", **FEW).verdict(),
    "semantics": lambda r: "; ".join(
        one.line() for one in measure.semantics(r, "language.0", words=("zebra",), **FEW).results
    ),
    "nave": lambda r: measure.nave(r, sites=VISION, k=3).summary(),
    "eval": lambda r: measure.evaluate(
        r, sites=VISION, k=3, methods=("ncut", "nave", "tokencut"), n_draws=50, **FEW
    ).summary(),
    "channels": lambda r: str(
        measure.cluster_channels(np.asarray(r.acts("vision.0"))[:60], np.arange(60) % 2, n_random=19)
    ),
}

CONSTANT, EMPTY, NO_MASKS, STILLS = "constant features", "empty masks", "no masks", "no episodes"
LABELLED = ("trace of a label", "debug", "probe")
CASES = [
    (CONSTANT, ("trace", "trace of a label"), "InputError: all sampled tokens of a layer coincide"),
    (CONSTANT, ("debug",), "cannot say: the layer holds the same features for all items"),
    (CONSTANT, ("probe", "regions"), "cannot say (constant features)"),
    (CONSTANT, ("world model",), "cannot say whether vision.0 holds the future: the state is constant"),
    (CONSTANT, ("semantics",), "InputError: site 'language.0': all its words are equal"),
    (CONSTANT, ("temporal",), "0.000 changes per episode at vision.0"),
    (CONSTANT, ("nave", "eval"), "InputError: the features do not vary between patches"),
    (CONSTANT, ("channels",), "InputError: all tokens coincide"),
    (EMPTY, ("trace", "regions"), "InputError: no patch lies in a region of mask 'segmentation'"),
    (EMPTY, ("eval",), "cannot say: no image has what this score needs"),
    (EMPTY, ("semantics",), "cannot say"),
    (NO_MASKS, ("trace",), "no label or mask was given"),
    (NO_MASKS, ("regions",), "InputError: no item of this run has a mask 'segmentation'"),
    (NO_MASKS, ("eval",), "InputError: nothing is known about the images of this run"),
    (NO_MASKS, ("semantics",), "cannot say"),
    ("one frame each", ("world model",), "cannot say whether vision.0 holds the future: 0 pairs of frames"),
    ("one frame each", ("temporal",), "cannot say: all 60 episodes are too short for change points"),
    (STILLS, ("world model",), "InputError: a world model needs frames of episodes"),
    (STILLS, ("temporal",), "belong to none"),
    ("no labels", LABELLED, "InputError: no item of this run has a label 'colour'"),
    ("one class", ("trace of a label", "probe"), "InputError: 'colour' sorts the items into 1 classes"),
    ("one class", ("debug",), "InputError: 'colour' has 1 different values"),
    (
        "a word that never occurs",
        ("semantics",),
        "zebra / pointing: cannot say (it is in no prompt among the tokens",
    ),
]


def make(case: str, path: Any) -> PlantedRun:
    """Six episodes of ten frames with two objects, with one thing wrong."""
    rng = np.random.default_rng(0)
    x, words = rng.normal(size=(N, 15, 5)), rng.normal(size=(N, 17, 5))
    if case == "constant features":
        x[:], words[:] = 1, 1
    mask = np.zeros((3 * PATCH, 5 * PATCH), np.uint8)
    if case != "empty masks":
        mask[: 2 * PATCH, : 2 * PATCH], mask[2 * PATCH :, 3 * PATCH :] = 1, 2
    episode = np.arange(N) if case == "one frame each" else np.arange(N) // 10
    colour = ["red" if case == "one class" or e % 2 else "blue" for e in episode]
    return PlantedRun(
        {"vision.0": ("vision", x), "vision.1": ("vision", x), "language.0": ("language", words)},
        layouts={"vision": grid(3, 5), "language": language(3, 5)},
        labels=None if case == "no labels" else [{"colour": one} for one in colour],
        episodes=None if case == "no episodes" else episode.tolist(),
        masks=None if case == "no masks" else [mask] * N,
        mask_names={0: "background", 1: "red cup", 2: "blue box"},
        path=path,
    )


@pytest.mark.filterwarnings("ignore:all rows coincide")
@pytest.mark.parametrize(
    ("case", "ask", "expected"), [(case, ask, expected) for case, asks, expected in CASES for ask in asks]
)
def test_what_is_missing_is_said(case, ask, expected, tmp_path):
    run = make(case, tmp_path)
    try:
        said = ASK[ask](run)
    except InputError as error:
        said = f"InputError: {error}"
    assert expected in said


@pytest.mark.parametrize("ask", list(ASK))
def test_the_same_run_can_be_asked_when_nothing_is_wrong(ask, tmp_path):
    said = ASK[ask](make("nothing", tmp_path))
    assert "Error" not in said and (ask == "semantics" or "cannot say:" not in said), said


@pytest.mark.parametrize(("case", "ask"), [("no labels", "trace of a label"), (STILLS, "temporal")])
def test_what_is_missing_is_said_before_anything_is_cut(case, ask, tmp_path, monkeypatch):
    def cut(*_: Any, **__: Any) -> None:
        raise AssertionError("cut first, asked later")

    for module in ("trace", "temporal"):
        monkeypatch.setattr(sys.modules[f"vlascope.measure.{module}"], "cut_run", cut)
    with pytest.raises(InputError, match="no item of this run|belong to none"):
        ASK[ask](make(case, tmp_path))
