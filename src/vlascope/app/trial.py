"""Trying an edit: what the model does without it and with it, beside controls, and what its tokens become."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..views.robot import MOVES, episode_action
from .book import RunBook
from .edits import make_edit
from .job import Job
from .nearest import nearest_tokens
from .questions import Ask
from .run_model import RunModel, run_item

if TYPE_CHECKING:
    from ..act import Effect, ModelEdit
    from ..items import Item
    from ..measure.resample import Units
    from ..models import Model, Response

BATCH = 8

DOSE_CONTROLS = 3
"""Controls at each of the other strengths."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an edit did.

    Attributes:
        facts: For the page, JSON-able: the edit, a row per degree of freedom, words, a verdict, shares per layer.
        nearest: For every site of the cut int32 [t]: the token of the run that each token of the item has become most
            like (numbers within the site), -1 where it is like none.
    """

    facts: dict[str, Any]
    nearest: dict[str, NDArray[np.int32]]


def try_edit(book: RunBook, source: RunModel, ask: Ask, *, items: Sequence[int], job: Job) -> Outcome:
    """Return what an edit of the run's model does to some of its items.

    Args:
        book: The run.
        source: Its model.
        ask: The edit.
        items: Rows of the run; the first one is on the page, the others say how far that generalises.
        job: Told of the progress; may stop the work between any two modules of the model.

    Raises:
        Cancelled: the job was stopped.
        VlascopeError: the model cannot be loaded, or the edit cannot be made.

    Cost: two passes per item, for the edit and for each control; the same for every other strength.
    """
    rows = [run_item(book.run, index) for index in items]
    doses = sorted({float(d) for d in ask.doses} - {0.0, ask.strength}) if ask.steers else []
    job.step(
        "loading the model" if not source.is_loaded else "checking the model", done=0, total=ask.controls + 4
    )
    model = source.get()
    with _stoppable(model, job):
        job.step("the model as it is", done=1)
        edit, controls = make_edit(book, model, ask, items=rows)
        n_more = len(doses) * (1 + min(DOSE_CONTROLS, len(controls)))
        job.step("the model as it is", done=1, total=len(controls) + n_more + 4)
        trial = _Trial(model, rows)
        job.step(f"with the edit: {edit.name}")
        found = trial.under(edit)
        others = []
        for number, control in enumerate(controls):
            job.step(f"control {number + 1} of {len(controls)}")
            others.append(trial.under(control))
        curve = _dose(trial, edit, found, list(zip(controls, others, strict=True)), ask, doses, job)
        job.step("its tokens under the edit")
        nearest, layers = _tokens_under(book, model, edit, rows[0], row=items[0])
    facts = {
        "edit": edit.to_json(),
        "name": edit.name,
        "item": int(items[0]),
        "n_items": len(rows),
        "as_captured": _as_captured(book, items[0], trial.before[0]) if trial.before else None,
        **trial.facts(found, others, kind=ask.kind),
        "dose": curve,
        "layers": layers,
    }
    return Outcome(facts=facts, nearest=nearest)


def _dose(
    trial: _Trial,
    edit: Any,
    found: Any,
    controls: Sequence[tuple[Any, Any]],
    ask: Ask,
    doses: Sequence[float],
    job: Job,
) -> dict[str, Any] | None:
    """Return how far the answers move at each strength, beside controls whose changes are as long; None without any.

    Args:
        trial: The items.
        edit, found: The steering at the strength that was asked for, and what it did.
        controls: The same for its controls.
        ask: What was asked.
        doses: The other strengths.
        job: Told of the progress.
    """
    some = controls[:DOSE_CONTROLS]
    points = {ask.strength: (trial.shift(found), [trial.shift(one) for _, one in some])}
    for dose in doses:
        job.step(f"strength {dose:g}")
        shift = trial.shift(trial.under(edit.scaled(dose)))
        beside = []
        for number, (control, _) in enumerate(some):
            job.step(f"strength {dose:g}, control {number + 1} of {len(some)}")
            beside.append(trial.shift(trial.under(control.scaled(dose))))
        points[dose] = (shift, beside)
    if not doses or any(shift is None for shift, _ in points.values()):
        return None
    return {
        "unit": trial.shift_unit,
        "points": [
            {"strength": at, "shift": points[at][0], "controls": points[at][1]} for at in sorted(points)
        ],
    }


class _Trial:
    """The items with the model's own answers, and what they become.

    Models that answer in tokens are compared by their distributions over them, others (action experts) by the actions
    alone; models that answer nothing only have their tokens to show.
    """

    def __init__(self, model: Model, items: Sequence[Item]) -> None:
        from ..act import baseline
        from ..measure.resample import units_of

        self.model, self.items, self.base = model, items, None
        self.before: tuple[Response, ...] = ()
        # Frames of one episode are no independent observations.
        names = [
            f"item {i}" if item.episode is None else f"episode {item.episode}" for i, item in enumerate(items)
        ]
        self.units = units_of(names)
        if not model.answers:
            return
        self.before = tuple(self._replies())
        if all(reply.text is not None for reply in self.before):
            self.base = baseline(model, items, batch_size=BATCH)

    def _replies(self) -> list[Response]:
        out: list[Response] = []
        for start in range(0, len(self.items), BATCH):
            out += self.model.respond(list(self.items[start : start + BATCH]))
        return out

    def under(self, edit: ModelEdit) -> Effect | list[Response] | None:
        """Return what the items become."""
        from ..act import effect

        if self.base is not None:
            return effect(self.model, edit, self.base)
        if not self.before:
            return None
        with edit.on(self.model):
            return self._replies()

    @property
    def shift_unit(self) -> str:
        """What `shift` is measured in."""
        if self._dofs().any():
            return "cm"
        return "action" if self.before and self.before[0].action is not None else "nats per token"

    def shift(self, found: Any) -> float | None:
        """Return how far the answers move, over all items: the hand (root mean square), else the distribution."""
        if found is None:
            return None
        if self.shift_unit == "nats per token":
            return None if self.base is None else _mean(found.kl)
        some = self._dofs()
        moves = self._moves(found)[:, some] * 100 if some.any() else self._moves(found)
        lengths = np.sqrt(np.square(moves).sum(1))
        return _number(np.sqrt(np.nanmean(np.square(lengths)))) if np.isfinite(lengths).any() else None

    def _dofs(self) -> NDArray[np.bool_]:
        """Return which degrees of freedom move the hand, bool [dof]."""
        action = self.before[0].action if self.before else None
        names = self.before[0].action_names if action is not None else ()
        return np.array([name in MOVES for name in names], bool)

    def facts(self, found: Any, others: Sequence[Any], *, kind: str) -> dict[str, Any]:
        """Return rows per degree of freedom, answers in words and a verdict."""
        if found is None:
            return {"rows": [], "words": None, "changed": None, "kl": None, "control_kl": [],
                    "verdict": "This model answers nothing; the picture shows what its tokens become."}  # fmt: skip
        after = found if self.base is None else found.replies
        first, second = self.before[0], after[0]
        moves = self._moves(found)
        control_moves = [self._moves(one) for one in others]
        kl = None if self.base is None else _mean(found.kl)
        control_kl = [] if self.base is None else [_mean(one.kl) for one in others]
        same = [_answer(a) == _answer(b) for a, b in zip(self.before, after, strict=True)]
        return {
            "rows": _rows(first, second, moves, control_moves, units=self.units),
            "words": {"before": _answer(first), "after": _answer(second)},
            "changed": round(1 - float(np.mean(same)), 4),
            "kl": kl,
            "control_kl": control_kl,
            "verdict": _verdict(kl, control_kl, moves, control_moves, n=len(self.items), kind=kind),
        }

    def _moves(self, found: Any) -> NDArray[np.float64]:
        """Return how far the expected (else the decoded) action moves, [n, dof]."""
        if self.base is not None:
            return found.shifted
        pairs = zip(self.before, found, strict=True)
        nothing = np.full(0 if self.before[0].action is None else len(self.before[0].action), np.nan)
        return np.array(
            [nothing if a.action is None or b.action is None else b.action - a.action for a, b in pairs],
            np.float64,
        )


def _rows(
    first: Response,
    second: Response,
    moves: NDArray[np.float64],
    controls: Sequence[NDArray[np.float64]],
    *,
    units: Units,
) -> list[dict[str, Any]]:
    """Return a row per degree of freedom: before, after, mean move with interval, and the controls' largest."""
    from ..measure.resample import bootstrap_mean

    if first.action is None:
        return []
    out = []
    for j in range(len(first.action)):
        name = first.action_names[j] if j < len(first.action_names) else f"action {j}"
        shown, unit, scale = (name[1:], "cm", 100.0) if name in MOVES else (name, "", 1.0)
        column = moves[:, j] * scale
        known = np.flatnonzero(np.isfinite(column))
        here = units.take(known)
        interval = bootstrap_mean(column[known], here)
        strongest = [abs(mean) for one in controls if (mean := _mean(one[:, j] * scale)) is not None]
        after = second.action[j] * scale if second.action is not None and j < len(second.action) else np.nan
        out.append(
            {
                "name": shown,
                "unit": unit,
                "before": _number(first.action[j] * scale),
                "after": _number(after),
                "move": _number(column[known].mean()) if len(known) else None,
                "interval": None if interval is None else [_number(v) for v in interval],
                "control": _number(max(strongest)) if strongest else None,
            }
        )
    return out


