"""What each latent responds to: density, strongest examples with their maps, coarse parents and fine children."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..files import read_json, write_json
from ..models.layout import KINDS
from ..progress import progress
from .checkpoint import Checkpoint, weights_hash
from .metrics import DENSE_SHARE
from .module import MatryoshkaSAE
from .stream import read_rows, token_rows

if TYPE_CHECKING:
    from ..runs import Run

SCHEMA = 1
BINS_PER_OCTAVE, N_BINS = 8, 256
MIN_CONDITIONAL, MIN_LIFT, N_RELATIVES = 0.3, 2.0, 5


@dataclass(frozen=True)
class LatentStatistics:
    """Activity of all latents over the tokens of a run.

    Attributes:
        n_tokens: Tokens seen.
        counts: int64 [n], tokens in which each latent is active.
        means: float64 [n], mean activation where active; 0 for silent ones.
        p99: float64 [n], 99 % quantile of the activation where active (to 9 %); the unit of steering.
        n_units: int64 [n], episodes (or items) in which it is active at all: few mean memorisation.
        total_units: Episodes (or items) in all.
        over: "episode" or "item".
        top_items, top_rows: int64 [n, examples], items of the strongest activations (one per item; -1: none) and the
            rows of the tokens.
        top_values: float32 [n, examples], decreasing.
        together: For each pair of neighbouring levels a sparse matrix of how often both are active.
    """

    n_tokens: int
    counts: NDArray[np.int64]
    means: NDArray[np.float64]
    p99: NDArray[np.float64]
    n_units: NDArray[np.int64]
    total_units: int
    over: str
    top_items: NDArray[np.int64]
    top_rows: NDArray[np.int64]
    top_values: NDArray[np.float32]
    together: tuple[Any, ...]


def latent_statistics(
    run: Run,
    checkpoint: Checkpoint,
    *,
    site: str | None = None,
    tokens: str = "auto",
    n_examples: int = 6,
    quiet: bool = False,
) -> LatentStatistics:
    """Return the activity of every latent over a run, in one pass and memory independent of its tokens.

    Args:
        run: The run.
        checkpoint: The dictionary.
        site: Where to read (default: where it was trained).
        tokens: Which tokens, as in training.
        n_examples: Strongest items kept per latent.
        quiet: No progress bar.

    Cost: one encode per token.
    """
    site = _site(checkpoint, site)
    sae, n = checkpoint.sae, checkpoint.sae.config.n_latents
    episodes = [row.episode for row in run.items]
    over = "episode" if all(e is not None for e in episodes) else "item"
    names = episodes if over == "episode" else [row.index for row in run.items]
    unit_of = np.unique(np.array(names, np.int64), return_inverse=True)[1]
    total_units = int(unit_of.max()) + 1
    counts, sums = np.zeros(n, np.int64), np.zeros(n)
    histogram = np.zeros((n, N_BINS), np.int32)
    seen = np.zeros((n, total_units), bool)
    top_values = np.zeros((n, n_examples), np.float32)
    top_items, top_rows = np.full((n, n_examples), -1, np.int64), np.full((n, n_examples), -1, np.int64)
    edges = (0, *sae.levels)
    together: list[Any] = [0] * (len(sae.levels) - 1)
    n_tokens = 0
    all_rows = _rows_of_items(run, site, tokens=tokens)
    for item, rows, codes in progress(
        _encoded(run, sae, site, all_rows), desc="reading latents", total=len(all_rows), quiet=quiet
    ):
        cols, values = codes.indices.astype(np.int64), codes.data.astype(np.float64)
        n_tokens += len(rows)
        counts += np.bincount(cols, minlength=n)
        sums += np.bincount(cols, values, minlength=n)
        np.add.at(histogram, (cols, _bin(values)), 1)
        token = np.repeat(np.arange(len(rows)), np.diff(codes.indptr))
        order = np.lexsort((-values, cols))
        first = order[np.unique(cols[order], return_index=True)[1]]
        active, best = cols[first], values[first].astype(np.float32)
        seen[active, unit_of[item]] = True
        better = best > top_values[active, -1]
        active, best, where = active[better], best[better], rows[token[first]][better]
        top_values[active, -1], top_items[active, -1], top_rows[active, -1] = best, item, where
        rank = np.argsort(-top_values[active], axis=1, kind="stable")
        for table in (top_values, top_items, top_rows):
            table[active] = np.take_along_axis(table[active], rank, 1)
        ones = codes.astype(bool).astype(np.int32)
        for i in range(len(together)):
            parents, children = ones[:, edges[i] : edges[i + 1]], ones[:, edges[i + 1] : edges[i + 2]]
            together[i] = together[i] + parents.T @ children
    return LatentStatistics(
        n_tokens=n_tokens,
        counts=counts,
        means=np.divide(sums, counts, out=np.zeros(n), where=counts > 0),
        p99=_quantile(histogram, 0.99),
        n_units=seen.sum(1),
        total_units=total_units,
        over=over,
        top_items=top_items,
        top_rows=top_rows,
        top_values=top_values,
        together=tuple(together),
    )


@dataclass(frozen=True)
class Cards:
    """Cards of some latents, as plain JSON values.

    Attributes:
        path: The file that holds them.
        facts: "model", "site", "levels", "n_tokens", "cards": one object per latent with "latent", "level", "density",
            "mean", "p99", "units", "examples" (item, value, place, "maps": per camera rows of values), "episode"
            (steps and strongest value of the episode of the strongest example), "parents" and "children" (latent,
            share, lift).
    """

    path: Path
    facts: dict[str, Any]

    def _repr_html_(self) -> str:
        from ..card import card

        rows = [
            (c["latent"], f"first {c['level']:,}", f"{100 * c['density']:.3g} %", f"{c['p99']:.3g}",
             f"{c['units']} of {self.facts['n_units']} {self.facts['over']}s",
             ", ".join(str(p["latent"]) for p in c["parents"]), ", ".join(str(p["latent"]) for p in c["children"]))
            for c in self.cards
        ]  # fmt: skip
        head = ("latent", "level", "active in", "99 % below", "seen in", "within", "contains")
        facts = [
            ("tokens", f"{self.facts['n_tokens']:,}"),
            ("levels", ", ".join(map(str, self.facts["levels"]))),
        ]
        return card(f"Dictionary of {self.facts['site']}", facts, head=head, rows=rows)

    @property
    def cards(self) -> list[dict[str, Any]]:
        """One object per latent."""
        return self.facts["cards"]


def make_cards(
    run: Run,
    checkpoint: Checkpoint,
    *,
    site: str | None = None,
    tokens: str = "auto",
    latents: Sequence[int] = (),
    n_cards: int = 64,
    n_examples: int = 6,
    quiet: bool = False,
) -> Cards:
    """Write and return cards of latents: what they respond to, where in the image and when in the episode.

    Args:
        run: The run to look at; its model must be the dictionary's.
        checkpoint: The dictionary.
        site: Where to read (default: where it was trained).
        tokens: Which tokens, as in training.
        latents: Which latents; default: for each level those that carry most of the signal, leaving out those active
            in more than 10 % of the tokens.
        n_cards: How many, when `latents` is empty.
        n_examples: Items per card.
        quiet: No progress bar.

    Raises:
        InputError: a latent that does not exist, or none that is active.

    Cost: one encode per token, and one more for the items on the cards.
    """
    site = _site(checkpoint, site)
    sae = checkpoint.sae
    if n_examples < 1 or n_cards < 1:
        raise InputError(f"got {n_cards} cards with {n_examples} examples each; need at least 1 of both.")
    bad = [i for i in latents if not 0 <= i < sae.config.n_latents]
    if bad:
        raise InputError(
            f"there is no latent {bad[0]}; this dictionary has {sae.config.n_latents}, from 0 on."
        )
    key = {
        "schema": SCHEMA,
        "sae": {"config": sae.config.to_json(), "weights": weights_hash(sae)},
        "site": site,
        "tokens": tokens,
        "latents": [int(i) for i in latents],
        "n_cards": n_cards,
        "n_examples": n_examples,
    }
    path = run.derived_dir("sae-cards", key) / "cards.json"
    if path.is_file():
        return Cards(path, read_json(path))
    stats = latent_statistics(run, checkpoint, site=site, tokens=tokens, n_examples=n_examples, quiet=quiet)
    chosen = np.array(latents, np.int64) if len(latents) else _choose(stats, sae, n_cards=n_cards)
    if not len(chosen) or not stats.counts[chosen].any():
        raise InputError("none of these latents is active anywhere in the run; there is nothing to show.")
    cards = [_card(stats, sae, int(latent)) for latent in chosen]
    _add_maps(run, sae, site, tokens=tokens, stats=stats, chosen=chosen, cards=cards)
    facts = {
        "schema": SCHEMA,
        "model": run.config["model"].get("name"),
        "site": site,
        "dictionary": str(checkpoint.path),
        "levels": list(sae.levels),
        "n_tokens": stats.n_tokens,
        "over": stats.over,
        "n_units": stats.total_units,
        "cards": cards,
    }
    return Cards(write_json(path, facts), facts)


def _site(checkpoint: Checkpoint, site: str | None) -> str:
    found = site or checkpoint.site
    if found is None:
        raise InputError(
            f"the dictionary in '{checkpoint.path}' does not say where it was trained; name the site."
        )
    return found


def _rows_of_items(run: Run, site: str, *, tokens: str) -> list[NDArray[np.int64]]:
    return token_rows(run, run.site(site).layout, tokens=tokens, items=np.arange(len(run.items)))


def _encoded(
    run: Run, sae: MatryoshkaSAE, site: str, all_rows: list[NDArray[np.int64]]
) -> Iterator[tuple[int, NDArray[np.int64], Any]]:
    """Yield (item, rows of its tokens, codes as a scipy matrix)."""
    acts, item_of = run.acts(site), run.tokens(run.site(site).layout).item
    for rows in all_rows:
        x = torch.from_numpy(np.array(read_rows(acts, rows), np.float32)).to(sae.encoder.device)
        yield int(item_of[rows[0]]), rows, sae.encode(x).scipy()


def _bin(values: NDArray[np.float64]) -> NDArray[np.int64]:
    bins = np.floor(np.log2(np.maximum(values, 1e-30)) * BINS_PER_OCTAVE).astype(np.int64) + N_BINS // 2
    return bins.clip(0, N_BINS - 1)


def _quantile(histogram: NDArray[np.int32], q: float) -> NDArray[np.float64]:
    total = histogram.sum(1)
    at = (np.cumsum(histogram, 1) >= np.ceil(q * total)[:, None]).argmax(1)
    return np.where(total > 0, 2.0 ** ((at + 1 - N_BINS // 2) / BINS_PER_OCTAVE), 0.0)


def _choose(stats: LatentStatistics, sae: MatryoshkaSAE, *, n_cards: int) -> NDArray[np.int64]:
    signal = stats.counts * stats.means**2
    signal = np.where(stats.counts > DENSE_SHARE * stats.n_tokens, 0.0, signal)
    chosen, low = [], 0
    per_level = max(1, n_cards // len(sae.levels))
    for level in sae.levels:
        best = low + np.argsort(-signal[low:level], kind="stable")[:per_level]
        chosen.append(best[signal[best] > 0])
        low = level
    return np.concatenate(chosen)[:n_cards]


def _card(stats: LatentStatistics, sae: MatryoshkaSAE, latent: int) -> dict[str, Any]:
    group = int(np.searchsorted(sae.levels, latent, side="right"))
    return {
        "latent": latent,
        "level": sae.levels[group],
        "density": float(stats.counts[latent] / stats.n_tokens),
        "mean": float(stats.means[latent]),
        "p99": float(stats.p99[latent]),
        "units": int(stats.n_units[latent]),
        "examples": [],
        "episode": None,
        "parents": relatives(stats, sae.levels, latent, parents=True),
        "children": relatives(stats, sae.levels, latent, parents=False),
    }


def relatives(
    stats: LatentStatistics, levels: Sequence[int], latent: int, *, parents: bool
) -> list[dict[str, float | int]]:
    """Return the latents of the next coarser (or finer) level that go with one.

    A parent is active in at least 30 % of the tokens of its child, and twice as often as by chance; at most five are
    returned, the largest share first.
    """
    group = int(np.searchsorted(levels, latent, side="right"))
    edges = (0, *levels)
    pair = group - 1 if parents else group
    if not 0 <= pair < len(stats.together):
        return []
    matrix = stats.together[pair].tocsr()
    low = edges[group - 1] if parents else edges[group + 1]
    if parents:
        both = np.asarray(matrix[:, [latent - edges[group]]].toarray()).ravel()
    else:
        both = np.asarray(matrix[[latent - edges[group]], :].toarray()).ravel()
    others = low + np.arange(len(both))
    children = np.full(len(both), stats.counts[latent]) if parents else stats.counts[others]
    coarse = stats.counts[others] if parents else np.full(len(both), stats.counts[latent])
    share = np.divide(both, children, out=np.zeros(len(both)), where=children > 0)
    lift = np.divide(share * stats.n_tokens, coarse, out=np.zeros(len(both)), where=coarse > 0)
    good = np.flatnonzero((share >= MIN_CONDITIONAL) & (lift >= MIN_LIFT))
    good = good[np.argsort(-share[good], kind="stable")[:N_RELATIVES]]
    return [{"latent": int(others[i]), "share": float(share[i]), "lift": float(lift[i])} for i in good]


def _add_maps(
    run: Run,
    sae: MatryoshkaSAE,
    site: str,
    *,
    tokens: str,
    stats: LatentStatistics,
    chosen: NDArray[np.int64],
    cards: list[dict[str, Any]],
) -> None:
    table = run.tokens(run.site(site).layout)
    episodes = [row.episode for row in run.items]
    best = {int(stats.top_items[latent, 0]) for latent in chosen} - {-1}
    in_episodes = {episodes[i] for i in best if episodes[i] is not None}
    on_cards = {int(i) for i in stats.top_items[chosen].ravel()} - {-1}
    wanted = sorted(on_cards | {i for i, e in enumerate(episodes) if e in in_episodes})
    rows_of = token_rows(run, run.site(site).layout, tokens=tokens, items=np.array(wanted, np.int64))
    maps: dict[tuple[int, int], list[dict[str, Any]]] = {}
    strongest: dict[int, NDArray[np.float32]] = {}
    for item, rows, codes in _encoded(run, sae, site, rows_of):
        values = codes[:, chosen].toarray()
        strongest[item] = values.max(0)
        for place, latent in enumerate(chosen):
            if item in stats.top_items[latent]:
                maps[item, place] = _token_maps(table, rows, values[:, place])
    for place, (latent, card) in enumerate(zip(chosen, cards, strict=True)):
        for item, row, value in zip(
            stats.top_items[latent], stats.top_rows[latent], stats.top_values[latent], strict=True
        ):
            if item < 0:
                continue
            card["examples"].append(
                {
                    "item": int(item),
                    "item_id": run.items[int(item)].item_id,
                    "value": float(value),
                    "position": int(table.position[row]),
                    "kind": KINDS[table.kind[row]],
                    "row": int(table.row[row]),
                    "col": int(table.col[row]),
                    "camera": int(table.camera[row]),
                    "text": table.text[row],
                    "maps": maps[int(item), place],
                }
            )
        episode = episodes[int(stats.top_items[latent, 0])] if card["examples"] else None
        if episode is not None:
            items = [i for i, e in enumerate(episodes) if e == episode and i in strongest]
            card["episode"] = {
                "episode": int(episode),
                "items": items,
                "steps": [run.items[i].step for i in items],
                "strongest": [round(float(strongest[i][place]), 5) for i in items],
            }


def _token_maps(table: Any, rows: NDArray[np.int64], values: NDArray[np.floating]) -> list[dict[str, Any]]:
    """Return one grid of values per camera and tile; NaN-free: places without a token are None."""
    out = []
    is_patch = table.row[rows] >= 0
    for camera, tile in sorted({(int(table.camera[r]), int(table.tile[r])) for r in rows[is_patch]}):
        here = is_patch & (table.camera[rows] == camera) & (table.tile[rows] == tile)
        row, col = table.row[rows[here]].astype(int), table.col[rows[here]].astype(int)
        grid: list[list[float | None]] = [[None] * (col.max() + 1) for _ in range(row.max() + 1)]
        for r, c, value in zip(row, col, values[here], strict=True):
            grid[r][c] = round(float(value), 5)
        out.append({"camera": camera, "tile": tile, "values": grid})
    return out
