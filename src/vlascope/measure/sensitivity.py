"""What moves a model: image, verb or noun. Features per layer and kind of token, actions per degree of freedom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items import Item
from ..items.perturb import blur, desaturate, swap_image, swap_prompt
from ..models.layout import KINDS
from ..progress import watched
from .findings import Finding, Row
from .means import mean_result
from .prompts import negate, paraphrase, swap_noun, swap_verb
from .resample import N_PERMUTATIONS, Units, bootstrap_mean, item_units, summarise_null
from .result import Result, adjusted, cannot_say, number_text, plain_json, table

if TYPE_CHECKING:
    from ..models import Model

HARDLY = 0.1
"""Text that moves the action less than this share of what the image does hardly matters."""
MIN_ITEMS = 5
AGAIN = "same input again"
AGAIN_TWICE = "same input once more"
ACTION_UNIT = "units of the action"

Change = Callable[[Item, Sequence[Item]], "Item | None"]


def occlude(item: Item, *, share: float = 0.4) -> Item:
    """Return the item with a grey square over the middle of each image, `share` of its sides."""
    images = []
    for image in item.images:
        h, w = image.shape[:2]
        y, x = round(h * (1 - share) / 2), round(w * (1 - share) / 2)
        out = image.copy()
        out[y : h - y, x : w - x] = 128
        images.append(out)
    return replace(item, images=tuple(images), source=None)


def recolour(item: Item) -> Item:
    """Return the item with red, green and blue exchanged in turn: other colours, the same brightness pattern."""
    return replace(
        item, images=tuple(np.ascontiguousarray(image[..., [2, 0, 1]]) for image in item.images), source=None
    )


def move(item: Item, *, share: float = 0.15) -> Item:
    """Return the item with its images moved to the right by a share of their width, edges repeated."""
    images = []
    for image in item.images:
        by = max(1, round(image.shape[1] * share))
        images.append(np.concatenate([np.repeat(image[:, :1], by, axis=1), image[:, :-by]], axis=1))
    return replace(item, images=tuple(images), source=None)


def _other_scene(item: Item, items: Sequence[Item]) -> Item | None:
    others = [
        o for o in items if o.item_id != item.item_id and (o.episode is None or o.episode != item.episode)
    ]
    if not others:
        return None
    at = next(i for i, o in enumerate(items) if o.item_id == item.item_id)
    return swap_image(item, others[at % len(others)])


def _prompt(change: Callable[[str], str | None]) -> Change:
    def changed(item: Item, items: Sequence[Item]) -> Item | None:
        text = None if not item.prompt else change(item.prompt)
        return None if text is None or text == item.prompt else swap_prompt(item, prompt=text)

    return changed


CHANGES: Mapping[str, tuple[str, Change]] = {
    "other scene": ("image", _other_scene),
    "blur": ("image", lambda item, _: blur(item, sigma_px=3.0)),
    "recoloured": ("image", lambda item, _: recolour(item)),
    "no colour": ("image", lambda item, _: desaturate(item)),
    "moved": ("image", lambda item, _: move(item)),
    "occluded": ("image", lambda item, _: occlude(item)),
    "other verb": ("verb", _prompt(swap_verb)),
    "other noun": ("noun", _prompt(swap_noun)),
    "paraphrase": ("wording", _prompt(paraphrase)),
    "negated": ("wording", _prompt(negate)),
    "no prompt": ("wording", _prompt(lambda _: "")),
}
"""Name of each change, what it changes (image, verb, noun, wording), and how."""


@dataclass(frozen=True)
class SensitivityResult:
    """How far features and actions move when image or prompt change.

    Attributes:
        n_items: Items that were changed.
        action_names: Degrees of freedom.
        features: Per change, site and token kind: mean movement of the pooled tokens, as a share of the typical
            distance between two items.
        actions: Per change and degree of freedom: mean absolute movement in the action's own unit.
        ratios: Movement of the whole action (each degree of freedom in units of its spread over items) by other verb,
            other noun and text (the larger of both), relative to another scene. p: against what asking the same again
            moves it.
    """

    n_items: int
    action_names: tuple[str, ...]
    features: tuple[Result, ...]
    actions: tuple[Result, ...]
    ratios: tuple[Result, ...]

    def verdict(self) -> str:
        """Return in one sentence whether the action depends on the text."""
        text = next((r for r in self.ratios if r.name == "text : image"), None)
        if text is None or text.value is None:
            return (
                f"cannot say whether the action depends on the text: {text.reason if text else 'no actions'}"
            )
        end = f"{number_text(text.value)} of what another scene does"
        if text.interval is None:
            return f"the text moves the action {end}; too few independent items for a verdict"
        if text.interval[1] < HARDLY:
            return f"the action hardly depends on the text: it moves it {end}"
        if not text.found:
            return (
                f"cannot say whether the action depends on the text: it moves it {end}, and asking the same again "
                f"moves it {number_text(text.controls[AGAIN])} of that"
            )
        if text.interval[0] > HARDLY:
            return f"the action depends on the text: it moves it {end}"
        return f"undecided: the text moves the action {end}, and the interval holds {HARDLY:g}"

    def finding(self, *, model: str, data: str) -> Finding:
        """Return the numbers as they are kept in a run.

        Args:
            model: What was asked.
            data: What it was asked about.
        """
        rows = [Row(result=one) for one in (*self.ratios, *self.actions)]
        rows += [Row(site=one.name.split(" / ")[1], result=one) for one in self.features]
        return Finding(
            measure="sensitivity",
            title=model,
            verdict=self.verdict(),
            rows=tuple(rows),
            settings={"model": model, "data": data, "items": self.n_items},
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per number."""
        return table([*self.ratios, *self.actions, *self.features])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "verdict": self.verdict(),
                "n_items": self.n_items,
                "action_names": self.action_names,
                "ratios": [r.to_json() for r in self.ratios],
                "actions": [r.to_json() for r in self.actions],
                "features": [r.to_json() for r in self.features],
            }
        )


