"""Concepts over time: planted changes are hit, episodes without a course have none, failures warn when they do."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.measure.planted import PlantedRun, grid, language
from vlascope.errors import InputError
from vlascope.measure.changes import agreement, change_points
from vlascope.measure.outcomes import align, compare_outcomes, early_warning
from vlascope.measure.phrases import phrase_results, split_phrases, words_of
from vlascope.measure.temporal import temporal
from vlascope.measure.timeline import Timeline, events_of, presence

K = 3
WORDS = ("put", "the", "ob", "ject", "on", "the", "pad")


def bend(n: int, at: int, *, slope: float = 1.0) -> np.ndarray:
    """Rises until `at`, falls from then on."""
    return slope * (at - np.abs(np.arange(n) - at)) / n


def line(series: np.ndarray, *, episode: int, events=None, success=None, changes=None) -> Timeline:
    n = len(series)
    return Timeline(
        episode=episode, items=np.arange(n), steps=np.arange(n), occupancy=series.astype(np.float32),
        present=series > 0.5, changes=changes, events=events or {}, success=success, prompt=None,
    )  # fmt: skip


@pytest.mark.parametrize("at", [9, 17, 23])
def test_a_change_of_course_is_found_where_it_is(at):
    rng = np.random.default_rng(at)
    x = np.stack([bend(31, at), -bend(31, at, slope=0.5)], 1) + 0.004 * rng.normal(size=(31, 2))
    found = change_points(x)
    assert len(found) >= 1 and np.abs(found - at).min() <= 1
    steps = (np.arange(31) >= at)[:, None] + 0.05 * rng.normal(size=(31, 2))
    assert at in change_points(steps, kind="level")
    clean = (np.arange(31) >= at)[:, None].astype(float)
    np.testing.assert_array_equal(change_points(clean, kind="level"), [at])


@pytest.mark.parametrize("kind", ["trend", "level"])
def test_frames_without_a_course_rarely_change(kind):
    rng = np.random.default_rng(0)
    drift = 0.2 * np.arange(29)[:, None] if kind == "trend" else 0
    false = sum(
        len(change_points(rng.normal(size=(29, 3)) + drift, kind=kind, seed=i)) > 0 for i in range(200)
    )
    assert false <= 10, f"{false} of 200 series without a change have one"


def test_constant_and_straight_series_do_not_change():
    assert len(change_points(np.full((13, 2), 0.25))) == 0
    assert len(change_points(np.linspace(0, 1, 13)[:, None])) == 0
    for bad, message in (((5, 2), "8 to 2000"), ((2001, 1), "8 to 2000")):
        with pytest.raises(InputError, match=message):
            change_points(np.zeros(bad))
    with pytest.raises(InputError, match="finite"):
        change_points(np.full((13, 2), np.nan))
    with pytest.raises(InputError, match="penalty"):
        change_points(np.zeros((13, 2)), penalty=0)


def test_agreement_is_found_when_there_and_rarely_when_not():
    rng = np.random.default_rng(1)
    events = [{"grasp": int(g), "release": int(g) + 11} for g in rng.integers(3, 14, 9)]
    near = [np.array([e["grasp"] + 1, e["release"] - 2]) for e in events]
    found = agreement(near, events, [29] * 9, names=("grasp", "release"))
    assert found.value == 1.0 and found.found and found.controls["events of other episodes"] < 0.3
    false = 0
    for trial in range(200):
        other = [np.sort(rng.choice(29, 2, replace=False)) for _ in events]
        false += agreement(other, events, [29] * 9, names=("grasp",), n_permutations=79, seed=trial).found
    assert false <= 16, f"{false} of 200; at most 10 expected"
    assert "4 episodes" in agreement(near[:4], events[:4], [29] * 4, names=("grasp",)).reason
    none = agreement([np.zeros(0, int)] * 9, events, [29] * 9, names=("grasp",))
    assert none.value == 0.0 and not none.found


def test_smooth_series_that_know_nothing_of_the_events_rarely_hit_them():
    """Change points avoid the ends of an episode, and so do events: rotated changes would say that they agree."""
    false = 0
    for trial in range(25):
        rng = np.random.default_rng(trial)
        n_frames = rng.integers(28, 36, 12).tolist()
        events = [{"grasp": int(rng.uniform(0.4, 0.6) * n)} for n in n_frames]
        changes = []
        for n in n_frames:
            turns = np.linspace(0, 1, n)[:, None] * rng.uniform(2, 4, 2) + rng.uniform(0, 6.28, 2)
            changes.append(change_points(np.sin(turns) + 0.01 * rng.normal(size=(n, 2))))
        found = agreement(changes, events, n_frames, names=("grasp",), n_permutations=99, seed=trial)
        false += found.found
    assert false <= 4, f"{false} of 25; 1 or 2 are expected"


def test_events_at_the_same_time_in_all_episodes_cannot_be_told_from_a_clock():
    frames = [23, 45, 23, 89, 23, 45]
    events = [{"grasp": n // 2} for n in frames]
    found = agreement([np.array([n // 2]) for n in frames], events, frames, names=("grasp",))
    assert found.value is None and "the same time in all 6 episodes" in found.reason


def test_onset_and_duration_of_concepts():
    series = np.zeros((11, 3))
    series[3:7, 0], series[9:, 0], series[:, 1] = 0.4, 0.4, 0.5
    there = presence(series)
    assert there[:, 1].all() and not there[:, 2].any()
    one = line(series, episode=0)
    spells = Timeline(**{**vars(one), "present": there}).spells()
    assert [(s.concept, s.onset, s.duration) for s in spells] == [(0, 3, 4), (0, 9, 2), (1, 0, 11)]


def make(
    tmp_path, *, n_episodes=7, frames=23, with_words=True, labels=None
) -> tuple[PlantedRun, SimpleNamespace]:
    """Patches of concept 1 rise until the grasp, then fall: in every episode at another frame."""
    rng = np.random.default_rng(3)
    rows, cols = 5, 7
    episodes = np.repeat(np.arange(n_episodes), frames)
    grasp = rng.integers(7, 15, n_episodes)
    concept = np.zeros((n_episodes * frames, rows * cols), np.int64)
    words = rng.normal(size=(len(episodes), len(WORDS), 5)) * 0.01
    for e, at in enumerate(grasp):
        share = 4 + (at - np.abs(np.arange(frames) - at)).clip(0)
        for f in range(frames):
            concept[e * frames + f, : int(share[f])] = 1
            words[e * frames + f, 4:] += 0.1 * max(0, f - at)  # "on the pad" starts to move at the grasp
    base = labels or (lambda e: {"event.grasp": int(grasp[e]) - 1})
    layout = language(rows, cols, WORDS)
    x = np.concatenate([np.eye(5)[concept], words], 1)
    run = PlantedRun(
        {"language.0": ("language", x), "vision.0": ("vision", np.eye(5)[concept])},
        layouts={"language": layout, "vision": grid(rows, cols)},
        labels=[base(e) for e in episodes], episodes=list(episodes), path=tmp_path,
    )  # fmt: skip
    for row in run.items:
        object.__setattr__(row, "prompt", "put the object on the pad")
    part = SimpleNamespace(layout="vision", token_rows=np.arange(concept.size), rows=slice(0, concept.size))
    cut = SimpleNamespace(
        parts={"vision.0": part}, labels={K: concept.reshape(-1).astype(np.int16)}, path=tmp_path, params={}
    )
    return run, cut


def test_planted_grasps_are_hit_and_reported(tmp_path):
    run, cut = make(tmp_path, n_episodes=11)
    found = temporal(run, site="vision.0", k=K, cut=cut, words_site="language.0", n_permutations=99)  # type: ignore[arg-type]
    (grasp,) = found.events
    assert grasp.value == 1.0 and grasp.found
    assert "they hit grasp in 100% of 11 episodes" in found.verdict()
    by_name = {r.name: r for r in found.phrases}
    assert set(by_name) == {
        f"phrase {i} ('{p}') / grasp" for i, p in enumerate(("put", "the object", "on the pad"), 1)
    }
    assert by_name["phrase 3 ('on the pad') / grasp"].found and not by_name["phrase 1 ('put') / grasp"].found
    saved = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert saved["episodes"][2]["events"] == found.lines[2].events and "cannot say" in found.verdict()
    np.testing.assert_allclose([one.occupancy.sum(1) for one in found.lines], 1, rtol=1e-6)


def test_outcomes_in_words_and_events_that_no_episode_has(tmp_path):
    said = ("false", "TRUE", "No", "yes", "failure", "success", 0, 1, False, np.True_, " ", None)
    run, cut = make(
        tmp_path, n_episodes=12, frames=9, labels=lambda e: {"success": said[e], "event.grasp": 3}
    )
    found = temporal(run, site="vision.0", k=K, cut=cut, n_permutations=19)  # type: ignore[arg-type]
    assert [one.success for one in found.lines] == [False, True] * 5 + [None, None]
    assert found.warning.caught.reason.startswith("5 successes and 5 failures")
    for option in ({"align_at": "nosuch"}, {"failure_event": "nosuch"}):
        with pytest.raises(InputError, match="event 'nosuch'; known are grasp"):
            temporal(run, site="vision.0", k=K, cut=cut, **option)  # type: ignore[arg-type]
    for bad in ("maybe", 0.7, "2"):
        run.items[9].labels["success"] = bad  # type: ignore[index]
        with pytest.raises(InputError, match=f"episode 1 has '{bad}' in its label 'success'"):
            temporal(run, site="vision.0", k=K, cut=cut, n_permutations=19)  # type: ignore[arg-type]


def test_short_episodes_and_missing_facts_cannot_say(tmp_path):
    run, cut = make(tmp_path, frames=1, n_episodes=6)
    found = temporal(run, site="vision.0", k=K, cut=cut, n_permutations=19)  # type: ignore[arg-type]
    assert found.n_too_short == 6 and found.verdict().startswith("cannot say: all 6 episodes are too short")
    bare, cut = make(tmp_path, labels=lambda e: {"colour": "red"})
    found = temporal(bare, site="vision.0", k=K, cut=cut, words_site="vision.0", n_permutations=19)  # type: ignore[arg-type]
    assert found.events == () and "no events are known" in found.verdict()
    assert found.phrases[0].reason == "the layer has no words"
    for row in bare.items:
        object.__setattr__(row, "episode", None)
    with pytest.raises(InputError, match="belong to none"):
        temporal(bare, site="vision.0", k=K, cut=cut)  # type: ignore[arg-type]


def test_events_come_from_labels_or_from_the_gripper():
    def rows(labels=None, grip=None, steps=range(9)):
        return [
            SimpleNamespace(
                step=s,
                labels=labels(i) if labels else {},
                action=None if grip is None else np.array([0.1, grip[i]]),
            )
            for i, s in enumerate(steps)
        ]

    of = lambda **options: events_of(rows(**options))  # type: ignore[arg-type]  # noqa: E731
    assert of(labels=lambda i: {"event.lift": 5, "event.close": 3, "event.late": 8}) == {
        "close": 4,
        "lift": 6,
    }
    assert of(labels=lambda i: {"event.close": 5}, steps=range(0, 18, 2)) == {"close": 3}
    assert of(labels=lambda i: {"gripper_open": i < 4}) == {"gripper 1": 4}
    assert of(grip=[0, 0, 0, 1, 1, 1, 0, 0, 0]) == {"gripper 1": 4, "gripper 2": 7}
    assert of(grip=[1] * 9) == {} and of() == {}


def test_prompts_are_split_into_phrases_and_found_among_word_pieces():
    assert split_phrases("Put the red cup on the plate") == ["put", "the red cup", "on the plate"]
    assert split_phrases("pick up the cup") == ["pick up", "the cup"] and split_phrases("") == []
    pieces = ["<s>", "In:", " put", " the", " ob", "ject", " on", " the", " pad"]
    assert words_of(pieces, "the object") == [3, 4, 5] and words_of(pieces, "on the pad") == [6, 7, 8]
    assert words_of(pieces, "the cup") == []


def outcomes(*, n_won: int, n_lost: int, warn: int | None, seed: int = 0) -> list[Timeline]:
    """Two concepts that swing; failures leave the usual course `warn` frames before their end."""
    rng = np.random.default_rng(seed)
    out = []
    for e in range(n_won + n_lost):
        n = int(rng.integers(19, 27))
        share = 0.3 + 0.1 * np.sin(np.arange(n) / 4) + 0.01 * rng.normal(size=n)
        is_lost = e >= n_won
        if is_lost and warn is not None:
            share[n - 1 - warn :] += 0.5
        out.append(
            line(np.stack([share, 1 - share], 1), episode=e, success=not is_lost, events={"grasp": n // 2})
        )
    return out


def test_failures_that_announce_themselves_are_warned_of_in_time():
    lines = outcomes(n_won=17, n_lost=7, warn=5)
    found = early_warning(lines, n_permutations=99)
    assert found.caught.value == 1.0 and found.caught.found
    assert found.lead.value is not None and 5 <= found.lead.value <= 7
    assert found.caught.controls["false alarms in successes"] <= 0.1
    longest = found.caught.details["most_frames_judged"]
    for one in lines:
        judged = found.oddity[one.episode][: min(longest, one.n_frames - 1)]
        over = np.flatnonzero(judged > found.thresholds[one.episode])
        assert len(found.oddity[one.episode]) == one.n_frames
        assert found.alarms[one.episode] == (over[0] if len(over) else None)
    late = compare_outcomes(lines, n_permutations=99)
    assert all(r.found for r in late) and late[0].value is not None and late[0].value > 0.3
    assert late[0].details["time"] > 0.8
    assert late[0].interval is not None and late[0].interval[0] <= late[0].value <= late[0].interval[1]
    assert late[0].interval[1] - late[0].interval[0] < 0.3


def test_outcomes_without_a_difference_are_rarely_told_apart():
    false = warned = 0
    for trial in range(200):
        lines = outcomes(n_won=10, n_lost=5, warn=None, seed=trial)
        false += any(r.found for r in compare_outcomes(lines, n_permutations=59, seed=trial))
        warned += early_warning(lines, n_permutations=19, seed=trial).caught.found
    assert false <= 16 and warned <= 16, (false, warned)


def wandering(rng, *, lengths, success) -> list[Timeline]:
    """Three concepts whose shares walk at random, by the same rule whatever the outcome."""
    out = []
    for e, (n, won) in enumerate(zip(lengths, success, strict=True)):
        share = np.exp(0.5 * rng.normal(size=(n, 3)).cumsum(0))
        out.append(line(share / share.sum(1, keepdims=True), episode=e, success=won))
    return out


def test_failures_that_only_last_longer_do_not_announce_themselves():
    warned = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        lengths = [*rng.integers(15, 25, 15).tolist(), *[60] * 8]
        lines = wandering(rng, lengths=lengths, success=[True] * 15 + [False] * 8)
        warned += early_warning(lines, n_permutations=39, seed=trial).caught.found
    assert warned <= 5, f"{warned} of 40; 2 are expected"


def test_the_interval_at_the_moment_of_the_largest_difference_holds_0_where_nothing_differs():
    without = total = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        lines = wandering(rng, lengths=rng.integers(15, 25, 20).tolist(), success=np.arange(20) < 12)
        for result in compare_outcomes(lines, n_permutations=19, seed=trial):
            assert result.interval is not None and result.interval[0] <= result.value <= result.interval[1]
            without += not result.interval[0] <= 0 <= result.interval[1]
            total += 1
    assert without <= 0.12 * total, f"{without} of {total} intervals leave out 0; 5 in 100 are expected"


def test_alignment_and_too_few_outcomes():
    lines = outcomes(n_won=5, n_lost=2, warn=3)
    aligned = align(lines, event="grasp")
    for curve, one in zip(aligned.curves, lines, strict=True):
        zero = int(np.flatnonzero(aligned.time == 0)[0])
        np.testing.assert_array_equal(curve[zero], one.occupancy[one.events["grasp"]])
        assert np.isfinite(curve[:, 0]).sum() == one.n_frames
    stretched = align(lines, n_bins=13)
    np.testing.assert_allclose(stretched.curves[:, -1, 0], [one.occupancy[-1, 0] for one in lines], rtol=1e-6)
    with pytest.raises(InputError, match="event 'drop'; known are grasp"):
        align(lines, event="drop")
    assert "5 successes and 2 failures" in early_warning(lines).caught.reason
    assert "2 failures" in compare_outcomes(lines)[0].reason
    with pytest.raises(InputError, match="false_alarms"):
        early_warning(lines, false_alarms=0)


def test_phrases_that_differ_between_episodes_are_named_as_examples(tmp_path):
    run, cut = make(tmp_path)
    for row in run.items[23:]:
        object.__setattr__(row, "prompt", "put the pad on the pad")
    found = temporal(run, site="vision.0", k=K, cut=cut, words_site="language.0", n_permutations=19)  # type: ignore[arg-type]
    shown = ("'put'", "such as 'the object'", "'on the pad'")
    assert {r.name for r in found.phrases} == {f"phrase {i} ({p}) / grasp" for i, p in enumerate(shown, 1)}


def test_phrases_need_prompts(tmp_path):
    run, _ = make(tmp_path)
    (result,) = phrase_results(
        run, [line(np.zeros((9, 2)), episode=0, changes=np.zeros(0, int))], site="language.0"
    )  # type: ignore[arg-type]
    assert "no episode has a prompt" in result.reason
