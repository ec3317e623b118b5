"""Closed loop: several episodes per pass as one by one, edits, watchers, pairs, and what is written."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlascope.act import Trial, Veto, Watcher, closed_loop, compare, workers
from vlascope.act.paired import detectable_difference, mcnemar, success_result
from vlascope.act.player import Settings, answer_and_read
from vlascope.act.rollout import Played, groups_of
from vlascope.act.steer import SteerDirection
from vlascope.act.workers import _receive, _send_next, play_in_processes
from vlascope.errors import InputError, StorageError, WorkerError
from vlascope.models import VLAPolicy, load
from vlascope.sim import Perturbation, wilson_interval
from vlascope.sim import rollout as one_by_one

pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def mini():
    return load("mini-vla", device="cpu")


@pytest.fixture(scope="module")
def plain(mini):
    return closed_loop(mini, n_episodes=3, seed=40, max_steps=4, batch=3, keep_frames=True)


PUSH = SteerDirection(site="language.2", direction=np.arange(1, 129, dtype=np.float32), unit=40.0)


class Nosy:
    """Stops one episode at one step; notes what it was given."""

    sites = ("vision.1", "language.3")

    def __init__(self, episode: int) -> None:
        self.episode, self.seen = episode, []

    def start(self, task: str, camera: str) -> None:
        self.began = (task, camera)

    def watch(self, step: int, tokens):
        self.seen.append((step, {name: (x.shape, str(x.dtype)) for name, x in tokens.items()}))
        if self.episode == 1 and step == 2:
            return Veto(reason="looks wrong", score=3.0, threshold=2.0, site="vision.1")
        return None


def test_a_group_of_episodes_acts_as_each_alone(mini, plain):
    single = one_by_one(VLAPolicy(mini, malformed="hold"), n_episodes=3, seed=40, max_steps=4)
    assert len({e.instruction.text for e in plain.episodes}) > 1
    for a, b in zip(plain.episodes, single.episodes, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.states[-1].gripper_xyz, b.states[-1].gripper_xyz)
        assert a.outcome == b.outcome and a.infos[0]["action_ids"] == b.infos[0]["action_ids"]
    assert plain.n_steps == 12 and plain.steps_per_second > 0 and plain.processes == 1
    assert plain.episodes[0].rgb.shape == (4, 112, 112, 3)


def test_a_batch_changes_activations_by_rounding_only(mini, plain):
    policy = VLAPolicy(mini)
    items = [policy.item(e.rgb[0], e.instruction.text, name=str(i)) for i, e in enumerate(plain.episodes)]
    sites = mini.resolve(["vision.5", "language.5"])
    together = answer_and_read(mini, items, sites, max_new_tokens=4)
    for i, item in enumerate(items):
        replies, tokens = answer_and_read(mini, [item], sites, max_new_tokens=4)
        assert replies[0].token_ids == together[0][i].token_ids
        for name, alone in tokens[0].items():
            np.testing.assert_allclose(together[1][i][name], alone, atol=2e-3)
    captured = mini.capture(mini.prepare(items), sites)
    np.testing.assert_allclose(together[1][2]["language.5"], captured["language.5"][2].numpy(), atol=2e-3)


def test_the_next_of_a_group_takes_a_free_seat(mini, monkeypatch):
    from vlascope.act import player

    together = []

    def noting(model, items, sites, **more):
        together.append([item.item_id for item in items])
        return answer_and_read(model, items, sites, **more)

    monkeypatch.setattr(player, "answer_and_read", noting)
    found = closed_loop(mini, n_episodes=5, seed=40, max_steps=4, batch=2, watcher=Nosy, processes=1)
    assert groups_of(5, batch=2) == [[0, 1, 2], [3, 4]]
    assert together == [["0", "1"]] * 3 + [["0", "2"]] + [["2"]] * 3 + [["3", "4"]] * 4
    assert [e.n_steps for e in found.episodes] == [4, 2, 4, 4, 4]
    single = one_by_one(VLAPolicy(mini, malformed="hold"), n_episodes=5, seed=40, max_steps=4)
    for a, b in zip(found.episodes, single.episodes, strict=True):
        assert a.instruction == b.instruction
        np.testing.assert_array_equal(a.actions, b.actions[: a.n_steps])


@pytest.mark.parametrize(("n", "batch"), [(1, 4), (4, 4), (5, 4), (7, 1), (40, 4), (101, 3)])
def test_groups_are_even_and_hold_each_episode_once(n, batch):
    groups = groups_of(n, batch=batch)
    assert sum(groups, []) == list(range(n))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert len(groups) == 1 if n <= batch else len(groups) % 2 == 0


def test_another_process_plays_the_same_episodes(mini):
    here = closed_loop(mini, n_episodes=2, seed=7, max_steps=2, batch=1, processes=1, edit=PUSH)
    trials = [
        Trial(scene=e.scene, instruction=e.instruction, labels={"seed": e.scene.seed}) for e in here.episodes
    ]
    settings = Settings(edit=PUSH, watcher=None, image_px=112, max_steps=2, keep_frames=False)
    there, ticks = {}, []
    seconds = play_in_processes(
        mini, trials, [[1], [0]], settings, n_worlds=1, processes=1, found=there, tick=lambda: ticks.append(1)
    )
    assert seconds > 0 and len(ticks) == 2
    for i, episode in enumerate(here.episodes):
        np.testing.assert_allclose(there[i][0].actions, episode.actions, atol=1e-5)


SCRIPTS: list[str | None] = []
"""What a process that starts takes for the script under way."""


class Aside:
    """Processes that are threads of this one: what goes through the pipes is the same."""

    Pipe = staticmethod(multiprocessing.Pipe)

    class Process(threading.Thread):
        def __init__(self, *, target, args, daemon):
            end, order = args
            # A process keeps its end when the caller closes the one that it handed over.
            super().__init__(target=target, args=(Connection(os.dup(end.fileno())), order), daemon=daemon)

        def start(self):
            SCRIPTS.append(getattr(sys.modules["__main__"], "__file__", None))
            super().start()


def test_a_process_that_dies_is_told_with_what_may_help():
    for needs_script, words in ((False, "want of memory"), (True, "__main__.*processes=1")):
        mine, theirs = multiprocessing.Pipe()
        theirs.close()
        with pytest.raises(WorkerError, match=words):
            _receive(mine, needs_script=needs_script)
        mine.close()


def test_a_process_that_dies_between_two_groups_is_told():
    mine, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(WorkerError, match="died, perhaps for want of memory"):
        _send_next(mine, iter([b"a job"]))
    assert not _send_next(mine, iter([]))
    mine.close()


def test_an_episode_does_not_begin_with_the_last_ones_gripper(monkeypatch, capsys):
    from vlascope import api
    from vlascope.cli import main
    from vlascope.models import policy
    from vlascope.sim.episode import MAX_STEPS

    class Once:
        """Closes the gripper at its first call and never speaks sense again."""

        n_malformed, grip, made = 0, 0.0, []

        def __init__(self, model, *, malformed):
            self.held: list[float] = []
            self.made.append(self)

        def __call__(self, rgb, text):
            self.held.append(self.grip)
            self.n_malformed += self.grip == 1
            self.grip = 1.0
            return np.array([0, 0, 0, self.grip], np.float32)

    monkeypatch.setitem(MAX_STEPS, "pick", 2)
    monkeypatch.setattr(policy, "VLAPolicy", Once)
    monkeypatch.setattr(api, "load", lambda name, *, device: SimpleNamespace(name=name))
    assert main(["sim", "rollout", "m", "--episodes", "2", "-q", "--json"]) == 0
    assert [one.held for one in Once.made] == [[0.0, 1.0]] * 2
    assert '"malformed_replies": 2' in capsys.readouterr().out


def test_groups_are_shared_out_over_processes(mini, monkeypatch):
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: Aside)
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "script.py", raising=False)  # pytest-xdist's workers have none
    SCRIPTS.clear()
    there = closed_loop(mini, n_episodes=6, seed=7, max_steps=1, batch=1, processes=2, edit=PUSH)
    assert there.processes == 2 and there.edit == PUSH.name and there.seconds > 0
    assert SCRIPTS == [None, None] and main.__file__ == "script.py", "processes see no script; we still do"
    here = closed_loop(mini, n_episodes=6, seed=7, max_steps=1, batch=1, processes=1, edit=PUSH)
    for a, b in zip(here.episodes, there.episodes, strict=True):
        assert a.instruction == b.instruction
        np.testing.assert_allclose(a.actions, b.actions, atol=1e-5)


def test_what_other_processes_cannot_have_is_refused(mini):
    dark = Perturbation(image=lambda rgb, episode: rgb // 2)
    with pytest.raises(InputError, match="processes=1"):
        closed_loop(mini, n_episodes=2, max_steps=1, batch=1, processes=2, perturbation=dark)
    with pytest.raises(InputError, match="processes"):
        closed_loop(mini, n_episodes=2, processes=0)
    with pytest.raises(InputError, match="n_episodes"):
        closed_loop(mini, n_episodes=0)


def test_an_edit_changes_what_is_done_and_only_meanwhile(mini, plain):
    pushed = closed_loop(mini, n_episodes=3, seed=40, max_steps=4, batch=3, edit=PUSH)
    assert not np.array_equal(pushed.episodes[0].actions, plain.episodes[0].actions)
    assert mini._hooks.n_hooked == 0
    found = compare(plain, pushed)
    assert found.difference.n == 3 and found.stopped_good.value is None
    assert found.to_json()["change"] == PUSH.name


def test_a_watcher_stops_one_episode_and_says_why(mini, plain):
    made: dict[int, Nosy] = {}

    def watch(episode: int) -> Nosy:
        made[episode] = Nosy(episode)
        assert isinstance(made[episode], Watcher)
        return made[episode]

    found = closed_loop(mini, n_episodes=3, seed=40, max_steps=4, batch=3, watcher=watch)
    assert [e.n_steps for e in found.episodes] == [4, 2, 4] and found.n_vetoed == 1
    assert found.episodes[1].labels["veto"] == "looks wrong" and found.episodes[1].labels["veto_step"] == 2
    assert found.to_dict()["episodes"][1]["veto"]["score"] == 3.0
    assert made[0].began == ("pick", "front") and [step for step, _ in made[0].seen] == [0, 1, 2, 3]
    shape, kind = made[0].seen[0][1]["vision.1"]
    assert shape == (196, 128) and kind == "float32"
    n_text = made[0].seen[0][1]["language.3"][0][0] - 196
    assert 5 < n_text < 20
    for i in (0, 2):  # the others go on as if nobody had watched
        np.testing.assert_array_equal(found.episodes[i].actions, plain.episodes[i].actions)
    pair = compare(plain, found)
    assert pair.stopped_bad.n == 3 and pair.stopped_bad.value == pytest.approx(1 / 3)
    assert pair.stopped_good.value is None


def test_failures_are_written_as_episodes(mini, tmp_path):
    from vlascope.items import open_items

    out = tmp_path / "failures"
    found = closed_loop(mini, n_episodes=2, seed=3, max_steps=2, failures_out=out, image_px=48)
    items = open_items(out)
    assert len(items) == 4 and items[0].labels["outcome"] == found.episodes[0].outcome == "never_lifted"
    assert found.episodes[0].rgb is None
    assert [path.stat().st_size > 0 for path in out.glob("videos/**/*.mp4")] == [True]


def test_only_failures_are_written(mini, plain, tmp_path, monkeypatch):
    from vlascope.items import open_items

    done = dataclasses.replace(plain.episodes[1], outcome="success")
    episodes = (plain.episodes[0], done, plain.episodes[2])
    monkeypatch.setattr(
        "vlascope.act.rollout.play", lambda *_, **__: Played(episodes, (None,) * 3, seconds=1.0, processes=1)
    )
    found = closed_loop(mini, n_episodes=3, seed=40, failures_out=tmp_path / "failed", out=tmp_path / "all")
    assert [e.success for e in found.episodes] == [False, True, False]
    failed, every = open_items(tmp_path / "failed"), open_items(tmp_path / "all")
    assert {failed[i].labels["outcome"] for i in range(len(failed))} == {"never_lifted"}
    assert (len(failed), len(every)) == (8, 12)
    monkeypatch.setattr(
        "vlascope.act.rollout.play", lambda *_, **__: Played((done,), (None,), seconds=1.0, processes=1)
    )
    closed_loop(mini, n_episodes=1, seed=40, failures_out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_taken_folder_is_found_before_anything_is_played(mini, tmp_path, monkeypatch, capsys):
    from vlascope.cli import main

    def never(*_, **__):
        raise AssertionError("something was played")

    monkeypatch.setattr("vlascope.act.rollout.play", never)
    monkeypatch.setattr("vlascope.act.breaking.play", never)
    monkeypatch.setattr("vlascope.sim.rollout", never)
    taken, on_file = tmp_path / "taken", tmp_path / "note.txt" / "failed"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    on_file.parent.write_text("a file")
    for name in ("out", "failures_out"):
        for place, said in ((taken, "exists"), (on_file, "is a file"), (Path.cwd(), "you are in")):
            with pytest.raises(StorageError, match=said):
                closed_loop(mini, n_episodes=1, **{name: place})
    with pytest.raises(InputError, match="two things"):
        closed_loop(mini, n_episodes=1, out=tmp_path / "a", failures_out=tmp_path / "a")
    few = ("mini-vla", "-q", "--device", "cpu")
    for words in (
        ("rollout", *few, "--cut", "text:action", "-o", str(taken)),
        ("rollout", *few, "--cut", "text:action", "--failures", str(taken)),
        ("break", *few, "-o", str(taken)),
        ("sim", "rollout", *few, "-o", str(taken)),
    ):
        assert main(list(words)) == 2
        said = capsys.readouterr().err
        assert "exists; choose another" in said and "--force" not in said and "--resume" not in said
    assert main(["break", *few, "-o", str(tmp_path / "new"), "--sites", "vision.77"]) == 2
    assert "no site" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_pairs_need_the_same_episodes(mini, plain):
    other = closed_loop(mini, n_episodes=1, seed=40, max_steps=1)
    with pytest.raises(InputError, match="pairs need"):
        compare(plain, other)


def test_pairs_are_counted_episode_by_episode():
    def loop(successes, lifted, vetoed=(), *, scene=""):
        episodes = [
            SimpleNamespace(success=bool(one), lifted=up, instruction=SimpleNamespace(target=0))
            for one, up in zip(successes, lifted, strict=True)
        ]
        vetoes = tuple(Veto(reason="strange") if i in vetoed else None for i in range(len(episodes)))
        return SimpleNamespace(
            task="pick", seed=3, n=len(episodes), episodes=episodes, vetoes=vetoes, watched=bool(vetoed), condition="e",
            edit="no edit", scene=scene, success_rate=float(np.mean(successes)),
        )  # fmt: skip

    base: Any = loop([1, 1, 1, 1, 0, 0, 1], [(0,)] * 4 + [(1,), (), (0,)])
    change: Any = loop([0, 0, 0, 1, 1, 0, 1], [(1,), (1, 0), (), (0,), (0,), (), (0,)], vetoed=(2, 3, 5))
    found = compare(base, change)
    assert (found.lost, found.won) == (3, 1)
    assert found.difference.value == pytest.approx(-2 / 7) and found.difference.p == mcnemar(3, 1) == 0.625
    assert "p=0.625 (McNemar, exact)" in found.difference.line()
    low, high = found.difference.interval
    assert low < -2 / 7 < high and high - low < 1.5
    assert found.wrong_object.value == pytest.approx((2 - 1) / 7)
    assert found.stopped_good.value == 2 / 5 and found.stopped_bad.value == 1 / 2
    assert found.stopped_good.interval == wilson_interval(2, 5)

    # What the unchanged scenes came to says nothing about the changed ones that were stopped.
    lifted = [()] * 7
    dark: Any = loop([0] * 7, lifted, vetoed=(2, 3, 5), scene="dark")
    found = compare(base, dark)
    assert found.stopped_good.value is None and "not played" in found.stopped_good.reason
    assert found.stopped_bad.value is None and found.difference.value == pytest.approx(-5 / 7)
    free: Any = loop([0, 0, 1, 0, 1, 0, 0], lifted, scene="dark")
    found = compare(base, dark, unwatched=free)
    assert found.stopped_good.value == 1 / 2 and found.stopped_bad.value == 2 / 5
    calm: Any = loop([0, 0, 1, 0, 1, 0, 0], lifted, scene="dark")
    calm.watched = True  # it saw nothing, so that all ended as they do unwatched
    assert compare(base, calm).stopped_good.value == 0 and compare(base, calm).stopped_good.n == 2
    with pytest.raises(InputError, match="need the same edit and scene"):
        compare(base, dark, unwatched=base)


def test_mcnemar_is_the_binomial_test():
    from scipy.stats import binomtest

    for lost, won in [(0, 0), (5, 0), (7, 2), (3, 3), (1, 12)]:
        expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert mcnemar(lost, won) == pytest.approx(expected)


def test_power_says_what_a_test_could_have_seen():
    # Six of six one way are the fewest that McNemar's test believes.
    assert mcnemar(0, 5) > 0.05 > mcnemar(0, 6)
    assert np.isnan(detectable_difference(5))
    assert detectable_difference(200) < detectable_difference(50) < detectable_difference(10)
    rng = np.random.default_rng(0)
    hits = rng.binomial(50, detectable_difference(50), 4000)
    assert np.mean([mcnemar(0, k) <= 0.05 for k in hits]) == pytest.approx(0.8, abs=0.03)


def test_success_comes_with_its_interval(plain):
    found = success_result(plain)
    assert found.value == 0.0 and found.interval[0] < 1e-9 and found.interval[1] > 0.5


def test_a_condition_is_named_by_all_that_sets_it_apart(plain):
    assert plain.condition == "no edit"
    dark = dataclasses.replace(plain, scene="brightness x 0.5")
    assert dark.condition == "brightness x 0.5"
    assert dataclasses.replace(plain, watched=True).condition == "watched"
    all_of_it = dataclasses.replace(dark, edit="push", watched=True)
    assert all_of_it.condition == "push, brightness x 0.5, watched"
    names = [result.name for result in (success_result(plain), success_result(dark))]
    assert names == ["success / no edit", "success / brightness x 0.5"]
    pair = compare(plain, dark).to_json()
    assert (pair["base"], pair["change"]) == ("no edit", "brightness x 0.5")