def sensitivity(
    model: Model,
    items: Sequence[Item],
    *,
    sites: Sequence[str] = (),
    changes: Sequence[str] | None = None,
    action_unit: str | Mapping[str, str] = ACTION_UNIT,
    batch_size: int = 16,
    seed: int = 0,
) -> SensitivityResult:
    """Change image, verb, noun or wording of each item and measure what moves.

    Args:
        model: The model; without actions, features alone are compared.
        items: Items with prompts; independent ones are best. Where all belong to episodes, these are what is
            independent: frames of fewer than 5 of them give no interval and no verdict.
        sites: Layers to compare; none skips features.
        changes: Names of `CHANGES`; None takes all. A change that does not apply to an item (no known verb) leaves it
            out of that change.
        action_unit: Unit of the actions, for tables ("m/s"); models do not say theirs. Or units by name of the degree
            of freedom, where they differ, such as {"grip": "share"}; "" stands for those not named.
        batch_size: Items per forward pass.
        seed: Seeds the bootstrap.

    Raises:
        InputError: no items or an unknown change.

    Cost: one forward pass and one answer per item and change, and three more per item: the control is how far things
    move when nothing changes. It is asked twice, since the text is changed twice (verb, noun) and the larger movement
    counts.
    """
    items = list(items)
    names = list(CHANGES) if changes is None else list(changes)
    unknown = [name for name in names if name not in CHANGES]
    if unknown or not items:
        raise InputError(
            f"unknown change '{unknown[0]}'; known are {', '.join(CHANGES)}." if unknown else "got no items."
        )
    units = item_units(items)
    base_features, base_actions, action_names = _read(model, items, sites, batch_size)
    again_features, again_actions, _ = _read(model, items, sites, batch_size)
    third_actions = _read(model, items, (), batch_size)[1]
    unit_of = _units_by_name(action_unit, action_names)
    features: list[Result] = []
    actions: list[Result] = []
    moved: dict[str, NDArray[np.float64]] = {}
    spread = np.zeros(0) if base_actions is None else np.nanstd(base_actions, axis=0)
    for name in watched(names, desc="changes", unit="change"):
        changed = [CHANGES[name][1](item, items) for item in items]
        rows = np.array([i for i, item in enumerate(changed) if item is not None], np.int64)
        if not len(rows):
            reason = "it applies to none of the items"
            actions.append(cannot_say(f"{name} / action", reason, n=0, over=units.over))
            continue
        some = [item for item in changed if item is not None]
        new_features, new_actions, _ = _read(model, some, sites, batch_size)
        here = units.take(rows)
        for key, values in new_features.items():
            again = again_features[key] - base_features[key]
            features.append(
                _feature(f"{name} / {key}", values, base_features[key], again, rows, here, seed=seed)
            )
        if new_actions is not None and base_actions is not None and again_actions is not None:
            steps = np.abs(new_actions - base_actions[rows])
            still = np.nanmean(np.abs(again_actions - base_actions), axis=0)
            for j, dof in enumerate(action_names):
                actions.append(
                    mean_result(
                        f"{name} / {dof}",
                        steps[:, j],
                        here,
                        unit=unit_of[dof],
                        reason="no reply was a whole action",
                        controls={AGAIN: float(still[j])},
                        seed=seed,
                    )
                )
            moved[name] = np.full(len(items), np.nan)
            moved[name][rows] = _whole(steps, spread)
    if base_actions is not None and again_actions is not None and third_actions is not None:
        moved[AGAIN] = _whole(np.abs(again_actions - base_actions), spread)
        moved[AGAIN_TWICE] = _whole(np.abs(third_actions - base_actions), spread)
    return SensitivityResult(
        len(items), action_names, tuple(features), tuple(actions), _ratios(moved, units, seed=seed)
    )


