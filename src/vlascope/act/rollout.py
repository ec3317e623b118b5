"""Closed loop: a model acts in the simulator, several episodes per forward pass, under edits and watchers.

Episodes are played in fixed groups. The episodes of a group take their steps together, so that the model answers all
of them in one pass; groups are shared out over processes. Which episodes share a pass depends on `batch` alone, never
on the number of processes. A larger batch changes activations by rounding only.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import progress
from ..sim.episode import Episode, Play
from ..sim.language import Instruction, Task
from ..sim.record import CAMERA
from ..sim.rollout import Perturbation, RolloutResult, draw_task
from ..sim.scene import Scene
from .edits import ModelEdit, Nothing
from .watcher import Veto, Watcher

if TYPE_CHECKING:
    from ..models import Model, Response, Site
    from ..sim.world import Observation, TableTop

BATCH = 4
IMAGE_PX = 112
MIN_PER_PROCESS = 8
"""Episodes below which a further process costs more (loading torch and the model) than it saves."""

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
class ClosedLoop(RolloutResult):
    """Episodes of a model in the simulator.

    Attributes:
        edit: Name of the edit that was active.
        vetoes: Per episode why it was stopped, None where it was not.
        watched: Whether watchers could stop them.
        seconds: Wall time of playing, without loading.
        processes: Processes that played.
    """

    edit: str = "no edit"
    vetoes: tuple[Veto | None, ...] = ()
    watched: bool = False
    seconds: float = 0.0
    processes: int = 1

    @property
    def n_steps(self) -> int:
        """Control steps in all."""
        return sum(e.n_steps for e in self.episodes)

    @property
    def steps_per_second(self) -> float:
        """Control steps per second of wall time, with rendering."""
        return self.n_steps / self.seconds if self.seconds > 0 else float("nan")

    @property
    def n_vetoed(self) -> int:
        """Episodes that a watcher stopped."""
        return sum(v is not None for v in self.vetoes)

    def to_dict(self) -> dict[str, Any]:
        """Counts and one short row per episode, ready for JSON."""
        facts = super().to_dict()
        for row, veto in zip(facts["episodes"], self.vetoes, strict=True):
            row["veto"] = (
                None if veto is None else {k: _plain(v) for k, v in dataclasses.asdict(veto).items()}
            )
        return facts | {
            "edit": self.edit,
            "vetoed": self.n_vetoed,
            "steps": self.n_steps,
            "seconds": self.seconds,
            "processes": self.processes,
        }


def closed_loop(
    model: Model,
    *,
    task: Task = "pick",
    n_episodes: int = 20,
    seed: int = 0,
    n_objects: int | None = None,
    kinds: tuple[tuple[str, str], ...] | None = None,
    perturbation: Perturbation | None = None,
    edit: ModelEdit | None = None,
    watcher: WatcherFactory | None = None,
    image_px: int = IMAGE_PX,
    max_steps: int | None = None,
    batch: int = BATCH,
    processes: int | None = None,
    keep_frames: bool = False,
    out: Path | str | None = None,
    failures_out: Path | str | None = None,
    quiet: bool = True,
) -> ClosedLoop:
    """Let a model act in fresh scenes and count how often it does what it is told.

    Episode i depends on `seed + i` only: the same scenes come back under every edit, watcher and perturbation, so that
    results can be compared in pairs (`compare`).

    Args:
        model: A model that acts.
        task: "pick" or "place".
        n_episodes: How many.
        seed: First scene's seed.
        n_objects: 2 to 4, or None to draw it per scene.
        kinds: (colour, material) of the objects in every scene, the first being the target's.
        perturbation: What to change about scenes, pictures or instructions.
        edit: What to change in the model.
        watcher: Makes a watcher per episode; its veto ends the episode before the action.
        image_px: Side of the pictures.
        max_steps: Longest episode; default 40 for "pick", 70 for "place".
        batch: Episodes per forward pass.
        processes: Processes to play in; None takes one per core where there is enough to do. They load the model by
            its name, so that a module in memory is played in this process only.
        keep_frames: Keep pictures and masks in the result.
        out: Also write all episodes there as a LeRobot v3 dataset with video.
        failures_out: The same, failed and stopped episodes only; nothing is written when there are none.
        quiet: No progress bar.

    Raises:
        InputError: counts out of range, or a model that cannot act.
        MissingExtraError: PyBullet is not installed.
        StorageError: `out` exists or cannot be written.

    Cost: about 35 ms of one core's time per control step with mini-vla.
    """
    if n_episodes < 1:
        raise InputError(f"got n_episodes = {n_episodes}; need at least 1.")
    change = perturbation if perturbation is not None else Perturbation()
    trials = []
    for i in range(n_episodes):
        scene, instruction = draw_task(
            seed + i, task=task, n_objects=n_objects, kinds=list(kinds) if kinds else None
        )
        told = None if change.text is None else change.text(instruction.text, i)
        trials.append(
            Trial(
                scene=change.scene(scene),
                instruction=instruction,
                told=told,
                image=change.image,
                labels={"seed": seed + i},
            )
        )
    wants_frames = keep_frames or out is not None or failures_out is not None
    played = play(
        model,
        trials,
        edit=edit,
        watcher=watcher,
        image_px=image_px,
        max_steps=max_steps,
        batch=batch,
        processes=processes,
        keep_frames=wants_frames,
        quiet=quiet,
    )
    if out is not None or failures_out is not None:
        from ..sim.record import write_episodes

        # An episode that was stopped before its first action has no picture to write.
        shown = [e for e in played.episodes if e.n_steps]
        if out is not None and shown:
            write_episodes(out, shown)
        failed = [e for e in shown if not e.success]
        if failures_out is not None and failed:
            write_episodes(failures_out, failed)
    kept = tuple(
        e if keep_frames else dataclasses.replace(e, rgb=None, segmentation=None) for e in played.episodes
    )
    return ClosedLoop(
        task=task,
        seed=seed,
        episodes=kept,
        edit=(edit or Nothing()).name,
        vetoes=played.vetoes,
        watched=watcher is not None,
        seconds=played.seconds,
        processes=played.processes,
    )


@dataclass(frozen=True)
class Played:
    """Trials that were played: episodes and vetoes in their order, and what it took."""

    episodes: tuple[Episode, ...]
    vetoes: tuple[Veto | None, ...]
    seconds: float
    processes: int


def play(
    model: Model,
    trials: Sequence[Trial],
    *,
    edit: ModelEdit | None = None,
    watcher: WatcherFactory | None = None,
    image_px: int = IMAGE_PX,
    max_steps: int | None = None,
    batch: int = BATCH,
    processes: int | None = None,
    keep_frames: bool = False,
    quiet: bool = True,
) -> Played:
    """Play given scenes and instructions; see `closed_loop` for the arguments."""
    trials = list(trials)
    if not trials or batch < 1:
        raise InputError(f"got {len(trials)} trials, batch={batch}; need at least one of each.")
    groups = [list(range(i, min(i + batch, len(trials)))) for i in range(0, len(trials), batch)]
    settings = _Settings(
        edit=edit if edit is not None else Nothing(),
        watcher=watcher,
        image_px=image_px,
        max_steps=max_steps,
        keep_frames=keep_frames,
    )
    n = _processes(model, processes, n_trials=len(trials), n_groups=len(groups))
    found: dict[int, tuple[Episode, Veto | None]] = {}
    bar = progress(range(len(trials)), desc="closed loop", unit="episode", quiet=quiet)
    ticks = iter(bar)
    if n == 1:
        started = time.perf_counter()
        with _Player(model, settings, n_worlds=min(batch, len(trials))) as player:
            for group in groups:
                for i, one in zip(group, player.play([trials[i] for i in group], group), strict=True):
                    found[i] = one
                    next(ticks, None)
        seconds = time.perf_counter() - started
    else:
        from .workers import play_in_processes

        seconds = play_in_processes(
            model, trials, groups, settings, processes=n, found=found, tick=lambda: next(ticks, None)
        )
    next(ticks, None)
    ordered = [found[i] for i in range(len(trials))]
    return Played(tuple(e for e, _ in ordered), tuple(v for _, v in ordered), seconds, n)


@dataclass(frozen=True, kw_only=True)
class _Settings:
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


class _Player:
    """Tables and a model: plays groups of episodes in lock-step."""

    def __init__(self, model: Model, settings: _Settings, *, n_worlds: int) -> None:
        from ..models.policy import VLAPolicy
        from ..sim.world import TableTop

        # A reply that is no action moves nothing; it must not end the count.
        self._policy = lambda: VLAPolicy(model, malformed="hold")
        self._policy()  # a model that cannot act is refused before tables are made
        self.model, self.settings = model, settings
        self.worlds: list[TableTop] = [TableTop(image_px=settings.image_px) for _ in range(n_worlds)]

    def __enter__(self) -> _Player:
        return self

    def __exit__(self, *_: object) -> None:
        for world in self.worlds:
            world.close()

    def play(self, trials: Sequence[Trial], numbers: Sequence[int]) -> list[tuple[Episode, Veto | None]]:
        """Play one group to its end."""
        seats = [
            self._seat(world, trial, number)
            for world, trial, number in zip(self.worlds, trials, numbers, strict=False)
        ]
        sites = tuple(dict.fromkeys(name for seat in seats if seat.watcher for name in seat.watcher.sites))
        wanted = self.model.resolve(list(sites)) if sites else ()
        with self.settings.edit.on(self.model):
            while self._look(seats):
                self._step([seat for seat in seats if seat.seen is not None], wanted)
        return [(self._finish(seat), seat.veto) for seat in seats]

    def _seat(self, world: TableTop, trial: Trial, number: int) -> _Seat:
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

    @staticmethod
    def _look(seats: Sequence[_Seat]) -> bool:
        for seat in seats:
            seat.seen = None if seat.veto is not None else seat.play.look()
        return any(seat.seen is not None for seat in seats)

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


def _processes(model: Model, asked: int | None, *, n_trials: int, n_groups: int) -> int:
    if asked is not None and asked < 1:
        raise InputError(f"got processes = {asked}; need at least 1.")
    in_memory = model.revision == "memory"
    if asked is not None and asked > 1 and in_memory:
        raise InputError(
            f"got processes = {asked}, but '{model.name}' was given as a module in memory, which other processes "
            "cannot load; save it to a folder and load it from there, or use processes=1."
        )
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = 1 if in_memory or model.device.type != "cpu" else min(cores, n_trials // MIN_PER_PROCESS)
    return max(1, min(asked, n_groups))


def _plain(value: Any) -> Any:
    from ..measure.result import plain_json

    return plain_json(value)


__all__ = ["ClosedLoop", "Played", "Trial", "answer_and_read", "closed_loop", "play"]
