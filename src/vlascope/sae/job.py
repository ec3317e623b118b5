"""The training of one site: its trainer, its folder, what was measured on the way, how it is saved and found again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..files import storage_errors
from .checkpoint import CONFIG_NAME, PROOF_ROWS, load_sae, run_origin, save_sae
from .config import SAEConfig, TrainConfig
from .metrics import Evaluation, evaluate
from .step import SAETrainer, StepReport
from .stream import Split, TokenStream, check_values, read_rows, token_rows
from .team import ALONE, Team
from .tensors import write_tensors

if TYPE_CHECKING:
    from ..runs import Run

STATE_NAME = "training.safetensors"
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


@dataclass
class Job:
    """One site's training: its trainer, its folder and what it has seen so far."""

    site: str
    path: Path
    config: SAEConfig
    train: TrainConfig
    tokens: str
    device: str
    key: dict[str, Any]
    force: bool = False
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
        force: bool = False,
    ) -> Job:
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
        return cls(site, path, shape, train, tokens, device, key, force)

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

    def start(
        self, run: Run, split: Split, *, n_steps: int, sample: NDArray[np.float32], team: Team = ALONE
    ) -> None:
        self.held = held_out_sample(run, self.site, split, tokens=self.tokens, seed=self.train.seed)
        for _ in held_out_chunks(run, self.site, split, tokens=self.tokens):
            pass  # what the evaluation at the end could not read is named now
        self.trainer = SAETrainer(
            self.config, self.train, n_steps=n_steps, sample_td=torch.from_numpy(sample), device=self.device,
            team=team,
        )  # fmt: skip
        state = self.path / STATE_NAME
        if state.is_file():
            self._load(state)

    def step(self, values: NDArray[Any]) -> None:
        assert self.trainer is not None and self.held is not None
        team = self.trainer.team
        if len(values) < team.size:
            raise InputError(
                f"got a batch of {len(values)} tokens for {team.size} workers; need one for each."
            )
        report = self.trainer.step(torch.from_numpy(np.asarray(team.share(values), np.float32)))
        self.n_tokens += len(values)
        if report.step % self.train.eval_every == 0 or report.step == self.trainer.n_steps:
            self._look_back(report)
            self.stopped = team.agree(self.stopped, device=self.trainer.device)
        if report.step % self.train.save_every == 0 and not self.is_done:
            self.save()

    def _look_back(self, report: StepReport) -> None:
        """Evaluate on held-out tokens, on one worker."""
        assert self.trainer is not None and self.held is not None
        if self.trainer.team.is_first:
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

    def _has_stalled(self) -> bool:
        patience = self.train.patience
        values = [entry["held_out_fvu"][-1] for entry in self.history]
        if not patience or len(values) <= patience:
            return False
        return min(values[-patience:]) > min(values[:-patience]) * (1 - MIN_PROGRESS)

    def save(self) -> None:
        """Write the training state whole or not at all."""
        if self.trainer is None or not self.trainer.team.is_first:
            return
        facts = {
            "key": self.key,
            "history": self.history,
            "n_tokens": self.n_tokens,
            "stopped": self.stopped,
            "n_steps": self.trainer.n_steps,
            "force": self.force,
        }
        write_tensors(self.path / STATE_NAME, self.trainer.state(), metadata={"vlascope": json.dumps(facts)})

    def forget(self) -> None:
        """Delete the saved state, unless a training of the same settings left it that was to replace things too."""
        from safetensors import SafetensorError

        path = self.path / STATE_NAME
        try:
            facts = _facts(path) if path.is_file() else {}
        except (OSError, SafetensorError, KeyError, ValueError):
            facts = {}
        if facts.get("key") != self.key or not facts.get("force"):
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        assert self.trainer is not None
        try:
            facts = _facts(path)
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


def _facts(path: Path) -> dict[str, Any]:
    """Return what a training state says about itself."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        return json.loads((handle.metadata() or {})["vlascope"])


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
        values = read_rows(acts, rows)
        check_values(values, run, site, rows)
        yield values
