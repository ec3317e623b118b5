from __future__ import annotations

import pytest

from vlascope.errors import InputError
from vlascope.views import words
from vlascope.views.style import css_color
from vlascope.views.tokens import TokenIndex
from vlascope.views.words import word_block

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
    block = word_block(index, 2, sites=index.word_sites(), rgb=index.cut.rgb)
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
    first = word_block(index, 0, sites=["language.0"], rgb=index.cut.rgb).tables[0].rows[0].cells
    assert [c.text for c in first[3:6]] == ["fra", "gile", "↵"]
    assert "cont" in first[4].classes.split() and "cont" not in first[3].classes.split()


def test_long_texts_go_on_below_without_loss(nasty):
    block = word_block(TokenIndex(nasty), 0, sites=["language.0", "language.1"], rgb=nasty.rgb)
    assert len(block.tables) > 1
    texts = [c.text for t in block.tables for c in t.rows[1].cells]
    assert len(texts) == len(NASTY) and texts[-1] == "word39"


def test_a_cut_without_words_says_so(cut):
    with pytest.raises(InputError, match="language"):
        words(cut, sites=["vision.0"])
