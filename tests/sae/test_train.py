"""Training: planted directions, runs read in bounded memory, exact continuation, checkpoints, bad input."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.runs.fakes import ArraySource, FakeModel
from vlascope.errors import InputError, RunNotFoundError, RunVersionError, SiteNotFoundError, StorageError
from vlascope.runs import Run, capture
from vlascope.sae import (
    MatryoshkaSAE,
    SAEConfig,
    SAETrainer,
    TokenStream,
    TrainConfig,
    evaluate,
    load_sae,
    save_sae,
    split_items,
    train_sae,
)
from vlascope.sae.stream import token_rows
from vlascope.sae.tensors import write_tensors

SHAPE = {"n_latents": 28, "k": 3, "levels": (5, 11)}
SHORT = TrainConfig(batch=50, epochs=2, eval_every=5, save_every=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sae") / "run"
    capture(FakeModel(), ArraySource(43), sites=["vision.0", "vision.1", "language.0"], out=path, quiet=True)
    return path


@pytest.fixture
def run(made) -> Run:
    return Run.open(made)


def planted(n_true: int, d: int, n_active: int, *, seed: int = 0):
    """True unit directions and a function that draws sums of a few of them, far from the origin."""
    draw = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(n_true, d, generator=draw), dim=1)

    def tokens(n: int) -> torch.Tensor:
        index = torch.rand(n, n_true, generator=draw).topk(n_active, 1).indices
        weights = torch.rand(n, n_active, generator=draw) + 0.5
        return 5.0 + 3 * F.embedding_bag(index, atoms, per_sample_weights=weights, mode="sum")

    return atoms, tokens


@pytest.mark.parametrize(("activation", "share"), [("topk", 0.95), ("batchtopk", 0.8), ("jumprelu", 0.9)])
def test_planted_directions_are_found(activation, share):
    atoms, tokens = planted(97, 53, 3)
    trainer = SAETrainer(
        SAEConfig(d_in=53, n_latents=160, k=3, levels=(32, 64), activation=activation),
        TrainConfig(batch=512, lr=6e-3),
        n_steps=300,
        sample_td=tokens(2048),
    )
    first = trainer.step(tokens(512))
    for _ in range(299):
        last = trainer.step(tokens(512))
    cosine = (atoms @ trainer.sae.decoder.detach().T).max(1).values
    assert (cosine >= 0.9).float().mean() >= share
    assert last.level_fvu[-1] < 0.12 < first.level_fvu[-1]
    found = evaluate(trainer.sae, [tokens(1000).numpy()])
    assert found.fvu < 0.12 and found.levels[0].fvu > found.levels[1].fvu > found.fvu
    assert found.levels[-1].l0 == pytest.approx(3, rel=0.35)
    norms = torch.linalg.vector_norm(trainer.sae.decoder, dim=1)
    torch.testing.assert_close(norms, torch.ones(160))


def test_the_threshold_of_a_short_training_is_that_of_its_last_weights():
    """A mean over a hundred steps would still hold the large pre-activations of the first ones."""
    _, tokens = planted(97, 53, 3)
    trainer = SAETrainer(
        SAEConfig(d_in=53, n_latents=160, k=3, levels=(32, 64), activation="batchtopk"),
        TrainConfig(batch=512, lr=6e-3),
        n_steps=60,
        sample_td=tokens(2048),
    )
    for _ in range(60):
        trainer.step(tokens(512))
    assert evaluate(trainer.sae, [tokens(4000).numpy()]).levels[-1].l0 == pytest.approx(3, rel=0.1)


def test_dead_latents_are_revived_at_every_level():
    _, tokens = planted(60, 31, 3)
    silent = {}
    for aux in (0.0, 1 / 32):
        trainer = SAETrainer(
            SAEConfig(d_in=31, n_latents=60, k=3, levels=(20,)),
            TrainConfig(batch=256, lr=2e-3, aux=aux),
            n_steps=150,
            sample_td=tokens(1024),
        )
        with torch.no_grad():  # half of each level can never be chosen
            trainer.sae.b_enc[10:20] = -9.0
            trainer.sae.b_enc[40:60] = -9.0
        for _ in range(150):
            trainer.step(tokens(256))
        density = evaluate(trainer.sae, [tokens(4000).numpy()]).density
        silent[aux] = [int((density[a:b] == 0).sum()) for a, b in ((10, 20), (40, 60))]
    assert silent[0.0] == [10, 20], "without revival they stay dead"
    assert silent[1 / 32][0] <= 2 and silent[1 / 32][1] <= 4, silent


def test_only_the_revival_moves_the_directions_of_dead_latents():
    _, tokens = planted(60, 31, 3)
    x = tokens(256)
    moved = {}
    for aux in (0.0, 1 / 32):
        trainer = SAETrainer(
            SAEConfig(d_in=31, n_latents=60, k=3, levels=(20,)),
            TrainConfig(batch=256, aux=aux),
            n_steps=9,
            sample_td=x,
        )
        dead = torch.tensor([11, 12, 41, 42])
        with torch.no_grad():  # active among the dead, never among the three largest of all
            trainer.sae.encoder[dead] *= 0.02
        trainer.since_fired[dead] = 1 << 40
        before = trainer.sae.decoder.detach().clone()
        report = trainer.step(x)
        assert report.n_dead == 4
        moved[aux] = (trainer.sae.decoder.detach() - before)[dead].norm(dim=1)
    assert float(moved[0.0].max()) < 1e-6 < 1e-4 < float(moved[1 / 32].min())


def test_metrics_equal_the_formulas_on_all_rows_at_once():
    _, tokens = planted(30, 17, 3)
    x = tokens(500)
    sae = SAETrainer(
        SAEConfig(d_in=17, n_latents=40, k=4, levels=(7,)), TrainConfig(), n_steps=1, sample_td=x
    ).sae
    found = evaluate(sae, [x[:3].numpy(), x[3:250].numpy(), x[250:].numpy()])
    z = sae.encode(x).dense()
    for m in found.levels:
        out = sae.decode(sae.encode(x), level=m.level)
        assert m.fvu == pytest.approx(
            float((x - out).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4
        )
        a, b = x - sae.mean, out - sae.mean
        assert m.cosine == pytest.approx(float(F.cosine_similarity(a, b).mean()), abs=1e-5)
        assert m.l2_ratio == pytest.approx(float((b.norm(dim=1) / a.norm(dim=1)).mean()), rel=1e-4)
        assert m.l0 == pytest.approx(float((z[:, : m.level] > 0).sum() / 500))
    np.testing.assert_allclose(found.density, (z > 0).float().mean(0), rtol=1e-6)
    assert found.levels[1].dead_share == pytest.approx(float(((z[:, 7:] > 0).sum(0) == 0).float().mean()))
    assert sum(found.to_json()["density_log10_counts"].values()) == 40
    json.dumps(found.to_json(), allow_nan=False)


def test_episodes_are_held_out_whole(run):
    split = split_items(run, held_out=0.3, seed=0)
    episodes = [{run.items[i].episode for i in part} for part in (split.train, split.held_out)]
    assert split.over == "episode" and not episodes[0] & episodes[1] and len(episodes[1]) == 2
    assert sorted([*split.train, *split.held_out]) == list(range(43))


def test_stream_deals_every_token_once_a_pass_in_small_pools(run):
    items = np.arange(5, 43)
    stream = TokenStream(
        run, ["vision.0", "vision.1"], tokens="patch", items=items, batch=20, pool_bytes=5000
    )
    assert stream.pool_rows < stream.n_tokens / 4, "several pools"
    rows = np.concatenate(token_rows(run, "vision", tokens="patch", items=items))
    expected = {s: np.asarray(run.acts(s)[rows]) for s in stream.sites}
    seen: dict[str, list] = {s: [] for s in stream.sites}
    batches = stream.batches()
    n = 0
    while n < len(rows):
        batch = next(batches)
        n += len(batch["vision.0"])
        assert 10 <= len(batch["vision.0"]) <= 30
        for site, values in batch.items():
            seen[site].append(values)
    assert n == len(rows) == stream.n_tokens
    for site in stream.sites:
        dealt = np.concatenate(seen[site])
        assert not np.array_equal(dealt, expected[site])
        np.testing.assert_array_equal(
            dealt[np.lexsort(dealt.T)], expected[site][np.lexsort(expected[site].T)]
        )
    again, later = stream.batches(), stream.batches(start=37)
    for _ in range(37):
        next(again)
    for _ in range(30):  # into the next pass
        np.testing.assert_array_equal(next(again)["vision.1"], next(later)["vision.1"])


def test_several_sites_in_one_pass_equal_each_alone(run, tmp_path):
    both = train_sae(
        run, sites=["vision.0", "vision.1", "language.0"], config=SHAPE, train=SHORT, tokens="all", out=tmp_path / "a",
        quiet=True,
    )  # fmt: skip
    alone = train_sae(
        run, sites="language.0", config=SHAPE, train=SHORT, tokens="all", out=tmp_path / "b", quiet=True
    )
    assert [one.site for one in both] == ["vision.0", "vision.1", "language.0"]
    assert both[0].n_steps == round(2 * 16 * 36 / 50) and both[0].path == tmp_path / "a" / "vision.0"
    a, b = (load_file(path / "sae_weights.safetensors") for path in (both[2].path, alone[0].path))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for one in both:
        assert one.evaluation is not None and one.evaluation.fvu < 0.75 and one.history
        loaded = load_sae(one.path, run=run, site=one.site)
        assert loaded.origin["held_out_over"] == "episode" and loaded.site == one.site


def test_finished_training_is_found_again_and_other_settings_are_refused(run, tmp_path):
    out = tmp_path / "sae"
    first = train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=out, quiet=True)[0]
    weights = (out / "sae_weights.safetensors").read_bytes()
    again = train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=out, quiet=True)[0]
    assert not first.was_there and again.was_there and again.history == first.history
    with pytest.raises(InputError, match="other settings.*--force"):
        train_sae(run, sites="vision.0", config={**SHAPE, "k": 2}, train=SHORT, out=out, quiet=True)
    other = TrainConfig(**{**SHORT.to_json(), "seed": 1})
    train_sae(run, sites="vision.0", config=SHAPE, train=other, out=out, quiet=True, force=True)
    assert (out / "sae_weights.safetensors").read_bytes() != weights
    here = train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, quiet=True)[0]
    assert here.path.parent == run.path / "derived"
    assert (here.path / "sae_weights.safetensors").read_bytes() == weights, "same seed, same bits"


def test_early_stop(run, tmp_path):
    train = TrainConfig(batch=50, epochs=200, eval_every=2, patience=3, lr=1e-9)
    found = train_sae(run, sites="vision.0", config=SHAPE, train=train, out=tmp_path / "s", quiet=True)[0]
    assert found.n_steps == 8, "one evaluation, then three without progress"


KILLED = """
    import sys, vlascope.sae.job as t
    from vlascope.runs import Run
    from vlascope.sae import TrainConfig, train_sae
    save = t.Job.save
    def told(self):
        save(self)
        print("saved", self.n_done, flush=True)
    t.Job.save = told
    train_sae(Run.open(sys.argv[1]), sites=["vision.0", "vision.1"],
              config={"n_latents": 28, "k": 3, "levels": (5, 11)},
              train=TrainConfig(batch=50, epochs=25, eval_every=5, save_every=4), out=sys.argv[2], quiet=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_training_goes_on_to_the_same_bits(made, tmp_path):
    """Killed at a moment that nobody chose, some time after its third saved state."""
    code = textwrap.dedent(KILLED)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(made), str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(6):
        assert process.stdout.readline().startswith("saved")
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    sites = ("vision.0", "vision.1")
    assert not any((tmp_path / "killed" / s / "cfg.json").exists() for s in sites), "killed in the middle"
    assert all((tmp_path / "killed" / s / "training.safetensors").exists() for s in sites)
    train = TrainConfig(batch=50, epochs=25, eval_every=5, save_every=4)
    results = {}
    for name in ("killed", "whole"):
        results[name] = train_sae(
            Run.open(made), sites=sites, config=SHAPE, train=train, out=tmp_path / name, quiet=True
        )
    for a, b in zip(results["killed"], results["whole"], strict=True):
        assert a.history == b.history and a.n_tokens == b.n_tokens
        assert (a.path / "sae_weights.safetensors").read_bytes() == (
            b.path / "sae_weights.safetensors"
        ).read_bytes()
        assert not (a.path / "training.safetensors").exists()


def test_full_disk_keeps_the_last_state(run, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "sae", os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("vlascope.files.os.fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=out, quiet=True)
    assert sorted(p.name for p in out.iterdir()) == ["training.safetensors"]
    monkeypatch.undo()
    resumed = train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=out, quiet=True)[0]
    whole = train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=tmp_path / "b", quiet=True)[0]
    assert resumed.history == whole.history


def test_interrupt_saves_and_says_how_to_go_on(run, tmp_path, monkeypatch):
    real = SAETrainer.step

    def step(self, x):
        if self.n_done == 7:
            raise KeyboardInterrupt
        return real(self, x)

    monkeypatch.setattr(SAETrainer, "step", step)
    with pytest.raises(KeyboardInterrupt, match="step 7 of 22"):
        train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=tmp_path / "s", quiet=True)
    monkeypatch.undo()
    assert int(load_file(tmp_path / "s" / "training.safetensors")["n_done"]) == 7


