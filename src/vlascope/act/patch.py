"""Activation patching: put what a model computed for one item into its pass over another, and see what comes back.

Pairs have the same tokens in the same places but for a word or the picture. The clean item's activations are restored
in the corrupted item's pass, one layer and kind of token at a time; where that brings the clean answer back, the
difference between the two had to pass through there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..items.perturb import swap_image, swap_prompt
from ..measure.prompts import swap_noun, swap_verb
from ..measure.resample import Units, bootstrap_mean, units_of
from ..measure.result import Result, cannot_say, number_text, plain_json, table
from ..progress import progress
from .edits import check_batch_size, check_has_tokens, check_where, tokens_at
from .effects import _expected, read_log_probs

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model, Response, Site

Corruption = Literal["noun", "verb", "image"]
MIN_PAIRS = 5
MOST = 0.5
NEAR_ZERO = 1e-12  # of squared metres as well as of nats


@dataclass(frozen=True)
class Pair:
    """A clean item and one that differs from it in a word or in the picture."""

    clean: Item
    corrupted: Item


@dataclass(frozen=True)
class PatchingResult:
    """How much of the clean answer each place brings back.

    Attributes:
        restored: Per site and kind of token: share of the lost log-probability of the clean answer that comes back,
            with interval over pairs; control: the same activations of another pair. details: "beyond control" is the
            paired difference of the two with its interval, where enough pairs have a control.
        action: The same of the expected action: how far it goes back along the line to the clean one.
        n_pairs: Pairs used.
        skipped: Pairs that were left out, with the reason.
    """

    restored: tuple[Result, ...]
    action: tuple[Result, ...]
    n_pairs: int
    skipped: tuple[str, ...]

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per place."""
        return table([*self.restored, *self.action])

    def verdict(self) -> str:
        """Return in one sentence where the clean answer comes back, beyond what another pair's activations do."""
        known = [r for r in self.restored if r.value is not None]
        if not known:
            return "cannot say where the difference passes: " + self.restored[0].reason
        best = max(known, key=lambda r: _beyond(r)[0])
        value, interval = _beyond(best)
        if "beyond control" in best.details:
            low, high = (number_text(x) for x in interval)
            than = f"beyond another pair's {number_text(value)} [{low}, {high}]"
        else:
            than = f"fewer than {MIN_PAIRS} pairs have another's as control"
        if not interval[0] > 0:
            return f"nothing of the clean answer is seen to come back; the most through {best.line()}; {than}"
        share = "most" if value > MOST else "part"
        return f"{share} of the clean answer comes back through {best.line()}; {than}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "verdict": self.verdict(),
                "n_pairs": self.n_pairs,
                "skipped": self.skipped,
                "restored": [r.to_json() for r in self.restored],
                "action": [r.to_json() for r in self.action],
            }
        )


def make_pairs(items: Sequence[Item], *, change: Corruption = "noun") -> list[Pair]:
    """Return items paired with a corrupted copy: another noun or verb in the prompt, or another item's picture.

    Items without a word that can be exchanged are left out; pictures come from other episodes where there are any.
    """
    if change not in ("noun", "verb", "image"):
        raise InputError(f"got change='{change}'; need noun, verb or image.")
    pairs = []
    for i, item in enumerate(items):
        if change == "image":
            others = [
                o
                for o in items
                if o.item_id != item.item_id and (o.episode is None or o.episode != item.episode)
            ]
            if others:
                pairs.append(Pair(item, swap_image(item, others[i % len(others)])))
            continue
        text = (swap_noun if change == "noun" else swap_verb)(item.prompt or "")
        if text is not None and text != item.prompt:
            pairs.append(Pair(item, swap_prompt(item, prompt=text)))
    return pairs


