"""Tokens of a run in shuffled batches, in memory that does not grow with the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.layout import KINDS

if TYPE_CHECKING:
    from ..runs import Run

POOL_BYTES = 256 << 20
"""Tokens held in memory, all sites together."""
MIN_TOKENS = 64
MAX_NORM = 1e18
"""Longest token: squares and products of two must be finite in float32."""
TOKEN_KINDS = ("auto", "all", *KINDS)


@dataclass(frozen=True)
class Split:
    """Which items are trained on and which are held out, as whole episodes wherever items belong to one.

    Attributes:
        train, held_out: Rows of items, increasing.
        over: "episode" or "item".
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    over: str


def split_items(run: Run, *, held_out: float, seed: int) -> Split:
    """Return a split of a run's items by episodes (or items, where there are none).

    Raises:
        InputError: fewer than two episodes or items.
    """
    episodes = [row.episode for row in run.items]
    over = "episode" if episodes and all(e is not None for e in episodes) else "item"
    ids = np.array(episodes if over == "episode" else [row.index for row in run.items], np.int64)
    units = np.unique(ids)
    if len(units) < 2 and over == "episode" and len(ids) >= 2:
        # One film: its end is held out, as neighbouring frames look alike.
        n_held = max(1, round(held_out * len(ids)))
        rows = np.arange(len(ids))
        return Split(rows[: len(ids) - n_held], rows[len(ids) - n_held :], "item")
    if len(units) < 2:
        raise InputError(
            f"the run holds {len(units)} {over}; need at least 2, as one is held out. Capture more items."
        )
    n_held = min(len(units) - 1, max(1, round(held_out * len(units))))
    held = np.random.default_rng([seed, 1]).permutation(units)[:n_held]
    is_held = np.isin(ids, held)
    return Split(np.flatnonzero(~is_held), np.flatnonzero(is_held), over)