def _verdict(
    kl: float | None,
    control_kl: Sequence[float | None],
    moves: NDArray[np.float64],
    controls: Sequence[NDArray[np.float64]],
    *,
    n: int,
    kind: str,
) -> str:
    """Return in a sentence whether the edit does more than its controls, and how much that is worth."""
    like = {
        "attention": "cuts of other tokens or blocks",
        "module": "modules of its kind in other blocks",
    }.get(kind, "random directions of the same length")
    if kl is not None:
        value, others = kl, [v for v in control_kl if v is not None]
        said = "moves the answer's distribution by {} nats per token"
    else:
        value = float(np.sqrt(np.nanmean(np.square(moves)))) if moves.size else 0.0
        others = [float(np.sqrt(np.nanmean(np.square(one)))) for one in controls if one.size]
        said = "moves the action by {} (root mean square)"
    on = "on this one frame" if n == 1 else f"on {n} frames"
    if value == 0:
        return f"It changes nothing {on}."
    if not others:
        return f"It {said.format(_apart(value)[0])} {on}; there is nothing to compare it with."
    reached = sum(one >= value for one in others)
    own, most = _apart(value, max(others))
    said = said.format(own)
    if reached == 0:
        return f"It {said} {on}, more than any of {len(others)} {like} (most: {most})."
    return f"It {said} {on}; {reached} of {len(others)} {like} do as much (most: {most})."


