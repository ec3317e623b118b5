import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.sim import Perturbation, rollout, wilson_interval
from vlascope.sim.rollout import draw_task

pytest.importorskip("pybullet")
pytestmark = pytest.mark.sim


def lazy(rgb, instruction):
    return np.zeros(4), {"saw": rgb.mean(), "read": instruction}


def test_wilson_interval_matches_the_textbook():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert all(wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0 for n in range(1, 60))
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(InputError):
        wilson_interval(3, 2)


def test_a_lazy_policy_never_succeeds_and_reads_its_instruction():
    result = rollout(lazy, n_episodes=3, seed=50, max_steps=2, image_px=32)
    assert (result.n, result.successes) == (3, 0)
    assert result.failure_labels == {"never_lifted": 3} and result.wrong_lifted == 0
    for i, episode in enumerate(result.episodes):
        assert episode.infos[0]["read"] == episode.instruction.text == draw_task(50 + i, task="pick")[1].text
        assert episode.rgb is None
    assert result.to_dict()["n"] == 3 and sum(n for _, n in result.by_kind().values()) == 3


def test_perturbations_reach_the_policy():
    plain = rollout(lazy, n_episodes=1, seed=1, max_steps=1, image_px=32)
    darker = rollout(
        lazy, n_episodes=1, seed=1, max_steps=1, image_px=32, perturbation=Perturbation(brightness=0.5)
    )
    ratio = darker.episodes[0].infos[0]["saw"] / plain.episodes[0].infos[0]["saw"]
    assert ratio == pytest.approx(0.5, abs=0.01)
    changed = rollout(
        lazy,
        n_episodes=1,
        seed=1,
        max_steps=1,
        image_px=32,
        perturbation=Perturbation(
            image=lambda rgb, episode: np.full_like(rgb, 7), text=lambda text, episode: text.upper()
        ),
    )
    info = changed.episodes[0].infos[0]
    assert info["saw"] == 7 and info["read"] == plain.episodes[0].instruction.text.upper()


def test_steps_are_reported_and_pictures_kept():
    seen = []
    result = rollout(
        lazy,
        n_episodes=2,
        seed=3,
        max_steps=2,
        image_px=40,
        keep_frames=True,
        on_step=lambda episode, observation, action, info: seen.append(
            (episode, observation.step, info["read"])
        ),
    )
    assert [s[:2] for s in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert result.episodes[0].rgb.shape == (2, 40, 40, 3)


def test_kinds_can_be_fixed():
    kinds = (("red", "fragile"), ("blue", "rigid"))
    scene, instruction = draw_task(4, task="pick", kinds=list(kinds))
    assert tuple((o.colour, o.material) for o in scene.objects) == kinds and instruction.target == 0


def test_no_episodes_is_an_error():
    with pytest.raises(InputError, match="n_episodes"):
        rollout(lazy, n_episodes=0)


def test_a_perturbation_says_what_it_changes():
    assert Perturbation().name == ""
    named = Perturbation(
        brightness=0.5, camera_shift=(0.0, 0.12, 0.0), table="tiles", image=lambda rgb, i: rgb
    )
    assert named.name == "brightness x 0.5, camera moved by (0, 0.12, 0) m, table tiles, other pictures"
    assert Perturbation(text=lambda text, i: text).name == "other words"