class TokenStream:
    """Shuffled batches of chosen tokens at sites that share a layout.

    Items are drawn in random order into a pool of bounded size; the pool's tokens are shuffled and dealt out. The
    order depends on the seed alone, so a stream that starts at batch n continues an earlier one exactly.
    """

    def __init__(
        self,
        run: Run,
        sites: Sequence[str],
        *,
        tokens: str = "auto",
        items: NDArray[np.int64],
        batch: int,
        pool_bytes: int = POOL_BYTES,
        seed: int = 0,
        at_least: int = MIN_TOKENS,
    ) -> None:
        self.run, self.sites, self.batch, self.seed = run, tuple(sites), batch, seed
        layout = run.site(self.sites[0]).layout
        self.rows_of = token_rows(run, layout, tokens=tokens, items=items, at_least=at_least)
        self.n_tokens = int(sum(len(rows) for rows in self.rows_of))
        bytes_per_row = sum(run.acts(s).shape[1] * run.acts(s).dtype.itemsize for s in self.sites)
        self.pool_rows = max(batch, pool_bytes // bytes_per_row)

    def batches(self, *, start: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield batches without end, pass after pass, from number `start` on; each maps site to values [b, d]."""
        at, epoch = 0, 0
        lengths = np.array([len(rows) for rows in self.rows_of])
        while True:
            rng = np.random.default_rng([self.seed, 2, epoch])
            order = rng.permutation(len(self.rows_of))
            total = np.cumsum(lengths[order])
            first = 0
            for number in range(len(order)):
                full = total[number] - (total[first - 1] if first else 0)
                more = number + 1 < len(order) and full + lengths[order[number + 1]] <= self.pool_rows
                if more:
                    continue
                n_batches = max(1, round(full / self.batch))
                if at + n_batches > start:
                    shuffle = np.random.default_rng([self.seed, 3, epoch, first]).permutation(full)
                    pools = self._read(order[first : number + 1])
                    for place, part in enumerate(np.array_split(shuffle, n_batches)):
                        if at + place >= start:
                            yield {site: pool[part] for site, pool in pools.items()}
                    del pools
                at += n_batches
                first = number + 1
            epoch += 1

    def _read(self, items: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        out: dict[str, NDArray[Any]] = {}
        n_rows = int(sum(len(self.rows_of[i]) for i in items))
        # In the order of the file, so that blocks are read once and forwards; the shuffle comes after.
        for site in self.sites:
            acts = self.run.acts(site)
            pool = np.empty((n_rows, acts.shape[1]), acts.dtype)
            at = 0
            for i in np.sort(items):
                rows = self.rows_of[i]
                pool[at : at + len(rows)] = read_rows(acts, rows)
                check_values(pool[at : at + len(rows)], self.run, site, rows)
                at += len(rows)
            out[site] = pool
        return out

    def sample(self, n_rows: int) -> dict[str, NDArray[np.float32]]:
        """Return up to `n_rows` tokens from items all over the stream, float32 [n, d] per site."""
        rng = np.random.default_rng([self.seed, 4])
        share = min(1.0, n_rows / max(1, self.n_tokens))
        picked = []
        for rows in self.rows_of:
            n = min(len(rows), int(np.ceil(share * len(rows))))
            picked.append(np.sort(rng.choice(rows, n, replace=False)))
        flat = np.concatenate(picked)
        if len(flat) > n_rows:
            flat = np.sort(rng.choice(flat, n_rows, replace=False))
        out = {}
        for site in self.sites:
            out[site] = np.asarray(self.run.acts(site)[flat], np.float32)
            check_values(out[site], self.run, site, flat)
        return out


def token_rows(
    run: Run, layout: str, *, tokens: str = "auto", items: NDArray[np.int64], at_least: int = 2
) -> list[NDArray[np.int64]]:
    """Return for each item the rows of its chosen tokens; items without any are left out.

    Args:
        run: The run.
        layout: Layout of the site.
        tokens: A kind of token, "all", or "auto" (patches where there are any, else all).
        items: Rows of items.
        at_least: Tokens that there must be.

    Raises:
        InputError: unknown kind, or too few such tokens.
    """
    if tokens not in TOKEN_KINDS:
        raise InputError(f"unknown kind of token '{tokens}'; known are {', '.join(TOKEN_KINDS)}.")
    table = run.tokens(layout)
    patches = table.kind == KINDS.index("patch")
    if tokens == "auto":
        tokens = "patch" if patches.any() else "all"
    chosen = np.ones(len(table), bool) if tokens == "all" else table.kind == KINDS.index(tokens)
    out = []
    for item in items:
        at = table.rows_of(int(item))
        rows = np.flatnonzero(chosen[at]) + at.start
        if len(rows):
            out.append(rows)
    n = sum(len(rows) for rows in out)
    if n < at_least:
        raise InputError(
            f"the run has {n} tokens of kind '{tokens}' in {len(items)} items of layout '{layout}'; need at least "
            f"{at_least}. Capture more items, or choose others with --kind."
        )
    return out


def read_rows(acts: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows of a site; neighbouring rows are read as one slice."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return acts[int(rows[0]) : int(rows[-1]) + 1]
    return acts[rows]


def check_values(values: NDArray[Any], run: Run, site: str, rows: NDArray[np.int64]) -> None:
    """Refuse tokens that cannot be computed with, by the name of their item.

    Raises:
        InputError: NaN, infinite or too large values.
    """
    with np.errstate(invalid="ignore"):
        largest = np.maximum(values.max(1).astype(np.float64), -values.min(1).astype(np.float64))
    good = largest <= MAX_NORM / np.sqrt(values.shape[1])  # false for NaN
    if not good.all():
        at = int(np.flatnonzero(~good)[0])
        row = int(rows[at])
        item = run.items[int(run.tokens(run.site(site).layout).item[row])]
        what = (
            f"a value of size {largest[at]:.3g}, whose square float32 cannot hold"
            if np.isfinite(largest[at])
            else "NaN or infinite values"
        )
        raise InputError(
            f"site '{site}': the activations of item '{item.item_id}' hold {what} (row {row}). Capture the run again, "
            "or leave that item out."
        )
