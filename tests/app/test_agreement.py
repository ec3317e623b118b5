"""What a click answers against the product in double precision: the layer on screen, and all layers at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from app_runs import client_of

from vlascope.app import create_app, state
from vlascope.app.wire import unpack

TOKEN = 300


@pytest.fixture
def ask(vla_book, tmp_path):
    pytest.importorskip("fastapi", reason="needs the extra `app`")
    client = client_of(create_app([vla_book], table=tmp_path / "labels.csv"))
    for features in vla_book.features.values():
        features.prepare()

    def asked(sites):
        url = f"/api/similar?run={vla_book.key}&site=vision.5&token={TOKEN}&method=features&sites={sites}"
        header, arrays = unpack(client.get(url).content)
        names = [part["site"] for part in header["parts"]]
        return header, {n: np.frombuffer(a, np.uint8) for n, a in zip(names, arrays, strict=True)}

    return asked


def truth(book, site):
    """Return the cosines of all tokens of a site with the clicked one's, once the mean is taken away, float64 [n]."""
    rows = np.asarray(book.run.acts(site)[:], np.float64)
    rows = rows - rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    place = book.place("vision.5", TOKEN)
    cut_rows = book.cut.parts[site].token_rows
    return (rows @ rows[cut_rows[book.token_at(place, site)]])[cut_rows]


def agreement(answer, true, *, k):
    """Return Spearman's rank correlation where the answer is not black, and the share of the k likest found."""
    from scipy.stats import spearmanr

    some = (answer > 0) | (true > 0)
    likest = np.argsort(-true)[:k]
    found = answer[likest] >= np.sort(answer)[-k]  # equal bytes are equally bright
    rank: Any = spearmanr(answer[some], np.maximum(true[some], 0))
    return rank.statistic, found.mean()


def test_the_layer_on_screen_is_exact(ask, vla_book):
    header, answers = ask("vision.5")
    true = truth(vla_book, "vision.5")
    assert header["exact"] and header["rank"] is None
    assert np.abs(answers["vision.5"] - np.clip(true, 0, 1) * 255).max() <= 0.51  # to the step of the picture
    rank, top = agreement(answers["vision.5"], true, k=50)
    assert rank > 0.999 and top == 1


def test_all_layers_by_the_sketch_agree_as_well_as_is_said(ask, vla_book, monkeypatch):
    monkeypatch.setattr(state, "EXACT_BYTES", 0)
    monkeypatch.setattr(state, "FEW_SITES", 1)
    header, answers = ask("*")
    assert not header["exact"] and len(answers) == 3
    assert np.abs(answers["vision.5"] - np.clip(truth(vla_book, "vision.5"), 0, 1) * 255).max() <= 0.51
    for site in ("language.2", "language.5"):
        rank, top = agreement(answers[site], truth(vla_book, site), k=50)
        assert rank > 0.9 and top > 0.7, site
        assert rank > header["rank"] - 0.04, site  # said of some of the tokens, of the worst layer


def test_a_bad_sketch_is_not_passed_off_as_a_good_one(ask, vla_book, monkeypatch):
    monkeypatch.setattr(state, "EXACT_BYTES", 0)
    monkeypatch.setattr(state, "FEW_SITES", 1)
    said, _ = ask("*")
    features = vla_book.features["language.2"]
    known = features.prepare()
    mixed = np.random.default_rng(0).permutation(np.asarray(known.sketch))
    monkeypatch.setattr(features, "_measured", type(known)(known.mean, known.norms, mixed, known.check))
    now, _ = ask("*")
    assert now["rank"] < 0.3 < 0.9 < said["rank"]
