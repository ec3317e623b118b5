"""Cards and decorrelated discovery on planted latents."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.measure.planted import PlantedRun, grid
from vlascope.errors import InputError
from vlascope.sae import (
    MatryoshkaSAE,
    SAEConfig,
    discover,
    discover_arrays,
    discovery,
    latent_statistics,
    make_cards,
)
from vlascope.sae.cards import relatives
from vlascope.sae.checkpoint import Checkpoint
from vlascope.sae.factorial import detectable_effect, factor_effect, interaction_effect, make_design
from vlascope.sim import wilson_interval

N_LATENTS = 60


def labels(n_per_cell: int, *, cells=((0, 0), (0, 1), (1, 0), (1, 1))) -> dict[str, list[object]]:
    rows = [cell for cell in cells for _ in range(n_per_cell)]
    return {"fragile": [("no", "yes")[a] for a, _ in rows], "colour": [("red", "blue")[b] for _, b in rows]}


def latents(design: dict[str, list[object]], *, seed: int, effect: float = 0.0) -> np.ndarray:
    """Skewed, sparse activations: latent 3 follows fragile, 5 colour, 7 both, 11 only fragile things that are red."""
    rng = np.random.default_rng(seed)
    n = len(design["fragile"])
    x = rng.gamma(2.0, 1.0, (n, N_LATENTS))
    fragile, red = (np.array(design[k]) == v for k, v in (("fragile", "yes"), ("colour", "red")))
    spread = np.sqrt(2.0)
    x[:, 3] += effect * spread * fragile
    x[:, 5] += effect * spread * red
    x[:, 7] += effect * spread * (fragile + 1.0 * red)
    x[:, 11] += 2 * effect * spread * (fragile & red)
    x[:, 20:] *= rng.random((n, N_LATENTS - 20)) < 0.4
    return x


def test_only_the_decorrelated_latent_is_found_and_validated():
    design = labels(20)
    found = discover_arrays(latents(design, seed=0, effect=2.5), design, levels=(4, 60), n_permutations=199)
    assert [one.latent for one in found.found] == [3]
    assert found.n_target == 2 and found.discarded["colour"] == 1, "11 differs in the held-out cell only"
    one = found.found[0]
    assert one.validated and one.level == 4 and one.interval[0] > 1 and one.q <= 0.05
    assert (
        found.held_out_cell == "fragile=yes, colour=red" and "tell it in the held-out cell" in found.verdict()
    )
    assert found.controls["shuffled labels, mean number found"] < 0.3
    json.dumps(found.to_json(), allow_nan=False)
    assert len(found.table()) == 1


def test_the_choice_does_not_see_the_held_out_cell():
    design = labels(20)
    x = latents(design, seed=0, effect=2.5)
    inside = np.array([a == "yes" and b == "red" for a, b in zip(*design.values(), strict=True)])
    other = x.copy()
    other[inside] = np.random.default_rng(9).gamma(2.0, 1.0, (int(inside.sum()), N_LATENTS))
    a, b = (
        discover_arrays(v, design, raw_nd=v, random_nf=v, n_permutations=99, n_shuffles=2) for v in (x, other)
    )
    assert [(f.latent, f.q, f.share) for f in a.found] == [(f.latent, f.q, f.share) for f in b.found]
    assert (a.n_tested, a.n_target, a.discarded) == (b.n_tested, b.n_target, b.discarded)
    assert {k: v for k, v in a.controls.items() if "probe" not in k} == {
        k: v for k, v in b.controls.items() if "probe" not in k
    }
    assert a.found[0].held_out > b.found[0].held_out and a.n_held_out == 20


def test_the_best_of_noise_are_right_in_half_of_the_held_out_units(monkeypatch):
    real = discovery._search

    def best(x, design, **more):
        tested, _, n, discarded, target = real(x, design, **more)
        return tested, np.argsort(-target.share)[:20], n, discarded, target

    monkeypatch.setattr(discovery, "_search", best)
    right = []
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=(32, 300))
        found = discover_arrays(x, labels(8), n_permutations=3, n_shuffles=0)
        right += [one.held_out for one in found.found]
    assert len(right) == 160 and np.mean(right) == pytest.approx(0.5, abs=0.06)


def test_a_latent_that_falls_silent_is_validated_as_well():
    design = labels(20)
    x = latents(design, seed=0, effect=2.5)
    x[:, 3] = x[:, 3].max() - x[:, 3]
    found = discover_arrays(x, design, levels=(4, 60), n_permutations=199, n_shuffles=0)
    (one,) = found.found
    assert one.latent == 3 and one.effect < -1 and one.interval[1] < -1
    assert one.validated and one.held_out > 0.8


def test_power_and_false_discoveries():
    """Planted effects are found; with no effect at all, any find is false."""
    design = labels(15)
    rng = np.random.default_rng(0)
    code = make_design(design)
    hits, false = 0, 0
    for seed in range(40):
        x = latents(design, seed=seed, effect=2.0)
        effect = factor_effect(x, code, 0, n_permutations=49, rng=rng)
        hits += bool(effect.q[3] <= 0.05)
        null = factor_effect(latents(design, seed=1000 + seed), code, 0, n_permutations=49, rng=rng)
        false += bool((null.q <= 0.05).any())
    assert hits >= 36 and false <= 5  # the chance of 6 or more of 40 at 5 % is 1.4 %


def test_statistics_equal_ordinary_least_squares():
    from scipy.stats import norm, rankdata

    design = labels(9, cells=((0, 0), (0, 1), (1, 0), (1, 1), (1, 1)))  # unbalanced
    x = latents(design, seed=3, effect=1.0)[:, 7]
    y = norm.ppf((rankdata(x) - 0.375) / (len(x) + 0.25))
    a, b = (np.where(np.array(design[k]) == v, 1.0, -1.0) for k, v in (("fragile", "no"), ("colour", "blue")))

    def left(*columns: np.ndarray) -> float:
        m = np.stack([np.ones(len(y)), *columns], 1)
        return float(np.square(y - m @ np.linalg.lstsq(m, y, rcond=None)[0]).sum())

    rng, code = np.random.default_rng(0), make_design(design)
    main = factor_effect(x[:, None], code, 0, n_permutations=19, rng=rng)
    both = interaction_effect(x[:, None], code, n_permutations=19, rng=rng)
    assert main.f[0] == pytest.approx((left(b) - left(a, b)) / (left(a, b) / (len(y) - 3)))
    assert main.share[0] == pytest.approx(1 - left(a, b) / left(b))
    assert both.f[0] == pytest.approx((left(a, b) - left(a, b, a * b)) / (left(a, b, a * b) / (len(y) - 4)))


def test_nothing_found_is_said_with_the_power_of_the_test():
    design = labels(10)
    found = discover_arrays(latents(design, seed=5), design, n_permutations=99)
    assert not found.found and "no latent stands for fragile alone" in found.verdict()
    assert found.detectable is not None and 0.8 < found.detectable < 2.5
    assert f"{found.detectable:.2f} would have been found 4 times in 5" in found.verdict()


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 8), (3, 2, 5)])
def test_what_would_be_found_4_times_in_5_is(shape):
    a, b, n = shape
    rows = np.array([c for c in np.ndindex(a, b) for _ in range(n) if c != (a - 1, b - 1)])
    design = make_design({"a": [*rows[:, 0], *[a - 1] * 3], "b": [*rows[:, 1], *[b - 1] * 3]})
    design = design.take(np.arange(len(rows)))
    detectable = detectable_effect(design, n_tests=40, n_permutations=49)
    assert detectable is not None
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        x = rng.normal(size=(len(rows), 40))
        x[:, 3] += detectable * rows[:, 0] / (a - 1)
        hits += factor_effect(x, design, 0, n_permutations=49, rng=rng).q[3] <= 0.05
    assert hits >= 39, "0.8 less three standard errors"


def test_where_nothing_could_be_found_or_validated_that_is_said():
    design = labels(10)
    none = discover_arrays(latents(design, seed=0, effect=9), design, n_permutations=0, n_shuffles=0)
    assert not none.found and none.detectable is None and "this says nothing" in none.verdict()
    json.dumps(none.to_json(), allow_nan=False)
    assert detectable_effect(make_design(labels(3)), n_tests=1000, n_permutations=499) is None
    rows = [(a, b) for a in (0, 1) for b in (0, 1, 2, 3) for _ in range(3 if (a, b) == (1, 3) else 12)]
    small: dict[str, list[object]] = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    x = np.random.default_rng(0).gamma(2.0, 1.0, (len(rows), 20))
    x[:, 3] += [9.0 * a for a, _ in rows]
    found = discover_arrays(x, small, n_permutations=99, n_shuffles=0)
    (one,) = found.found
    assert one.latent == 3 and one.held_out == 1 and one.validated is None
    assert "cannot be said: need at least 4" in found.verdict() and found.table()[0][-1] == "cannot say"
    assert found.to_json()["found"][0]["validated"] is None


def test_the_effect_of_a_factor_of_three_values_is_last_less_first():
    rows = [(a, b) for a in "abc" for b in "de" for _ in range(12)]
    design: dict[str, list[object]] = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    x = np.random.default_rng(0).normal(size=(len(rows), 20))
    x[:, 3] += [{"a": 0.0, "b": 9.0, "c": 4.0}[a] for a, _ in rows]
    found = discover_arrays(x, design, n_permutations=99, n_shuffles=0)
    (one,) = found.found
    assert one.latent == 3 and one.effect == pytest.approx(4, abs=1)


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ({"a": ["x"] * 8, "b": ["y", "z"] * 4}, "one value only"),
        ({"a": ["x", "w"] * 4, "b": ["y", "z"] * 4}, "has 0 units; need at least 3"),
    ],
)
def test_designs_without_all_cells_are_refused(design, words):
    with pytest.raises(InputError, match=words):
        discover_arrays(np.random.default_rng(0).random((8, 5)), design)


def test_wilson_interval():
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-5)


class Captured(PlantedRun):
    """A planted run with the facts of a real one."""

    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.config = {"model": {"name": "planted", "fingerprint": "f"}}
        self.info = {"content_sha256": "0"}


def basis_run(tmp_path, *, n_items: int = 48) -> tuple[Captured, Checkpoint]:
    """Channel j of a token is the activation of latent j; the dictionary is the identity."""
    rng = np.random.default_rng(0)
    rows, cols, d = 3, 5, 12
    x = np.zeros((n_items, rows * cols, d), np.float32)
    fragile = (np.arange(n_items) // 2) % 2
    blue = (np.arange(n_items) // 4) % 2
    x[:, :, 1] = rng.random((n_items, 15)) < 0.3  # parent
    x[:, :, 6] = 2 * x[:, :, 1] * (rng.random((n_items, 15)) < 0.7)  # child of latent 1
    x[:, 4, 2] = 0.2 + fragile + 0.1 * rng.random(n_items)
    x[:, 7, 3] = 0.2 + blue + 0.1 * rng.random(n_items)
    x[17, 13, 8] = 5.0
    x[:, :, 9] = rng.random((n_items, 15)) * (rng.random((n_items, 15)) < 0.05)
    layout = grid(rows, cols)
    run = Captured(
        {"vision.2": ("vision", x)},
        layouts={"vision": layout},
        episodes=[i // 2 for i in range(n_items)],
        labels=[
            {"fragile": bool(f), "colour": "blue" if b else "red"} for f, b in zip(fragile, blue, strict=True)
        ],
        path=tmp_path,
    )
    sae = MatryoshkaSAE(SAEConfig(d_in=d, n_latents=d, k=4, levels=(5,)))
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(d))
        sae.decoder.copy_(torch.eye(d))
    return run, Checkpoint(sae, tmp_path / "sae", {"site": "vision.2", "model_fingerprint": "f"})


def test_cards_show_where_and_when(tmp_path):
    run, checkpoint = basis_run(tmp_path)
    made = make_cards(run, checkpoint, latents=(8, 1, 6), n_examples=2, quiet=True)
    rare, parent, child = made.cards
    assert rare["units"] == 1 and rare["density"] == pytest.approx(1 / 720) and len(rare["examples"]) == 1
    best = rare["examples"][0]
    assert (best["item"], best["row"], best["col"], best["value"]) == (17, 2, 3, 5.0)
    values = best["maps"][0]["values"]
    assert len(values) == 3 and len(values[0]) == 5 and values[2][3] == 5.0 and sum(map(sum, values)) == 5.0
    assert rare["episode"] == {"episode": 8, "items": [16, 17], "steps": [0, 1], "strongest": [0.0, 5.0]}
    assert [c["latent"] for c in parent["children"]] == [6] and not parent["parents"]
    assert child["parents"][0]["latent"] == 1 and child["parents"][0]["share"] == 1.0
    assert child["p99"] == pytest.approx(2.0, rel=0.1) and child["mean"] == pytest.approx(2.0)
    again = make_cards(run, checkpoint, latents=(8, 1, 6), n_examples=2, quiet=True)
    assert again.facts == json.loads(made.path.read_text()) == made.facts
    default = make_cards(run, checkpoint, n_cards=6, quiet=True)
    assert {c["level"] for c in default.cards} == {5, 12} and len(default.cards) <= 6
    with pytest.raises(InputError, match="no latent 12"):
        make_cards(run, checkpoint, latents=(12,), quiet=True)
    with pytest.raises(InputError, match="none of these latents is active"):
        make_cards(run, checkpoint, latents=(11,), quiet=True)


def test_other_weights_in_the_same_place_have_cards_of_their_own(tmp_path):
    run, checkpoint = basis_run(tmp_path)
    old = make_cards(run, checkpoint, latents=(1,), quiet=True)
    sae = MatryoshkaSAE(checkpoint.sae.config)
    with torch.no_grad():
        sae.encoder.copy_(2 * torch.eye(12))
        sae.decoder.copy_(torch.eye(12))
    new = make_cards(run, Checkpoint(sae, checkpoint.path, checkpoint.origin), latents=(1,), quiet=True)
    assert new.cards[0]["mean"] == pytest.approx(2 * old.cards[0]["mean"]) and new.path != old.path
    assert make_cards(run, checkpoint, latents=(1,), quiet=True).facts == old.facts


def test_statistics_equal_counts_over_all_tokens(tmp_path):
    run, checkpoint = basis_run(tmp_path)
    stats = latent_statistics(run, checkpoint, n_examples=3, quiet=True)
    x = np.asarray(run.acts("vision.2"))
    np.testing.assert_array_equal(stats.counts, (x > 0).sum(0))
    np.testing.assert_allclose(
        stats.means[[1, 2, 9]], [x[x[:, j] > 0, j].mean() for j in (1, 2, 9)], rtol=1e-5
    )
    per_item = x.reshape(48, 15, -1).max(1)
    np.testing.assert_allclose(stats.top_values[9], np.sort(per_item[:, 9])[::-1][:3])
    both = ((x[:, 1] > 0) & (x[:, 6] > 0)).sum()
    assert stats.together[0].toarray()[1, 1] == both
    assert relatives(stats, (5, 12), 6, parents=True)[0]["share"] == pytest.approx(both / stats.counts[6])


def test_discovery_on_a_run(tmp_path):
    run, checkpoint = basis_run(tmp_path)
    found = discover(run, checkpoint, factors=("fragile", "colour"), n_permutations=99, quiet=True)
    assert [one.latent for one in found.found] == [2] and found.found[0].held_out == 1.0
    assert found.over == "episode" and found.n_units == 24
    assert {
        "dense probe, held-out share right",
        "PCA, number found",
        "random dictionary, number found",
    } <= set(found.controls)
    with pytest.raises(InputError, match="no label 'mass'"):
        discover(run, checkpoint, factors=("mass", "colour"), quiet=True)
    with pytest.raises(InputError, match="at least one other"):
        discover(run, checkpoint, factors=("fragile",), quiet=True)
    with pytest.raises(InputError, match="no value 'green'"):
        discover(run, checkpoint, factors=("fragile", "colour"), held_out=("True", "green"), quiet=True)
