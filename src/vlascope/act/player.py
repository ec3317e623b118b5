"""Episodes side by side: several tables, one model, and a forward pass for all of them at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..sim.episode import Episode, Play
from ..sim.language import Instruction
from ..sim.record import CAMERA
from ..sim.scene import Scene
from .edits import ModelEdit
from .watcher import Veto, Watcher

if TYPE_CHECKING:
    from ..models import Model, Response, Site
    from ..sim.world import Observation, TableTop

WatcherFactory = Callable[[int], Watcher]
"""Makes the watcher of an episode; gets the episode's number."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One episode to play.

    Attributes:
        scene: What stands on the table.
        instruction: What counts as success.
        told: Text that the model reads; None for the instruction's own.
        image: (rgb, episode) -> rgb that the model sees instead; None for the camera's.
        labels: Facts to store with the episode.
    """

    scene: Scene
    instruction: Instruction
    told: str | None = None
    image: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]] | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for all episodes that a player plays."""

    edit: ModelEdit
    watcher: WatcherFactory | None
    image_px: int
    max_steps: int | None
    keep_frames: bool


@dataclass
class _Seat:
    """One episode of a group under way."""

    number: int
    trial: Trial
    play: Play
    policy: Any
    watcher: Watcher | None
    seen: Observation | None = None
    veto: Veto | None = None


class Player:
    """Tables and a model: plays groups of episodes in lock-step."""

    def __init__(self, model: Model, settings: Settings, *, n_worlds: int) -> None:
        from ..models.policy import VLAPolicy
        from ..sim.world import TableTop

        # A reply that is no action moves nothing; it must not end the count.
        self._policy = lambda: VLAPolicy(model, malformed="hold")
        self._policy()  # a model that cannot act is refused before tables are made
        self.model, self.settings = model, settings
        self.worlds: list[TableTop] = [TableTop(image_px=settings.image_px) for _ in range(n_worlds)]

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        for world in self.worlds:
            world.close()

    def play(self, trials: Sequence[Trial], numbers: Sequence[int]) -> list[tuple[Episode, Veto | None]]:
        """Play one group to its end; `numbers` are those of its episodes."""
        waiting = iter(list(zip(trials, numbers, strict=True)))
        seats: list[_Seat | None] = [None for _ in self.worlds]
        found: dict[int, tuple[Episode, Veto | None]] = {}
        with self.settings.edit.on(self.model):
            while present := self._look(seats, waiting, found):
                self._step(present, self._sites(present))
        return [found[number] for number in numbers]

    def _look(
        self,
        seats: list[_Seat | None],
        waiting: Iterator[tuple[Trial, int]],
        found: dict[int, tuple[Episode, Veto | None]],
    ) -> list[_Seat]:
        """Let every seat look; the next episode of the group takes the seat of one that is over."""
        for i, world in enumerate(self.worlds):
            while True:
                seat = seats[i]
                if seat is None:
                    if (one := next(waiting, None)) is None:
                        break
                    seat = seats[i] = self._seat(world, trial=one[0], number=one[1])
                seat.seen = None if seat.veto is not None else seat.play.look()
                if seat.seen is not None:
                    break
                found[seat.number] = (self._finish(seat), seat.veto)
                seats[i] = None
        return [seat for seat in seats if seat is not None]

    def _sites(self, seats: Sequence[_Seat]) -> tuple[Site, ...]:
        names = dict.fromkeys(name for seat in seats if seat.watcher for name in seat.watcher.sites)
        return self.model.resolve(list(names)) if names else ()

    def _seat(self, world: TableTop, *, trial: Trial, number: int) -> _Seat:
        watcher = None if self.settings.watcher is None else self.settings.watcher(number)
        if watcher is not None:
            watcher.start(trial.instruction.task, CAMERA)
        current = Play(
            world,
            scene=trial.scene,
            instruction=trial.instruction,
            max_steps=self.settings.max_steps,
            keep_frames=self.settings.keep_frames,
            labels=trial.labels,
        )
        return _Seat(number, trial, current, self._policy(), watcher)

    def _step(self, seats: Sequence[_Seat], sites: Sequence[Site]) -> None:
        """Ask the model for those that have no plan left, let the watchers judge, and act."""
        asked = [seat for seat in seats if not seat.policy.has_plan]
        replies: list[Response] = []
        tokens: list[dict[str, NDArray[np.float32]]] = [{} for _ in asked]
        if asked:
            items = []
            for seat in asked:
                assert seat.seen is not None
                image = seat.trial.image
                rgb = seat.seen.rgb if image is None else image(seat.seen.rgb, seat.number)
                told = seat.trial.instruction.text if seat.trial.told is None else seat.trial.told
                items.append(seat.policy.item(rgb, told, name=str(seat.number)))
            replies, tokens = answer_and_read(self.model, items, sites, max_new_tokens=asked[0].policy.dof)
        answered = {
            seat.number: (reply, own) for seat, reply, own in zip(asked, replies, tokens, strict=True)
        }
        for seat in seats:
            if seat.number not in answered:
                action, facts = seat.policy.planned()
            else:
                reply, own = answered[seat.number]
                if seat.watcher is not None:
                    seat.veto = seat.watcher.watch(seat.play.step, own)
                    if seat.veto is not None:
                        seat.play.stop()
                        continue
                action, facts = seat.policy.decide(reply)
            seat.play.act(action, facts)

    @staticmethod
    def _finish(seat: _Seat) -> Episode:
        labels = dict(seat.trial.labels)
        if seat.veto is not None:
            labels |= {"veto": seat.veto.reason, "veto_step": seat.play.step}
        return dataclasses.replace(seat.play.episode(), labels=labels)


def answer_and_read(
    model: Model, items: Sequence[Any], sites: Sequence[Site], *, max_new_tokens: int
) -> tuple[list[Response], list[dict[str, NDArray[np.float32]]]]:
    """Return the model's answers, and per item what the sites held for its image and prompt, in the same pass.

    Returns:
        Answers, and per item {site name: float32 [t, d]}.
    """
    batch = model.prepare(list(items))
    if not sites:
        return model.respond(batch, max_new_tokens=max_new_tokens), [{} for _ in items]
    with model._hooks.reading(sites) as calls:
        replies = model.respond(batch, max_new_tokens=max_new_tokens)
    found: list[dict[str, NDArray[np.float32]]] = [{} for _ in items]
    for site in sites:
        # Later calls of the language model read one new token each; the first one read the prompt.
        own = calls[site.name][:1] if site.layout == "language" else calls[site.name]
        for row, value in zip(found, model._split(site, own, batch), strict=True):
            row[site.name] = value.float().cpu().numpy()
    return replies, found
