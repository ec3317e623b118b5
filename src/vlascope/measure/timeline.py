"""Episodes as time lines: how much of each frame every concept takes, when it changes, and what is known to happen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items.outcome import LOST, WON, succeeded
from ..models.layout import KINDS
from ..progress import watched
from .changes import MIN_FRAMES, PENALTY, Kind, change_points

if TYPE_CHECKING:
    from ..items.item import Scalar
    from ..runs import Run
    from ..runs.tables import ItemRow
    from ..spectral.cut import CutResult

EVENT = "event."


@dataclass(frozen=True, kw_only=True)
class Spell:
    """A stretch of frames in which a concept is there: `onset` is its first frame, `duration` its frames."""

    concept: int
    onset: int
    duration: int


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One episode.

    Attributes:
        episode: Its number.
        items: int64 [f], rows of the run's items in order of time.
        steps: int64 [f], their steps in the episode.
        occupancy: float32 [f, k], share of the frame's tokens that belong to each concept; rows sum to 1.
        present: bool [f, k], whether the concept is there (see `presence`).
        changes: Frames (0..f-1) at which the occupancy changes its course; None where the episode is too short.
        events: Frame at which each known event is first seen.
        success: The episode's outcome; None when unknown.
        prompt: Its instruction.
    """

    episode: int
    items: NDArray[np.int64]
    steps: NDArray[np.int64]
    occupancy: NDArray[np.float32]
    present: NDArray[np.bool_]
    changes: NDArray[np.int64] | None
    events: Mapping[str, int]
    success: bool | None
    prompt: str | None

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.items)

    def spells(self) -> list[Spell]:
        """Return every stretch in which a concept is there, by concept and onset."""
        out = []
        for concept in range(self.present.shape[1]):
            edges = np.flatnonzero(np.diff(np.r_[0, self.present[:, concept].astype(int), 0]))
            out += [
                Spell(concept=concept, onset=int(a), duration=int(b - a))
                for a, b in zip(edges[::2], edges[1::2], strict=True)
            ]
        return out


def frames_of(run: Run) -> dict[int, list[ItemRow]]:
    """Return the frames of each episode in order of time, episodes in order of their numbers.

    Raises:
        InputError: an item belongs to no episode.
    """
    if any(row.episode is None or row.step is None for row in run.items):
        raise InputError("time lines need frames of episodes; some items of this run belong to none.")
    out: dict[int, list[ItemRow]] = {}
    for row in sorted(run.items, key=lambda row: (row.episode or 0, row.step or 0)):
        out.setdefault(int(row.episode or 0), []).append(row)
    return out


def outcome_of(told: Scalar, *, label: str, episode: int) -> bool | None:
    """Return whether an episode succeeded by what its label says (see `succeeded`); None where it says nothing.

    Raises:
        InputError: the label says something else.
    """
    if told is None or str(told).strip().lower() in ("", "nan"):
        return None
    if (won := succeeded({label: told}, label=label)) is not None:
        return won
    raise InputError(
        f"episode {episode} has '{told}' in its label '{label}'; an outcome is one of {', '.join(sorted(WON))} "
        f"or one of {', '.join(sorted(LOST))}. Write one of these, or name another label."
    )


def need_event(name: str | None, known: Iterable[str]) -> None:
    """Raise `InputError` where an event is asked for that no episode has; None asks for none."""
    known = sorted(set(known))
    if name is not None and name not in known:
        has = f"known are {', '.join(known)}" if known else "no events are known"
        raise InputError(f"no episode has an event '{name}'; {has}.")


