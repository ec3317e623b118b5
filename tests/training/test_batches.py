"""Batches carry the right supervision; losses, optimiser and settings do what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.mini_vla.batches import (
    Frames,
    choose_patches,
    follows_correlation,
    jitter,
    make_batch,
    patch_counts,
    plain_pixels,
    segments_of,
)
from training.mini_vla.losses import bin_log_probs, soft_bins
from training.mini_vla.network import Size
from training.mini_vla.optimizer import Optimizer, learning_rate_factor, orthogonalise
from training.mini_vla.settings import DEFAULT_PATH, read_settings
from training.mini_vla.smoke import fake_frames, smoke
from training.mini_vla.vocabulary import BINS, OUT_ID, VOCAB_SIZE, WORD_IDS, prompt_ids
from vlascope.sim.language import Instruction, Question


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    folder = tmp_path_factory.mktemp("frames")
    return Frames([fake_frames(folder, n=13, seed=5)], patch_px=8)


def test_supervision_rows_point_at_the_right_tokens(frames: Frames) -> None:
    settings = read_settings().batch
    chosen = [frames.frame(i) for i in range(7)]
    batch = make_batch(chosen, settings=settings, rng=np.random.default_rng(0))
    flat = batch.ids.reshape(-1)
    segments = batch.segments.reshape(-1)
    bins = batch.bin_rows.reshape(-1, 4)
    assert (flat[bins[:, 0]] == OUT_ID).all() and (flat[batch.answer_rows] == OUT_ID).all()
    # The token after each supervised one is the target itself, in the same segment.
    own = BINS.encode(BINS.unnormalize(batch.bin_values.double().numpy().reshape(-1, 4)))
    assert np.abs(flat[bins + 1].numpy() - own).max() <= 1  # a value on an edge may round either way
    assert (flat[batch.answer_rows + 1] == batch.answer_ids).all()
    assert (segments[bins] == segments[bins + 1]).all()
    after = batch.end_rows + 1
    inside = (after % batch.ids.shape[1] != 0) & (segments[after.clamp(max=len(segments) - 1)] >= 0)
    assert (segments[after[inside]] != segments[batch.end_rows[inside]]).all()
    assert len(batch.notes) == len(bins) + len(batch.answer_rows) == len(batch.end_rows)
    torch.testing.assert_close(batch.point_shares.sum(1), torch.ones(len(batch.point_rows)))
    torch.testing.assert_close(batch.classes.sum(-1), torch.ones(7, 196))
    starts = batch.positions.reshape(-1)[bins[:, 0]]
    assert (starts >= 197 + 6).all()


def test_texts_agree_with_the_picture(frames: Frames) -> None:
    rng = np.random.default_rng(1)
    n_orders = n_questions = 0
    for i in range(len(frames)):
        frame = frames.frame(i)
        found = segments_of(frame, budget=96, rng=rng)
        assert sum(len(s.ids) for s in found) <= 96
        assert len({s.note.text for s in found}) == len(found)
        for segment in found:
            assert segment.ids[: segment.n_prompt].tolist() == prompt_ids(segment.note.text).tolist()
            if isinstance(segment.note, Instruction):
                n_orders += 1
                assert segment.point_at == 4 + segment.note.target
                expected = BINS.encode(frame["act_pick"][segment.note.target])
                assert segment.ids[segment.n_prompt :].tolist() == expected.tolist()
            else:
                assert isinstance(segment.note, Question)
                n_questions += 1
                assert segment.answer == WORD_IDS[segment.note.answer]
    assert n_orders > 2 * len(frames) and n_questions >= 2 * len(frames)


def test_patch_counts_and_choice() -> None:
    seg = np.zeros((1, 6, 9), dtype=np.uint8)
    seg[0, 0:3, 3:6], seg[0, 5, 8] = 4, 1
    counts = patch_counts(seg, 3)
    assert counts.shape == (1, 6, 8)
    assert counts[0, 1, 4] == 9 and counts[0, 5].tolist() == [8, 1, 0, 0, 0, 0, 0, 0]
    kept = choose_patches(counts, n_keep=2, rng=np.random.default_rng(0))
    assert kept.shape == (1, 2) and 1 in kept[0] and (np.diff(kept) > 0).all()


def test_correlation_filter() -> None:
    # red, blue, green, yellow = 0..3; fragile = 0, rigid = 1
    colour = np.array([[0, 1, -1], [0, 1, -1], [3, 2, 0], [2, -1, -1]])
    material = np.array([[0, 1, -1], [0, 0, -1], [0, 1, 0], [0, -1, -1]])
    assert follows_correlation(colour, material).tolist() == [True, False, True, False]


def test_jitter_without_strength_is_the_processor(frames: Frames) -> None:
    from dataclasses import replace

    still = replace(read_settings().batch, gain=(1.0, 1.0), channel=0.0, offset=0.0, noise=0.0)
    images = np.stack([frames.frame(i)["images"] for i in range(3)])
    torch.testing.assert_close(jitter(images, still, np.random.default_rng(0)), plain_pixels(images))
    loud = jitter(images, read_settings().batch, np.random.default_rng(0))
    assert loud.shape == (3, 3, 112, 112) and not torch.allclose(loud, plain_pixels(images), atol=0.05)


def test_soft_bins_are_centred_on_the_decoded_value() -> None:
    values = torch.linspace(-0.95, 0.95, 41)
    weights = soft_bins(values, sigma=2.0)
    centres = (torch.arange(255) + 0.5) / 255 * 2 - 1
    torch.testing.assert_close((weights * centres).sum(1), values, atol=1e-4, rtol=0)
    logits = torch.full((1, VOCAB_SIZE), -9.0)
    logits[0, int(BINS.encode(np.array([0.1, 0, 0, 1]))[0])] = 9.0
    best = int(bin_log_probs(logits).argmax())
    assert centres[best] * 0.25 == pytest.approx(0.1, abs=0.001)


def test_orthogonalise_and_schedule() -> None:
    matrices = torch.randn(3, 17, 29, generator=torch.Generator().manual_seed(0))
    for stack in (matrices, matrices.transpose(1, 2)):
        values = torch.linalg.svdvals(orthogonalise(stack).float())
        assert 0.6 < values.min() and values.max() < 1.3
    settings = read_settings().optimizer
    assert learning_rate_factor(0.0, 0, settings) == pytest.approx(1 / settings.warmup_updates)
    assert learning_rate_factor(settings.flat_until, 10**6, settings) == 1.0
    assert learning_rate_factor(1.0, 10**6, settings) == pytest.approx(settings.final)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_state_round_trip(kind: str) -> None:
    settings = read_settings(changes={"optimizer.kind": kind}).optimizer

    def fresh() -> dict[str, torch.nn.Parameter]:
        made = torch.Generator().manual_seed(0)
        shapes = {"m.layers.0.w": (5, 7), "m.layers.1.w": (5, 7), "m.embed.w": (3, 5), "m.b": (7,)}
        return {n: torch.nn.Parameter(torch.randn(s, generator=made)) for n, s in shapes.items()}

    def step(named: dict[str, torch.nn.Parameter], optimizer: Optimizer, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)
        for p in named.values():
            p.grad = torch.randn(p.shape, generator=made)
        optimizer.step(1.0)

    whole = fresh()
    first = Optimizer(whole, settings)
    step(whole, first, 1)
    halfway = {n: p.detach().clone() for n, p in whole.items()}
    saved = {n: t.clone() for n, t in first.state().items()}
    step(whole, first, 2)
    resumed = {n: torch.nn.Parameter(t) for n, t in halfway.items()}
    second = Optimizer(resumed, settings)
    second.load_state(saved)
    step(resumed, second, 2)
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)


def test_unknown_setting_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"run\.minute"):
        read_settings(changes={"run.minute": 3})
    assert read_settings().network == Size()


def test_smoke_training_learns(tmp_path: Path) -> None:
    report = smoke(tmp_path, settings_path=DEFAULT_PATH, n_frames=48, n_updates=12)
    assert report["last"] < 0.85 * report["first"]
    assert (tmp_path / "final" / "model.safetensors").stat().st_size < 8e6


def test_sampling_shares(tmp_path: Path) -> None:
    fake_frames(tmp_path, n=11, seed=1)
    shard = tmp_path / "shard-00001"
    np.save(shard / "source.npy", np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2], dtype=np.uint8))
    np.save(shard / "holding.npy", np.array([-1, -1, 0, 1, -1, -1, 0, 1, -1, 0, 1], dtype=np.int8))
    frames = Frames([tmp_path], patch_px=8)
    rows = frames.sample(
        4000, physics_share=0.25, held_share=0.4, own_share=0.2, rng=np.random.default_rng(0)
    )
    source = np.load(shard / "source.npy")[rows]
    held = np.load(shard / "holding.npy")[rows] >= 0
    assert (source == 2).mean() == pytest.approx(0.2, abs=0.03)
    assert (source == 1).mean() == pytest.approx(0.25 * 0.8, abs=0.03)
    assert held[source < 2].mean() == pytest.approx(0.4, abs=0.04)
