"""The script for real checkpoints, on tiny ones: it runs all of the pipeline and says why it skips."""

from __future__ import annotations

import json

import pytest

from benchmarks import real_checkpoints as script
from tests.models import tiny
from vlascope.errors import ModelNotFoundError
from vlascope.models import families


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny.llava().save_pretrained(path)
    tiny.llava_processor().save_pretrained(path)
    return str(path)


def test_everything_runs_on_a_checkpoint(folder, tmp_path):
    one = script.Checkpoint(name=folder, size=0.001, sites="vision.-1,projector,language.-1")
    done = script.attempt(one, device="cpu", trust=False, folder=tmp_path)
    assert (done.status, done.reason, done.revision) == ("ran", "", "local")
    n_text = len("<s> In: What is in the picture? Out:".split())
    assert done.n_tokens == script.N_IMAGES * (49 + 49 + 49 + n_text) and done.answer


def test_reasons_for_skipping(folder, tmp_path, monkeypatch):
    def attempt(**more):
        given = {"name": folder, "size": 0.001} | more
        return script.attempt(script.Checkpoint(**given), device="cpu", trust=False, folder=tmp_path)

    assert "--trust-remote-code" in attempt(is_code=True).reason
    assert "GB are free" in attempt(size=1e6).reason
    with pytest.raises(ModelNotFoundError):  # there, and broken: a failure, nothing to skip
        attempt(name=str(tmp_path))


def test_one_failure_decides_the_exit_code(monkeypatch, capsys, tmp_path):
    listed = (script.Checkpoint(name="a", size=0.1), script.Checkpoint(name="b", size=0.1))
    outcomes = {"a": script.Outcome(name="a", status="skipped", reason="no network")}
    saved = {}

    def attempt(checkpoint, **more):
        if checkpoint.name not in outcomes:
            raise RuntimeError("broken inside")
        return outcomes[checkpoint.name]

    def save(name, *, environment, results):
        saved.update(json.loads(json.dumps(results)))
        return tmp_path / "x.json"

    for name, value in {"CHECKPOINTS": listed, "attempt": attempt, "save": save}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script.sys, "argv", ["x", "--device", "cpu"])
    assert script.main() == 1
    assert "broken inside" in capsys.readouterr().out
    assert [o["status"] for o in saved["checkpoints"]] == ["skipped", "failed"]
    outcomes["b"] = script.Outcome(name="b", status="skipped")
    assert script.main() == 0


def test_the_list_names_checkpoints_of_known_families():
    examples = {example for family in families().values() for example in family.examples}
    assert {c.name for c in script.CHECKPOINTS} <= examples
