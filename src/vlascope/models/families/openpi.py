"""pi0 and pi0.5 as openpi's PyTorch port and LeRobot have them: one tree of modules, two ways to call it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...items.item import Item
from ..family import register
from ..flow import FlowFamily, FlowParts, lerobot_kinds, patch_embedding
from ..padding import FitAndPad
from ..structure import first_path, has
from ..vision import BLOCKS
from .pi0 import required_prompt

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""The cameras of openpi, in the order of an item's images; missing ones are masked."""


@register
class OpenPiFamily(FlowFamily):
    """`PI0Pytorch` of openpi, and LeRobot's `PI0Policy` and `PI05Policy` (or the `model` inside them).

    Load the policy with its own library and hand it over: `vlascope.load(policy, processor=...)`, with LeRobot's
    preprocessor (it holds tokenizer and statistics), or {"tokenizer": ..., "norm_stats": {"state": {...}, "actions":
    {...}}} with openpi's norm_stats.json.

    In training both stacks run in one joint pass that calls only the layers inside the blocks; so those are what
    the sites name. pi0.5 has no state token: the state is written into the text, in 256 steps.
    """

    name = "openpi"
    summary = "pi0 and pi0.5 of openpi and LeRobot, loaded there and handed over"
    handed_over = ("lerobot/pi0_base", "lerobot/pi05_base")

    def __init__(self, module: nn.Module, *, assets: Any) -> None:
        self.dotted = "" if has(module, "paligemma_with_expert") else "model."
        super().__init__(module, assets=assets)

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return any(has(module, f"{root}paligemma_with_expert.gemma_expert") for root in ("", "model."))

    @property
    def core(self) -> Any:
        """The module that samples actions."""
        return self.module.get_submodule(self.dotted[:-1])

    @property
    def is_pi05(self) -> bool:
        """Whether the state goes into the text, and time into the norms."""
        return not has(self.core, "state_proj")

    def read_parts(self) -> FlowParts:
        module, core = self.module, self.core
        config: Any = core.config
        stack = f"{self.dotted}paligemma_with_expert"
        gemma = [f"{stack}.paligemma.model", f"{stack}.paligemma"]

        def find(names: list[str], what: str) -> str:
            return first_path(module, [f"{root}.{name}" for root in gemma for name in names], needed_for=what)

        vision = find(["vision_tower"], "vision tower")
        patch = patch_embedding(module, vision)
        size = int(getattr(config, "image_resolution", (224, 224))[0])
        is_openpi = hasattr(core, "_preprocess_observation")
        number = self._number
        return FlowParts(
            vision=vision,
            vision_blocks=first_path(
                module, [f"{vision}.{path}" for path in BLOCKS], needed_for="list of vision blocks"
            ),
            projector=find(["multi_modal_projector"], "projector"),
            language=find(["language_model"], "language model"),
            expert=first_path(module, [f"{stack}.gemma_expert.model"], needed_for="action expert"),
            action_in=f"{self.dotted}action_in_proj",
            action_out=f"{self.dotted}action_out_proj",
            calls_blocks=False,
            calls_per_camera=True,
            state_in="text" if self.is_pi05 else "suffix",
            chunk=number(config, "chunk_size", "action_horizon"),
            n_steps=number(config, "num_inference_steps", default=10),
            state_dim=number(config, "max_state_dim", "action_dim"),
            action_dim=number(config, "max_action_dim", "action_dim"),
            patch=int(patch.kernel_size[0]),
            n_cameras=len(CAMERAS) if is_openpi else len(getattr(config, "image_features", ())) or None,
            transform=FitAndPad(size_hw=(size, size)),
            kinds=lerobot_kinds(config, "quantiles" if self.is_pi05 else "mean_std"),
        )

    def cameras_shown(self, n_given: int) -> int:
        return len(CAMERAS) if hasattr(self.core, "_preprocess_observation") else n_given

    def tokens(self, item: Item, state: np.ndarray | None) -> list[int]:
        assert self.words is not None
        text = required_prompt(item).strip().replace("_", " ").replace("\n", " ")
        if state is None:
            return self.words.encode(f"{text}\n")
        steps = np.digitize(state, np.linspace(-1.0, 1.0, 257)[:-1]) - 1
        return self.words.encode(f"Task: {text}, State: {' '.join(map(str, steps))};\nAction: ")

    def sample(self, inputs: Mapping[str, Tensor], *, noise: Tensor, n_steps: int) -> Tensor:
        core = self.core
        # The class's function: an instance may hold a compiled one, which would pass by our hooks.
        run = type(core).sample_actions
        images, masks = list(inputs["pixel_values"].unbind(1)), list(inputs["pixel_mask"].unbind(1))
        text, text_mask = inputs["input_ids"], inputs["text_mask"]
        state = inputs.get("state")
        takes = inspect.signature(run).parameters
        if "observation" in takes:
            if state is None:
                state = torch.zeros(len(text), self.parts.state_dim, device=text.device)  # not read by pi0.5
            observation = SimpleNamespace(
                images=dict(zip(CAMERAS, images, strict=True)),
                image_masks=dict(zip(CAMERAS, masks, strict=True)),
                state=state,
                tokenized_prompt=text,
                tokenized_prompt_mask=text_mask,
                token_ar_mask=None,
                token_loss_mask=None,
            )
            return run(core, text.device, observation, noise=noise, num_steps=n_steps)
        given = (images, masks, text, text_mask)
        if "state" in takes:
            return run(core, *given, state, noise=noise, num_steps=n_steps)
        return run(core, *given, noise=noise, num_steps=n_steps)

    @staticmethod
    def _number(config: Any, *names: str, default: int | None = None) -> int:
        for name in names:
            if (value := getattr(config, name, None)) is not None:
                return int(value)
        assert default is not None, f"the configuration has none of {names}"
        return default
