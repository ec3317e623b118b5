"""Coloured words: the tokens with a text, one row per layer, in the colours of the cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .choose import check_items, choose_items, item_note, item_title
from .describe import footer, model_name, picture_params
from .html import asset, render
from .picture import HtmlPiece
from .robot import answer_text
from .style import css_color, ink_on
from .tokens import TokenIndex, Words

if TYPE_CHECKING:
    from ..palette import SavedCut

DEFAULT_PROMPT_NOTE = "no prompt was given: what stands here is the model's default prompt"
"""Said of the words of an item without a prompt."""

MAX_CHARACTERS = 104
"""Characters of one line of words; longer texts go on in a table below."""

_WORD_STARTS = ("▁", "Ġ")  # SentencePiece and byte-level BPE mark a space before a word so
_VISIBLE = {"\n": "↵", "<0x0A>": "↵", "Ċ": "↵", "\t": "⇥", "": "∅"}


WORDS_NOTE = {
    True: "Words have a palette of their own: all words at all layers were cut together, without the patches. "
    "Words of one colour are alike to the model, and one colour means the same at every layer.",
    False: "A word in the colour of a region lies near it in the cut.",
}
"""What a page says about the colours of words, by whether they have a palette of their own."""


@dataclass(frozen=True, kw_only=True)
class WordCell:
    """One token at one layer."""

    text: str
    background: str
    ink: str
    classes: str
    hint: str
    concept: str
    token: int | None


@dataclass(frozen=True, kw_only=True)
class WordRow:
    """The tokens of a line at one layer."""

    site: str
    cells: tuple[WordCell, ...]


@dataclass(frozen=True, kw_only=True)
class WordTable:
    """A line of words at all layers."""

    rows: tuple[WordRow, ...]


@dataclass(frozen=True, kw_only=True)
class WordBlock:
    """All words of one item."""

    title: str
    note: str
    tables: tuple[WordTable, ...]


def words(
    cut: SavedCut,
    *,
    word_cut: SavedCut | None = None,
    items: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    n_items: int = 4,
) -> HtmlPiece:
    """Return the words of the prompt (and of the answer, where it was captured) in colour, layer by layer.

    Args:
        cut: What to draw.
        word_cut: A cut of the same words alone, whose colours are taken (see `vlascope.spectral.cut_words`); None
            takes those of `cut`, in which words and patches share one palette.
        items: Rows of the run; None spreads `n_items` over the episodes.
        sites: Layers, top to bottom; None takes all sites of the cut with words.
        n_items: At most so many items when `items` is None.

    Raises:
        SiteNotFoundError: the cut does not hold a site.
        InputError: no site has words, or an item is not in the run.
    """
    index = TokenIndex(cut)
    names = index.word_sites() if sites is None else tuple(index.check_site(s) for s in sites)
    names = tuple(s for s in names if index.has_words(s))
    if not names:
        raise InputError(
            f"none of the sites {', '.join(sites or cut.sites)} has words in this cut; cut a site of the language "
            "model, e.g. vs.cut(run, sites=['language.*'])."
        )
    chosen = choose_items(cut.run, n=n_items, among=index.items_of(names[0])) if items is None else items
    rgb = word_colors(cut, word_cut)
    concepts = word_concepts(cut, word_cut)
    blocks = [
        word_block(index, item, sites=names, rgb=rgb, concepts=concepts)
        for item in check_items(cut.run, chosen)
    ]
    params = picture_params(
        cut if word_cut is None else word_cut, view="words", sites=names, items=list(chosen)
    )
    title = f"The words that {model_name(cut.run)} read, layer by layer"
    html = render(
        "words.html.j2",
        title=title,
        subtitle=WORDS_NOTE[word_cut is not None],
        blocks=blocks,
        footer=footer(params),
    )
    return HtmlPiece(html=html, style=asset("base.css"), title=title, params=params)


def word_colors(cut: SavedCut, word_cut: SavedCut | None) -> NDArray[np.uint8]:
    """Return uint8 [n, 3], the colours of a cut, with its words in the colours of `word_cut` where one is given."""
    if word_cut is None:
        return np.asarray(cut.rgb)
    rgb = np.array(cut.rgb)
    for site, mine in word_cut.parts.items():
        part = cut.parts[site]
        at = np.searchsorted(part.token_rows, mine.token_rows)
        rgb[part.rows.start + at] = word_cut.rgb[mine.rows]
    return rgb


def word_concepts(cut: SavedCut, word_cut: SavedCut | None) -> Callable[[int], str]:
    """Return what says to which concepts a word (a row of `cut`) belongs: those of the cut that gives its colour."""
    own = np.full(len(cut.rgb), -1, np.int64)
    for site, mine in word_cut.parts.items() if word_cut is not None else ():
        part = cut.parts[site]
        at = np.searchsorted(part.token_rows, mine.token_rows)
        own[part.rows.start + at] = np.arange(mine.rows.start, mine.rows.stop)

    def told(row: int) -> str:
        if word_cut is not None and own[row] >= 0:
            of = [f"{labels[own[row]] + 1} of {k}" for k, labels in sorted(word_cut.labels.items())]
            return (
                f"among the words alone: concept {' · '.join(of)}" if of else "coloured among the words alone"
            )
        return " · ".join(f"concept {labels[row] + 1} of {k}" for k, labels in sorted(cut.labels.items()))

    return told


def word_block(
    index: TokenIndex,
    item: int,
    *,
    sites: Sequence[str],
    rgb: NDArray[np.uint8],
    concepts: Callable[[int], str],
    token_of: Callable[[int], int] | None = None,
) -> WordBlock:
    """Return the words of one item at some layers, ready for the template.

    Args:
        index: Looks up the tokens of the cut.
        item: Row of the run.
        sites: Layers, top to bottom.
        rgb: uint8 [n, 3], a colour for every row of the cut, see `word_colors`.
        concepts: Says to which concepts a row of the cut belongs, see `word_concepts`.
        token_of: Maps a row of the cut to a number that the page's script knows; None where there is no script.
    """
    run = index.cut.run
    found = {site: index.words(site, item) for site in sites}
    found = {site: w for site, w in found.items() if w.texts}
    groups: dict[tuple, list[str]] = {}
    for site, w in found.items():  # layers that read the same tokens share a table
        groups.setdefault((w.texts, tuple(w.positions.tolist())), []).append(site)
    tables = []
    for members in groups.values():
        shown = display_texts(found[members[0]])
        for first, last in _line_breaks(shown):
            rows = []
            for site in members:
                w = found[site]
                cells = tuple(
                    _cell(
                        w,
                        n,
                        shown,
                        rgb,
                        concept=concepts(int(w.index[n])),
                        token=None if token_of is None else token_of(int(w.index[n])),
                        site=site,
                    )
                    for n in range(first, last)
                )
                rows.append(WordRow(site=site, cells=cells))
            tables.append(WordTable(rows=tuple(rows)))
    answer = answer_text(run, item)
    notes = [item_note(run, item)] + ([f"answer: {answer.strip()}"] if answer else [])
    if run.items[item].prompt is None and any("text" in w.kinds for w in found.values()):
        notes.insert(0, DEFAULT_PROMPT_NOTE)
    return WordBlock(
        title=item_title(run, item), note=" · ".join(n for n in notes if n), tables=tuple(tables)
    )


def display_texts(w: Words) -> list[tuple[str, bool]]:
    """Return for each token what to print and whether it continues the word before it."""
    marked = any(text.startswith(_WORD_STARTS) for text in w.texts)
    shown: list[tuple[str, bool]] = []
    for text, kind in zip(w.texts, w.kinds, strict=True):
        starts = text.startswith(_WORD_STARTS) or text[:1].isspace()
        plain = text[1:] if text.startswith(_WORD_STARTS) else text
        plain = _VISIBLE.get(plain.strip(" "), plain.strip(" ")) if plain.strip(" ") else "␣"
        continues = marked and not starts and kind == "text" and bool(shown)
        shown.append((plain.replace("\n", "↵"), continues))
    return shown


def _line_breaks(shown: Sequence[tuple[str, bool]]) -> list[tuple[int, int]]:
    """Return (first, last) of lines of at most about `MAX_CHARACTERS`, broken between words."""
    lines, first, width = [], 0, 0
    for n, (text, continues) in enumerate(shown):
        size = max(3, len(text) + 2)
        if width + size > MAX_CHARACTERS and n > first and not continues:
            lines.append((first, n))
            first, width = n, 0
        width += size
    if first < len(shown):
        lines.append((first, len(shown)))
    return lines


def _cell(
    w: Words,
    n: int,
    shown: Sequence[tuple[str, bool]],
    rgb: np.ndarray,
    *,
    concept: str,
    token: int | None,
    site: str,
) -> WordCell:
    color = tuple(int(v) for v in rgb[w.index[n]])
    classes = [w.kinds[n]]
    if shown[n][1]:
        classes.append("cont")
    if w.kinds[n] == "action" and (n == 0 or w.kinds[n - 1] != "action"):
        classes.append("answer-first")
    return WordCell(
        text=shown[n][0],
        background=css_color(color),  # type: ignore[arg-type]
        ink=css_color(ink_on(color)),  # type: ignore[arg-type]
        classes=" ".join(classes),
        hint=f"{site} · position {int(w.positions[n])} · {w.kinds[n]}",
        concept=concept,
        token=token,
    )
