"""The shipped weights do on fixed seeds what their model card says (computed in float32 on one thread)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vlascope

FOLDER = Path(vlascope.__file__).parent / "models" / "weights" / "mini-vla"
pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def policy() -> object:
    from vlascope.models import load
    from vlascope.models.policy import VLAPolicy

    return VLAPolicy(load(str(FOLDER), dtype="float32"))


def test_small_enough_and_complete() -> None:
    from transformers import LlavaForConditionalGeneration

    assert (FOLDER / "model.safetensors").stat().st_size <= 8e6
    model, info = LlavaForConditionalGeneration.from_pretrained(FOLDER, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.vision_config.image_size // model.config.vision_config.patch_size >= 14
    assert (
        model.config.vision_config.num_hidden_layers >= 6 and model.config.text_config.num_hidden_layers >= 6
    )


def test_picks_up_what_it_is_told(policy: object) -> None:
    from vlascope.sim import rollout

    result = rollout(policy, task="pick", n_episodes=8, seed=3_000_000)  # type: ignore[arg-type]
    assert result.successes >= 7, result.to_dict()
    assert result.wrong_lifted == 0


def test_puts_it_on_the_pad(policy: object) -> None:
    from vlascope.sim import rollout

    result = rollout(policy, task="place", n_episodes=4, seed=3_100_000)  # type: ignore[arg-type]
    assert result.successes >= 3, result.to_dict()


def test_answers_and_generate_and_packed_decoding_agree(policy: object, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    from training.mini_vla.batches import Frames
    from training.mini_vla.data import generate
    from training.mini_vla.evaluate import reload_check, still_pictures
    from training.mini_vla.settings import read_settings

    del policy
    torch.set_num_threads(1)
    generate(tmp_path, kind="teleport", n_frames=24, seed=31_337, processes=1)
    frames = Frames([tmp_path], patch_px=8)
    reload = reload_check(FOLDER, frames, n=6)
    assert reload["generate_equals_own_decode"] == [6, 6]
    model = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    settings = read_settings(changes={"batch.text_tokens": 110})
    seen = still_pictures(model, frames, settings=settings)
    grey = still_pictures(model, frames, settings=settings, control="grey")
    assert seen["answers"]["share"] >= 0.9 > grey["answers"]["share"]
    assert seen["swap"]["slope"] > 0.9 and abs(grey["swap"]["slope"]) < 0.4


def test_card_reports_what_was_measured() -> None:
    result = json.loads((FOLDER / "evaluation.json").read_text())
    card = (FOLDER / "MODEL_CARD.md").read_text()
    pick = result["closed_loop"]["pick"]
    assert f"{pick['successes']}/{pick['n']}" in card
    assert np.isclose(pick["share"], pick["successes"] / pick["n"])
