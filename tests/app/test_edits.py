"""Trying edits of the embedded model: what they do to actions and tokens, beside controls, and how they fail."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from app_runs import client_of

from vlascope.app.edits import make_edit
from vlascope.app.job import Cancelled, Job, Jobs
from vlascope.app.nearest import nearest_tokens
from vlascope.app.questions import Ask, Pick
from vlascope.app.run_model import RunModel, run_item
from vlascope.app.trial import try_edit
from vlascope.errors import InputError, ModelNotFoundError

SITES = ("vision.5", "language.2", "language.5")


def outcome(book, ask, *, items=(1, 4), job=None):
    return try_edit(book, book.model, ask, items=list(items), job=job or Job(number=1))


def test_an_edit_of_strength_zero_changes_nothing_and_every_token_stays_itself(vla_book):
    found = outcome(vla_book, Ask(kind="group", site="vision.5", k=4, group=1, strength=0.0, controls=1))
    assert found.facts["kl"] == pytest.approx(0, abs=1e-6) and found.facts["as_captured"] is True
    assert found.facts["verdict"] == "It changes nothing on 2 frames."
    for site in SITES:
        part = vla_book.cut.parts[site]
        rows = vla_book.index.rows_of(site, 1)[0] - part.rows.start
        assert found.nearest[site].tolist() == rows.tolist(), site
    assert all(layer["moved"] == 0 for layer in found.facts["layers"])


def test_before_and_after_are_the_models_own_actions_in_centimetres(vla_book, mini_vla):
    from vlascope.act import CutAttention

    found = outcome(vla_book, Ask(kind="attention", source="patch", reader="action"))
    item = run_item(vla_book.run, 1)
    (before,) = mini_vla.respond([item])
    with CutAttention(source="patch", reader="action").on(mini_vla):
        (after,) = mini_vla.respond([item])
    rows = {row["name"]: row for row in found.facts["rows"]}
    assert list(rows) == ["x", "y", "z", "grip"] and rows["x"]["unit"] == "cm" and rows["grip"]["unit"] == ""
    for i, name in enumerate("xyz"):
        assert rows[name]["before"] == pytest.approx(100 * before.action[i], abs=1e-3)
        assert rows[name]["after"] == pytest.approx(100 * after.action[i], abs=1e-3)
    # Compared with hiding other kinds of tokens from the action.
    assert found.facts["kl"] > 0.05 and "cuts of other tokens or blocks" in found.facts["verdict"]
    assert found.facts["dose"] is None and len(found.facts["control_kl"]) >= 1
    assert found.facts["words"]["before"] != found.facts["words"]["after"]


def test_steering_is_compared_with_directions_of_its_length(vla_book):
    found = outcome(
        vla_book,
        Ask(
            kind="tokens",
            site="language.2",
            clicks=[Pick(token=5), Pick(token=9, positive=False)],
            controls=3,
            strength=3,
        ),
    )
    assert len(found.facts["control_kl"]) == 3 and "3 random directions" in found.facts["verdict"]
    wild = outcome(
        vla_book, Ask(kind="group", site="vision.5", k=4, group=1, strength=32, controls=0), items=(1,)
    )
    patches = vla_book.index.patches("vision.5", 1)[0].index_rc - vla_book.cut.parts["vision.5"].rows.start
    assert (
        wild.nearest["vision.5"][patches.reshape(-1) - patches.min()] == -1
    ).all()  # like nothing in the run
    layers = {layer["site"]: layer for layer in found.facts["layers"]}
    # What comes before the edit is left alone, what is edited moves.
    assert layers["vision.5"]["moved"] == 0 and layers["language.2"]["moved"] > 0.5
    assert all(
        row["interval"] is None for row in found.facts["rows"]
    )  # one episode: nothing independent to resample


def test_a_cut_is_compared_with_cuts_of_other_tokens_and_other_blocks(vla_book, mini_vla):
    items = [run_item(vla_book.run, 0)]
    made: Any = make_edit(vla_book, mini_vla, Ask(kind="attention"), items=items)
    wide, others = made
    assert wide.source == "patch"
    assert {one.source for one in others} >= {"text"} and {one.reader for one in others} == {"action"}
    assert not {one.source for one in others} & {"patch", "action"}
    made = make_edit(vla_book, mini_vla, Ask(kind="attention", blocks="language.3"), items=items)
    _, others = made
    assert [one.blocks for one in others if one.source == "patch"][:2] == ["language.0", "language.1"]
    assert make_edit(vla_book, mini_vla, Ask(kind="attention", controls=0), items=items)[1] == []


def test_the_curve_of_dose_and_response_is_that_of_each_strength_alone(vla_book):
    ask = {"kind": "group", "site": "vision.5", "k": 4, "group": 1, "controls": 4}
    job = Job(number=1)
    found = outcome(vla_book, Ask(**ask, strength=3, doses=[-3, 0, 1.5, 3, 6]), job=job).facts["dose"]
    assert found["unit"] == "cm" and [p["strength"] for p in found["points"]] == [-3, 1.5, 3, 6]
    assert [len(p["controls"]) for p in found["points"]] == [
        3,
        3,
        3,
        3,
    ]  # as long as the steering, of the same seed
    assert job.done == job.total - 1  # the last step begins, then it is done
    alone = outcome(vla_book, Ask(**ask, strength=6, doses=[3])).facts
    assert alone["dose"]["points"] == [p for p in found["points"] if p["strength"] in (3, 6)]
    assert alone["dose"]["points"][1]["shift"] > 0.1
    # The root mean square of lengths is at least the length of the mean move.
    mean = np.linalg.norm([row["move"] for row in alone["rows"] if row["unit"] == "cm"])
    assert alone["dose"]["points"][1]["shift"] >= mean - 1e-3
    assert outcome(vla_book, Ask(**ask, strength=3)).facts["dose"] is None


def test_a_module_is_compared_with_its_like_in_other_blocks(vla_book, mini_vla):
    items = [run_item(vla_book.run, 0)]
    edit, controls = make_edit(
        vla_book, mini_vla, Ask(kind="module", site="language.2.mlp", controls=3), items=items
    )
    assert edit.name == "language.2.mlp zero"
    assert [one.name for one in controls] == [
        "language.0.mlp zero",
        "language.1.mlp zero",
        "language.3.mlp zero",
    ]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(kind="tokens", site="vision.5"), "click a patch"),
        (Ask(kind="tokens", site="vision.5", clicks=[Pick(token=10**6)]), "no token"),
        (Ask(kind="group", site="vision.5", k=3), "k = 4"),
        (Ask(kind="group", site="vision.5", k=4, group=9), "concept 10"),
        (Ask(kind="words", site="language.2", away_from="red", to=""), "two words"),
        (Ask(kind="words", site="language.2", away_from="zebra", to="giraffe"), "zebra"),
        (Ask(kind="words", site="vision.5", away_from="pick", to="put"), "vision.5 has no words"),
        (Ask(kind="latent", dictionary="sae-0123"), "no such dictionary"),
        (Ask(kind="attention", source="nobody"), "nobody"),
        (Ask(kind="group", site="vision.5", k=4, where="sky"), "sky"),
    ],
)
def test_what_cannot_be_asked(vla_book, mini_vla, ask, message):
    with pytest.raises(InputError, match=message):
        make_edit(vla_book, mini_vla, ask, items=[run_item(vla_book.run, 0)])


def test_numbers_that_differ_do_so_in_the_verdict():
    from vlascope.app.trial import _verdict

    none = np.zeros((0, 0))
    said = [_verdict(kl, [other], none, [], n=1, kind="attention") for kl, other in
            ((3.04, 2.96), (0.0123, 0.0122), (2.0, 2.0), (250.0, 3.0))]  # fmt: skip
    assert "by 3.04 nats" in said[0] and "(most: 2.96)" in said[0]
    assert "by 0.0123 nats" in said[1] and "(most: 0.0122)" in said[1]
    assert "by 2.0 nats" in said[2] and "do as much (most: 2.0)" in said[2]
    assert "by 250 nats" in said[3] and "(most: 3)" in said[3]


def test_nearest_tokens_of_known_values(vla_book):
    part = vla_book.cut.parts["vision.5"]
    acts = np.asarray(vla_book.run.acts("vision.5")[np.asarray(part.token_rows)])
    own = slice(7, 12)
    values = acts[own].copy()
    values[1] = acts[30] + 1e-4  # became like another token
    values[3] = acts[10] + 100 * np.abs(acts).max()  # became like nothing
    found, far = nearest_tokens(vla_book.run, "vision.5", part, values, own=own)
    assert found[[0, 1, 2, 4]].tolist() == [7, 30, 9, 11]
    assert far.tolist() == [False, False, False, True, False]


def test_items_of_a_run_are_what_the_model_saw(vla_book, vla_items):
    for index in (0, 3):
        item, source = run_item(vla_book.run, index), vla_items[index]
        assert all(np.array_equal(a, b) for a, b in zip(item.images, source.images, strict=True))
        assert (item.item_id, item.prompt, item.episode) == (source.item_id, source.prompt, source.episode)
    with pytest.raises(InputError):
        run_item(vla_book.run, 99)


def with_model(run, **changes):
    import copy

    other = copy.copy(run)
    other.config = {**run.config, "model": {**run.config["model"], **changes}}
    return RunModel(other)


def test_models_that_cannot_be_loaded_are_said(vla_book, monkeypatch):
    run = vla_book.run
    with pytest.raises(ModelNotFoundError, match="cannot be loaded by its name.*models="):
        with_model(run, name="MyNet", revision="memory").get()
    with pytest.raises(ModelNotFoundError, match="downloads nothing"):
        with_model(run, name="nobody/no-such-model", revision="0" * 40).get()
    with pytest.raises(InputError, match="other weights"):
        with_model(run, fingerprint="0123456789abcdef").get()


def test_a_given_model_is_used_and_checked(vla_book, mini_vla):
    assert RunModel(vla_book.run, mini_vla).get() is mini_vla
    from vlascope.app import open_books

    with pytest.raises(InputError, match="other weights"):
        open_books([with_model(vla_book.run, fingerprint="00").run], models=[mini_vla])


def test_a_job_stops_between_modules_and_leaves_no_hook(vla_book, mini_vla):
    before = [len(m._forward_pre_hooks) for m in mini_vla.module.modules()]
    job = Job(number=1)
    seen = []

    def stop_at(text, **more):
        Job.step(job, text, **more)
        seen.append(text)
        if text.startswith("with the edit"):
            job.cancel()

    job.step = stop_at  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        outcome(vla_book, Ask(kind="attention"), job=job)
    assert seen[-1].startswith("with the edit")
    assert [len(m._forward_pre_hooks) for m in mini_vla.module.modules()] == before
    assert mini_vla._hooks.n_hooked == 0


def wait(job):
    for _ in range(400):
        if job.state != "running":
            return job
        time.sleep(0.01)
    raise AssertionError(job.to_json())


def test_one_job_at_a_time_and_what_became_of_it(caplog):
    import threading

    jobs, go = Jobs(clean=lambda text: text.replace("/secret/", "")), threading.Event()

    def work(job):
        job.step("first", done=1, total=4)
        go.wait(5)
        job.step("second")
        return 7

    job = jobs.start(work)
    assert job is not None and jobs.start(work) is None
    time.sleep(0.05)
    known = job.to_json()
    assert (known["done"], known["total"], known["text"]) == (1, 4, "first") and known["left_secs"] > 0
    go.set()
    assert wait(job).state == "done" and job.result == 7 and job.done == 2

    def broken(job):
        raise InputError("'/secret/run' is odd")

    other = jobs.start(broken)
    assert other is not None and wait(other).text == "'run' is odd" and jobs.find(job.number) is None

    def bug(job):
        raise RuntimeError("/secret/place")

    third = jobs.start(bug)
    assert third is not None and "bug" in wait(third).text and "secret" not in third.text
    fourth = jobs.start(lambda job: (job.cancel(), job.step("never")))
    assert fourth is not None and wait(fourth).state == "cancelled"


@pytest.fixture
def vla_client(vla_book, tmp_path):
    from vlascope.app import create_app

    return client_of(create_app([vla_book], table=tmp_path / "labels.csv"))


def test_over_the_wire(vla_client, vla_book):
    from vlascope.app.wire import unpack

    ask = {
        "run": vla_book.key,
        "item": 2,
        "kind": "group",
        "site": "vision.5",
        "k": 4,
        "group": 1,
        "controls": 1,
    }
    choices = vla_client.get(f"/api/runs/{vla_book.key}/edits").json()
    assert {"patch", "text"} <= set(choices["kinds"]) and "pick" in choices["words"]
    assert "language.2.mlp" in choices["modules"] and choices["dictionaries"] == []
    started = vla_client.post("/api/edits", json=ask)
    assert started.status_code == 202, started.text
    number = started.json()["job"]
    assert vla_client.post("/api/edits", json=ask).status_code == 409
    assert vla_client.get(f"/api/edits/{number}/result").status_code == 409
    for _ in range(600):
        state = vla_client.get(f"/api/edits/{number}").json()
        if state["state"] != "running":
            break
        time.sleep(0.02)
    assert state["state"] == "done", state
    header, arrays = unpack(vla_client.get(f"/api/edits/{number}/result").content)
    assert header["facts"]["item"] == 2 and header["sites"] == list(SITES)
    assert len(np.frombuffer(arrays[0], np.int32)) == len(vla_book.index.rows_of("vision.5", 2)[0])
    assert vla_client.get(f"/api/edits/{number + 1}").status_code == 404
    assert vla_client.post(f"/api/edits/{number + 1}/stop").status_code == 404
    for wrong in ({"item": 99}, {"kind": "rm -rf"}, {"site": "nowhere"}, {"strength": 1e9}, {"frames": 10**6},
                  {"kind": "words", "away_from": "pick", "to": "put"},
                  {"kind": "tokens", "clicks": [{"run": vla_book.key, "site": "language.2", "token": 1}]}):  # fmt: skip
        answer = vla_client.post("/api/edits", json={**ask, **wrong})
        assert answer.status_code in (400, 404, 422) and set(answer.json()) == {"error"}, wrong
        if wrong.get("kind") == "words":
            assert answer.json()["error"] == "vision.5 has no words; choose one that has, such as language.5."


def test_paths_stay_out_of_what_is_said(vla_book, tmp_path):
    from vlascope.app.state import State

    state = State([vla_book])
    for text, clean in (
        ("the folder '/home/ann/models/my vla/x' holds no model", "the folder 'my vla/x' holds no model"),
        ("see ~/ckpt/best and /etc/passwd", "see best and passwd"),
        ("x and/or y, https://example.org/a/b, 3/4", "x and/or y, https://example.org/a/b, 3/4"),
    ):
        assert state.without_paths(text) == clean
