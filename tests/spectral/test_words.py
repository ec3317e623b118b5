"""Words cut without the patches: other words get other colours; where there is nothing to gain, nothing is cut."""

from __future__ import annotations

import numpy as np
import pytest

import vlascope as vs
from vlascope.models import embedded
from vlascope.spectral.words import cut_words

pytestmark = pytest.mark.skipif("mini-vla" not in embedded(), reason="the package holds no mini-vla weights")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (50, 70, 3)).astype(np.uint8) for _ in range(13)]
    items = vs.items(images, prompt="pick up the red fragile object")
    out = tmp_path_factory.mktemp("words") / "run"
    return vs.capture(vs.load("mini-vla"), items, sites="language.0:2", out=out, respond=False, quiet=True)


def test_words_alone_differ_more_than_among_patches(run):
    whole = vs.cut(run, k=(4,)).result
    alone = cut_words(whole)
    assert alone is not None and set(alone.sites) == set(whole.sites)

    def spread(cut):
        part = cut.parts["language.0"]
        table = run.tokens(part.layout)
        is_word = np.flatnonzero(~np.asarray(table.kind == 0)[part.token_rows])
        rgb = cut.rgb[part.rows][is_word].astype(float)
        words = np.asarray(table.text, dtype=object)[part.token_rows[is_word]]
        means = np.stack([rgb[words == word].mean(0) for word in sorted(set(words))])
        return np.linalg.norm(means[:, None] - means[None], axis=2).mean()

    assert spread(alone) > 1.2 * spread(whole)


def test_a_cut_of_words_is_not_cut_again(run):
    words = vs.cut(run, kinds=("text",), k=(4,)).result
    assert cut_words(words) is None
