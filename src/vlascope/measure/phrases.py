"""The phrases of an instruction over time: when the words of each change, and whether that is at an event."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..models.layout import KINDS
from .changes import PENALTY, TOLERANCE, Kind, agreement, change_points
from .result import Result, adjusted, cannot_say
from .timeline import Timeline

if TYPE_CHECKING:
    from ..runs import Run

PREPOSITIONS = frozenset(
    "on in into onto to from under over at with of near off behind beside between inside through".split()
)
DETERMINERS = frozenset("the a an this that these those its their your both all".split())
N_COMPONENTS = 8


def split_phrases(prompt: str) -> list[str]:
    """Return the phrases of an instruction: "put | the red cup | on the plate".

    A phrase begins at a preposition or, unless it follows one, at a determiner ("up" and "down" stay with their verb).
    """
    out: list[list[str]] = []
    for word in re.findall(r"[\w'-]+", prompt.lower()):
        follows = bool(out and out[-1] and out[-1][-1] in PREPOSITIONS)
        starts = word in PREPOSITIONS or (word in DETERMINERS and not follows)
        if not out or starts:
            out.append([])
        out[-1].append(word)
    return [" ".join(words) for words in out]


def words_of(texts: Sequence[str], phrase: str) -> list[int]:
    """Return which tokens spell a phrase, in order; the first place where they do. Empty when nowhere.

    Word pieces are joined, so that "ob", "ject" spell "object"; case and spaces do not matter.
    """
    wanted = re.sub(r"\W+", "", phrase.lower())
    pieces = [re.sub(r"\W+", "", text.lower()) for text in texts]
    for start in range(len(pieces)):
        spelt, rows = "", []
        for at in range(start, len(pieces)):
            if not pieces[at]:
                continue
            spelt += pieces[at]
            rows.append(at)
            if spelt == wanted:
                return rows if rows[0] == start else []
            if not wanted.startswith(spelt):
                break
    return []


def phrase_results(
    run: Run,
    lines: Sequence[Timeline],
    *,
    site: str,
    tolerance: int = TOLERANCE,
    kind: Kind = "trend",
    penalty: float = PENALTY,
    n_permutations: int = 199,
    seed: int = 0,
) -> list[Result]:
    """Return for each place of a phrase (first, second, ...) and event whether the phrase changes at that event.

    The words of a phrase, as the layer holds them, are averaged per frame (8 principal components of the episode);
    their change points are compared with the event (see `agreement`). Words can only follow the image in models
    whose text sees the image; elsewhere they stand still and nothing is found.

    Args:
        run: The run.
        lines: Its time lines.
        site: A layer with the words of the prompt.
        tolerance: Frames.
        kind: See `change_points`.
        penalty: See `change_points`.
        n_permutations: Shuffles.
        seed: Seeds them.

    Returns:
        Results corrected over all pairs; one "cannot say" where the layer has no words or episodes no prompt.
    """
    table = run.tokens(run.site(site).layout)
    name = f"phrases at {site}"
    if not (table.kind == KINDS.index("text")).any():
        return [cannot_say(name, "the layer has no words", over="episode")]
    tracks: dict[int, list[tuple[NDArray[np.int64], Timeline]]] = {}
    for line in lines:
        if line.changes is None or not line.prompt:
            continue
        for place, phrase in enumerate(split_phrases(line.prompt)):
            series = _track(run, line, site=site, phrase=phrase)
            if series is not None:
                moved = change_points(series, kind=kind, penalty=penalty, seed=seed)
                tracks.setdefault(place, []).append((moved, line))
    if not tracks:
        return [cannot_say(name, "no episode has a prompt whose words are among the tokens", over="episode")]
    events = list(dict.fromkeys(event for line in lines for event in line.events))
    if not events:
        return [cannot_say(name, "no events are known", over="episode")]
    out = []
    for place, found in sorted(tracks.items()):
        texts = {split_phrases(line.prompt or "")[place] for _, line in found}
        example = split_phrases(found[0][1].prompt or "")[place]
        shown = f"'{example}'" if len(texts) == 1 else f"such as '{example}'"
        for event in events:
            out.append(
                agreement(
                    [moved for moved, _ in found],
                    [line.events for _, line in found],
                    [line.n_frames for _, line in found],
                    names=(event,),
                    tolerance=tolerance,
                    n_permutations=n_permutations,
                    seed=seed,
                    name=f"phrase {place + 1} ({shown}) / {event}",
                )  # fmt: skip
            )
    return adjusted(out)


def _track(run: Run, line: Timeline, *, site: str, phrase: str) -> NDArray[np.float64] | None:
    table, acts = run.tokens(run.site(site).layout), run.acts(site)
    vectors = []
    for item in line.items.tolist():
        span = table.rows_of(item)
        is_text = np.flatnonzero(table.kind[span] == KINDS.index("text")) + span.start
        rows = words_of([table.text[i] for i in is_text], phrase)
        if not rows:
            return None
        values = np.asarray(acts[span], np.float64)
        vectors.append(values[is_text[rows] - span.start].mean(0))
    x = np.stack(vectors)
    x = x - x.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return (u * s)[:, :N_COMPONENTS]