def timelines(
    run: Run,
    cut: CutResult,
    *,
    site: str,
    k: int,
    kinds: Sequence[str] = ("patch",),
    success: str = "success",
    kind: Kind = "trend",
    penalty: float = PENALTY,
    seed: int = 0,
) -> list[Timeline]:
    """Return one time line per episode of a cut run, in order of their numbers.

    Args:
        run: A run of episodes.
        cut: A cut of it; all frames of all episodes share its concepts.
        site: One of `cut.sites`.
        k: One of its numbers of concepts.
        kinds: Which tokens are counted.
        success: Label with the outcome (see `outcome_of`).
        kind: See `change_points`.
        penalty: See `change_points`.
        seed: See `change_points`.

    Raises:
        InputError: frames without an episode, a site or k that the cut lacks, no tokens of these kinds, or an
            outcome that is neither true nor false.
    """
    by_episode = frames_of(run)
    occupied = occupancy(run, cut, site=site, k=k, kinds=kinds)
    present = presence(occupied)
    out = []
    for episode, rows in watched(by_episode.items(), desc="episodes", unit="episode"):
        items = np.array([row.index for row in rows], np.int64)
        steps = np.array([row.step for row in rows], np.int64)
        changes = None
        if len(rows) >= MIN_FRAMES:
            changes = change_points(occupied[items], kind=kind, penalty=penalty, seed=seed)
        out.append(
            Timeline(
                episode=episode,
                items=items,
                steps=steps,
                occupancy=occupied[items],
                present=present[items],
                changes=changes,
                events=events_of(rows),
                success=outcome_of(rows[0].labels.get(success), label=success, episode=episode),
                prompt=rows[0].prompt,
            )  # fmt: skip
        )
    return out


def occupancy(
    run: Run, cut: CutResult, *, site: str, k: int, kinds: Sequence[str] = ("patch",)
) -> NDArray[np.float32]:
    """Return the share of each item's tokens that belong to each concept, float32 [n_items, k].

    Raises:
        InputError: the cut lacks the site or k, or an item has no token of these kinds.
    """
    if site not in cut.parts or k not in cut.labels:
        raise InputError(
            f"the cut holds sites {', '.join(cut.parts)} and k = {sorted(cut.labels)}; got '{site}' and {k}."
        )
    part = cut.parts[site]
    table = run.tokens(part.layout)
    wanted = np.isin(np.asarray(table.kind)[part.token_rows], [KINDS.index(kind) for kind in kinds])
    labels = np.asarray(cut.labels[k][part.rows])
    wanted &= labels >= 0
    item = np.asarray(table.item)[part.token_rows][wanted].astype(np.int64)
    counts = np.bincount(item * k + labels[wanted], minlength=run.n_items * k).reshape(run.n_items, k)
    total = counts.sum(1, keepdims=True)
    if not total.all():
        missing = int(np.flatnonzero(total[:, 0] == 0)[0])
        raise InputError(
            f"item '{run.items[missing].item_id}' has no token of kind {', '.join(kinds)} at '{site}' in this cut; "
            "choose other kinds or another site."
        )
    return (counts / total).astype(np.float32)


def presence(occupied_nk: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return in which frames a concept is there: at least half-way from its low to its high over all frames.

    Low and high are the 5 % and 95 % quantiles. A concept that hardly varies (by less than a fifth of its high) is
    always there, one that is never seen never.
    """
    low, high = np.quantile(occupied_nk, [0.05, 0.95], axis=0)
    high = np.where(high > 0, high, occupied_nk.max(0))
    steady = (high - low) < 0.2 * high
    return np.where(steady, occupied_nk > 0, occupied_nk >= (low + high) / 2) & (occupied_nk > 0)


def events_of(rows: Sequence[ItemRow]) -> dict[str, int]:
    """Return the frame at which each event of an episode is first seen.

    From labels `event.NAME` (the step whose action brought it about: it is seen in the next frame); without those
    from the frame label `gripper_open`, else from the last entry of the actions, as "gripper 1", "gripper 2", ...
    for every switch of the gripper. Events after the last frame are left out.
    """
    steps = np.array([row.step for row in rows], np.int64)
    found = {
        name[len(EVENT) :]: int(value)
        for name, value in rows[0].labels.items()
        if name.startswith(EVENT) and value is not None
    }
    if found:
        seen = {name: int(np.searchsorted(steps, step, side="right")) for name, step in found.items()}
        return {name: at for name, at in sorted(seen.items(), key=lambda e: e[1]) if at < len(rows)}
    told = [row.labels.get("gripper_open") for row in rows]
    if all(value is not None for value in told):
        switches = np.flatnonzero(np.diff(np.array(told, np.int64))) + 1
    elif all(row.action is not None and len(row.action) for row in rows):
        grip = np.array([row.action[-1] for row in rows if row.action is not None], np.float64)
        low, high = grip.min(), grip.max()
        # An action is seen in the frame after it.
        switches = np.flatnonzero(np.diff((grip > (low + high) / 2).astype(int))) + 2 if high > low else []
    else:
        switches = []
    return {f"gripper {i + 1}": int(at) for i, at in enumerate(switches) if at < len(rows)}
