"""The engine "ray" on a cluster of two nodes: the same bits as the local engine, also when a worker is killed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.fakes import ArraySource, FakeModel, tree
from vlascope.errors import InputError, ItemError, StorageError, WorkerError
from vlascope.runs import RayEngine, Run, capture, open_engine

ray: Any = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # starting a cluster's processes takes minutes where a machine is busy
    # Ray's own: processes and sockets that it leaves to the garbage collector, and announcements of changes to come.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
N, SETTINGS = 31, {"sites": "*", "batch_size": 2, "block_items": 3, "quiet": True}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one slot each, in processes of this machine."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # a machine may be busy with other tests
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = 80 << 20
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": store},
        )
        made.add_node(num_cpus=1, object_store_memory=store)
        ray.init(address=made.address, log_to_driver=False, configure_logging=False)
        yield made
        ray.shutdown()
        made.shutdown()


class KillOnce(FakeModel):
    """Kills its own process at the first batch of a worker that holds item 13, once."""

    def __init__(self, flag: Path, *, always: bool = False) -> None:
        super().__init__()
        self.flag, self.always = flag, always

    def capture(self, batch: Any, sites: Any, **_: Any) -> dict[str, list[torch.Tensor]]:
        if any(item.item_id.endswith("000013") for item in batch.items) and (
            self.always or not self.flag.exists()
        ):
            self.flag.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().capture(batch, sites)


def test_two_nodes_one_worker_killed_same_bits(cluster: Any, tmp_path: Path, caplog: Any) -> None:
    whole = capture(FakeModel(), ArraySource(N), out=tmp_path / "local", **SETTINGS)  # type: ignore[arg-type]
    model = KillOnce(tmp_path / "killed")
    with caplog.at_level(logging.WARNING):
        run = capture(
            model,  # type: ignore[arg-type]
            ArraySource(N),
            out=tmp_path / "ray",
            engine=RayEngine(n_workers=2),
            **SETTINGS,  # type: ignore[arg-type]
        )
    assert model.flag.exists() and int(model.flag.read_text()) != os.getpid(), (
        "a worker must have been killed"
    )
    assert "a worker died" in caplog.text and any("done again" in text for text in run.info["warnings"])
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    assert run.info["content_sha256"] == whole.info["content_sha256"] and run.verify().ok
    assert not (tmp_path / "ray" / ".work").exists()


def test_errors_of_items_and_of_blocks(cluster: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Errors come out as they were raised; what was done is safe, and any engine goes on."""
    broken = ArraySource(N, broken=[22], version="x")
    with pytest.raises(ItemError, match="frame22"):
        capture(FakeModel(), broken, out=tmp_path / "r", engine="ray", n_workers=1, **SETTINGS)  # type: ignore[arg-type]
    assert len(list((tmp_path / "r" / "blocks").glob("*.ok"))) >= 5
    monkeypatch.setattr("vlascope.runs.engines.ray.MAX_LOSSES", 1)
    with pytest.raises(WorkerError, match="died on block 4.*--resume"):
        capture(
            KillOnce(tmp_path / "flag", always=True),  # type: ignore[arg-type]
            ArraySource(N),
            out=tmp_path / "k",
            engine="ray",
            n_workers=1,
            **SETTINGS,  # type: ignore[arg-type]
        )
    run = capture(FakeModel(), ArraySource(N), out=tmp_path / "k", resume=True, **SETTINGS)  # type: ignore[arg-type]
    capture(FakeModel(), ArraySource(N), out=tmp_path / "whole", **SETTINGS)  # type: ignore[arg-type]
    assert run.info["content_sha256"] == Run.open(tmp_path / "whole").info["content_sha256"]


def test_workers_must_have_the_same_model_and_see_the_run(tmp_path: Path) -> None:
    from vlascope.runs.config import items_fingerprint
    from vlascope.runs.engines import CaptureJob
    from vlascope.runs.engines.ray import _Worker

    capture(FakeModel(), ArraySource(3), out=tmp_path / "r", **SETTINGS)  # type: ignore[arg-type]
    job = CaptureJob(
        out=tmp_path / "r",
        n_items=3,
        settings={},
        site_layouts={},
        model_fingerprint="w1",
        items_fingerprint=items_fingerprint(ArraySource(3)),
        n_threads=torch.get_num_threads(),
    )
    with pytest.raises(InputError, match="model on node .* differ.*w2, need w1"):
        _Worker(job, lambda: FakeModel(weights="w2"), ArraySource(3), True, False).ready()
    with pytest.raises(InputError, match="items on node"):
        _Worker(job, FakeModel(), ArraySource(4), False, False).ready()
    with pytest.raises(StorageError, match="does not see the run"):
        _Worker(replace(job, out=tmp_path / "no"), FakeModel(), ArraySource(3), False, False).ready()


def test_what_cannot_be_sent_is_named(cluster: Any, tmp_path: Path) -> None:
    items = ArraySource(3)
    items.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="items cannot be sent to workers .*make_items"):
        capture(FakeModel(), items, out=tmp_path / "s", engine="ray", n_workers=1, **SETTINGS)  # type: ignore[arg-type]


def test_map_blocks_is_map(cluster: Any, tmp_path: Path) -> None:
    run = capture(FakeModel(), ArraySource(7), out=tmp_path / "r", **SETTINGS)  # type: ignore[arg-type]
    acts = run.acts("vision.0")
    spans = [slice(at, min(at + 13, len(acts))) for at in range(0, len(acts), 13)]

    def total(span: slice) -> np.ndarray:
        return acts[span].sum(0)

    engine = RayEngine()
    for got, want in zip(
        engine.map_blocks(total, spans), open_engine().map_blocks(total, spans), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_names_of_engines() -> None:
    assert open_engine("ray").name == "ray" and open_engine("local").name == "local"
    with pytest.raises(InputError, match=r"no engine 'rey'.*local, ray.*'ray'"):
        open_engine("rey")
    with pytest.raises(InputError, match="2 workers for the engine 'local'"):
        open_engine("local", n_workers=2)
    with pytest.raises(InputError, match="at least 1"):
        RayEngine(n_workers=0)
