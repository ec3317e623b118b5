"""Steering: what is added where, how it is measured, and that controls are as long."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from vlascope.act import (
    SteerDirection,
    SteerLatents,
    Together,
    baseline,
    direction_unit,
    dose_response,
    effect,
    effect_results,
    latent_units,
    mean_difference,
    random_directions,
    random_latents,
)
from vlascope.act.edits import Nothing
from vlascope.act.effects import bin_values, read_log_probs
from vlascope.act.saved import save_direction
from vlascope.act.words import with_word, word_direction
from vlascope.cli import main
from vlascope.errors import InputError, StorageError
from vlascope.items.perturb import swap_prompt
from vlascope.sae import MatryoshkaSAE, SAEConfig

RAMP = np.linspace(-1, 2, 128).astype(np.float32)


@pytest.fixture(scope="module")
def sae():
    return MatryoshkaSAE(SAEConfig(d_in=128, n_latents=61, k=5, levels=(17, 61)), seed=3)


@pytest.fixture(scope="module")
def base(mini, picks):
    return baseline(mini, picks, batch_size=4)


def test_a_direction_is_added_to_the_chosen_tokens_only(mini, picks):
    steer = SteerDirection(site="language.1", direction=RAMP, unit=3.0, strength=-2.0, tokens="text")
    batch = mini.prepare(picks[:2])
    before = mini.capture(batch, "language.1")["language.1"]
    with steer.on(mini):
        after = mini.capture(batch, "language.1")["language.1"]
    for i, layout in enumerate(batch.layouts["language"]):
        text = torch.from_numpy(layout.is_kind("text"))
        step = after[i] - before[i]
        assert 0 < text.sum() < len(text) and not step[~text].any()
        torch.testing.assert_close(
            step[text].norm(dim=1), torch.full((int(text.sum()),), 6.0), atol=1e-4, rtol=1e-4
        )
        assert float(step[text][0] @ torch.from_numpy(RAMP)) < 0


@pytest.mark.parametrize("how", ["add", "set", "scale"])
def test_latents_are_changed_as_the_formula_says(sae, how):
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(1))
    edit = SteerLatents(site="language.1", sae=sae, latents=(4, 30), units=(2.0, 0.5), strength=0.25, how=how)
    codes = sae.encode(x.reshape(-1, 128))
    dense = codes.dense()
    new = dense.clone()
    for latent, unit in ((4, 2.0), (30, 0.5)):
        z = dense[:, latent]
        new[:, latent] = {"add": z + 0.25 * unit, "set": torch.full_like(z, 0.25 * unit), "scale": z * 0.25}[
            how
        ]
    expected = x.reshape(-1, 128) + (new - dense) @ sae.decoder.detach()
    torch.testing.assert_close(edit.edited(x).reshape(-1, 128), expected, atol=1e-5, rtol=1e-5)
    rebuilt = SteerLatents(
        site="s", sae=sae, latents=(4, 30), units=(2.0, 0.5), strength=0.25, how=how, mode="replace"
    )
    plain = rebuilt.baseline()
    assert plain is not None and edit.baseline() is None
    torch.testing.assert_close(plain.edited(x).reshape(-1, 128), sae(x.reshape(-1, 128)))
    torch.testing.assert_close(rebuilt.edited(x) - plain.edited(x), edit.edited(x) - x, atol=1e-5, rtol=1e-4)


def test_removing_never_goes_below_zero_and_levels_limit_latents(sae):
    x = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(2))
    edit = SteerLatents(site="s", sae=sae, latents=(3,), units=(1.0,), strength=-50.0)
    off = edit.edited(x)[0] - x[0]
    z = sae.encode(x[0]).dense()[:, 3]
    torch.testing.assert_close(off, -z[:, None] * sae.decoder[3].detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="level 17"):
        SteerLatents(site="s", sae=sae, latents=(30,), units=(1.0,), level=17)
    with pytest.raises(InputError, match="never active"):
        SteerLatents(site="s", sae=sae, latents=(3,), units=(math.nan,))
    with pytest.raises(InputError, match=">= 0"):
        SteerLatents(site="s", sae=sae, latents=(3,), units=(1.0,), how="set", strength=-1.0)


def test_wrong_directions_and_tokens_are_refused(mini, picks):
    with pytest.raises(InputError, match="not zero"):
        SteerDirection(site="language.1", direction=np.zeros(128, np.float32))
    with pytest.raises(InputError, match="Nearest: 'patch'"):
        SteerDirection(site="language.1", direction=RAMP, tokens="patches")
    with SteerDirection(site="language.1", direction=np.ones(5, np.float32)).on(mini):
        with pytest.raises(InputError, match="5 channels"):
            mini.respond(picks[:1])
    with (
        pytest.raises(InputError, match="names 6 sites"),
        SteerDirection(site="language.*", direction=RAMP).on(mini),
    ):
        pass
    with pytest.raises(InputError, match="no edits"):
        Together([])


def test_controls_are_as_long_token_by_token(sae):
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(4))
    for edit in (
        SteerLatents(site="s", sae=sae, latents=(4, 9), units=(2.0, 1.0), how="scale", strength=3.0),
        SteerDirection(site="s", direction=RAMP, unit=2.0, strength=1.5),
    ):
        length = (edit.edited(x) - x).norm(dim=-1)
        controls = [*random_directions(edit, n=2), *random_latents(edit, sae, among=range(61), n=2)]
        assert len(controls) == 4 and len({c.label for c in controls}) == 3
        for control in controls:
            torch.testing.assert_close((control.edited(x) - x).norm(dim=-1), length, atol=1e-4, rtol=1e-4)
            twice = control.scaled(2 * edit.strength).edited(x) - x
            assert float(twice.norm()) > 1.2 * float(length.norm())


def test_controls_of_a_replaced_stream_start_from_its_reconstruction(sae):
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(4))
    edit = SteerLatents(site="s", sae=sae, latents=(4, 9), units=(2.0, 1.0), mode="replace", strength=3.0)
    plain = edit.baseline()
    assert plain is not None
    start = plain.edited(x)
    torch.testing.assert_close(start, sae(x.reshape(-1, 128)).view_as(x))
    assert float((start - x).norm()) > 1
    length = (edit.edited(x) - start).norm(dim=-1)
    assert float(length.max()) > 0.1
    for control in (*random_directions(edit, n=2), *random_latents(edit, sae, among=range(61), n=2)):
        torch.testing.assert_close((control.edited(x) - start).norm(dim=-1), length, atol=1e-4, rtol=1e-4)


def test_units_and_differences(sae, rng):
    tokens = rng.standard_normal((400, 128)).astype(np.float32)
    units = latent_units(sae, tokens)
    dense = sae.encode(torch.from_numpy(tokens)).dense().detach().numpy()
    for latent in (0, 22):
        active = dense[:, latent][dense[:, latent] > 0]
        assert units[latent] == pytest.approx(np.quantile(active, 0.99), rel=1e-5)
    direction, length = mean_difference(tokens[:50] + 3 * RAMP, tokens[:50])
    assert length == pytest.approx(3 * np.linalg.norm(RAMP), rel=1e-5)
    np.testing.assert_allclose(direction, RAMP / np.linalg.norm(RAMP), atol=1e-5)
    assert 2.0 < direction_unit(tokens, RAMP) < 3.2
    with pytest.raises(InputError, match="same mean"):
        mean_difference(tokens, tokens)
    with pytest.raises(InputError, match="got 0 tokens to steer to and 400 to steer from"):
        mean_difference(tokens[:0], tokens)
    with pytest.raises(InputError, match="equal widths"):
        mean_difference(tokens, tokens[:, :7])


def test_reading_an_answer_again_gives_the_decoded_distribution(mini, base):
    for log_probs, reply in zip(base.log_probs, base.replies, strict=True):
        assert log_probs.argmax(-1).tolist()[:4] == list(reply.token_ids)[:4]
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(len(log_probs)))
    assert base.names == ("dx", "dy", "dz", "grip") and base.units.over == "item"
    # The mean over bins lies near the most likely bin where the model is sure.
    assert np.nanmedian(np.abs(base.expected - base.actions)[:, :3]) < 0.02
    bins = mini._family.bins
    np.testing.assert_allclose(
        bin_values(bins)[:, bins.encode(base.actions[0])[0] - bins.first_id][0], base.actions[0][0], atol=1e-6
    )


@pytest.mark.parametrize("where", ["all", "last", "answer", "readout", "text", "patch"])
def test_decoding_and_reading_are_edited_alike(mini, picks, where):
    steer = SteerDirection(site="language.2", direction=RAMP, unit=14.0, tokens=where)
    with steer.on(mini):
        replies = mini.respond(picks[:3])
        logs = read_log_probs(mini, picks[:3], replies, batch_size=3)
    for log_probs, reply in zip(logs, replies, strict=True):
        assert log_probs.argmax(-1).tolist() == list(reply.token_ids)


def test_no_edit_has_no_effect_and_a_push_has_one(mini, base):
    none = effect(mini, Nothing(), base)
    assert not none.changed.any() and not none.shifted.any() and not none.kl.any()
    push = SteerDirection(site="language.3", direction=RAMP, unit=25.0, tokens="readout")
    found = effect(mini, Together([push]), base)
    assert found.changed.any() and (found.kl > 0).all() and np.abs(found.shifted).max() > 1e-3
    results = {r.name.split(" / ")[1]: r for r in effect_results(found, base)}
    assert set(results) == {
        "dx", "dy", "dz", "grip", "KL", "surprise at its own answer", "off-target mass", "other answer",
    }  # fmt: skip
    surprise = results["surprise at its own answer"]
    assert surprise.value > surprise.controls["no edit"] > 0 and surprise.interval is not None
    assert 0 <= results["off-target mass"].value <= 1
    assert results["dx"].value == pytest.approx(found.shifted[:, 0].mean())


def test_nonsense_in_words_is_perplexing_to_the_unedited_model(mini, base, picks):
    asked = baseline(
        mini, [swap_prompt(one, prompt="is the gripper open?") for one in picks[:3]], batch_size=3
    )
    assert all(reply.action is None and reply.text for reply in asked.replies)
    none = effect(mini, Nothing(), asked)
    np.testing.assert_allclose(none.perplexity, np.exp(asked.surprise), rtol=1e-4)
    push = SteerDirection(site="language.3", direction=RAMP, unit=1000.0, tokens="readout")
    found = effect(mini, push, asked)  # "no no no no no ..."
    assert found.changed.all() and (found.perplexity > 1000 * none.perplexity).all()
    acts = effect(mini, push.scaled(-0.2), asked)  # action tokens, where words were asked for
    assert any(reply.action is not None or "<act" in reply.text for reply in acts.replies)
    assert np.isfinite(acts.perplexity).all() and acts.perplexity.max() > 1000
    results = {r.name.split(" / ")[1]: r for r in effect_results(found, asked)}
    result = results["perplexity of its words"]
    assert result.value == pytest.approx(found.perplexity.mean())
    assert result.controls["no edit"] == pytest.approx(np.exp(asked.surprise).mean())
    assert np.isnan(effect(mini, Nothing(), base).perplexity).all(), "actions have none"


def test_dose_and_response_stand_beside_controls(mini, base):
    push = SteerDirection(site="language.3", direction=RAMP, unit=10.0, tokens="readout", label="ramp")
    found = dose_response(
        mini,
        push,
        base,
        strengths=(0.0, 1.0),
        controls=random_directions(push, n=3),
        unrelated=baseline(mini, [base.items[0]], batch_size=4),
    )
    none, one = found.doses
    assert none.aim.value == 0 and none.aim.p == 1.0 and one.aim.value > 0
    assert one.beyond.value <= one.aim.value and one.beyond.details["level"] == pytest.approx(0.975)
    assert set(one.aim.controls) == {"random directions, mean", "random directions, strongest"}
    assert one.beyond.value == pytest.approx(
        one.aim.value - one.aim.controls["random directions, strongest"], abs=1e-9
    )
    assert any(r.name.startswith("unrelated: ramp x 1") for r in one.unrelated)
    facts = found.to_json()
    assert (
        facts["n_controls"] == 3
        and facts["edit"]["strength"] == 1.0
        and facts["verdict"].startswith("steering")
    )
    few = dataclasses.replace(one, beyond=dataclasses.replace(one.beyond, interval=None, n_units=3))
    said = dataclasses.replace(found, doses=(few,)).verdict()
    assert "cannot be told from its controls with 3 independent items" in said
    wide = one.beyond.line().replace("(95 %", "(97.5 %")
    assert wide != one.beyond.line() and (wide in found.verdict() or one is not found.best())
    rows = [row for row in found.table() if row[0] == one.beyond.name]
    assert len(rows) == 1 and rows[0][2].endswith(" (97.5 %)")
    with pytest.raises(InputError, match="no 'text' tokens"):
        nowhere = dataclasses.replace(push, site="vision.3", tokens="text")
        dose_response(mini, nowhere, base, strengths=(1.0,), controls=random_directions(push, n=1))
    with pytest.raises(InputError, match="controls"):
        dose_response(mini, push, base, strengths=(1.0,), controls=[])


FEW = ("mini-vla", "demo:pick", "--items", "2", "-q", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("steer", *FEW, "--site", "language.1", "--words", "up", "down", "--batch-size", "0"),
            "batch_size=0",
        ),
        (("patch", *FEW, "--batch-size", "0"), "batch_size=0"),
        (
            ("steer", *FEW, "--site", "language.1", "--words", "purple", "red"),
            "holds 'purple', the word to steer",
        ),
        (("steer", *FEW, "--site", "language.1", "--words", "up", "down", "left"), "--words FROM TO"),
        (("steer", *FEW, "--site", "language.1", "--words", "up", "down", "--save", "."), "is a folder"),
        (("sim", "preview", "-o", ".", "--scenes", "1"), "is a folder"),
        (("rollout", "mini-vla", "-q", "--brightness", "nan"), "brightness nan"),
        (("rollout", "mini-vla", "-q", "--brightness", "-1"), "brightness -1"),
        (("rollout", "mini-vla", "-q", "--camera-shift", "nan", "0", "0"), "camera shift of nan 0 0"),
    ],
)
def test_what_makes_no_sense_is_one_message(capsys, words, said):
    assert main(list(words)) == 2
    assert said in capsys.readouterr().err


def test_words_are_taken_as_they_are_written(mini, picks):
    item = with_word(picks[0], old="red", new=r"\d \1")
    assert item is not None and item.prompt == r"pick up the \d \1 object"
    with pytest.raises(InputError, match="batch_size=0"):
        word_direction(mini, picks, site="language.1", away_from="red", to="blue", batch_size=0)


def test_a_latent_is_named_once(sae):
    with pytest.raises(InputError, match="latent 11 twice"):
        SteerLatents(site="language.3", sae=sae, latents=(2, 11, 11), units=(1.0, 1.0, 1.0))


def test_a_direction_is_no_folder(mini, tmp_path):
    push = SteerDirection(site="language.3", direction=RAMP, tokens="readout")
    with pytest.raises(StorageError, match="is a folder"):
        save_direction(tmp_path, push, model=mini)


def test_a_replaced_stream_is_compared_with_its_reconstruction(mini, base, sae):
    edit = SteerLatents(
        site="language.3", sae=sae, latents=(2,), units=(1.0,), mode="replace", tokens="patch", strength=0.0
    )
    found = dose_response(mini, edit, base, strengths=(0.0,), controls=random_directions(edit, n=1))
    # Adding nothing to the reconstruction does nothing beyond the reconstruction, which itself moves the model.
    assert found.doses[0].aim.value == pytest.approx(0.0, abs=1e-12)
    assert next(r for r in found.doses[0].effects if r.name.endswith("KL")).value > 0.01