def _units_by_name(unit: str | Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the unit of each degree of freedom."""
    if isinstance(unit, str):
        return dict.fromkeys(names, unit)
    unknown = [name for name in unit if name and name not in names]
    if unknown:
        has = f"it has {', '.join(names)}" if names else "the model takes none"
        raise InputError(f"the action has no degree of freedom '{unknown[0]}' to give a unit to; {has}.")
    return {name: unit.get(name, unit.get("", ACTION_UNIT)) for name in names}


def _whole(steps: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each action moved, every degree of freedom in units of its spread over items; NaN without one."""
    used = spread > 0
    if not used.any():
        return np.full(len(steps), np.nan)
    return np.sqrt(((steps[:, used] / spread[used]) ** 2).mean(1))


def _read(
    model: Model, items: Sequence[Item], sites: Sequence[str], batch_size: int
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64] | None, tuple[str, ...]]:
    """Return pooled features by "site / kind" [n, d], actions [n, dof] or None, and their names."""
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    actions: list[NDArray[np.float32] | None] = []
    action_names: tuple[str, ...] = ()
    for start in range(0, len(items), batch_size):
        some = items[start : start + batch_size]
        if sites:
            batch = model.prepare(some)
            found = model.resolve(sites)
            captured = model.capture(batch, found)
            for site in found:
                for layout, values in zip(batch.layouts[site.layout], captured[site.name], strict=True):
                    x = values.detach().cpu().double().numpy()
                    for number, kind in enumerate(KINDS):
                        if kind in ("patch", "text", "state", "action") and (layout.kind == number).any():
                            mean = x[layout.kind == number].mean(0)
                            pooled.setdefault(f"{site.name} / {kind}", []).append(mean)
        if model.answers:
            for reply in model.respond(some):
                action = reply.action
                actions.append(None if action is None or np.isnan(action).any() else action)
                action_names = action_names or tuple(reply.action_names)
    features = {key: np.stack(rows) for key, rows in pooled.items() if len(rows) == len(items)}
    known = next((a for a in actions if a is not None), None)
    if known is None:
        return features, None, ()
    table_nd = np.array([np.full(len(known), np.nan) if a is None else a for a in actions], np.float64)
    return features, table_nd, action_names or tuple(f"a{j}" for j in range(len(known)))


