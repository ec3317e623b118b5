"""A cut of the words alone, because among all the patches of a run the words of a prompt are one group."""

from __future__ import annotations

import numpy as np

from ..models.layout import KINDS
from .cut import CutResult, cut_run

WORD_KINDS = ("text", "action")
MIN_WORDS = 64
"""Fewer words than this are not cut on their own."""

_N_EIG, _K = 12, 8


def cut_words(cut: CutResult) -> CutResult | None:
    """Return a cut of the words of all sites of `cut`, without its patches; None where there is nothing to gain.

    In a graph of all tokens, thousands of patches take the leading eigenvectors and the words of a prompt come out
    almost in one colour. Cut alone, with the same seed, affinity and density, words differ from one another. The
    result is saved in the run like any other cut.

    Args:
        cut: Any cut of a run.

    Returns:
        None when `cut` holds words only (they have a palette of their own already) or fewer than `MIN_WORDS` words.

    Cost: one cut of the words; none when it is saved already.
    """
    ids = [KINDS.index(kind) for kind in WORD_KINDS]
    n_words, n_tokens, sites = 0, 0, []
    for site, part in cut.parts.items():
        kinds = np.asarray(cut.run.tokens(part.layout).kind)[part.token_rows]
        n_here = int(np.isin(kinds, ids).sum())
        n_words, n_tokens = n_words + n_here, n_tokens + len(kinds)
        sites += [site] if n_here else []
    if n_words < MIN_WORDS or n_words == n_tokens:
        return None
    return cut_run(
        cut.run,
        sites=sites,
        kinds=WORD_KINDS,
        n_eig=_N_EIG,
        k=(_K,),
        seed=int(cut.params["seed"]),
        affinity=cut.params["affinity"],
        density=float(cut.params["density"]),
    )
