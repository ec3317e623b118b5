"""Fixtures for every room: seeds, quiet progress, and the real data beside the checkout when there is any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress bars, and no surprise from the caller's environment."""
    monkeypatch.setenv("VLASCOPE_PROGRESS", "0")
    monkeypatch.delenv("VLASCOPE_DEBUG", raising=False)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of this test's own."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real images and videos beside the checkout; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder.name}/ beside the checkout")
    return folder
