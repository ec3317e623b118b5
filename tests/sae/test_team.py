"""Workers that share each batch take the steps of one process: in threads, and as workers of Ray Train."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.fakes import ArraySource, FakeModel
from vlascope.cli import main
from vlascope.errors import InputError, WorkerError
from vlascope.runs import Run, capture
from vlascope.sae import SAEConfig, SAETrainer, TrainConfig, load_sae, train_sae
from vlascope.sae.ray_train import _cause
from vlascope.sae.team import Team


class Board:
    """Where threads add up tensors, in the order of their ranks, so that all get the same bits."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.slots = [torch.empty(0)] * size

    def sum(self, rank: int, value: torch.Tensor) -> torch.Tensor:
        self.slots[rank] = value.detach().clone()
        self.barrier.wait()
        total = torch.stack(self.slots).sum(0)
        self.barrier.wait()
        return total


@dataclass(frozen=True)
class Thread(Team):
    """A worker that is a thread of this process."""

    board: Any = None

    def sum(self, value):
        return self.board.sum(self.rank, value)


def train(batches: list[torch.Tensor], train: TrainConfig, team: Team, out: dict[int, Any]) -> None:
    trainer = SAETrainer(
        SAEConfig(d_in=13, n_latents=47, k=3, levels=(5, 17)),
        train,
        n_steps=len(batches),
        sample_td=batches[0],
        team=team,
    )
    reports = [trainer.step(team.share(batch)) for batch in batches]
    out[team.rank] = (reports, {name: value.clone() for name, value in trainer.state().items()})


def test_a_team_takes_the_steps_of_one():
    draw = torch.Generator().manual_seed(3)
    mix = torch.randn(13, 13, generator=draw)
    batches = [(torch.randn(60, 13, generator=draw) ** 3) @ mix + 4 for _ in range(40)]
    # Latents count as dead at once, so that reviving them is part of most steps.
    settings = TrainConfig(batch=60, lr=3e-3, dead_share=0.01, aux=0.5)
    alone: dict[int, Any] = {}
    train(batches, settings, Team(), alone)
    assert sum(one.n_dead > 0 for one in alone[0][0]) > 20
    for size in (3,):
        board, found = Board(size), {}
        threads = [
            threading.Thread(target=train, args=(batches, settings, Thread(rank, size, board), found))
            for rank in range(size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, value in found[0][1].items():  # all workers hold the same bits
            assert all(torch.equal(value, found[rank][1][name]) for rank in range(size)), name
        for one, expected in zip(found[0][0], alone[0][0], strict=True):
            assert one.loss == pytest.approx(expected.loss, rel=2e-3)
            assert one.level_fvu == pytest.approx(expected.level_fvu, rel=2e-3)
            assert one.l0 == pytest.approx(expected.l0) and one.n_dead == expected.n_dead
        torch.testing.assert_close(
            found[0][1]["sae.decoder"], alone[0][1]["sae.decoder"], atol=2e-3, rtol=2e-2
        )


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_what_the_whole_batch_decides_needs_one_process(activation):
    with pytest.raises(InputError, match="whole batch"):
        SAETrainer(
            SAEConfig(d_in=13, n_latents=47, k=3, activation=activation),
            TrainConfig(),
            n_steps=3,
            sample_td=torch.randn(99, 13),
            team=Team(0, 2),
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    path = tmp_path_factory.mktemp("team") / "run"
    model: Any = FakeModel()
    capture(model, ArraySource(43), sites=["vision.0", "vision.1"], out=path, quiet=True)
    return Run.open(path)


def test_the_error_of_a_worker_is_ours_where_there_is_one():
    class Failed(Exception):
        worker_failures = {1: RuntimeError("connection reset by peer"), 0: InputError("NaN in item 'a'")}

    assert str(_cause(Failed())) == "NaN in item 'a'"
    Failed.worker_failures.pop(0)
    assert isinstance(_cause(Failed()), WorkerError) and "connection reset" in str(_cause(Failed()))
    assert "the same command goes on" in str(_cause(Exception()))


def test_wrong_engines_are_refused(run, tmp_path, capsys):
    with pytest.raises(InputError, match="known are local and ray"):
        train_sae(run, sites="vision.0", engine="slurm", out=tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="with 2 workers"):
        train_sae(run, sites="vision.0", n_workers=2, out=tmp_path / "x")
    assert (
        main(["sae", "train", str(run.path), "--site", "vision.0", "--engine", "ray", "--workers", "0"]) == 2
    )
    assert "at least 1" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # starting a cluster's processes takes minutes where a machine is busy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, about itself
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_workers_of_ray_train_as_one_process(run, tmp_path):
    ray: Any = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # a machine may be busy with other tests
    common: dict[str, Any] = {
        "config": {"n_latents": 28, "k": 3, "levels": (5, 11)},
        "train": TrainConfig(batch=50, epochs=2, eval_every=5, save_every=4),
        "quiet": True,
    }
    sites = ["vision.0", "vision.1"]
    alone = train_sae(run, sites=sites, out=tmp_path / "alone", **common)
    # "local": without an address Ray would join the cluster that another test has just started on this machine.
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False
    )
    try:
        with pytest.raises(InputError, match="99 workers"):
            train_sae(run, sites="vision.0", out=tmp_path / "y", engine="ray", n_workers=99, **common)
        with pytest.raises(InputError, match="whole batch"):
            shape: dict[str, Any] = common | {"config": {"n_latents": 28, "k": 3, "activation": "batchtopk"}}
            train_sae(run, sites="vision.0", out=tmp_path / "z", engine="ray", n_workers=2, **shape)
        team = train_sae(run, sites=sites, out=tmp_path / "team", engine="ray", n_workers=2, **common)
    finally:
        ray.shutdown()
    for one, other in zip(alone, team, strict=True):
        assert (one.site, one.n_steps, one.n_tokens) == (other.site, other.n_steps, other.n_tokens)
        assert len(one.history) == len(other.history) > 1
        for a, b in zip(one.history, other.history, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
            assert b["held_out_fvu"] == pytest.approx(a["held_out_fvu"], rel=1e-3)
        assert one.evaluation is not None and other.evaluation is not None
        assert other.evaluation.fvu == pytest.approx(one.evaluation.fvu, rel=1e-3)
        weights = [load_sae(x.path, run=run).sae.decoder.detach().numpy() for x in (one, other)]
        np.testing.assert_allclose(weights[1], weights[0], atol=1e-3)
        assert sorted(p.name for p in Path(other.path).iterdir()) == sorted(
            p.name for p in Path(one.path).iterdir()
        )
    again = train_sae(run, sites=sites, out=tmp_path / "team", engine="ray", n_workers=2, **common)
    assert all(one.was_there for one in again)  # found without starting any worker