def interrupted(monkeypatch, run: Run, *, at: int, **more) -> list[tuple[int, int]]:
    """Interrupt a training at its step `at`, counted over all sites; return the steps taken: (channels, number)."""
    real, taken = SAETrainer.step, []

    def step(self, x):
        if len(taken) == at:
            raise KeyboardInterrupt
        taken.append((self.config.d_in, self.n_done))
        return real(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(SAETrainer, "step", step)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            train_sae(run, config=SHAPE, train=SHORT, tokens="all", quiet=True, **more)
    return taken


def steps_of(monkeypatch, run: Run, **more) -> tuple[list, list[int]]:
    real, taken = SAETrainer.step, []

    def step(self, x):
        taken.append(self.n_done)
        return real(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(SAETrainer, "step", step)
        return train_sae(run, config=SHAPE, train=SHORT, tokens="all", quiet=True, **more), taken


@pytest.mark.parametrize("force", [False, True])
def test_stopped_at_the_second_layout_the_first_is_not_trained_again(run, tmp_path, monkeypatch, force):
    more = {"sites": ["vision.0", "language.0"], "force": force}
    whole, all_steps = steps_of(monkeypatch, run, out=tmp_path / "whole", **more)
    first = whole[0].n_steps
    interrupted(monkeypatch, run, at=first + 3, out=tmp_path / "s", **more)
    results, taken = steps_of(monkeypatch, run, out=tmp_path / "s", **more)
    assert taken == all_steps[first + 3 :]
    for a, b in zip(results, whole, strict=True):
        assert a.history == b.history and sorted(p.name for p in a.path.iterdir()) == sorted(
            ["cfg.json", "fingerprint.safetensors", "sae_weights.safetensors"]
        )


def test_with_force_an_interrupted_training_goes_on_but_nothing_older(run, tmp_path, monkeypatch):
    more = {"sites": "vision.0", "out": tmp_path / "s"}
    interrupted(monkeypatch, run, at=7, **more)
    again = interrupted(monkeypatch, run, at=9, force=True, **more)
    assert [n for _, n in again] == list(range(9)), "a state from before --force is not used"
    _, taken = steps_of(monkeypatch, run, force=True, **more)
    assert taken[0] == 9, "as the message said"
    _, taken = steps_of(monkeypatch, run, force=True, **more)
    assert taken[0] == 0
    (tmp_path / "s" / "training.safetensors").write_bytes(b"broken")
    assert steps_of(monkeypatch, run, force=True, **more)[1][0] == 0


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "batchtopk"])
def test_checkpoint_holds_the_plain_formula(activation, tmp_path):
    """What SAELens computes from such a folder: ((x - b_dec) W_enc + b_enc), cut, times W_dec, plus b_dec."""
    _, tokens = planted(40, 23, 3)
    trainer = SAETrainer(
        SAEConfig(d_in=23, n_latents=50, k=4, levels=(9,), activation=activation),
        TrainConfig(batch=256),
        n_steps=30,
        sample_td=tokens(512),
    )
    for _ in range(30):
        trainer.step(tokens(256))
    origin = {"model": "m", "model_fingerprint": "f", "site": "vision.3"}
    save_sae(trainer.sae, tmp_path / "s", origin=origin, proof_td=tokens(64).numpy())
    cfg = json.loads((tmp_path / "s" / "cfg.json").read_text())
    w = load_file(tmp_path / "s" / "sae_weights.safetensors")
    x = tokens(37)
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    if cfg["architecture"] == "topk":
        best = pre.topk(cfg["k"])
        z = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    else:
        z = torch.relu(pre) * (pre > w["threshold"])
    assert cfg["architecture"] == ("topk" if activation == "topk" else "jumprelu")
    assert w["W_enc"].shape == (23, 50) and cfg["metadata"]["sae_lens_version"] >= "6.0.0"
    out = z @ w["W_dec"] + w["b_dec"]
    loaded = load_sae(tmp_path / "s", site="vision.3").sae
    torch.testing.assert_close(loaded(x), out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trainer.sae(x), out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.linalg.vector_norm(w["W_dec"], dim=1), torch.ones(50))
    cfg["metadata"] = {"sae_lens_version": "6.1.0"}
    (tmp_path / "s" / "cfg.json").write_text(json.dumps(cfg))
    theirs = load_sae(tmp_path / "s")
    torch.testing.assert_close(theirs.sae(x), out, rtol=1e-4, atol=1e-4)
    assert theirs.sae.levels == (50,) and theirs.site is None