def _apart(*values: float) -> list[str]:
    """Return numbers with equal decimals: two digits of the largest, and so many that those which differ do so."""
    largest = max(abs(value) for value in values)
    start = max(0, 1 - math.floor(math.log10(largest))) if largest > 0 else 0
    n_different, decimals = len(set(values)), start
    while len({f"{value:.{decimals}f}" for value in values}) < n_different and decimals < start + 8:
        decimals += 1
    return [f"{value:.{decimals}f}" for value in values]


def _tokens_under(
    book: RunBook, model: Model, edit: ModelEdit, item: Item, *, row: int
) -> tuple[dict[str, NDArray[np.int32]], list[dict[str, Any]]]:
    """Return what the item's tokens become at every site of the cut, and which share of them became another's."""
    from ..act import CutAttention

    wanted = [name for name, part in book.cut.parts.items() if len(book.index.rows_of(name, row)[0])]
    # Attention is cut in blocks that a pass for earlier sites alone would not reach.
    more = [site.name for site in model.resolve(edit.blocks)] if isinstance(edit, CutAttention) else []
    batch = model.prepare([item])
    with edit.on(model):
        found = model.capture(batch, [*wanted, *(name for name in more if name not in wanted)])
    nearest, layers = {}, []
    for site in wanted:
        part = book.cut.parts[site]
        index, rows = book.index.rows_of(site, row)
        first = int(index[0]) - part.rows.start
        positions = np.asarray(book.run.tokens(part.layout).position)[rows]
        values = found[site][0].float().cpu().numpy()
        # Tokens of an answer that was captured with the prompt are not read again: they stay what they are.
        is_read = positions < len(values)
        own = np.asarray(book.run.acts(site)[rows], np.float32)
        own[is_read] = values[positions[is_read]]
        became, is_far = nearest_tokens(
            book.run, site, part, own, own=slice(first, first + len(rows)), seed=int(book.cut.params["seed"])
        )
        moved = became != np.arange(first, first + len(rows))
        became[is_far] = -1
        nearest[site] = became
        layers.append(
            {
                "site": site,
                "moved": round(float(np.mean(moved | is_far)), 4),
                "far": round(float(np.mean(is_far)), 4),
            }
        )
    return nearest, layers


@contextlib.contextmanager
def _stoppable(model: Model, job: Job) -> Iterator[None]:
    """Let the job stop between any two modules of the model."""
    handles = [module.register_forward_pre_hook(job.check) for module in model.module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_captured(book: RunBook, item: int, reply: Response) -> bool | None:
    """Return whether the model answers as it did when the run was captured; None where nothing was kept."""
    kept = book.run.response(item)
    if kept is None:
        return None
    return tuple(kept.token_ids) == tuple(reply.token_ids) and kept.text == reply.text


def _answer(reply: Response) -> str:
    if reply.action is not None:
        return episode_action(np.asarray(reply.action, np.float32), reply.action_names)
    return reply.text or ""


def _mean(values: NDArray[np.floating]) -> float | None:
    known = values[np.isfinite(values)]
    return float(f"{float(known.mean()):.4g}") if len(known) else None


def _number(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None
