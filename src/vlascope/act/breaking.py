"""The smallest change of scene or wording that makes a model fail in a scene where it succeeds.

Each kind of change has sizes in a unit of its own (centimetres, stops of light, words). All sizes of a grid are
played, smallest first in the report; where sizes are continuous, the gap between the largest size that is still done
and the smallest that fails is then halved a few times along the same direction. Failing need not be monotone in size:
how many of the larger sizes fail as well is part of the result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, nearest_text
from ..measure.resample import bootstrap_interval, units_of
from ..measure.result import Result, cannot_say, plain_json, table
from ..sim.language import Task
from ..sim.rollout import draw_task
from .changes import KINDS_OF_CHANGE, LARGEST, UNITS, Variant
from .edits import ModelEdit
from .paired import share
from .player import Trial
from .rollout import BATCH, IMAGE_PX, Played, play

if TYPE_CHECKING:
    from ..items import ItemSource
    from ..models import Model

N_HALVINGS = 3
MIN_SCENES = 5


@dataclass(frozen=True, kw_only=True)
class Break:
    """What it takes to make the model fail in one scene.

    Attributes:
        seed: The scene's seed.
        kind: Kind of change.
        size: Smallest change that fails; None when none of those tried does.
        largest_done: Largest size below it that is still done (in the same direction, where sizes are continuous), 0
            for the unchanged scene.
        unit: Unit of both.
        says: The change in words.
        outcome: How the episode then fails.
        n_tried: Changes played.
        larger_fail: Share of the larger changes tried that fail as well; NaN when there are none.
        before, after: What is played without and with the change; `after` is None when nothing fails.
    """

    seed: int
    kind: str
    size: float | None
    largest_done: float
    unit: str
    says: str
    outcome: str
    n_tried: int
    larger_fail: float
    before: Trial
    after: Trial | None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types; scenes as `Scene.from_dict` reads them."""
        facts = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("before", "after")
        }
        for name, trial in (("before", self.before), ("after", self.after)):
            facts[name] = None if trial is None else {
                "scene": trial.scene.to_dict(), "told": trial.told or trial.instruction.text,
                "target": trial.instruction.target,
            }  # fmt: skip
        return plain_json(facts)