def test_damaged_or_foreign_checkpoints_are_refused(run, tmp_path):
    out = train_sae(run, sites="vision.0", config=SHAPE, train=SHORT, out=tmp_path / "s", quiet=True)[0].path
    with pytest.raises(InputError, match=r"trained at site 'vision.0', not at 'vision.1'"):
        load_sae(out, site="vision.1")
    cfg, weights = (out / "cfg.json").read_text(), (out / "sae_weights.safetensors").read_bytes()
    (out / "sae_weights.safetensors").write_bytes(weights[:-400] + bytes(300) + weights[-100:])
    with pytest.raises(InputError, match="unexplained.*changed or damaged"):
        load_sae(out)
    (out / "sae_weights.safetensors").write_bytes(weights[:-5])
    with pytest.raises(InputError, match="cannot be read"):
        load_sae(out)
    (out / "sae_weights.safetensors").write_bytes(weights)
    (out / "cfg.json").write_text(cfg.replace('"model_fingerprint": "w1"', '"model_fingerprint": "w2"'))
    with pytest.raises(InputError, match=r"belongs to the weights of 'fake' \(w2\).*\(w1\)"):
        load_sae(out, run=run)
    (out / "cfg.json").write_text(cfg.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(RunVersionError, match="format 99"):
        load_sae(out)
    (out / "cfg.json").unlink()
    with pytest.raises(RunNotFoundError, match="vlascope sae train"):
        load_sae(out)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name, bad):
    out = saved(tmp_path)
    weights = load_file(out / "sae_weights.safetensors")
    weights[name].view(-1)[3] = bad
    write_tensors(out / "sae_weights.safetensors", weights)
    with pytest.raises(InputError, match=f"'{name}' holds NaN or infinite values"):
        load_sae(out)


