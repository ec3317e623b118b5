from __future__ import annotations

import html
import re

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.views import words
from vlascope.views.style import css_color
from vlascope.views.tokens import TokenIndex
from vlascope.views.words import word_block, word_concepts

NASTY = [
    "<s>",
    "▁pick",
    "▁<script>alert(1)</script>",
    "▁fra",
    "gile",
    "<0x0A>",
    '▁"&',
    *[f"▁word{i}" for i in range(40)],
]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    from fakes import make_cut

    return make_cut(tmp_path_factory.mktemp("nasty"), n_steps=1, words=NASTY, prompt="<b>bold</b>")


def test_every_word_has_its_colour_at_every_layer(cut):
    index = TokenIndex(cut)
    block = word_block(index, 2, sites=index.word_sites(), rgb=index.cut.rgb, concepts=str)
    (table,) = block.tables
    assert [row.site for row in table.rows] == ["language.0", "language.1", "language.2"]
    for row in table.rows:
        found = index.words(row.site, 2)
        assert [c.background for c in row.cells] == [css_color(tuple(cut.rgb[i])) for i in found.index]
        assert [c.text for c in row.cells] == list(found.texts)


def test_text_is_shown_and_not_run(nasty, tmp_path):
    page = words(nasty).save(tmp_path / "words.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>bold" not in page


def test_pieces_join_and_line_ends_show(nasty):
    index = TokenIndex(nasty)
    first = (
        word_block(index, 0, sites=["language.0"], rgb=index.cut.rgb, concepts=str).tables[0].rows[0].cells
    )
    assert [c.text for c in first[3:6]] == ["fra", "gile", "↵"]
    assert "cont" in first[4].classes.split() and "cont" not in first[3].classes.split()


def test_long_texts_go_on_below_without_loss(nasty):
    sites = ["language.0", "language.1"]
    block = word_block(TokenIndex(nasty), 0, sites=sites, rgb=nasty.rgb, concepts=str)
    assert len(block.tables) > 1
    texts = [c.text for t in block.tables for c in t.rows[1].cells]
    assert len(texts) == len(NASTY) and texts[-1] == "word39"


def test_a_cut_without_words_says_so(cut):
    with pytest.raises(InputError, match="language"):
        words(cut, sites=["vision.0"])


def test_words_with_a_palette_of_their_own_tell_of_that_cut(cut, tmp_path):
    from fakes import make_word_cut

    own = make_word_cut(cut)
    piece = words(cut, word_cut=own, items=[2])
    assert piece.params["cut"]["n_eig"] == 3 and "n_eig 3" in piece.html and "n_eig 5" not in piece.html
    assert "among the words alone: concept " in piece.html and " of 25" not in piece.html
    plain = words(cut, items=[2])
    assert "n_eig 5" in plain.html and " of 25" in plain.html and "words alone: concept" not in plain.html
    for page in (piece, plain):
        titles = re.findall(r'title="([^"]*)"', page.html)
        assert titles and not any("#" in title for title in titles)  # no raw colours for readers
    assert words(cut).save(tmp_path / "words.html").read_text().count("<main>") == 1


def test_words_of_own_concepts_are_those_of_the_token(cut):
    from fakes import make_word_cut

    own = make_word_cut(cut)
    told = word_concepts(cut, own)
    for site, part in own.parts.items():
        base = cut.parts[site]
        row = base.rows.start + int(np.flatnonzero(base.token_rows == part.token_rows[1])[0])
        label = own.labels[4][part.rows.start + 1]
        assert told(row) == f"among the words alone: concept {label + 1} of 4"


def test_a_default_prompt_is_said_to_be_one(tmp_path):
    from fakes import make_cut

    said = "the model's default prompt"
    assert said in html.unescape(words(make_cut(tmp_path, n_steps=1, n_vision=1, prompt=None)).html)
    assert said not in html.unescape(words(make_cut(tmp_path, n_steps=1, n_vision=1)).html)