def _feature(
    name: str,
    new: NDArray[np.float64],
    base: NDArray[np.float64],
    again: NDArray[np.float64],
    rows: NDArray[np.int64],
    units: Units,
    *,
    seed: int,
) -> Result:
    typical = float(np.sqrt(2 * ((base - base.mean(0)) ** 2).sum(1).mean()))
    if typical <= 0:
        return cannot_say(name, "all items have the same features here", n=len(rows), over=units.over)
    steps = np.linalg.norm(new - base[rows], axis=1) / typical
    still = float(np.linalg.norm(again, axis=1).mean() / typical)
    unit = "of the distance between items"
    return mean_result(name, steps, units, unit=unit, controls={AGAIN: still}, seed=seed)


def _ratios(moved: Mapping[str, NDArray[np.float64]], units: Units, *, seed: int) -> tuple[Result, ...]:
    """Return verb : image, noun : image and text : image, on the items that both changes apply to.

    The text is changed in up to two ways, and the larger movement counts; so the larger of as many answers to the same
    input is what it must exceed. All other numbers compare one answer with one.
    """
    image = moved.get("other scene")
    verb, noun = moved.get("other verb"), moved.get("other noun")
    once, twice = moved.get(AGAIN), moved.get(AGAIN_TWICE)
    tops = {"verb : image": (verb, once), "noun : image": (noun, once), "text : image": (None, None)}
    text = [one for one in (verb, noun) if one is not None]
    if text and once is not None and twice is not None:
        n_ways = np.isfinite(np.stack(text)).sum(0)
        tops["text : image"] = (_larger(text), np.where(n_ways > 1, _larger([once, twice]), once))
    out = []
    for name, (top, again) in tops.items():
        if top is None or again is None or image is None:
            lacking = "the change" if image is not None else "another scene"
            reason = (
                "the model gives no actions" if once is None else f"{lacking} applies to none of the items"
            )
            out.append(cannot_say(name, reason, over=units.over))
            continue
        both = np.isfinite(top) & np.isfinite(image) & np.isfinite(again)
        n_units = len(np.unique(units.ids[both]))
        if n_units < MIN_ITEMS or not image[both].sum() > 0:
            reason = (
                f"whole actions before and after for {n_units} independent {units.over}s; need at least {MIN_ITEMS}"
                if n_units < MIN_ITEMS
                else "another scene does not move the action either"
            )
            out.append(cannot_say(name, reason, n=int(both.sum()), over=units.over))
            continue
        here = units.take(both)
        total = image[both].sum()
        out.append(
            Result(
                name=name,
                value=float(top[both].sum() / total),
                unit="ratio" if name != "text : image" else "ratio (larger of verb and noun)",
                n=int(both.sum()),
                over=units.over,
                n_units=n_units,
                interval=bootstrap_mean(top[both], here, over_values=image[both], seed=seed),
                controls={AGAIN: float(again[both].sum() / total)},
                p=_beyond(top[both], again[both], here, seed=seed),
                test="exchange with the same input again",
            )
        )
    return tuple(adjusted(out))


def _larger(ways: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the larger of the known movements of each item, NaN where none is known."""
    stack = np.stack(ways)
    known = np.isfinite(stack)
    return np.where(known.any(0), np.where(known, stack, -np.inf).max(0), np.nan)


def _beyond(top: NDArray[np.float64], again: NDArray[np.float64], units: Units, *, seed: int) -> float:
    """Return p of the change moving no more than the same input again: both are exchanged, in whole units."""
    more = np.bincount(units.ids, top - again, minlength=units.n).astype(np.float64)
    draws = np.random.default_rng([seed, 10]).random((N_PERMUTATIONS, units.n))
    null = np.where(draws < 0.5, -1.0, 1.0) @ more
    return summarise_null(float(more.sum()), null).p
