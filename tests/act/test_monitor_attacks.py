"""Attacks on the embedded model do what they say, and the monitor stops a rollout in the simulator."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import vlascope as vs
from vlascope.act.monitor_attacks import (
    answer_loss,
    box_mask,
    injection,
    occluded,
    pgd_patch,
    pixel_map,
    trojan_direction,
    with_strange_object,
)
from vlascope.act.monitor_fit import fit_monitor
from vlascope.act.monitor_store import save_monitor
from vlascope.act.monitor_thresholds import Rate
from vlascope.act.watching import WatchReport
from vlascope.cli import main
from vlascope.errors import InputError
from vlascope.items.frames import MappedSource
from vlascope.runs import Run
from vlascope.sae import MatryoshkaSAE, SAEConfig, load_sae, run_origin, save_sae

BOX = (20, 30, 52, 62)


@pytest.fixture(scope="module")
def model():
    return vs.load("mini-vla", device="cpu")


@pytest.fixture(scope="module")
def source():
    return vs.items("demo:pick")


def at_model_size(item):
    """The item at the 112 x 112 pixels that the model reads."""
    from PIL import Image

    small = np.asarray(Image.fromarray(item.image).resize((112, 112)))
    return replace(item, images=(small, *item.images[1:]), masks={}, source=None)


def test_pictures_change_where_they_should():
    rgb = np.full((40, 60, 3), 7, np.uint8)
    inside = box_mask((10, 5, 25, 15), height=40, width=60)
    assert inside.sum() == 150 and inside[5, 10] and inside[14, 24] and not inside[15, 24]
    changed = occluded(rgb, box=(10, 5, 25, 15))
    assert ((changed != 7).any(2) == inside).all()
    strange, mask = with_strange_object(rgb, box=(10, 5, 25, 15))
    assert ((strange != 7).any(2) == mask).all() and mask.sum() == pytest.approx(150 * np.pi / 4, rel=0.1)
    assert len(np.unique(strange[mask], axis=0)) == 2
    with pytest.raises(InputError, match="no pixel inside"):
        occluded(rgb, box=(60, 5, 80, 15))


def test_an_adversarial_patch_makes_the_answer_unlikely(model, source):
    item = at_model_size(source[4])
    offset, gain = pixel_map(model, item)
    pixels = torch.from_numpy(item.image.astype(np.float32)).permute(2, 0, 1)
    reply = model.respond([item])[0]
    torch.testing.assert_close(
        answer_loss(model, item, reply, values=pixels * gain + offset), answer_loss(model, item, reply)
    )
    found = pgd_patch(model, item, box=BOX, n_steps=6, seed=0)
    assert found.loss[-1] > found.loss[0] + 0.3 and len(found.loss) == 7
    changed = (found.item.image != item.image).any(2)
    assert (changed <= found.mask).all() and changed.sum() > 0.9 * found.mask.sum()
    assert found.mask.sum() == 32 * 32 and found.moved >= 0
    # What is told is the loss of the picture that is returned, so that its pixels lie within 0..255.
    assert float(answer_loss(model, found.item, reply)) == pytest.approx(found.loss[-1], rel=1e-4)
    again = pgd_patch(model, item, box=BOX, n_steps=6, seed=0)
    np.testing.assert_array_equal(again.item.image, found.item.image)
    aim = replace(reply, token_ids=(*reply.token_ids[:-1], found.before.token_ids[0]))
    toward = pgd_patch(model, item, box=BOX, n_steps=6, target=aim, goal="targeted")
    assert toward.loss[-1] < toward.loss[0]


def test_attacks_that_cannot_be_made_are_refused(model, source):
    item = at_model_size(source[0])
    with pytest.raises(InputError, match="at least one step"):
        pgd_patch(model, item, box=BOX, n_steps=0)
    with pytest.raises(InputError, match="give a target"):
        pgd_patch(model, item, box=BOX, goal="targeted")
    wide = replace(item, images=(np.zeros((100, 90, 3), np.uint8),))
    with pytest.raises(InputError, match="model's own size"):
        pgd_patch(model, wide, box=BOX)


def test_an_injected_direction_moves_tokens_along_it(model, source):
    items = [at_model_size(source[i]) for i in (0, 5, 9)]
    direction = trojan_direction(model, site="vision.1", toward=items[:1], away=items[1:])
    assert direction.shape == (128,) and direction.norm() > 0
    assert torch.equal(trojan_direction(model, site="vision.1", toward=items, away=items), direction * 0)
    batch = model.prepare(items)
    values, layouts = model.capture(batch, "vision.1")["vision.1"], batch.layouts["vision"]
    rows = [x[torch.from_numpy(one.is_kind("patch"))] for x, one in zip(values, layouts, strict=True)]
    torch.testing.assert_close(direction, rows[0].mean(0) - torch.cat(rows[1:]).mean(0), rtol=1e-4, atol=1e-4)
    batch = model.prepare(items[:1])
    before = model.capture(batch, "vision.1")["vision.1"][0]
    with model.edit("vision.1", injection(direction, strength=0.5)):
        after = model.capture(batch, "vision.1")["vision.1"][0]
    moved = after - before
    unit = direction / direction.norm()
    size = 0.5 * before.norm(dim=-1).mean()
    torch.testing.assert_close(moved @ unit, size.expand(len(moved)), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="no tokens of kind 'state'"):
        trojan_direction(model, site="vision.1", toward=items, away=items, kind="state")


@pytest.mark.sim
def test_a_rollout_is_stopped_and_says_why(model, source, tmp_path, capsys):
    pytest.importorskip("pybullet")

    def alone(item):  # every frame an episode of its own: enough of them for a rate of 1 in 2
        return replace(at_model_size(item), episode=None, step=None, labels={}, cameras=("front",))

    frames = MappedSource(vs.items("demo:pick", limit=24), alone, tag="alone")
    run = vs.capture(model, frames, sites=["vision.3"], out=tmp_path / "run", respond=False, quiet=True)
    assert isinstance(run, Run)
    sae = MatryoshkaSAE(SAEConfig(d_in=128, n_latents=160, k=8, levels=(32,)), seed=0)
    x = np.asarray(run.acts("vision.3")[:400], np.float32)
    sae.mean.copy_(torch.from_numpy(x.mean(0)))
    sae.scale.fill_(float(x.std()))
    save_sae(sae, tmp_path / "sae", origin=run_origin(run, "vision.3"), proof_td=x)
    checkpoint = load_sae(tmp_path / "sae", run=run)
    monitor = fit_monitor(run, checkpoint, alpha=0.5, shares=(0.85, 0.1, 0.05), quiet=True)
    assert monitor.by is None
    path = save_monitor(monitor, tmp_path / "monitor", checkpoint=checkpoint)
    words = [
        "monitor",
        "watch",
        "mini-vla",
        str(path),
        "--episodes",
        "1",
        "--seed",
        "3",
        "-q",
        "--device",
        "cpu",
    ]
    out = tmp_path / "stopped"
    assert main([*words, "--brightness", "0.25", "--json", "-o", str(out)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stopped"] | {"wilson_95": 0} == {"alarms": 1, "n": 1, "share": 1.0, "wilson_95": 0}
    veto = facts["episodes"][0]["veto"]
    assert (
        "the sae score at vision.3" in veto["reason"]
        and veto["details"]["step"] == facts["episodes"][0]["steps"]
    )
    assert facts["stated_false_alarms"] == 0.5 and facts["realised_false_alarms_when_fitted"]["n"] > 0
    assert not facts["clean"]
    # Stopped before its first action, an episode has no picture to write.
    assert out.exists() == (facts["episodes"][0]["steps"] > 0)
    assert main([*words, "--brightness", "0.25"]) == 0
    text = capsys.readouterr().out
    assert "stated for clean ones: 50.0%; realised when fitted:" in text and "1 of 1 (100.0%" in text
    pair = ["rollout", "mini-vla", "--monitor", str(path), *words[4:], "--processes", "1"]
    assert main([*pair, "--brightness", "0.25", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    base, watched = found["conditions"]
    assert base["vetoed"] == 0 and base["episodes"][0]["veto"] is None
    assert watched["episodes"][0]["veto"] == veto and not found["watched"]["clean"]
    assert found["watched"]["stopped"]["alarms"] == watched["vetoed"] == 1
    stopped = "stopped_good" if base["successes"] else "stopped_bad"
    assert found["comparison"][stopped]["value"] == 1.0
    assert main(["rollout", "mini-vla", "--only", "-q"]) == 2
    assert "nothing is changed" in capsys.readouterr().err


def test_a_watch_report_warns_beyond_chance_on_clean_episodes_only():
    common = {"rows": (), "fitted": Rate(alarms=1, n=30)}
    many, few = Rate(alarms=9, n=20), Rate(alarms=2, n=20)
    assert "do not trust" in " ".join(WatchReport(stopped=many, stated=0.05, is_clean=True, **common).lines())
    for stopped, stated, is_clean in ((few, 0.05, True), (many, 0.05, False), (many, None, True)):
        report = WatchReport(stopped=stopped, stated=stated, is_clean=is_clean, **common)
        assert report.is_trusted and len(report.lines()) == 1
    assert "no rate is stated" in WatchReport(stopped=many, stated=None, is_clean=True, **common).lines()[0]
