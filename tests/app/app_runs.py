"""Runs for these tests: those of the model of known numbers in tests/runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def make_run(path: Path, *, n_items: int = 9, weights: str = "w1", version: str = "a"):
    from vlascope.runs import capture

    spec = importlib.util.spec_from_file_location("run_fakes", ROOT / "tests" / "runs" / "fakes.py")
    assert spec and spec.loader
    fakes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)
    return capture(
        fakes.FakeModel(weights=weights),
        fakes.ArraySource(n_items, version=version),
        sites="*",
        out=path,
        quiet=True,
        block_items=4,
        with_answer=True,
    )


def cut_of(run):
    from vlascope.spectral.cut import cut_run

    return cut_run(run, sites=tuple(run.sites), n_eig=6, k=(3, 5), color="pca", seed=0)


def client_of(app, **options):
    from starlette.testclient import TestClient

    return TestClient(app, base_url="http://127.0.0.1:8899", raise_server_exceptions=False, **options)
