"""The monitor on planted tokens: it alarms where, when and at the level that was planted, and not on clean episodes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runs.fakes import COLS, ROWS, ArraySource, FakeModel, make_item
from vlascope.act.monitor import Monitor, episode_tokens, episodes_of, largest_group, patches_of, top_mean
from vlascope.act.monitor_evaluate import (
    Watched,
    evaluate_attack,
    mask_patches,
    patch_iou,
    weighted_auroc,
)
from vlascope.act.monitor_fit import deal, fit_monitor, held_out_of
from vlascope.act.monitor_report import score_run
from vlascope.act.monitor_store import DICTIONARY_NAME, MONITOR_NAME, TENSORS_NAME, load_monitor, save_monitor
from vlascope.act.monitor_thresholds import conformal_threshold
from vlascope.act.watcher import Watcher
from vlascope.cli import main
from vlascope.errors import InputError, RunNotFoundError, RunVersionError, SiteNotFoundError
from vlascope.items.item import Item
from vlascope.runs import Run, capture
from vlascope.sae import Checkpoint, SAEConfig, SAETrainer, TrainConfig, load_sae, run_origin, save_sae
from vlascope.sae.train import same_split

SITE, D, STEPS = "vision.1", 7, 7
WRONG = [1 * COLS + 3, 1 * COLS + 4, 2 * COLS + 3]  # neighbouring patches of the 3 x 5 grid
ONSET = 3
TASKS = ("pick", "place")


@lru_cache
def atoms() -> np.ndarray:
    """Four directions of which clean tokens are made, and a fifth that they never take, float32 [5, 7]."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(D, 5)))[0].T
    return np.ascontiguousarray(q, np.float32)


class Planted(FakeModel):
    """Tokens are sums of two atoms; a label "wrong" adds the strange direction to some patches."""

    def values(self, item: Item, site: str, n_tokens: int) -> np.ndarray:
        rng = np.random.default_rng([item.labels["n"], len(site)])
        noise = 0.05 * rng.normal(size=(n_tokens, 7 if site == SITE else 11))
        if site != SITE:
            return noise.astype(np.float32)
        weights = np.zeros((n_tokens, 5), np.float32)
        chosen = np.argsort(rng.random((n_tokens, 4)), axis=1)[:, :2]
        np.put_along_axis(weights, chosen, 1 + rng.random((n_tokens, 2)), axis=1)
        if item.labels["wrong"]:
            weights[1 + np.array(WRONG), 4] = 2.0  # the first token is the class token
        return (3.0 + weights @ atoms() + noise).astype(np.float32)


