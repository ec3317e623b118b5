"""Activation patching: all comes back where all passes, nothing where nothing does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vlascope.act import Pair, PatchingResult, make_pairs, patching
from vlascope.act.edits import check_has_tokens
from vlascope.act.patch import _ratio
from vlascope.errors import InputError
from vlascope.measure.resample import units_of


@pytest.fixture(scope="module")
def nouns(picks):
    return make_pairs(picks, change="noun")


def by_name(results):
    return {r.name: r for r in results}


def test_what_carries_everything_restores_everything(mini, nouns):
    assert len(nouns) == 7 and nouns[0].corrupted.prompt == "pick up the blue object"
    found = patching(
        mini, nouns, sites=("language.0", "language.5"), kinds=("all", "text", "patch"), batch_size=4
    )
    restored = by_name(found.restored)
    assert found.n_pairs == 7 and not found.skipped
    # Pictures come before the words here: patches cannot know the noun, words hold all of it.
    # (Tokens of the answer have looked at the words in block 0 already; that little is missing.)
    assert restored["language.0 / text"].value == pytest.approx(1.0, abs=0.02)
    assert restored["language.5 / all"].value == pytest.approx(1.0, abs=1e-3)
    assert restored["language.0 / patch"].value == pytest.approx(0.0, abs=1e-3)
    action = by_name(found.action)
    assert action["language.0 / text / action"].value == pytest.approx(1.0, abs=0.02)
    assert action["language.0 / patch / action"].value == pytest.approx(0.0, abs=1e-3)
    assert "comes back through" in found.verdict() and found.to_json()["n_pairs"] == 7


def test_pictures_come_back_through_patches(mini, picks):
    pairs = make_pairs(picks, change="image")
    found = by_name(patching(mini, pairs, sites="language.0", kinds=("patch", "last")).restored)
    assert found["language.0 / patch"].value > 0.7 > found["language.0 / last"].value
    assert found["language.0 / patch"].controls["another pair's"] < 0.3


def test_the_verdict_is_about_what_no_other_pair_brings_back():
    rng = np.random.default_rng(3)
    lost, units = 2 + rng.random(12), units_of(range(12), over="item")

    def said(clean, other, noise=0.05):
        tops = np.stack([lost * clean, lost * other]) + noise * rng.standard_normal((2, 12))
        one = _ratio("language.1 / text", tops, lost, units, "share restored", 0)
        return one, PatchingResult((one,), (), 12, ()).verdict()

    one, verdict = said(0.272, 0.261)
    assert verdict.startswith("nothing of the clean answer") and one.value == pytest.approx(0.272, abs=0.03)
    assert one.to_json()["details"]["beyond control"] == pytest.approx(0.011, abs=0.03)
    assert said(0.9, 0.1)[1].startswith("most of the clean answer comes back through language.1 / text")
    assert said(0.9, 0.6)[1].startswith("part of the clean answer comes back through")
    assert said(0.3, 0.0, noise=2.0)[1].startswith("nothing")
    few = np.where(np.arange(12) < 3, 0.261, np.nan)
    assert said(0.272, few, 0.3)[1].startswith("nothing") and "fewer than 5 pairs" in said(0.272, few, 0.3)[1]
    assert said(0.9, few)[1].startswith("most") and said(0.7, few)[1].startswith("part")
    assert "as control" in said(0.9, np.nan)[1] and said(0.9, np.nan)[1].startswith("most")


def test_pairs_with_other_tokens_are_left_out(mini, picks, nouns):
    longer = dataclasses.replace(picks[0], prompt="pick up the left red object", item_id="longer")
    with pytest.raises(InputError, match="equally many tokens"):
        patching(mini, [Pair(picks[0], longer)], sites="language.0")
    found = patching(mini, [*nouns[:2], Pair(picks[0], longer)], sites="language.0", kinds=("last",))
    assert found.n_pairs == 2 and "other tokens" in found.skipped[0]
    assert found.restored[0].value is None and "need 5" in found.restored[0].reason
    assert "cannot say" in found.verdict()


def test_tokens_that_a_site_does_not_have_are_no_result(mini, nouns):
    for sites, kinds in (("language.0", ()), ((), ("text",))):
        with pytest.raises(InputError, match="need at least one of each"):
            patching(mini, nouns[:2], sites=sites, kinds=kinds)
    for kind in ("text", "answer"):
        with pytest.raises(
            InputError, match=f"vision.3 has no '{kind}' tokens in any of 2 items.*it has patch"
        ):
            patching(mini, nouns[:2], sites="vision.3", kinds=("patch", kind))
    check_has_tokens(mini, "answer", site=mini.resolve("language.3")[0], items=[nouns[0].clean])


def test_what_cannot_be_changed_makes_no_pair(picks):
    words = [dataclasses.replace(picks[0], prompt="hello")]
    assert make_pairs(words, change="noun") == [] == make_pairs(words, change="image")
    with pytest.raises(InputError, match="noun, verb or image"):
        make_pairs(picks, change="colour")
