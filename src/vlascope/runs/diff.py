"""Comparing two runs: what was asked, which items, how far apart the tokens are, which items and answers changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import watched
from .config import differing_fields
from .run import Run
from .tables import ItemRow


@dataclass(frozen=True, kw_only=True)
class SiteDiff:
    """How far apart two captures of one site are, over the items that both hold with equal token counts.

    Attributes:
        site: Its name.
        n_tokens: Tokens that were compared.
        n_items_uncomparable: Common items whose token counts (or the site's widths) differ.
        identical: Every value has the same bits.
        max_abs: Largest difference of a value.
        relative: Norm of the difference over the norm of the first run's tokens.
        mean_cosine: Mean cosine between the two versions of a token; None when nothing could be compared.
    """

    site: str
    n_tokens: int
    n_items_uncomparable: int
    identical: bool
    max_abs: float
    relative: float
    mean_cosine: float | None


@dataclass(frozen=True, kw_only=True)
class RunDiff:
    """What differs between two runs.

    Attributes:
        identical: Both hold the same items, sites, tokens, images and answers, to the bit, in the same run format.
        config: One line per field of the configuration that differs.
        n_common: Items that both hold (by item id, in case of repeats the n-th with the n-th).
        only_a, only_b: Item ids that one of them holds.
        sites_only_a, sites_only_b: Sites that one of them holds.
        sites: One entry per common site.
        items: Item ids of which something known differs: prompt, labels, state, action, boxes, camera and the like.
        answers: Item ids whose answers differ: text, action, chunk of actions or warnings of the decoder.
    """

    identical: bool
    config: tuple[str, ...]
    n_common: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    sites_only_a: tuple[str, ...]
    sites_only_b: tuple[str, ...]
    sites: tuple[SiteDiff, ...]
    items: tuple[str, ...]
    answers: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def diff_runs(a: Run, b: Run) -> RunDiff:
    """Return what differs between two complete runs.

    Runs whose commit markers agree are identical without a look at their tokens.

    Cost: else it reads the common sites of both once; memory of one item's tokens.
    """
    pairs, only_a, only_b = _pair_items(a, b)
    common_sites = [site for site in a.sites if site in b.sites]
    same_content = a.info["content_sha256"] == b.info["content_sha256"]
    sites = [
        _site_diff(a, b, site, pairs, same_content=same_content)
        for site in watched(common_sites, desc="sites", unit="site")
    ]
    items = [
        a.items[i].item_id for i, j in pairs if not same_content and _known(a.items[i]) != _known(b.items[j])
    ]
    answers = [a.items[i].item_id for i, j in pairs if not same_content and _answer(a, i) != _answer(b, j)]
    return RunDiff(
        identical=same_content,
        config=tuple(differing_fields(a.config, b.config)),
        n_common=len(pairs),
        only_a=tuple(only_a),
        only_b=tuple(only_b),
        sites_only_a=tuple(site for site in a.sites if site not in b.sites),
        sites_only_b=tuple(site for site in b.sites if site not in a.sites),
        sites=tuple(sites),
        items=tuple(items),
        answers=tuple(answers),
    )


def _pair_items(a: Run, b: Run) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    def keys(run: Run) -> dict[tuple[str, int], int]:
        seen: dict[str, int] = {}
        out = {}
        for row in run.items:
            n = seen[row.item_id] = seen.get(row.item_id, -1) + 1
            out[row.item_id, n] = row.index
        return out

    in_a, in_b = keys(a), keys(b)
    pairs = [(i, in_b[key]) for key, i in in_a.items() if key in in_b]
    return pairs, [k[0] for k in in_a if k not in in_b], [k[0] for k in in_b if k not in in_a]


_PLACES = ("index", "source_index", "media", "mask_media", "source")
"""Where a run found and keeps an item, which says nothing about the item."""


def _known(row: ItemRow) -> dict[str, Any]:
    """Return what is known about an item, in values that compare by `==`."""
    return {f.name: _plain(getattr(row, f.name)) for f in fields(row) if f.name not in _PLACES}


def _answer(run: Run, item: int) -> dict[str, Any] | None:
    row = run.response(item)
    return (
        None
        if row is None
        else {f.name: _plain(getattr(row, f.name)) for f in fields(row) if f.name != "item"}
    )


def _plain(value: Any) -> Any:
    """Return an array as what tells it from every other one (NaN equals itself), anything else as it is."""
    return (value.shape, value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else value


def _site_diff(a: Run, b: Run, site: str, pairs: list[tuple[int, int]], *, same_content: bool) -> SiteDiff:
    acts_a, acts_b = a.acts(site), b.acts(site)
    if same_content:
        return SiteDiff(
            site=site,
            n_tokens=len(acts_a),
            n_items_uncomparable=0,
            identical=True,
            max_abs=0.0,
            relative=0.0,
            mean_cosine=1.0,
        )
    n_tokens, n_skipped, top = 0, 0, 0.0
    square, square_a, cosines = 0.0, 0.0, 0.0
    identical = a.sites[site].dtype == b.sites[site].dtype
    for x, y in _matched(a, b, site, pairs):
        if x.shape != y.shape:
            n_skipped += 1
            identical = False
            continue
        n_tokens += len(x)
        identical = identical and np.array_equal(x.view(np.uint8), y.view(np.uint8))
        u, v = x.astype(np.float64), y.astype(np.float64)
        gap = u - v
        top = max(top, float(np.abs(gap).max(initial=0.0)))
        square += float((gap * gap).sum())
        square_a += float((u * u).sum())
        norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        same = (u == v).all(1)  # also tokens of norm zero
        cosines += float(np.where(same, 1.0, (u * v).sum(1) / np.maximum(norms, 1e-300)).sum())
    return SiteDiff(
        site=site,
        n_tokens=n_tokens,
        n_items_uncomparable=n_skipped,
        identical=identical and len(acts_a) == len(acts_b),
        max_abs=top,
        relative=float(np.sqrt(square / square_a)) if square_a else float(square > 0),
        mean_cosine=cosines / n_tokens if n_tokens else None,
    )


def _matched(
    a: Run, b: Run, site: str, pairs: list[tuple[int, int]]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    acts_a, acts_b = a.acts(site), b.acts(site)
    tokens_a, tokens_b = a.tokens(a.sites[site].layout), b.tokens(b.sites[site].layout)
    for i, j in pairs:
        yield (
            np.ascontiguousarray(acts_a[tokens_a.rows_of(i)]),
            np.ascontiguousarray(acts_b[tokens_b.rows_of(j)]),
        )
