"""Checkpoints that another library has to load: recognised by their configuration, answered with the lines to run.

LeRobot and openpi keep a `config.json` of their own beside the weights. transformers would take some of them for
models of its own by their name alone ("pi0"), and fill what is missing with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEROBOT = {
    "pi0": ("lerobot.policies.pi0.modeling_pi0", "PI0Policy", "pi"),
    "pi05": ("lerobot.policies.pi05.modeling_pi05", "PI05Policy", "pi"),
    "smolvla": ("lerobot.policies.smolvla.modeling_smolvla", "SmolVLAPolicy", "smolvla"),
}
"""LeRobot's name of a policy -> module, class, and what `pip install "lerobot[...]"` needs."""

PAGE = "docs/how-to/own-model.md"


def advice(config: Mapping[str, Any], *, name: str) -> str | None:
    """Return how to load a checkpoint of LeRobot or openpi; None when it is none.

    Args:
        config: Content of its `config.json`.
        name: Folder or hub name.
    """
    if "model_type" in config:
        return None
    kind = config.get("type")
    if isinstance(kind, str) and kind in LEROBOT:
        module, cls, extra = LEROBOT[kind]
        return (
            f"'{name}' is a {kind} policy of LeRobot, which LeRobot's own class has to load. Where it is installed "
            f'(pip install "lerobot[{extra}]"), run:\n'
            f"    from lerobot.policies.factory import make_pre_post_processors\n"
            f"    from {module} import {cls}\n"
            f'    policy = {cls}.from_pretrained("{name}")\n'
            f'    preprocessor, _ = make_pre_post_processors(policy.config, pretrained_path="{name}")\n'
            f"    model = vlascope.load(policy, processor=preprocessor)\n"
            f"See {PAGE}."
        )
    if isinstance(kind, str) and {"input_features", "output_features"} & set(config):
        return (
            f"'{name}' is a policy of LeRobot of type '{kind}'; vlascope knows {', '.join(LEROBOT)}. Load it with "
            "LeRobot and use vlascope.wrap(policy, sites=..., layout=...)."
        )
    if "paligemma_variant" in config:
        return (
            f"'{name}' is a checkpoint of openpi, which openpi itself has to load. Where it is installed, run:\n"
            f"    from openpi.policies.policy_config import create_trained_policy\n"
            f"    from openpi.training.config import get_config\n"
            f'    policy = create_trained_policy(get_config("pi05_droid"), "{name}")   # the name of its training\n'
            f'    processor = {{"tokenizer": "google/paligemma-3b-pt-224", "norm_stats": ...}}\n'
            f"    model = vlascope.load(policy._model, processor=processor)\n"
            f"where norm_stats is the content of assets/*/norm_stats.json. See {PAGE}."
        )
    return None
