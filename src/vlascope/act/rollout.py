"""Closed loop: a model acts in the simulator, several episodes per forward pass, under edits and watchers.

Episodes are played in fixed groups, which are shared out over processes. Up to `batch` episodes of a group take their
steps together, so that the model answers all of them in one pass; where one ends, the group's next takes its seat.
Which episodes share a pass depends on how many there are and on `batch`, never on the number of processes. A larger
batch changes activations by rounding only.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, StorageError
from ..files import storage_errors
from ..progress import progress
from ..sim.episode import Episode
from ..sim.language import Task
from ..sim.rollout import Perturbation, RolloutResult, draw_tasks
from .edits import ModelEdit, Nothing
from .player import Player, Settings, Trial, WatcherFactory
from .watcher import Veto

if TYPE_CHECKING:
    from ..models import Model

BATCH = 4
EPISODES_PER_SEAT = 3
IMAGE_PX = 112
MIN_PER_PROCESS = 8
"""Episodes below which a further process costs more (loading torch and the model) than it saves."""


@dataclass(frozen=True, kw_only=True)
class ClosedLoop(RolloutResult):
    """Episodes of a model in the simulator.

    Attributes:
        edit: Name of the edit that was active.
        scene: What was changed about scenes, pictures or words; empty for nothing.
        vetoes: Per episode why it was stopped, None where it was not.
        watched: Whether watchers could stop them.
        seconds: Wall time of playing, without loading.
        processes: Processes that played.
    """

    edit: str = Nothing.name
    scene: str = ""
    vetoes: tuple[Veto | None, ...] = ()
    watched: bool = False
    seconds: float = 0.0
    processes: int = 1

    @property
    def condition(self) -> str:
        """What set these episodes apart: edit, scene, and whether they were watched."""
        parts = [self.edit] if self.edit != Nothing.name else []
        parts += [self.scene] if self.scene else []
        return ", ".join([*parts, *(["watched"] if self.watched else [])]) or Nothing.name

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
            "scene": self.scene,
            "watched": self.watched,
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
        InputError: counts or changes out of range, or a model that cannot act.
        MissingExtraError: PyBullet is not installed.
        StorageError: `out` or `failures_out` exists or cannot be written; said before anything is played.

    Cost: about 35 ms of one core's time per control step with mini-vla.
    """
    check_free(out, failures_out)
    change = perturbation if perturbation is not None else Perturbation()
    check_change(change)
    trials = []
    drawn = draw_tasks(n_episodes, seed=seed, task=task, n_objects=n_objects, kinds=kinds)
    for i, (scene, instruction) in enumerate(drawn):
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
        scene=change.name,
        vetoes=played.vetoes,
        watched=watcher is not None,
        seconds=played.seconds,
        processes=played.processes,
    )


def check_change(change: Perturbation) -> None:
    """Raise `InputError` for a scene that cannot be: light below nothing, or a camera nowhere."""
    if not (np.isfinite(change.brightness) and change.brightness >= 0):
        raise InputError(
            f"got brightness {change.brightness:g}; need a finite gain of at least 0 (1 changes nothing)."
        )
    if not np.isfinite(change.camera_shift).all():
        shift = " ".join(f"{x:g}" for x in change.camera_shift)
        raise InputError(f"got a camera shift of {shift}; need three finite numbers, in metres.")


def check_free(*folders: Path | str | None) -> None:
    """Raise unless new folders can be made there: what takes long to work out must not be lost for want of a place.

    Raises:
        InputError: the same folder twice.
        StorageError: something is there, or nothing may be written there.
    """
    places = [Path(folder).resolve() for folder in folders if folder is not None]
    if len(set(places)) < len(places):
        raise InputError(f"got '{places[0]}' for two things; name a folder for each.")
    for place in places:
        with storage_errors(place, way="choose another place"):
            if place == Path.cwd() or place in Path.cwd().parents:
                raise StorageError(f"'{place}' holds the folder you are in; choose another folder.")
            if place.exists() and not (place.is_dir() and not any(place.iterdir())):
                raise StorageError(f"'{place}' exists; choose another folder, or remove it yourself.")
            above = next(one for one in place.parents if one.exists())
            if not above.is_dir():
                raise StorageError(f"cannot write '{place}': '{above}' is a file; choose another place.")
            if not os.access(above, os.W_OK | os.X_OK):
                raise StorageError(f"cannot write '{place}': permission denied; choose another place.")


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
    groups = groups_of(len(trials), batch=batch)
    settings = Settings(
        edit=edit if edit is not None else Nothing(),
        watcher=watcher,
        image_px=image_px,
        max_steps=max_steps,
        keep_frames=keep_frames,
    )
    n_worlds = min(batch, max(len(group) for group in groups))
    n = _processes(model, processes, n_trials=len(trials), n_groups=len(groups))
    found: dict[int, tuple[Episode, Veto | None]] = {}
    bar = progress(range(len(trials)), desc="closed loop", unit="episode", quiet=quiet)
    ticks = iter(bar)
    if n == 1:
        with Player(model, settings, n_worlds=n_worlds) as player:
            started = time.perf_counter()
            for group in groups:
                for i, one in zip(group, player.play([trials[i] for i in group], group), strict=True):
                    found[i] = one
                    next(ticks, None)
            seconds = time.perf_counter() - started
    else:
        from .workers import play_in_processes

        seconds = play_in_processes(
            model, trials, groups, settings, n_worlds=n_worlds, processes=n, found=found,
            tick=lambda: next(ticks, None),
        )  # fmt: skip
    next(ticks, None)
    ordered = [found[i] for i in range(len(trials))]
    return Played(tuple(e for e, _ in ordered), tuple(v for _, v in ordered), seconds, n)


def groups_of(n_trials: int, *, batch: int) -> list[list[int]]:
    """Return which trials are played together: even shares of about `EPISODES_PER_SEAT` times the batch.

    Long groups keep the passes full to the end; an even number of groups keeps two processes busy to the end.
    """
    if n_trials <= batch:
        return [list(range(n_trials))]
    n_groups = 2 * max(1, round(n_trials / (2 * EPISODES_PER_SEAT * batch)))
    return [part.tolist() for part in np.array_split(np.arange(n_trials), n_groups)]


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
