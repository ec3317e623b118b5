"""The engine "ray" of dictionary training: Ray Train starts the workers, which then train as a team."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, VlascopeError, WorkerError, missing_extra
from ..runs.engines.cluster import import_ray, join_cluster
from .step import check_team
from .stream import Split

if TYPE_CHECKING:
    from ..runs import Run
    from .job import Job


def train_with_ray(
    run: Run, jobs: list[Job], split: Split, *, pool_bytes: int, n_workers: int | None = None
) -> None:
    """Train at sites that share a layout with workers of a Ray cluster; their last state is then in each job's folder.

    Joins the cluster of this process or the one that RAY_ADDRESS names, else starts one on this machine. What
    was saved before an error stays, and the same call goes on from there.

    Args:
        run: The run; every worker opens it by its path.
        jobs: What to train, not started.
        split: Items to train on and to hold out.
        pool_bytes: Memory for tokens, per worker.
        n_workers: Default: one per GPU of the cluster, or per node without any.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: as for `train_sae`, or more workers than tokens per batch, or an activation other than topk.
        WorkerError: a worker died.

    Cost: starting the workers takes some ten seconds; a step adds up one gradient (of the size of the weights) over
    them, and each reads the whole run.
    """
    needed_for = "training with the engine 'ray'"
    ray = import_ray(needed_for)
    try:
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:  # Ray without what its part for training needs
        raise missing_extra("ray", extra="ray", needed_for=needed_for) from error
    for job in jobs:
        check_team(job.config)
    join_cluster(ray, n_workers=n_workers)
    n_gpus = int(ray.cluster_resources().get("GPU", 0)) if jobs[0].device != "cpu" else 0
    n = n_workers or n_gpus or sum(node["Alive"] for node in ray.nodes())
    if n > jobs[0].train.batch:
        raise InputError(
            f"got {n} workers for batches of {jobs[0].train.batch} tokens; need a token for each."
        )
    order = {
        "run": str(Path(run.path).resolve()),
        "jobs": [dataclasses.replace(job, path=job.path.resolve()) for job in jobs],
        "split": split,
        "pool_bytes": pool_bytes,
    }
    use_gpu = jobs[0].device != "cpu"
    with tempfile.TemporaryDirectory(
        prefix="vlascope-ray-"
    ) as store:  # of Ray's own notes, which nobody reads
        trainer = TorchTrainer(
            _work,
            train_loop_config=order,
            scaling_config=ScalingConfig(num_workers=n, use_gpu=use_gpu),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            run_config=RunConfig(name="sae", storage_path=store),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error


def _work(order: dict[str, Any]) -> None:
    """Train on one worker; the first of them saves."""
    import ray.train.torch

    from ..runs import Run
    from .team import Team
    from .train import train_group

    run, team = Run.open(order["run"]), Team.joined()
    jobs = order["jobs"]
    for job in jobs:
        job.device = str(ray.train.torch.get_device()) if job.device != "cpu" else "cpu"
    train_group(run, jobs, order["split"], pool_bytes=order["pool_bytes"], quiet=True, team=team)


def _cause(error: Exception) -> Exception:
    """Return the error of our own code that ended a worker; others end when one of them does."""
    failures = list(getattr(error, "worker_failures", {}).values())
    own = [one for one in failures if isinstance(one, VlascopeError)]
    if own:
        return own[0]
    first = str(failures[0] if failures else error).strip().splitlines()
    return WorkerError(
        f"a worker that trained the dictionary failed ({first[-1] if first else type(error).__name__}). The state that "
        "was saved last is kept: the same command goes on from there."
    )
