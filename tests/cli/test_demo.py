"""`vlascope demo` on the weights and episodes that come with the package: the true pipeline, nothing prepared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlascope.cli import demo, main
from vlascope.runs import Run


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> dict:
    """What the demo says with --json."""
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLASCOPE_PROGRESS", "0")
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: printed.append(" ".join(map(str, parts))))
        assert main(["demo", "-o", str(out), "--json", "-q"]) == 0
    return json.loads(printed[-1])


@pytest.mark.slow
def test_the_demo_makes_what_it_says(shown):
    files = [Path(name) for name in shown["files"]]
    assert all(path.stat().st_size > 1000 for path in files)
    assert {path.name for path in files} >= {"report.html", "grid.png", "strip.png", "words.html"}
    assert sum(path.suffix == ".mp4" for path in files) == 2


@pytest.mark.slow
def test_one_episode_succeeds_and_one_fails_and_the_arm_really_acted(shown):
    run = Run.open(shown["run"])
    outcomes = {row.episode: row.labels["success"] for row in run.items}
    assert sorted(outcomes.values()) == [False, True]
    actions = np.stack([row.action for row in run.items if row.action is not None])
    assert len(actions) == run.n_items
    assert np.abs(actions).max() > 0
    # The model answers now as it did when the episodes were recorded: within a bin of the video's loss.
    said = np.stack([response.action for response in run.responses])
    close = np.abs(said[:, :3] - actions[:, :3]).max(axis=1) < 0.02
    assert close.mean() > 0.8, f"only {close.mean():.0%} of the answers are the recorded actions"


@pytest.mark.slow
def test_the_cut_covers_every_layer(shown):
    run = Run.open(shown["run"])
    assert {name.split(".")[0] for name in run.sites} == {"vision", "projector", "language"}
    assert sum(name.startswith("vision") for name in run.sites) >= 6
    assert sum(name.startswith("language") for name in run.sites) >= 6


def test_a_place_that_the_user_names_is_never_emptied(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("keep me")
    assert main(["demo", "-o", str(tmp_path), "-q"]) == 2
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_the_demo_uses_what_is_embedded():
    assert (demo.MODEL, demo.DATA) == ("mini-vla", "demo")