def patching(
    model: Model,
    pairs: Sequence[Pair],
    *,
    sites: str | Sequence[str] = "language.*",
    kinds: Sequence[str] = ("patch", "text", "last"),
    batch_size: int = 8,
    max_new_tokens: int = 16,
    seed: int = 0,
    quiet: bool = True,
) -> PatchingResult:
    """Restore clean activations in corrupted passes, per site and kind of token.

    Args:
        model: A model that answers in tokens.
        pairs: See `make_pairs`; both items of a pair must have tokens of the same kinds in the same places.
        sites: Where to restore.
        kinds: Which tokens at a time, see `vlascope.act.edits.WHERE`.
        batch_size: Pairs per forward pass.
        max_new_tokens: Longest answer.
        seed: Seeds the bootstrap.
        quiet: No progress bar.

    Raises:
        InputError: no pair can be compared, no sites, kinds or batches, or a site has none of the tokens of a kind.

    Cost: two passes per pair, site and kind, and three more per pair.
    """
    check_batch_size(batch_size)
    for kind in kinds:
        check_where(kind)
    if not kinds or not sites:
        raise InputError(
            f"got {len(sites)} sites and {len(kinds)} kinds of token; need at least one of each."
        )
    found = model.resolve(sites)
    used, skipped = _comparable(model, pairs)
    if not used:
        raise InputError(
            f"none of {len(pairs)} pairs can be compared"
            + (f" ({skipped[0]})" if skipped else "")
            + "; the two prompts of a pair need equally many tokens."
        )
    places = [(site, kind) for site in found for kind in kinds]
    for site, kind in places:
        check_has_tokens(model, kind, site=site, items=[pair.clean for pair in used])
    n = len(used)
    gains, away = np.full((len(places), 2, n), np.nan), np.full((len(places), 2, n), np.nan)
    lost, path = np.full(n, np.nan), np.full(n, np.nan)
    chunks = [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]
    for chunk in progress(chunks, desc="patching", unit="batch", quiet=quiet):
        _patch_chunk(
            model, [used[i] for i in chunk], chunk, found, places, lost, path, gains, away,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
    units = _units([pair.clean for pair in used])
    restored, action = [], []
    for p, (site, kind) in enumerate(places):
        name = f"{site.name} / {kind}"
        restored.append(_ratio(name, gains[p], lost, units, "share of the clean answer restored", seed))
        action.append(_ratio(f"{name} / action", away[p], path, units, "share of the way back", seed))
    if not np.isfinite(path).any():
        action = []
    return PatchingResult(tuple(restored), tuple(action), n, tuple(skipped))


def _patch_chunk(
    model: Model,
    pairs: Sequence[Pair],
    rows: list[int],
    sites: Sequence[Site],
    places: Sequence[tuple[Site, str]],
    lost: NDArray[np.float64],
    path: NDArray[np.float64],
    gains: NDArray[np.float64],
    away: NDArray[np.float64],
    *,
    max_new_tokens: int,
) -> None:
    """Fill the rows of one batch of pairs: what corruption took away, and what each place brings back."""
    clean, corrupted = [p.clean for p in pairs], [p.corrupted for p in pairs]
    answers = model.respond(clean, max_new_tokens=max_new_tokens)
    batch = model.prepare(clean, answers=answers)
    layouts = batch.layouts
    with model._hooks.reading(sites) as calls:
        model._run(batch, sites)
    if many := [name for name, own in calls.items() if len(own) != 1]:
        raise InputError(f"the model calls '{many[0]}' more than once in a pass; patch another site.")
    kept = {name: own[0] for name, own in calls.items()}

    def read(items: Sequence[Item]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        logs = read_log_probs(model, items, answers, batch_size=len(items))
        score = [float(lp.gather(1, torch.tensor(a.token_ids)[:, None]).sum()) if len(lp) else np.nan
                 for lp, a in zip(logs, answers, strict=True)]  # fmt: skip
        return np.array(score), _expected(model, logs, answers, _dof(answers))

    top, far = read(clean)
    bottom, near = read(corrupted)
    lost[rows], line = top - bottom, far - near
    spans = (line**2).sum(1)
    path[rows] = np.where(spans > NEAR_ZERO, spans, np.nan) if line.shape[1] else np.nan
    other = np.roll(np.arange(len(pairs)), 1)
    for p, (site, kind) in enumerate(places):
        own = layouts[site.layout]
        same = np.array(
            [j != i and len(own[i]) == len(own[j]) and bool((own[i].kind == own[j].kind).all())
             for i, j in enumerate(other)]
        )  # fmt: skip
        where = tokens_at(model, kind, layout_name=site.layout)
        for c, donor in enumerate((kept[site.name], kept[site.name][torch.from_numpy(other)])):
            if kept[site.name].shape[0] != len(pairs) and c == 1:
                continue  # rows are no items here, so that another item's are not known
            with model.edit(site, _put(donor), tokens=where):
                score, place = read(corrupted)
            gain = score - bottom
            step = ((place - near) * line).sum(1) if line.shape[1] else np.full(len(pairs), np.nan)
            if c == 1:
                gain, step = np.where(same, gain, np.nan), np.where(same, step, np.nan)
            gains[p, c, rows], away[p, c, rows] = gain, step


def _put(value: Tensor) -> Callable[[Tensor], Tensor]:
    def edit(x: Tensor) -> Tensor:
        if x.shape != value.shape:
            raise InputError(
                f"the clean pass gave {tuple(value.shape)}, the corrupted one {tuple(x.shape)}; items of a pair "
                "need the same tokens."
            )
        return value.to(x.device, x.dtype)

    return edit


def _comparable(model: Model, pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    used, skipped = [], []
    for pair in pairs:
        batch = model.prepare([pair.clean, pair.corrupted])
        same = all(
            len(one) == len(two) and bool((one.kind == two.kind).all()) for one, two in batch.layouts.values()
        )
        if same:
            used.append(pair)
        else:
            skipped.append(f"item '{pair.clean.item_id}': the corrupted one has other tokens")
    return used, skipped


def _units(items: Sequence[Item]) -> Units:
    episodes = [item.episode for item in items]
    whole = all(e is not None for e in episodes) and len(set(episodes)) > 1
    return units_of(episodes if whole else range(len(items)), over="episode" if whole else "item")


def _dof(answers: Sequence[Response]) -> int:
    return next((len(a.action) for a in answers if a.action is not None), 0)


def _ratio(
    name: str, tops: NDArray[np.float64], bottom: NDArray[np.float64], units: Units, unit: str, seed: int
) -> Result:
    known = np.isfinite(tops[0]) & np.isfinite(bottom)
    here = units.take(np.flatnonzero(known))
    if here.n < MIN_PAIRS or not bottom[known].sum() > NEAR_ZERO:
        reason = (
            f"{here.n} independent {units.over}s; need {MIN_PAIRS}"
            if here.n < MIN_PAIRS
            else "the corruption takes nothing away"
        )
        return cannot_say(name, reason, unit=unit, n=int(known.sum()), over=units.over)
    both = known & np.isfinite(tops[1])
    controls, details = {}, {}
    if both.any() and bottom[both].sum() > NEAR_ZERO:
        controls["another pair's"] = float(tops[1][both].sum() / bottom[both].sum())
        net, paired = (tops[0] - tops[1])[both], units.take(np.flatnonzero(both))
        interval = bootstrap_mean(net, paired, over_values=bottom[both], seed=seed)
        if interval is not None:
            details = {
                "beyond control": float(net.sum() / bottom[both].sum()),
                "beyond control, 95 %": interval,
            }
    return Result(
        name=name,
        value=float(tops[0][known].sum() / bottom[known].sum()),
        unit=unit,
        n=int(known.sum()),
        over=units.over,
        n_units=here.n,
        interval=bootstrap_mean(tops[0][known], here, over_values=bottom[known], seed=seed),
        controls=controls,
        details=details,
    )


def _beyond(result: Result) -> tuple[float, tuple[float, float]]:
    """Return what comes back beyond another pair's activations, with interval.

    Where too few pairs have a control for a paired interval, the control is subtracted as if it were exact.
    """
    details = result.details
    if "beyond control" in details:
        return details["beyond control"], details["beyond control, 95 %"]
    less = max(0.0, result.controls.get("another pair's", 0.0))
    low, high = result.interval or (0.0, 0.0)
    return (result.value or 0.0) - less, (low - less, high - less)