@dataclass(frozen=True)
class BreakResult:
    """Breaks of some scenes.

    Attributes:
        breaks: One per scene that the model masters and kind of change that is possible there.
        broken: Per kind: share of those scenes that some change of the searched range breaks (Wilson interval).
        smallest: Per kind: median size of the smallest such change, over the scenes that broke.
        n_scenes: Scenes drawn.
        n_failed: Scenes in which the model fails unchanged; they are left out.
    """

    breaks: tuple[Break, ...]
    broken: tuple[Result, ...]
    smallest: tuple[Result, ...]
    n_scenes: int
    n_failed: int

    def easiest(self) -> Break | None:
        """Return the break that needs the smallest share of its kind's largest change; None when nothing breaks."""
        found = [one for one in self.breaks if one.size is not None]
        return min(found, key=lambda one: (one.size or 0) / LARGEST[one.kind], default=None)

    def verdict(self) -> str:
        """Return in one sentence what it takes to make the model fail."""
        if self.n_failed == self.n_scenes:
            scenes = "the one scene" if self.n_scenes == 1 else f"all {self.n_scenes} scenes"
            return f"it fails in {scenes} unchanged, so that there is nothing to break"
        one = self.easiest()
        if one is None:
            return f"nothing of what was tried makes it fail in {self.n_scenes - self.n_failed} scenes"
        return f"smallest change: {one.says} (scene {one.seed}), which ends in '{one.outcome}'"

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per number."""
        return table([*self.broken, *self.smallest])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "verdict": self.verdict(),
                "n_scenes": self.n_scenes,
                "n_failed_unchanged": self.n_failed,
                "broken": [r.to_json() for r in self.broken],
                "smallest": [r.to_json() for r in self.smallest],
                "breaks": [one.to_json() for one in self.breaks],
            }
        )


def find_breaks(
    model: Model,
    *,
    task: Task = "pick",
    n_scenes: int = 1,
    seed: int = 0,
    kinds: Sequence[str] = (),
    n_halvings: int = N_HALVINGS,
    edit: ModelEdit | None = None,
    image_px: int = IMAGE_PX,
    max_steps: int | None = None,
    batch: int = BATCH,
    processes: int | None = None,
    quiet: bool = True,
) -> BreakResult:
    """Search the smallest change of each kind that makes a model fail.

    Args:
        model: A model that acts.
        task: "pick" or "place".
        n_scenes: Scenes, drawn from `seed` on; those in which the model fails unchanged are counted and left out.
        seed: First scene's seed.
        kinds: Kinds of change, of `KINDS_OF_CHANGE`; empty for all.
        n_halvings: How often the gap at a continuous break is halved.
        edit: A change of the model under which to search.
        image_px, max_steps, batch, processes, quiet: As for `closed_loop`.

    Raises:
        InputError: unknown kinds or no scenes.

    Cost: about 60 episodes per scene for all kinds.
    """
    names = list(kinds) or list(KINDS_OF_CHANGE)
    if unknown := [name for name in names if name not in KINDS_OF_CHANGE]:
        known = ", ".join(KINDS_OF_CHANGE)
        raise InputError(
            f"got change '{unknown[0]}'; known are {known}.{nearest_text(unknown[0], KINDS_OF_CHANGE)}"
        )
    if n_scenes < 1 or n_halvings < 0:
        raise InputError(f"got n_scenes={n_scenes}, n_halvings={n_halvings}; need at least 1 and 0.")

    def run(trials: Sequence[Trial]) -> Played:
        return play(
            model, trials, edit=edit, image_px=image_px, max_steps=max_steps, batch=batch, processes=processes,
            quiet=quiet,
        )  # fmt: skip

    starts = []
    for i in range(n_scenes):
        scene, instruction = draw_task(seed + i, task=task)
        starts.append(Trial(scene=scene, instruction=instruction, labels={"seed": seed + i}))
    mastered = [t for t, e in zip(starts, run(starts).episodes, strict=True) if e.success]
    grid = [
        (start, name, sorted(KINDS_OF_CHANGE[name](start), key=lambda v: v.size))
        for start in mastered
        for name in names
    ]
    grid = [one for one in grid if one[2]]  # no room for another object, say
    flat = [variant.trial for _, _, variants in grid for variant in variants]
    outcomes = iter([e.outcome for e in run(flat).episodes] if flat else [])
    searches = [
        _Search(start, name, [(v, next(outcomes)) for v in variants]) for start, name, variants in grid
    ]
    for _ in range(n_halvings):
        asked = [(search, v) for search in searches if (v := search.halfway()) is not None]
        if not asked:
            break
        for (search, variant), episode in zip(asked, run([v.trial for _, v in asked]).episodes, strict=True):
            search.add(variant, episode.outcome)
    breaks = tuple(search.result() for search in searches)
    return BreakResult(
        breaks,
        tuple(
            share(f"{name} / broken", [b.size is not None for b in breaks if b.kind == name])
            for name in names
        ),
        tuple(_median(name, [b for b in breaks if b.kind == name]) for name in names),
        n_scenes,
        n_scenes - len(mastered),
    )


class _Search:
    """The changes of one kind that were played in one scene."""

    def __init__(self, start: Trial, kind: str, played: list[tuple[Variant, str]]) -> None:
        self.start, self.kind, self.played = start, kind, list(played)

    def add(self, variant: Variant, outcome: str) -> None:
        self.played.append((variant, outcome))

    def worst(self) -> tuple[Variant, str] | None:
        """Return the smallest change that failed."""
        failed = [(v, outcome) for v, outcome in self.played if outcome != "success"]
        return min(failed, key=lambda one: one[0].size, default=None)

    def done_below(self, size: float) -> float:
        """Return the largest size below one that was still done."""
        return max(
            (v.size for v, outcome in self.played if outcome == "success" and v.size < size), default=0.0
        )

    def done_along(self, failed: Variant) -> float:
        """Return the largest size below a failing change that was still done in the same direction."""
        assert failed.again is not None
        sizes = []
        for variant, outcome in self.played:
            if outcome == "success" and variant.size < failed.size:
                same = failed.again(variant.size)
                if same is not None and same.trial == variant.trial:
                    sizes.append(variant.size)
        return max(sizes, default=0.0)

    def halfway(self) -> Variant | None:
        found = self.worst()
        if found is None or found[0].again is None:
            return None
        return found[0].again((found[0].size + self.done_along(found[0])) / 2)

    def _largest_done(self, found: tuple[Variant, str] | None, largest: float) -> float:
        if found is None:
            return self.done_below(largest + 1.0)
        return self.done_below(found[0].size) if found[0].again is None else self.done_along(found[0])

    def result(self) -> Break:
        found = self.worst()
        largest = max((v.size for v, _ in self.played), default=0.0)
        size = None if found is None else found[0].size
        larger = [outcome != "success" for v, outcome in self.played if size is not None and v.size > size]
        return Break(
            seed=int(self.start.labels["seed"]),
            kind=self.kind,
            size=size,
            largest_done=self._largest_done(found, largest),
            unit=UNITS[self.kind],
            says="nothing fails" if found is None else found[0].says,
            outcome="success" if found is None else found[1],
            n_tried=len(self.played),
            larger_fail=float(np.mean(larger)) if larger else math.nan,
            before=self.start,
            after=None if found is None else found[0].trial,
        )


def _median(name: str, breaks: Sequence[Break]) -> Result:
    sizes = np.array([b.size for b in breaks if b.size is not None], float)
    unit = f"{UNITS[name]} (median of those that broke)"
    if not len(sizes):
        return cannot_say(f"{name} / smallest", "nothing broke", unit=unit, n=len(breaks), over="scene")
    units = units_of(range(len(sizes)), over="scene")
    interval = None
    if len(sizes) >= MIN_SCENES:
        interval = bootstrap_interval(
            lambda w: float(np.median(np.repeat(sizes, w.astype(int)))), units, n_draws=500
        )
    return Result(
        name=f"{name} / smallest", value=float(np.median(sizes)), unit=unit, n=len(sizes), over="scene",
        n_units=len(sizes), interval=interval, details={"smallest": float(sizes.min()), "searched_to": LARGEST[name]},
    )  # fmt: skip


def episodes_of(
    model: Model, found: Break, *, image_px: int = IMAGE_PX, edit: ModelEdit | None = None
) -> ItemSource:
    """Play a break once more and return both episodes as items: 0 without the change, 1 with it.

    Capture them (`vlascope.capture`) to see in a cut of the layers where the two part.

    Raises:
        InputError: nothing broke.
    """
    from ..items.memory import EpisodeSource
    from ..sim.record import ACTION_NAMES, STATE_NAMES, episode_data
    from ..sim.world import STEPS_PER_SECOND

    if found.after is None:
        raise InputError(
            f"no change of kind '{found.kind}' broke scene {found.seed}; there is nothing to show."
        )
    trials = (found.before, found.after)
    played = play(model, trials, image_px=image_px, edit=edit, keep_frames=True, processes=1)
    data = []
    for trial, episode in zip(trials, played.episodes, strict=True):
        told = trial.instruction.text if trial.told is None else trial.told
        data.append(dataclasses.replace(episode_data(episode), task=told))
    return EpisodeSource(
        data, fps=STEPS_PER_SECOND, state_names=STATE_NAMES, action_names=ACTION_NAMES,
        name=f"{found.kind} of scene {found.seed}",
    )  # fmt: skip
