"""Rollouts in several processes: each has its own tables and its own copy of the model, on one thread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle  # noqa: TID251 - through pipes between our own processes; nothing is written
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, VlascopeError, WorkerError
from ..processes import script_left_alone

if TYPE_CHECKING:
    from ..models import Model
    from ..sim.episode import Episode
    from .player import Settings, Trial
    from .watcher import Veto


def play_in_processes(
    model: Model,
    trials: Sequence[Trial],
    groups: Sequence[Sequence[int]],
    settings: Settings,
    *,
    n_worlds: int,
    processes: int,
    found: dict[int, tuple[Episode, Veto | None]],
    tick: Callable[[], object],
) -> float:
    """Play groups of trials in several processes, into `found`; returns the seconds since all were ready.

    Raises:
        InputError: an edit, watcher or change of pictures that cannot be sent to another process.
        WorkerError: a process died.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = {
        "name": model.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "revision": None if model.revision in ("embedded", "local", "memory", "unknown") else model.revision,
        "fingerprint": model.fingerprint(),
        "threads": max(1, cores // processes),
        "n_worlds": n_worlds,
    }
    try:
        order = pickle.dumps((load, settings))
        jobs = [pickle.dumps([(i, trials[i]) for i in group]) for group in groups]
    except Exception as error:  # pickle raises many kinds
        raise InputError(
            f"the edit, the watcher or a change of pictures cannot be sent to other processes ({error}). Use "
            "functions and classes that can be imported (no lambdas), or processes=1."
        ) from error
    needs_script = any(b"__main__" in one for one in (order, *jobs))
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    workers = []
    try:
        for _ in range(processes):
            mine, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, order), daemon=True)
            with contextlib.nullcontext() if needs_script else script_left_alone():
                worker.start()
            theirs.close()
            ends.append(mine)
            workers.append(worker)
        for end in ends:
            _receive(end, needs_script=needs_script)
        started = time.perf_counter()
        left = iter(jobs)
        busy = [end for end in ends if _send_next(end, left)]
        while busy:
            for end in cast(list[Connection], wait(busy)):
                for i, one in _receive(end):
                    found[i] = one
                    tick()
                if not _send_next(end, left):
                    busy.remove(end)
        return time.perf_counter() - started
    finally:
        for end in ends:
            end.close()
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.terminate()


def _send_next(end: Connection, jobs: Any) -> bool:
    job = next(jobs, None)
    if job is not None:
        try:
            end.send_bytes(job)
        except ConnectionError as error:
            raise _died("perhaps for want of memory; try fewer processes") from error
    return job is not None


def _died(why: str) -> WorkerError:
    return WorkerError(f"a process that played episodes died, {why}.")


def _receive(end: Connection, *, needs_script: bool = False) -> Any:
    try:
        kind, value = pickle.loads(end.recv_bytes())
    except (EOFError, ConnectionError) as error:
        why = "perhaps for want of memory; try fewer processes"
        if needs_script:
            why = (
                "as it could not import the script, in which the edit, the watcher or a change of pictures is defined. "
                'Call this under `if __name__ == "__main__":`, define them in a module, or use processes=1'
            )
        raise _died(why) from error
    if kind == "error":
        raise value
    return value


def _serve(end: Connection, order: bytes) -> None:
    """Play the groups that come through the connection until it is closed."""
    try:
        import torch

        from ..models import load as load_model
        from .player import Player

        load, settings = pickle.loads(order)
        torch.set_num_threads(load["threads"])
        model = load_model(
            load["name"], device=load["device"], dtype=load["dtype"], revision=load["revision"]
        )
        if model.fingerprint() != load["fingerprint"]:
            raise InputError(
                f"'{load['name']}' as loaded anew has other weights than the model in use; changed weights can be "
                "played with processes=1, or saved to a folder and loaded from there."
            )
        with Player(model, settings, n_worlds=load["n_worlds"]) as player:
            end.send_bytes(pickle.dumps(("ready", None)))
            while True:
                try:
                    job = pickle.loads(end.recv_bytes())
                except (EOFError, ConnectionError):
                    return
                played = player.play([trial for _, trial in job], [i for i, _ in job])
                result = [(i, one) for (i, _), one in zip(job, played, strict=True)]
                end.send_bytes(pickle.dumps(("played", result)))
    except (KeyboardInterrupt, BrokenPipeError):
        return
    except VlascopeError as error:
        end.send_bytes(pickle.dumps(("error", error)))
    except Exception:
        text = f"a process that played episodes failed:\n{traceback.format_exc()}"
        end.send_bytes(pickle.dumps(("error", WorkerError(text))))
