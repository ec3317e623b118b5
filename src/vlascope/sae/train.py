"""Training dictionaries on the tokens of a run, several sites in one pass; interrupted training goes on exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..files import storage_errors
from ..progress import progress
from ..runs.lock import write_lock
from .config import TrainConfig
from .job import Job, TrainResult
from .stream import POOL_BYTES, Split, TokenStream, split_items
from .team import ALONE, Team

if TYPE_CHECKING:
    from ..runs import Run

Engine = Literal["local", "ray"]
SAMPLE_BYTES = 128 << 20


def train_sae(
    run: Run,
    *,
    sites: str | Sequence[str],
    config: Mapping[str, Any] | None = None,
    train: TrainConfig | None = None,
    tokens: str = "auto",
    out: Path | str | None = None,
    device: str = "cpu",
    force: bool = False,
    pool_bytes: int = POOL_BYTES,
    engine: Engine = "local",
    n_workers: int | None = None,
    quiet: bool = False,
) -> list[TrainResult]:
    """Train a nested dictionary at each of some sites, reading the run once for all of them.

    Given again with the same arguments, a finished training is found and an interrupted one goes on where its last
    saved state was, to the same bits as if it had not been interrupted (same machine and thread count).

    Args:
        run: The run.
        sites: Names of captured sites.
        config: Fields of `SAEConfig` other than `d_in`.
        train: Settings.
        tokens: Which tokens: a kind, "all", or "auto" (patches where there are any).
        out: Folder for the checkpoints, one per site below it when there are several; default: under the run's
            `derived/`.
        device: "cpu", "cuda", ...
        force: Train again even if a checkpoint or a state is there; only a training that was itself given `force`, and
            was interrupted, goes on.
        pool_bytes: Memory for tokens, all sites together, per worker.
        engine: "local" trains in this process; "ray" with Ray Train: each worker has its share of every batch, and all
            take the same steps. Losses are those of one process with the same batches, up to rounding.
        n_workers: Workers of the engine "ray" (default: one per GPU of the cluster, or per node without any). The run
            and the folder of the dictionary must be reachable under the same path on every node.
        quiet: No progress bar.

    Returns:
        One result per site.

    Raises:
        SiteNotFoundError: no such site.
        InputError: empty or too small run, NaN, constant tokens, k above the number of latents, fewer than two items.
        StorageError: the disk is full; the state saved before is kept.

    Cost: about 20,000 tokens/s for 256 channels, 2,048 latents on two cores; memory: `pool_bytes`, the weights six
    times, and the token table, whatever the length of the run.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"unknown engine '{engine}'; known are local and ray.")
    if n_workers is not None and (engine == "local" or n_workers < 1):
        raise InputError(
            f"got engine '{engine}' with {n_workers} workers; need at least 1, with the engine 'ray'."
        )
    names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    if not names:
        raise InputError("got no site; name at least one, such as language.4.")
    settings = train or TrainConfig()
    split = split_items(run, held_out=settings.held_out, seed=settings.seed)
    jobs = [
        Job.make(
            run,
            name,
            config=config or {},
            train=settings,
            tokens=tokens,
            out=out,
            alone=len(names) == 1,
            device=device,
            force=force,
        )
        for name in names
    ]
    results: dict[str, TrainResult] = {}
    todo: list[Job] = []
    for job in jobs:
        found = None if force else job.finished(run)
        if found is None:
            todo.append(job)
        else:
            results[job.site] = found
    with ExitStack() as stack:
        for job in todo:
            with storage_errors(job.path):
                job.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(write_lock(job.path))
            if force:
                job.forget()
        layouts: dict[str, list[Job]] = {}
        for job in todo:
            layouts.setdefault(run.site(job.site).layout, []).append(job)
        for group in layouts.values():
            share = pool_bytes * len(group) // len(todo)
            if engine == "ray":
                from .ray_train import train_with_ray

                train_with_ray(run, group, split, pool_bytes=share, n_workers=n_workers)
            # After workers have trained, this finds their last state and nothing left to do.
            train_group(run, group, split, pool_bytes=share, quiet=quiet)
        for job in todo:
            results[job.site] = job.finish(run, split)
    return [results[name] for name in names]


def train_group(
    run: Run, jobs: list[Job], split: Split, *, pool_bytes: int, quiet: bool, team: Team = ALONE
) -> None:
    """Train at sites that share a layout to the end, from where their saved states are; save them at the end."""
    first = jobs[0]
    stream = TokenStream(
        run,
        [job.site for job in jobs],
        tokens=first.tokens,
        items=split.train,
        batch=first.train.batch,
        pool_bytes=pool_bytes,
        seed=first.train.seed,
    )
    total = first.train.tokens or math.ceil(first.train.epochs * stream.n_tokens)
    n_steps = max(1, round(total / first.train.batch))
    width = max(job.config.d_in for job in jobs)
    n_sample = max(256, min(1 << 16, SAMPLE_BYTES // (4 * width * len(jobs))))
    sample = stream.sample(n_sample)
    for job in jobs:
        job.start(run, split, n_steps=n_steps, sample=sample[job.site], team=team)
    del sample
    start = min(job.n_done for job in jobs)
    batches = stream.batches(start=start)
    label = ", ".join(job.site for job in jobs)
    numbers = range(start, n_steps)
    try:
        for number in progress(
            numbers, desc=f"training {label}", total=len(numbers), unit="step", quiet=quiet
        ):
            if all(job.is_done for job in jobs):
                break
            batch = next(batches)
            for job in jobs:
                if not job.is_done and job.n_done == number:
                    job.step(batch[job.site])
    except KeyboardInterrupt:
        for job in jobs:
            job.save()
        raise KeyboardInterrupt(
            f"stopped at step {jobs[0].n_done} of {n_steps}; the same command goes on from there."
        ) from None
    if len(numbers):
        # Other layouts may follow for hours, and an evaluation: stopped there, these are not trained again.
        for job in jobs:
            job.save()


def same_split(run: Run, origin: Mapping[str, Any]) -> Split:
    """Return the split that a dictionary was trained with, for a run with the same content."""
    train = TrainConfig(**origin["key"]["train"])
    return split_items(run, held_out=train.held_out, seed=train.seed)