def test_an_error_that_is_no_number_is_no_proof(tmp_path):
    out = saved(tmp_path)
    cfg = json.loads((out / "cfg.json").read_text())
    cfg["metadata"]["vlascope"]["expected"]["fvu"][0] = float("nan")
    (out / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(InputError, match="changed or damaged"):
        load_sae(out)


def saved(tmp_path: Path) -> Path:
    """A small dictionary of ours on disk, untrained."""
    _, tokens = planted(40, 23, 3)
    sae = SAETrainer(
        SAEConfig(d_in=23, n_latents=50, k=4, levels=(9,)), TrainConfig(), n_steps=1, sample_td=tokens(99)
    ).sae
    origin = {"model": "m", "model_fingerprint": "f", "site": "vision.3"}
    return save_sae(sae, tmp_path / "s", origin=origin, proof_td=tokens(64).numpy())


def test_bad_input_is_named(run, tmp_path):
    def go(run=run, site="vision.0", shape=SHAPE, train=SHORT, **more):
        return train_sae(run, sites=site, config=shape, train=train, out=tmp_path / "s", quiet=True, **more)

    with pytest.raises(SiteNotFoundError):
        go(site="vision.9")
    with pytest.raises(InputError, match="no site"):
        go(site=[])
    with pytest.raises(InputError, match="k=29 active of 28"):
        go(shape={**SHAPE, "k": 29})
    with pytest.raises(InputError, match="0 tokens of kind 'action'"):
        go(tokens="action")
    with pytest.raises(InputError, match="unknown kind"):
        go(tokens="pixel")
    small = tmp_path / "small"
    capture(FakeModel(), ArraySource(1), sites=["vision.0"], out=small, quiet=True)
    with pytest.raises(InputError, match="at least 2"):
        go(run=Run.open(small))
    tiny = tmp_path / "tiny"
    capture(FakeModel(), ArraySource(3), sites=["vision.0"], out=tiny, quiet=True)
    with pytest.raises(InputError, match="30 tokens.*at least 64"):
        go(run=Run.open(tiny))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((90, 7), 2.5), "all tokens are the same"),
        (np.zeros((90, 7)), "all tokens are the same"),
        (np.full((90, 7), np.nan), "NaN"),
        (np.zeros((1, 7)), "at least 2 tokens"),
        (np.zeros((90, 5)), "7 channels"),
    ],
)
def test_tokens_that_cannot_be_learned_from(values, words):
    config = SAEConfig(d_in=7, n_latents=12, k=2)
    with pytest.raises(InputError, match=words):
        SAETrainer(config, TrainConfig(), n_steps=1, sample_td=torch.from_numpy(values))


