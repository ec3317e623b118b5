from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# The helpers of this folder are imported by file: test folders are no packages.
_spec = importlib.util.spec_from_file_location("items_helpers", Path(__file__).parent / "helpers.py")
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
sys.modules["items_helpers"] = helpers
_spec.loader.exec_module(helpers)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot v3 dataset of three episodes with a sidecar. Read only."""
    from vlascope.items import write_lerobot

    return write_lerobot(
        tmp_path_factory.mktemp("lerobot") / "set",
        helpers.episodes(),
        fps=helpers.FPS,
        state_names=helpers.STATE_NAMES,
        action_names=helpers.ACTION_NAMES,
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real evaluation data is not there ({folder})")
    return folder
