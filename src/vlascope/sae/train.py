"""Training dictionaries on the tokens of a run, several sites in one pass; interrupted training goes on exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..files import storage_errors
from ..progress import progress
from ..runs.lock import write_lock
from .checkpoint import CONFIG_NAME, PROOF_ROWS, load_sae, run_origin, save_sae
from .config import SAEConfig, TrainConfig
from .metrics import Evaluation, evaluate
from .step import SAETrainer
from .stream import POOL_BYTES, Split, TokenStream, read_rows, split_items, token_rows
from .tensors import write_tensors

if TYPE_CHECKING:
    from ..runs import Run

STATE_NAME = "training.safetensors"
SAMPLE_BYTES = 128 << 20
EVAL_ROWS = 16384
MIN_PROGRESS = 1e-3
"""Early stopping counts an evaluation as progress when the FVU falls by this share."""


@dataclass(frozen=True)
class TrainResult:
    """A trained dictionary.

    Attributes:
        site: Its site.
        path: Folder of the checkpoint, see `load_sae`.
        evaluation: On the held-out items; None when an earlier, finished training was found.
        n_steps: Steps taken.
        n_tokens: Tokens trained on (passes over the same token count again).
        history: One entry per evaluation: step, level FVUs on held-out tokens, dead latents.
        was_there: The same training had been finished before.
    """

    site: str
    path: Path
    evaluation: Evaluation | None
    n_steps: int
    n_tokens: int
    history: tuple[Mapping[str, Any], ...] = ()
    was_there: bool = False


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
        force: Train again even if a checkpoint is there.
        pool_bytes: Memory for tokens, all sites together.
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
    names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    if not names:
        raise InputError("got no site; name at least one, such as language.4.")
    settings = train or TrainConfig()
    split = split_items(run, held_out=settings.held_out, seed=settings.seed)
    jobs = [
        _Job.make(
            run,
            name,
            config=config or {},
            train=settings,
            tokens=tokens,
            out=out,
            alone=len(names) == 1,
            device=device,
        )
        for name in names
    ]
    results: dict[str, TrainResult] = {}
    todo: list[_Job] = []
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
                (job.path / STATE_NAME).unlink(missing_ok=True)
        layouts: dict[str, list[_Job]] = {}
        for job in todo:
            layouts.setdefault(run.site(job.site).layout, []).append(job)
        for group in layouts.values():
            share = pool_bytes * len(group) // len(todo)
            _train_group(run, group, split, pool_bytes=share, quiet=quiet)
        for job in todo:
            results[job.site] = job.finish(run, split)
    return [results[name] for name in names]


def _train_group(run: Run, jobs: list[_Job], split: Split, *, pool_bytes: int, quiet: bool) -> None:
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
        job.start(run, split, n_steps=n_steps, sample=sample[job.site])
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


@dataclass
class _Job:
    """One site's training: its trainer, its folder and what it has seen so far."""

    site: str
    path: Path
    config: SAEConfig
    train: TrainConfig
    tokens: str
    device: str
    key: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    n_tokens: int = 0
    stopped: bool = False
    trainer: SAETrainer | None = None
    held: NDArray[np.float32] | None = None

    @classmethod
    def make(
        cls,
        run: Run,
        site: str,
        *,
        config: Mapping[str, Any],
        train: TrainConfig,
        tokens: str,
        out: Path | str | None,
        alone: bool,
        device: str,
    ) -> _Job:
        shape = SAEConfig(**{**config, "d_in": run.site(site).width})
        key = {
            "site": site,
            "config": shape.to_json(),
            "train": train.to_json(),
            "tokens": tokens,
            "run": run.info["content_sha256"],
        }
        if out is None:
            path = run.derived_dir("sae", key)
        else:
            path = Path(out) if alone else Path(out) / site.replace(":", "_")
        return cls(site, path, shape, train, tokens, device, key)

    @property
    def n_done(self) -> int:
        return self.trainer.n_done if self.trainer else 0

    @property
    def is_done(self) -> bool:
        assert self.trainer is not None
        return self.stopped or self.trainer.n_done >= self.trainer.n_steps

    def finished(self, run: Run) -> TrainResult | None:
        """Return the result of a finished training with the same settings."""
        if not (self.path / CONFIG_NAME).is_file():
            return None
        origin = load_sae(self.path, run=run, site=self.site).origin
        if origin.get("key") != self.key:
            raise InputError(
                f"'{self.path}' holds a dictionary with other settings; choose another folder with -o, or replace it "
                "with --force."
            )
        training = origin["training"]
        return TrainResult(
            self.site,
            self.path,
            None,
            training["n_steps"],
            training["n_tokens"],
            tuple(training["history"]),
            was_there=True,
        )

    def start(self, run: Run, split: Split, *, n_steps: int, sample: NDArray[np.float32]) -> None:
        self.held = held_out_sample(run, self.site, split, tokens=self.tokens, seed=self.train.seed)
        self.trainer = SAETrainer(
            self.config, self.train, n_steps=n_steps, sample_td=torch.from_numpy(sample), device=self.device
        )
        state = self.path / STATE_NAME
        if state.is_file():
            self._load(state)

    def step(self, values: NDArray[Any]) -> None:
        assert self.trainer is not None and self.held is not None
        report = self.trainer.step(torch.from_numpy(np.asarray(values, np.float32)))
        self.n_tokens += len(values)
        if report.step % self.train.eval_every == 0 or report.step == self.trainer.n_steps:
            found = evaluate(self.trainer.sae, [self.held])
            self.history.append(
                {
                    "step": report.step,
                    "n_tokens": self.n_tokens,
                    "loss": report.loss,
                    "held_out_fvu": [m.fvu for m in found.levels],
                    "n_dead": report.n_dead,
                }
            )
            self.stopped = self._has_stalled()
        if report.step % self.train.save_every == 0 and not self.is_done:
            self.save()

    def _has_stalled(self) -> bool:
        patience = self.train.patience
        values = [entry["held_out_fvu"][-1] for entry in self.history]
        if not patience or len(values) <= patience:
            return False
        return min(values[-patience:]) > min(values[:-patience]) * (1 - MIN_PROGRESS)

    def save(self) -> None:
        """Write the training state whole or not at all."""
        if self.trainer is None:
            return
        facts = {
            "key": self.key,
            "history": self.history,
            "n_tokens": self.n_tokens,
            "stopped": self.stopped,
            "n_steps": self.trainer.n_steps,
        }
        write_tensors(self.path / STATE_NAME, self.trainer.state(), metadata={"vlascope": json.dumps(facts)})

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        assert self.trainer is not None
        try:
            with safe_open(path, framework="pt") as handle:
                facts = json.loads((handle.metadata() or {})["vlascope"])
            tensors = load_file(path)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"the training state '{path}' cannot be read ({error}); delete it or start anew with --force."
            ) from error
        if facts["key"] != self.key or facts["n_steps"] != self.trainer.n_steps:
            raise InputError(
                f"'{self.path}' holds an unfinished training with other settings; choose another folder with -o, or "
                "replace it with --force."
            )
        self.trainer.load_state(tensors)
        self.history, self.n_tokens, self.stopped = facts["history"], facts["n_tokens"], facts["stopped"]

    def finish(self, run: Run, split: Split) -> TrainResult:
        assert self.trainer is not None and self.held is not None
        sae = self.trainer.sae
        found = evaluate(sae, held_out_chunks(run, self.site, split, tokens=self.tokens))
        training = {"n_steps": self.trainer.n_done, "n_tokens": self.n_tokens, "history": self.history}
        origin = {
            **run_origin(run, self.site),
            "tokens": self.tokens,
            "held_out_items": [run.items[int(i)].item_id for i in split.held_out[:1000]],
            "held_out_over": split.over,
            "n_held_out_items": len(split.held_out),
            "evaluation": found.to_json(),
            "training": training,
            "key": self.key,
        }
        save_sae(sae, self.path, origin=origin, proof_td=self.held[:PROOF_ROWS])
        (self.path / STATE_NAME).unlink(missing_ok=True)
        return TrainResult(
            self.site, self.path, found, self.trainer.n_done, self.n_tokens, tuple(self.history)
        )


def held_out_sample(
    run: Run, site: str, split: Split, *, tokens: str, seed: int, n_rows: int = EVAL_ROWS
) -> NDArray[np.float32]:
    """Return up to `n_rows` tokens of the held-out items in random order, float32 [n, d]; at most 64 MB."""
    n_rows = max(PROOF_ROWS, min(n_rows, (64 << 20) // (4 * run.site(site).width)))
    stream = TokenStream(
        run, [site], tokens=tokens, items=split.held_out, batch=n_rows, seed=seed, at_least=2
    )
    values = stream.sample(n_rows)[site]
    return values[np.random.default_rng([seed, 5]).permutation(len(values))]


def held_out_chunks(run: Run, site: str, split: Split, *, tokens: str) -> Iterator[NDArray[Any]]:
    """Yield the chosen tokens of each held-out item."""
    acts = run.acts(site)
    for rows in token_rows(run, run.site(site).layout, tokens=tokens, items=split.held_out):
        yield read_rows(acts, rows)


def same_split(run: Run, origin: Mapping[str, Any]) -> Split:
    """Return the split that a dictionary was trained with, for a run with the same content."""
    train = TrainConfig(**origin["key"]["train"])
    return split_items(run, held_out=train.held_out, seed=train.seed)