def test_a_nan_names_its_item_and_leaves_the_weights_alone(run, monkeypatch):
    real = type(run.acts("vision.0")).__getitem__

    def broken(self, key):
        values = np.array(real(self, key))
        values[np.isclose(values, bad)] = np.nan
        return values

    bad = float(run.acts("vision.0")[16 * 20 + 4][3])
    monkeypatch.setattr(type(run.acts("vision.0")), "__getitem__", broken)
    stream = TokenStream(run, ["vision.0"], items=np.arange(43), batch=50)
    with pytest.raises(InputError, match=r"'vision.0'.*'ep0000/000020'.*row 324"):
        next(stream.batches())
    trainer = SAETrainer(
        SAEConfig(d_in=7, n_latents=12, k=2), TrainConfig(), n_steps=9, sample_td=torch.randn(99, 7)
    )
    before = {k: v.clone() for k, v in trainer.state().items()}
    x = torch.randn(50, 7)
    x[3, 3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        trainer.step(x)
    assert all(torch.equal(v, before[k]) for k, v in trainer.state().items())


def test_random_prefixes_are_the_same_after_a_restart():
    _, tokens = planted(40, 23, 3)
    config, train = SAEConfig(d_in=23, n_latents=50, k=4, random_prefixes=4), TrainConfig(batch=128)
    data = [tokens(128) for _ in range(8)]
    whole, first = (SAETrainer(config, train, n_steps=8, sample_td=data[0]) for _ in range(2))
    drawn: list[tuple[int, ...]] = []
    for x in data:
        widths, weights = whole._levels()
        assert widths is not None and weights is not None and len(weights) == len(widths) <= 4
        assert int(widths[-1]) == 50 and (widths.diff() > 0).all() and int(widths[0]) >= 1
        drawn.append(tuple(widths.tolist()))
        assert len(whole.step(x).level_fvu) == len(widths), "these are the levels of the step"
    assert len(set(drawn)) >= 7, "each step draws its own"
    for x in data[:5]:
        first.step(x)
    second = SAETrainer(config, train, n_steps=8, sample_td=data[0])
    second.load_state({k: v + 1 if k == "since_fired" else v for k, v in first.state().items()})
    assert torch.equal(second.since_fired, first.since_fired + 1)
    second.load_state({k: v.clone() for k, v in first.state().items()})
    for x in data[5:]:
        second.step(x)
    a, b = whole.state(), second.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    sae: MatryoshkaSAE = second.sae
    sae.decode(sae.encode(data[0]), level=13)


def test_steps_do_not_depend_on_the_size_of_the_gradient():
    """Adam remembers a thousand steps: without a common length, the large early gradients hold back the later ones."""
    x = torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    trainer = SAETrainer(SAEConfig(d_in=7, n_latents=12, k=2), TrainConfig(), n_steps=9, sample_td=x)
    for _ in range(3):
        trainer.step(x)
        gradients = [p.grad for p in trainer.sae.parameters() if p.grad is not None]
        assert len(gradients) >= 3
        length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        assert float(length) == pytest.approx(1, rel=1e-5)