class Episodes(ArraySource):
    """Episodes of 7 steps from number `first` on, of two tasks in turn; those in `wrong` go wrong at step 3."""

    def __init__(self, n: int, *, first: int = 0, wrong: bool = False) -> None:
        super().__init__(n * STEPS, version=f"{first}{wrong}")
        self.first, self.wrong = first * STEPS, wrong

    def read(self, index: int) -> Item:
        item = make_item(index + self.first)
        assert item.episode is not None
        labels = {
            "n": index + self.first,
            "sim_task": TASKS[item.episode % 2],
            "wrong": self.wrong and item.episode % 3 == 0 and item.step >= ONSET,
        }
        return replace(item, labels=labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("monitor")
    for name, source in (
        ("clean", Episodes(110)),
        ("fresh", Episodes(30, first=200)),
        ("wrong", Episodes(30, first=300, wrong=True)),
    ):
        capture(Planted(), source, sites=[SITE, "language.0"], out=path / name, respond=False, quiet=True)
    run = Run.open(path / "clean")
    x = torch.from_numpy(np.asarray(run.acts(SITE)[:4000], np.float32))
    trainer = SAETrainer(
        SAEConfig(d_in=D, n_latents=12, k=2, levels=(4,)),
        TrainConfig(batch=256, lr=5e-3),
        n_steps=250,
        sample_td=x,
    )
    order = torch.Generator().manual_seed(0)
    for _ in range(250):
        trainer.step(x[torch.randint(0, len(x), (256,), generator=order)])
    save_sae(trainer.sae, path / "sae", origin=run_origin(run, SITE), proof_td=x[:200].numpy())
    return path


@pytest.fixture(scope="module")
def checkpoint(folder) -> Checkpoint:
    return load_sae(folder / "sae", run=Run.open(folder / "clean"))


@pytest.fixture(scope="module")
def monitor(folder, checkpoint) -> Monitor:
    return fit_monitor(Run.open(folder / "clean"), checkpoint, alpha=0.1, quiet=True)


@pytest.fixture
def fresh(folder) -> Run:
    return Run.open(folder / "fresh")


@pytest.fixture
def wrong(folder) -> Run:
    return Run.open(folder / "wrong")


def test_the_realised_rate_is_part_of_what_is_fitted(monitor):
    assert monitor.by == "sim_task" and set(monitor.use("sae").thresholds) == {"pick|main", "place|main"}
    counts = monitor.facts["n_episodes"]
    assert list(counts) == ["reference", "calibration", "test"] and sum(counts.values()) == 110
    assert counts["calibration"] == 44
    for fitted in monitor.fitted.values():
        rate = fitted.rate("frame")
        assert rate.n == counts["test"] and rate.holds(0.1)
        assert fitted.rate("sigma per frame").n == 7 * counts["test"]
    rows = monitor.summary()
    assert ("sae", "frame", "10.0%", monitor.use("sae").rate("frame").text()) in rows


def test_alarms_come_when_where_and_at_the_level_that_was_planted(monitor, wrong, fresh):
    found = score_run(monitor, wrong, label="wrong", quiet=True)
    assert found.labelled is not None and not found.seen_before
    assert found.labelled.auroc.value > 0.99 and found.labelled.auroc.interval[0] > 0.95
    assert found.labelled.detected.share >= 0.8 and found.labelled.delay.value == 0
    for one in found.episodes:
        if one.labelled and one.step == ONSET:
            patches = monitor.patches
            places = {(int(patches.row[i]), int(patches.col[i])) for i in one.where.patches}
            assert {(1, 3), (1, 4), (2, 3)} <= places and len(places) <= 5
            x0, y0, x1, y1 = one.where.box
            width, height = wrong.items[0].image_sizes[0][1], wrong.items[0].image_sizes[0][0]
            assert x0 >= 0.5 * width and y0 >= 0.3 * height and x1 <= 1.01 * width and y1 <= 1.01 * height
            assert one.where.level == 12, "the whole dictionary explained clean tokens best"
    clean = score_run(monitor, fresh, quiet=True)
    assert clean.alarms.n == 30 and clean.alarms.holds(0.1)
    facts = json.dumps([found.to_json(), clean.to_json()], allow_nan=False)
    assert "realised_false_alarms_when_fitted" in facts


@pytest.mark.parametrize("detector", ["sae", "sae-fall", "mahalanobis", "pca"])
@pytest.mark.parametrize("rule", ["frame", "cusum", "both", "sigma"])
def test_watching_step_by_step_equals_scoring_the_episode(monitor, wrong, detector, rule):
    watcher = monitor.watcher(detector=detector, rule=rule)
    assert isinstance(watcher, Watcher) and watcher.sites == (SITE,)
    scored = score_run(monitor, wrong, detector=detector, rule=rule, quiet=True)
    table = wrong.tokens("vision")
    vetoed = 0
    for items, expected in list(zip(episodes_of(wrong), scored.episodes, strict=True))[:9]:
        watcher.start(expected.task, "main")
        at = None
        for step, item in enumerate(items):
            veto = watcher.watch(step, {SITE: np.asarray(wrong.acts(SITE)[table.rows_of(int(item))])})
            if veto is not None:
                at = step
                break
        assert at == expected.step
        if veto is not None:
            vetoed += 1
            assert veto.score > veto.threshold and veto.site == SITE and veto.box == expected.where.box
            assert veto.details["realised_false_alarms"]["n"] > 0
            assert ("no rate is stated" if rule == "sigma" else "stated 10.0%") in veto.reason
            assert (veto.details["rule"], veto.threshold) == (expected.kind, expected.limit)
            assert expected.score >= veto.score - 1e-4
            json.dumps(dict(veto.details), allow_nan=False)
    assert vetoed
    promise = "no rate is stated" if rule == "sigma" else "stated for clean ones: 10.0%"
    assert promise in scored.lines()[0]
    assert scored.to_json()["stated_false_alarms"] == (None if rule == "sigma" else 0.1)
    for one in scored.episodes:  # the bug: a sum was shown beside the limit of a frame
        assert (one.score > one.limit) == (one.step is not None)
        assert ("(sum)" in one.row()[4]) == (one.kind == "cusum")


def test_what_leaves_less_to_rebuild_is_seen_by_falling_errors_alone(monitor, fresh):
    """As glare does: each token becomes what the dictionary makes of it."""
    alarms = {"sae": 0, "sae-fall": 0}
    for items in episodes_of(fresh):
        tokens = episode_tokens(fresh, SITE, items, monitor.patches)
        flat = torch.from_numpy(tokens.reshape(-1, D))
        with torch.no_grad():
            made = monitor.sae.decode(monitor.sae.encode(flat)).numpy().reshape(tokens.shape)
        for detector in alarms:
            limits = next(iter(monitor.use(detector).thresholds.values()))
            scores = monitor.frame_scores(monitor.patch_scores(made, detector=detector), camera=0)
            alarms[detector] += limits.first_alarm(scores, rule="frame") is not None
    assert alarms == {"sae": 0, "sae-fall": 30}
    where = monitor.explain(made[0], detector="sae-fall")
    assert where.level is not None and where.level_rise < 0 and np.isfinite(where.level_rise)


def split_in_two(run: Run) -> Run:
    """The run, with the right of each picture as another camera's."""
    table = run.tokens("vision")
    table.camera = np.where(table.col > 2, 1, 0).astype(np.int16)
    return run


@pytest.fixture(scope="module")
def two_cameras(folder, checkpoint) -> Monitor:
    return fit_monitor(split_in_two(Run.open(folder / "clean")), checkpoint, alpha=0.1, quiet=True)


def test_labelled_episodes_are_judged_over_all_cameras(two_cameras, wrong):
    """The bug: what only the second camera shows was scored by the first alone."""
    found = score_run(two_cameras, split_in_two(wrong), label="wrong", quiet=True).labelled
    assert found is not None and found.auroc.value > 0.99 and found.detected.share >= 0.8
    clean, attacked = [], []
    for group in episodes_of(wrong):
        tokens = episode_tokens(wrong, SITE, group, two_cameras.patches)
        first = wrong.items[int(group[0])]
        bad = wrong.items[int(group[-1])].labels["wrong"]
        one = Watched(str(first.episode), tokens, onset=ONSET if bad else None, task=first.labels["sim_task"])
        (attacked if bad else clean).append(one)
    alone = [
        evaluate_attack(two_cameras, attack="wrong", clean=clean, attacked=attacked, camera=c) for c in (0, 1)
    ]
    assert alone[0].auroc.value < 0.7 < 0.99 < alone[1].auroc.value
    assert alone[0].false_alarms.alarms + alone[1].false_alarms.alarms >= found.false_alarms.alarms


def test_the_realised_rate_counts_episodes_with_an_alarm_of_any_camera(
    two_cameras, folder, checkpoint, tmp_path
):
    """The bug: pairs of episode and camera were counted, beside the rate stated for all cameras together."""
    run = split_in_two(Run.open(folder / "clean"))
    groups = episodes_of(run)
    tasks = [run.items[int(group[0])].labels["sim_task"] for group in groups]
    test = deal(run, checkpoint, groups, tasks, shares=(0.3, 0.4, 0.3), seed=0)[2]
    expected = dict.fromkeys(TASKS, 0)
    for i in test:
        patch = two_cameras.patch_scores(episode_tokens(run, SITE, groups[i], two_cameras.patches))
        expected[tasks[i]] += two_cameras.first_alarm(patch, task=tasks[i], rule="sigma") is not None
    use = two_cameras.use("sae")
    assert use.rate("sigma").n == two_cameras.facts["n_episodes"]["test"] == len(test)
    assert {task: use.rate("sigma", task=task).alarms for task in TASKS} == expected
    assert use.rate("sigma per frame").n == STEPS * len(test)
    watcher = two_cameras.watcher(rule="frame")
    watcher.start("pick", "main")
    table = run.tokens("vision")
    veto = watcher.watch(0, {SITE: 40 * np.asarray(run.acts(SITE)[table.rows_of(0)])})
    assert veto is not None and use.rate("frame", task="pick").text() in veto.reason
    path = save_monitor(two_cameras, tmp_path / "m", checkpoint=checkpoint)
    assert load_monitor(path).summary() == two_cameras.summary()
    facts = json.loads((path / MONITOR_NAME).read_text())
    for one in facts["detectors"].values():  # as an older vlascope saved it
        del one["realised_any_camera"]
    (path / MONITOR_NAME).write_text(json.dumps(facts))
    assert load_monitor(path).use("sae").rate("sigma", task="pick").n == 2 * use.rate("sigma", task="pick").n


def test_limits_are_those_of_each_task_and_camera_at_its_share_of_the_rate(folder, checkpoint, two_cameras):
    run = split_in_two(Run.open(folder / "clean"))
    fitted = two_cameras
    assert fitted.camera_alpha == 0.05
    groups = episodes_of(run)
    tasks = [run.items[int(group[0])].labels["sim_task"] for group in groups]
    parts = deal(run, checkpoint, groups, tasks, shares=(0.3, 0.4, 0.3), seed=0)
    for detector in ("sae", "pca"):
        use = fitted.use(detector)
        assert set(use.thresholds) == {f"{t}|{c}" for t in TASKS for c in ("main", "wrist")}
        for task in TASKS:
            for camera, name in enumerate(("main", "wrist")):
                frames = [
                    fitted.frame_scores(
                        fitted.patch_scores(
                            episode_tokens(run, SITE, groups[i], fitted.patches), detector=detector
                        ),
                        camera=camera,
                    )
                    for i in (*parts[1], *parts[2])
                    if tasks[i] == task
                ]
                n = sum(tasks[i] == task for i in parts[1])
                limits = use.thresholds[f"{task}|{name}"]
                assert limits.n_episodes == n == 22
                expected = conformal_threshold(np.array([max(one) for one in frames[:n]]), alpha=0.05)
                assert limits.frame == pytest.approx(expected, rel=1e-4)
                rate = use.realised[f"{task}|{name}"]["frame"]
                assert (rate.alarms, rate.n) == (
                    sum(max(one) > limits.frame for one in frames[n:]),
                    len(frames) - n,
                )


@pytest.mark.parametrize("rule", ["cusum", "both"])
def test_what_lasts_adds_up_over_the_steps_of_an_episode(monitor, wrong, rule):
    table, items = wrong.tokens("vision"), episodes_of(wrong)[0]
    tokens = [{SITE: np.asarray(wrong.acts(SITE)[table.rows_of(int(i))])} for i in items]
    fitted = monitor.use("sae")
    limits = fitted.thresholds["pick|main"]
    rise = monitor.frame_scores(
        monitor.patch_scores(np.stack([one[SITE][monitor.patches.position] for one in tokens])), camera=0
    )
    each = (rise[ONSET:] - limits.mean) / limits.deviation - 1
    assert (each > 0).all()
    # No single step reaches this limit; the third one in a row does.
    limit = float(each[:2].sum() + 0.5 * each[2])
    assert limit > each.max()
    slow = replace(limits, frame=np.inf, cusum=limit, frame_half=np.inf, cusum_half=limit)
    patient = replace(
        monitor, fitted={"sae": replace(fitted, thresholds=dict.fromkeys(fitted.thresholds, slow))}
    )
    assert slow.first_alarm(rise, rule=rule) == ONSET + 2
    watcher = patient.watcher(rule=rule)
    for _ in range(2):  # the second time, nothing is left of the first
        watcher.start("pick", "main")
        vetoes = [watcher.watch(step, one) for step, one in enumerate(tokens[: ONSET + 3])]
        assert [veto is not None for veto in vetoes] == [False] * (ONSET + 2) + [True]
        last = vetoes[-1]
        assert last is not None and last.details["rule"] == "cusum" and "adds up to" in last.reason


def test_a_saved_monitor_is_the_same_and_refuses_what_does_not_belong(monitor, checkpoint, wrong, tmp_path):
    path = save_monitor(monitor, tmp_path / "m", checkpoint=checkpoint)
    again = load_monitor(path)
    a, b = (score_run(one, wrong, rule="both", quiet=True).to_json() for one in (monitor, again))
    assert a == b
    assert again.summary() == monitor.summary()
    text = (path / MONITOR_NAME).read_text()
    assert str(tmp_path) not in text
    other = capture(Planted(weights="w2"), Episodes(2), sites=[SITE], out=tmp_path / "other", quiet=True)
    with pytest.raises(InputError, match=r"belongs to the weights of 'fake' \(w1\).*\(w2\)"):
        score_run(again, other, quiet=True)
    save_monitor(again, path, checkpoint=load_sae(path / DICTIONARY_NAME))  # onto itself
    weights = path / DICTIONARY_NAME / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"] = tensors["W_dec"].flip(0).contiguous()
    save_file(tensors, weights)
    with pytest.raises(InputError, match="is not the one that the monitor was fitted with"):
        load_monitor(path)
    facts = json.loads(text)
    (path / MONITOR_NAME).write_text(json.dumps(facts | {"schema": 99}))
    with pytest.raises(RunVersionError, match="format 99"):
        load_monitor(path)
    (path / MONITOR_NAME).write_text(text)
    (path / TENSORS_NAME).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_monitor(path)
    with pytest.raises(RunNotFoundError, match="holds no monitor"):
        load_monitor(tmp_path)


def test_what_cannot_be_fitted_is_said(folder, checkpoint):
    run = Run.open(folder / "clean")
    few = [int(i) for group in episodes_of(run)[:20] for i in group]
    with pytest.raises(InputError, match="task 'pick', camera 'main': got 4 calibration episodes"):
        fit_monitor(run, checkpoint, items=few, quiet=True)
    with pytest.raises(InputError, match="got 1 clean episodes; they do not suffice"):
        fit_monitor(run, checkpoint, items=few[:7], alpha=0.5, quiet=True)
    with pytest.raises(InputError, match="reference episodes have 14 frames; need at least 20"):
        fit_monitor(run, checkpoint, items=few[: 7 * STEPS], alpha=0.5, quiet=True)
    with pytest.raises(InputError, match="between 0 and 1"):
        fit_monitor(run, checkpoint, alpha=0, quiet=True)
    with pytest.raises(InputError, match="share of patches"):
        fit_monitor(run, checkpoint, top=0, quiet=True)
    with pytest.raises(InputError, match="7 values of label 'n'"):
        fit_monitor(run, checkpoint, by="n", quiet=True)
    with pytest.raises(InputError, match="has 11"):
        fit_monitor(run, checkpoint, site="language.0", quiet=True)
    with pytest.raises(InputError, match="three positive ones"):
        fit_monitor(run, checkpoint, shares=(1, 0, 1), quiet=True)
    with pytest.raises(InputError, match="has no patches"):
        patches_of(run, "language.0")


def test_episodes_that_the_dictionary_was_trained_on_never_calibrate(folder, checkpoint):
    run = Run.open(folder / "clean")
    origin = dict(checkpoint.origin)
    origin["key"] = {"run": run.info["content_sha256"], "train": TrainConfig(held_out=0.5).to_json()}
    own = replace(checkpoint, origin={**origin, "key": dict(origin["key"])})
    groups = episodes_of(run)
    parts = deal(run, own, groups, ["*"] * len(groups), shares=(0.3, 0.4, 0.3), seed=0)
    held = set(same_split(run, origin).held_out.tolist())
    trained = [not held.issuperset(groups[i].tolist()) for part in parts for i in part]
    assert trained == [True] * len(parts[0]) + [False] * (len(groups) - len(parts[0]))
    assert len(parts[1]) > len(parts[2]) > 0
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    # The bug: "got 3 calibration episodes; capture more", with most of the episodes there.
    origin["key"]["train"] = TrainConfig().to_json()
    few = replace(checkpoint, origin=origin)
    with pytest.raises(InputError, match="Of 110 episodes, 99 trained the dictionary .* larger --held-out"):
        fit_monitor(run, few, alpha=0.1, quiet=True)
    trained_on = [i for i in range(run.n_items) if i not in set(same_split(run, origin).held_out.tolist())]
    with pytest.raises(InputError, match="Of 99 episodes, 99 trained"):
        fit_monitor(run, few, items=trained_on, quiet=True)
    alike = fit_monitor(run, own, alpha=0.1, by=None, quiet=True)
    assert set(alike.use("pca").thresholds) == {"*|main"}


def test_another_capture_of_the_training_data_is_known(folder, checkpoint, monitor, tmp_path):
    """The bug: at other sites it is another run, and the training episodes calibrated."""
    run = Run.open(folder / "clean")
    again = capture(
        Planted(), Episodes(110), sites=[SITE, "vision.0"], out=tmp_path / "r", respond=False, quiet=True
    )
    assert again.info["content_sha256"] != run.info["content_sha256"]
    split = same_split(run, {"key": {"train": TrainConfig(held_out=0.5).to_json()}})
    assert checkpoint.origin["items_fingerprint"] == run.config["items"]["fingerprint"]
    origin = {
        **{k: v for k, v in checkpoint.origin.items() if k != "items_fingerprint"},  # as older dictionaries
        "key": {"run": run.info["content_sha256"], "train": TrainConfig(held_out=0.5).to_json()},
        "held_out_items": [run.items[int(i)].item_id for i in split.held_out[:1000]],
        "n_held_out_items": len(split.held_out),
    }
    held = set(split.held_out.tolist())
    by_ids, unknown = replace(checkpoint, origin=origin), {**origin, "held_out_items": ["other"]}
    assert held_out_of(again, by_ids) == held
    assert held_out_of(again, replace(checkpoint, origin=unknown)) is None
    for one, expected in ((again, held), (Run.open(folder / "fresh"), None)):
        named = {**unknown, "items_fingerprint": run.config["items"]["fingerprint"]}
        assert held_out_of(one, replace(checkpoint, origin=named)) == expected
    groups = episodes_of(again)
    calibration = deal(again, by_ids, groups, ["*"] * 110, shares=(0.3, 0.4, 0.3), seed=0)[1]
    assert all(held.issuperset(groups[i].tolist()) for i in calibration)
    assert score_run(monitor, again, items=range(70), quiet=True).seen_before


def test_a_run_of_other_cameras_is_refused(monitor, two_cameras, tmp_path):
    """The bug: it was scored, and its alarms named after the monitor's camera."""

    class Elsewhere(Episodes):
        def __init__(self, *cameras: str) -> None:
            super().__init__(2, first=200)
            self.cameras = cameras

        def read(self, index: int) -> Item:
            return replace(super().read(index), cameras=self.cameras)

    runs = {}
    for names in (("ceiling", "hand"), ("main", "hand")):
        out = tmp_path / names[0]
        runs[names] = capture(Planted(), Elsewhere(*names), sites=[SITE], out=out, respond=False, quiet=True)
    with pytest.raises(InputError, match="shows camera 'ceiling', but the monitor was fitted on 'main'"):
        score_run(monitor, runs["ceiling", "hand"], quiet=True)
    assert score_run(monitor, runs["main", "hand"], quiet=True).alarms.n == 2, "the hand is not watched"
    with pytest.raises(InputError, match="shows camera 'hand', but the monitor was fitted on 'wrist'"):
        score_run(two_cameras, split_in_two(runs["main", "hand"]), quiet=True)


def test_bad_tokens_while_watching_are_refused(monitor, fresh):
    watcher = monitor.watcher()
    tokens = np.asarray(fresh.acts(SITE)[fresh.tokens("vision").rows_of(0)])
    with pytest.raises(InputError, match="no episode was started"):
        watcher.watch(0, {SITE: tokens})
    with pytest.raises(InputError, match="no threshold for task 'juggle'"):
        watcher.start("juggle", "main")
    with pytest.raises(InputError, match="not on 'wrist'"):
        watcher.start("pick", "wrist")
    watcher.start("pick", "main")
    for bad, words in (
        ({}, "are missing"),
        ({SITE: tokens[:9]}, "watches rows up to 15"),
        ({SITE: tokens[:, :6]}, "7 channels"),
        ({SITE: np.where(np.arange(7) == 2, np.nan, tokens)}, "NaN or infinite"),
    ):
        with pytest.raises(InputError, match=words):
            watcher.watch(0, bad)
    with pytest.raises(InputError, match="no detector 'see'"):
        monitor.watcher(detector="see")
    with pytest.raises(InputError, match="unknown rule"):
        monitor.watcher(rule="vibes")  # type: ignore[arg-type]
    with pytest.raises(SiteNotFoundError):
        patches_of(fresh, "vision.9")


def test_judging_attacks(monitor, wrong, fresh):
    def watched(run: Run, n: int, onset: int | None) -> list[Watched]:
        out = []
        for group in episodes_of(run)[:n]:
            if onset is not None and not run.items[int(group[-1])].labels["wrong"]:
                continue
            mask = np.zeros((STEPS, ROWS * COLS), bool)
            mask[ONSET:, WRONG] = True
            task = str(run.items[int(group[0])].labels["sim_task"])
            tokens = episode_tokens(run, SITE, group, monitor.patches)
            out.append(
                Watched(f"{onset}{group[0]}", tokens, onset=onset, mask=mask if onset else None, task=task)
            )
        return out

    clean, attacked = watched(fresh, 30, None), watched(wrong, 30, ONSET)
    found = evaluate_attack(monitor, attack="strange", clean=clean, attacked=attacked, rule="both")
    assert found.auroc.value > 0.99 and found.iou.value > 0.7 and found.delay.value == 0
    assert found.detected.alarms + found.early.alarms == len(attacked)
    assert found.false_alarms.n == 30 and len(found.row()) == 7
    json.dumps(found.to_json(), allow_nan=False)
    same = [replace(one, onset=ONSET) for one in clean]
    nothing = evaluate_attack(monitor, attack="nothing", clean=clean, attacked=same)
    assert 0.35 < nothing.auroc.value < 0.65 and nothing.detected.share < 0.4
    short = [replace(one, tokens=one.tokens[:ONSET]) for one in clean]
    with pytest.raises(InputError, match="no clean episode lasts until step 3"):
        evaluate_attack(monitor, attack="strange", clean=short, attacked=attacked)
    # Scores that rise along every episode must not look like an attack.
    late = [replace(one, tokens=one.tokens + np.arange(STEPS)[:, None, None] ** 2) for one in clean]
    rising = evaluate_attack(
        monitor, attack="none", clean=late[:15], attacked=[replace(one, onset=5) for one in late[15:]]
    )
    assert 0.3 < rising.auroc.value < 0.7
    with pytest.raises(InputError, match="need both"):
        evaluate_attack(monitor, attack="none", clean=clean, attacked=clean)


def test_auroc_equals_scikit_learn_with_weights_and_ties():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, truth, weights = rng.integers(0, 9, 200) / 3, rng.random(200) < 0.3, rng.integers(0, 4, 200)
    expected = roc_auc_score(truth, scores, sample_weight=weights)
    assert weighted_auroc(scores, truth, weights.astype(float)) == pytest.approx(expected)
    assert np.isnan(weighted_auroc(scores, truth, np.where(truth, 1.0, 0.0)))


def test_patches_and_masks(monitor):
    patches = monitor.patches
    width, height = float(patches.box[:, 2].max()), float(patches.box[:, 3].max())
    mask = np.zeros((round(height), round(width)), bool)
    x0, y0, x1, y1 = np.rint(patches.box[8]).astype(int)
    mask[y0:y1, x0:x1] = True
    assert np.flatnonzero(mask_patches(patches, mask)).tolist() == [8]
    mask[:] = False
    mask[y0, x0] = True  # smaller than any half patch: the most covered one stands for it
    assert np.flatnonzero(mask_patches(patches, mask)).tolist() == [8]
    assert not mask_patches(patches, np.zeros_like(mask)).any()
    assert patch_iou(np.array([1, 1, 0], bool), np.array([0, 1, 1], bool)) == pytest.approx(1 / 3)
    marked = np.array([0, 4, 8, 9, 14])
    assert largest_group(patches, marked, np.ones(15)).tolist() == [4, 8, 9, 14]
    high = np.ones(15)
    high[0] = 50
    assert largest_group(patches, marked, high).tolist() == [0]
    assert top_mean(np.arange(15.0)[None], share=0.2).tolist() == [13.0]


def test_dictionaries_of_one_folder_name_do_not_share_a_monitor(
    folder, monitor, monkeypatch, tmp_path, capsys
):
    """The bug: the default folder was named after the dictionary's folder, and the second replaced the first."""
    # The fit itself matters not, only where it goes.
    monkeypatch.setattr("vlascope.act.monitor_fit.fit_monitor", lambda *a, **k: monitor)
    places = []
    for name in ("a", "b", "c"):
        copy = tmp_path / name / "sae"
        shutil.copytree(folder / "sae", copy)
        if name == "c":
            weights = copy / "sae_weights.safetensors"
            save_file(
                {k: v.clone() for k, v in load_file(weights).items()}, weights, metadata={"other": "yes"}
            )
        assert main(["monitor", "fit", str(folder / "clean"), str(copy), "-q", "--json"]) == 0
        places.append(json.loads(capsys.readouterr().out)["path"])
    assert places[0] == places[1] != places[2]


def test_the_verbs_state_the_realised_rate(folder, tmp_path, capsys):
    out = str(tmp_path / "m")
    words = ["monitor", "fit", str(folder / "clean"), str(folder / "sae"), "--alpha", "0.1", "-o", out, "-q"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "realised on clean episodes" in text and "mahalanobis" in text and out in text
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["realised_false_alarms"]["sae"]["pick|main"]["frame"]["n"] > 0
    score = ["monitor", "score", str(folder / "wrong"), out, "--label", "wrong", "-q"]
    assert main([*score, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["labelled"]["auroc"]["value"] > 0.99 and facts["alarms_over"] == "clean episodes"
    assert main(score) == 0
    text = capsys.readouterr().out
    assert "realised when fitted" in text and "3 of 7" in text
    assert main(["monitor", "score", str(folder / "clean"), out, "-q"]) == 0
    assert "fitted on this run or its data" in capsys.readouterr().out
    assert main(["monitor", "score", str(folder / "fresh"), out, "--label", "none", "-q"]) == 2
    assert "has no label 'none'" in capsys.readouterr().err
    assert main(["monitor", "score", str(folder / "fresh"), out, "--label", "wrong", "-q"]) == 2
    assert "true in 0 of 30 episodes" in capsys.readouterr().err
