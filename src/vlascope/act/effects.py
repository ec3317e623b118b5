"""What an edit does to the answers: action shift per degree of freedom, change of distribution, coherence.

Every item is answered once without the edit. Under the edit it is answered again (what the robot would now do), and
the first answer is read once more as given, token by token, so that distributions are compared on the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..measure.means import mean_result
from ..measure.resample import Units, units_of
from ..measure.result import Result
from .edits import ModelEdit, check_batch_size

if TYPE_CHECKING:
    from ..items import Item
    from ..models import Model, Response


@dataclass(frozen=True)
class Baseline:
    """Items with the model's own answers.

    Attributes:
        items: The items.
        replies: What the model answers to each.
        log_probs: Per item [tokens of the answer, vocabulary], float32: the model's distribution before each token
            of its own answer.
        units: Which items are independent of one another (episodes, else items).
        names: Degrees of freedom of the action; empty for models that answer in words.
        expected: float64 [n, dof], mean of the distribution over action bins per degree of freedom, in the action's
            units; NaN for answers that are no whole action.
        batch_size: Items per forward pass.
    """

    items: tuple[Item, ...]
    replies: tuple[Response, ...]
    log_probs: tuple[Tensor, ...]
    units: Units
    names: tuple[str, ...]
    expected: NDArray[np.float64]
    batch_size: int

    @property
    def actions(self) -> NDArray[np.float64]:
        """Return the decoded actions, float64 [n, dof]; NaN where an answer is no whole action."""
        return _actions(self.replies, len(self.names))

    @property
    def surprise(self) -> NDArray[np.float64]:
        """Return the mean negative log-likelihood of each answer, nats per token; NaN for empty ones."""
        return np.array(
            [_surprise(log, reply) for log, reply in zip(self.log_probs, self.replies, strict=True)]
        )


@dataclass(frozen=True)
class Effect:
    """What an edit did to each of n items. NaN where it does not apply.

    Attributes:
        edit: Name of the edit.
        names: Degrees of freedom.
        replies: Answers under the edit.
        moved: float64 [n, dof], decoded action under the edit minus without.
        shifted: float64 [n, dof], the same of the expected action, which also sees changes below one bin.
        kl: float64 [n], Kullback-Leibler divergence from the unedited to the edited distribution, nats per token.
        off_target: float64 [n], probability that the edit gives to tokens that are no actions (items with actions).
        surprise: float64 [n], mean negative log-likelihood of the unedited answer, nats per token; exp is its
            perplexity.
        perplexity: float64 [n], of the answer under the edit as the unedited model reads it, where that answers in
            words: high where the edit makes it say what it never would. NaN for actions.
        changed: bool [n], whether the answer is another one.
    """

    edit: str
    names: tuple[str, ...]
    replies: tuple[Response, ...]
    moved: NDArray[np.float64]
    shifted: NDArray[np.float64]
    kl: NDArray[np.float64]
    off_target: NDArray[np.float64]
    surprise: NDArray[np.float64]
    perplexity: NDArray[np.float64]
    changed: NDArray[np.bool_]


def baseline(
    model: Model, items: Sequence[Item], *, batch_size: int = 16, max_new_tokens: int = 16
) -> Baseline:
    """Return the model's own answers to some items, to compare edits with.

    Args:
        model: A model that answers in tokens (of words or of actions).
        items: Items with prompts. Intervals resample episodes where all items belong to several, else items.
        batch_size: Items per forward pass; kept for the edits, since results depend on it to rounding.
        max_new_tokens: Longest answer.

    Raises:
        InputError: no items, batches of none, or a model without answers in tokens.
    """
    check_batch_size(batch_size)
    items = tuple(items)
    if not items:
        raise InputError("got no items; need at least one.")
    if not model.answers:
        raise InputError(f"model '{model.name}' answers nothing; edits can be measured on models that do.")
    episodes = [item.episode for item in items]
    whole = all(e is not None for e in episodes) and len(set(episodes)) > 1
    units = units_of(episodes if whole else list(range(len(items))), over="episode" if whole else "item")
    replies: list[Response] = []
    for start in range(0, len(items), batch_size):
        replies += model.respond(list(items[start : start + batch_size]), max_new_tokens=max_new_tokens)
    if any(reply.text is None for reply in replies):
        raise InputError(
            f"model '{model.name}' (family {model.family}) does not answer in tokens; logits cannot be compared. "
            "Measure it in closed loop."
        )
    names = next((reply.action_names for reply in replies if reply.action_names), ())
    logs = tuple(read_log_probs(model, items, replies, batch_size=batch_size))
    return Baseline(
        items, tuple(replies), logs, units, names, _expected(model, logs, replies, len(names)), batch_size
    )


def effect(model: Model, edit: ModelEdit, base: Baseline, *, max_new_tokens: int = 16) -> Effect:
    """Return what an edit does to each item of a baseline.

    Cost: one answer and one forward pass per item; another pass where the answers are words.
    """
    replies: list[Response] = []
    with edit.on(model):
        for start in range(0, len(base.items), base.batch_size):
            some = list(base.items[start : start + base.batch_size])
            replies += model.respond(some, max_new_tokens=max_new_tokens)
        logs = read_log_probs(model, base.items, base.replies, batch_size=base.batch_size)
    dof = len(base.names)
    n = len(base.items)
    kl, off, surprise = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    bins: Any = getattr(model._family, "bins", None)
    for i, (before, after, reply) in enumerate(zip(base.log_probs, logs, base.replies, strict=True)):
        if not len(before):
            continue  # an empty answer has no distribution that both share
        kl[i] = float((before.exp() * (before - after)).sum(-1).mean())
        surprise[i] = _surprise(after, reply)
        if reply.action is not None and bins is not None:
            inside = after[:, bins.first_id : bins.vocab_size].exp().sum(-1)
            off[i] = float((1 - inside).clamp_min(0).mean())
    return Effect(
        edit=edit.name,
        names=base.names,
        replies=tuple(replies),
        moved=_actions(replies, dof) - base.actions,
        shifted=_expected(model, logs, base.replies, dof) - base.expected,
        kl=kl,
        off_target=off,
        surprise=surprise,
        perplexity=_perplexity(model, base, replies),
        changed=np.array([a.token_ids != b.token_ids for a, b in zip(replies, base.replies, strict=True)]),
    )


@torch.no_grad()
def read_log_probs(
    model: Model, items: Sequence[Item], answers: Sequence[Response], *, batch_size: int
) -> list[Tensor]:
    """Return the model's distribution before each token of given answers: per item [tokens, vocabulary], log, float32.

    Edits that are active apply. Cost: one forward pass per item.
    """
    out: list[Tensor] = []
    pack: Any = getattr(model._family, "_pack", None)
    for start in range(0, len(items), batch_size):
        some = list(items[start : start + batch_size])
        given = list(answers[start : start + batch_size])
        batch = model._cast(model.prepare(some, answers=given))
        with model._hooks.running(batch), model._all_must_fire():
            if pack is not None:
                pack(batch)
            logits = model.module(**batch.inputs, use_cache=False).logits
        for rows, reply in zip(batch.rows["language"], given, strict=True):
            row, first, last = rows[-1]
            n = min(len(reply.token_ids), last - first)
            # The logits before a token say what it will be.
            out.append(logits[row, last - n - 1 : last - 1].float().log_softmax(-1).cpu())
    return out


def effect_results(found: Effect, base: Baseline, *, seed: int = 0) -> list[Result]:
    """Return an effect as numbers with intervals: shift per degree of freedom, KL, off-target mass, perplexity."""
    out = []
    for j, dof in enumerate(found.names):
        unit = "shift of the expected action, its own unit"
        out.append(
            mean_result(f"{found.edit} / {dof}", found.shifted[:, j], base.units, unit=unit, seed=seed)
        )
    out.append(mean_result(f"{found.edit} / KL", found.kl, base.units, unit="nats per token", seed=seed))
    before = base.surprise
    out.append(
        mean_result(
            f"{found.edit} / surprise at its own answer",
            found.surprise,
            base.units,
            unit="nats per token",
            seed=seed,
            controls={"no edit": float(np.nanmean(before)) if np.isfinite(before).any() else float("nan")},
        )
    )
    if (words := np.isfinite(found.perplexity)).any():
        out.append(
            mean_result(
                f"{found.edit} / perplexity of its words",
                found.perplexity,
                base.units,
                unit="perplexity, read without the edit",
                seed=seed,
                controls={"no edit": float(np.exp(before[words]).mean())},
            )
        )
    if np.isfinite(found.off_target).any():
        out.append(
            mean_result(
                f"{found.edit} / off-target mass", found.off_target, base.units, unit="probability", seed=seed
            )
        )
    changed = found.changed.astype(float)
    out.append(
        mean_result(f"{found.edit} / other answer", changed, base.units, unit="share of items", seed=seed)
    )
    return out


def _surprise(log_probs: Tensor, reply: Response) -> float:
    if not len(log_probs):
        return float("nan")
    return -float(log_probs.gather(1, torch.tensor(reply.token_ids)[:, None]).mean())


def _perplexity(model: Model, base: Baseline, replies: Sequence[Response]) -> NDArray[np.float64]:
    """Return the perplexity of answers to items that are answered in words, [n]; NaN for others and empty ones."""
    out = np.full(len(replies), np.nan)
    words = [i for i, own in enumerate(base.replies) if own.action is None and len(replies[i].token_ids)]
    told = [replies[i] for i in words]
    logs = read_log_probs(model, [base.items[i] for i in words], told, batch_size=base.batch_size)
    for i, log_probs, reply in zip(words, logs, told, strict=True):
        out[i] = np.exp(_surprise(log_probs, reply))
    return out


def _actions(replies: Sequence[Response], dof: int) -> NDArray[np.float64]:
    rows = [
        np.full(dof, np.nan) if reply.action is None or len(reply.action) != dof else reply.action
        for reply in replies
    ]
    return np.array(rows, np.float64).reshape(len(replies), dof)


def _expected(
    model: Model, logs: Sequence[Tensor], replies: Sequence[Response], dof: int
) -> NDArray[np.float64]:
    """Return the mean of the distribution over action bins, [n, dof]."""
    out = np.full((len(replies), dof), np.nan)
    bins: Any = getattr(model._family, "bins", None)
    if bins is None or not dof:
        return out
    values = bin_values(bins)
    for i, (log_probs, reply) in enumerate(zip(logs, replies, strict=True)):
        if reply.action is None or np.isnan(reply.action).any() or len(log_probs) < dof:
            continue
        some = log_probs[:dof, bins.first_id : bins.vocab_size].double().softmax(-1).numpy()
        out[i] = (some * values).sum(1)
    return out


def bin_values(bins: Any) -> NDArray[np.float64]:
    """Return what each action token stands for, [dof, n_bins], in the action's units, in the order of the ids."""
    edges = np.linspace(-1, 1, bins.n_bins)
    centres = np.append((edges[:-1] + edges[1:]) / 2, (edges[-2] + edges[-1]) / 2)
    # The highest bin has the lowest id.
    return bins.unnormalize(np.repeat(centres[::-1, None], bins.dof, axis=1)).T
