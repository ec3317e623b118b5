"""Words of captions: nouns and verbs told apart by a tagger that works offline, each reduced to its dictionary form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, missing_extra

if TYPE_CHECKING:
    from ..runs import Run

WordKind = Literal["noun", "verb"]
_UPOS: dict[str, tuple[WordKind, str]] = {"NN": ("noun", "NOUN"), "VB": ("verb", "VERB")}
AUXILIARIES = frozenset(
    ("be", "have", "do", "can", "will", "would", "could", "should", "may", "might", "must")
)


@dataclass(frozen=True)
class Vocabulary:
    """Which items have which words in their captions.

    Attributes:
        words: The words, in dictionary form.
        kinds: "noun" or "verb" of each; a word that occurs as both is listed twice.
        has: bool [n_items, n_words].
    """

    words: tuple[str, ...]
    kinds: tuple[WordKind, ...]
    has: NDArray[np.bool_]

    def frequent(self, *, min_items: int, max_share: float, max_words: int | None) -> Vocabulary:
        """Return the words that occur in at least `min_items` items and at most a share of them, commonest first."""
        counts = self.has.sum(0)
        order = np.argsort(-counts, kind="stable")
        keep = [int(j) for j in order if min_items <= counts[j] <= max_share * len(self.has)]
        keep = keep if max_words is None else keep[:max_words]
        return Vocabulary(
            tuple(self.words[j] for j in keep), tuple(self.kinds[j] for j in keep), self.has[:, keep]
        )


def caption_words(text: str) -> set[tuple[str, WordKind]]:
    """Return the nouns and verbs of a caption in dictionary form; auxiliaries are left out.

    Tags are those of TextBlob's lexicon and rules (Brill's tagger), dictionary forms those of LemmInflect; both come
    with their data. A caption in capitals is read in lower case.

    Raises:
        MissingExtraError: the extra `eval` is not installed.
    """
    tag, lemmas = _tools()
    text = text.lower() if text.isupper() else text
    # Sentences start in upper case, which the tagger may take for a name.
    text = text[:1].lower() + text[1:]
    out: set[tuple[str, WordKind]] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the tagger leaves its lexicon's file to be closed
        tagged = tag(text)
    for word, label in tagged:
        known = _UPOS.get(label[:2])
        clean = word.strip("'\"-.,;:!?()").lower()
        if known is None or len(clean) < 2 or not clean.replace("-", "").isalpha():
            continue
        kind, upos = known
        lemma = lemmas(clean, upos)
        if lemma not in AUXILIARIES:
            out.add((lemma, kind))
    return out


def vocabulary(captions: Sequence[Sequence[str]]) -> Vocabulary:
    """Return which items have which words.

    Args:
        captions: For each item its captions (several are read as one).

    Raises:
        InputError: no caption at all, or no noun or verb in them.
        MissingExtraError: the extra `eval` is not installed.

    Cost: about 0.1 ms per caption, after 1 to 4 s to load the lexicon.
    """
    if not any(text.strip() for texts in captions for text in texts):
        raise InputError("no item has a caption; capture a dataset with captions (COCO) or name the label.")
    found = [set().union(*(caption_words(text) for text in texts)) for texts in captions]
    names = sorted(set().union(*found))
    if not names:
        raise InputError("the captions hold no noun and no verb; are they English?")
    place = {name: j for j, name in enumerate(names)}
    has = np.zeros((len(captions), len(names)), bool)
    for i, words in enumerate(found):
        has[i, [place[word] for word in words]] = True
    return Vocabulary(tuple(w for w, _ in names), tuple(k for _, k in names), has)


def run_captions(run: Run, *, label: str = "caption") -> list[list[str]]:
    """Return the captions of each item: labels `caption`, `caption.1`, ... (or another name).

    Raises:
        InputError: no item has one.
    """
    out = []
    for row in run.items:
        keys = [key for key in row.labels if key == label or key.startswith(f"{label}.")]
        out.append([str(row.labels[key]) for key in keys if row.labels[key]])
    if not any(out):
        known = sorted({key for row in run.items for key in row.labels})
        raise InputError(f"no item has a label '{label}'. Labels are: {', '.join(known) or 'none'}.")
    return out


@cache
def _tools() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that are imported on the way
            from lemminflect import getLemma
            from textblob.en.taggers import PatternTagger
    except ImportError as error:
        raise missing_extra(
            "textblob and lemminflect", extra="eval", needed_for="tagging captions"
        ) from error

    @cache
    def lemma(word: str, upos: str) -> str:
        return (getLemma(word, upos=upos) or (word,))[0].lower()

    return PatternTagger().tag, lemma
