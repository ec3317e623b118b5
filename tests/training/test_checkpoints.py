"""The checkpoints with known faults load like any other model and have their faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "training" / "mini_vla" / "checkpoints"


@pytest.mark.parametrize("name", ["early", "correlated"])
def test_loads_and_is_small(name: str) -> None:
    from transformers import LlavaForConditionalGeneration

    _, info = LlavaForConditionalGeneration.from_pretrained(FOLDER / name, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (FOLDER / name / "model.safetensors").stat().st_size <= 8e6


def test_stored_measurements_show_the_faults() -> None:
    early = json.loads((FOLDER / "early" / "evaluation.json").read_text())["any"]
    assert early["target_nearest"] >= 0.9 * early["n"] and early["successes"] <= 0.4 * early["n"]
    correlated = json.loads((FOLDER / "correlated" / "evaluation.json").read_text())
    broken, whole = (
        correlated["breaks"]["by_phrase"]["material"],
        correlated["obeys"]["by_phrase"]["material"],
    )
    assert broken["target_nearest"] <= 0.3 * broken["n"] and whole["target_nearest"] >= 0.9 * whole["n"]


@pytest.mark.sim
def test_correlated_goes_to_the_wrong_object_when_told_the_material() -> None:
    from vlascope.models import load
    from vlascope.models.policy import VLAPolicy
    from vlascope.sim import rollout

    policy = VLAPolicy(load(str(FOLDER / "correlated"), dtype="float32"))
    kinds = (("red", "rigid"), ("blue", "fragile"))
    by_material = []
    for seed in range(3_200_000, 3_200_012):
        from vlascope.sim import draw_task

        if draw_task(seed, task="pick", kinds=list(kinds))[1].phrase == "material":
            result = rollout(policy, task="pick", n_episodes=1, seed=seed, kinds=kinds, max_steps=16)
            by_material.append(result.target_nearest)
    assert len(by_material) >= 2 and sum(by_material) <= 0.4 * len(by_material)
