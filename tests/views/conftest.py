from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `fakes`, whatever the import mode


@pytest.fixture(scope="session")
def cut(tmp_path_factory):
    from fakes import make_cut

    return make_cut(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def cropped(tmp_path_factory):
    """7 x 11 patches over a centre crop of a wide image, so that swapped axes and shifted frames show."""
    from fakes import make_cut

    return make_cut(
        tmp_path_factory.mktemp("cropped"),
        n_steps=3,
        rows=7,
        cols=11,
        n_vision=2,
        n_language=2,
        wh=(132, 96),
        frame=(11.0, 6.0, 121.0, 90.0),
    )
