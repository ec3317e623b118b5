"""SmolVLA as LeRobot has it: SmolVLM and an expert that attends to itself and to SmolVLM by turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InputError
from ...items.item import Item
from ..family import register
from ..flow import FlowFamily, FlowParts, lerobot_kinds, patch_embedding
from ..padding import FitAndPad
from ..structure import first_path, has
from ..vision import BLOCKS
from .pi0 import required_prompt


@register
class SmolVLAFamily(FlowFamily):
    """LeRobot's `SmolVLAPolicy` (or the `VLAFlowMatching` inside it), loaded there and handed over.

    Tokens of the prefix: the shuffled patches of each camera (with special tokens around them if the checkpoint was
    trained so), the words, the state. No block is ever called, only the layers inside. In every second block of the
    expert the keys and values are made from the prefix: the sites `expert.1.k` and `expert.1.v` then show the
    prefix's tokens.
    """

    name = "smolvla"
    summary = "SmolVLA of LeRobot, loaded there and handed over"
    handed_over = ("lerobot/smolvla_base",)

    def __init__(self, module: nn.Module, *, assets: Any) -> None:
        self.dotted = "" if has(module, "vlm_with_expert") else "model."
        super().__init__(module, assets=assets)

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return any(has(module, f"{root}vlm_with_expert.lm_expert") for root in ("", "model."))

    @property
    def core(self) -> Any:
        """The module that samples actions."""
        return self.module.get_submodule(self.dotted[:-1])

    def read_parts(self) -> FlowParts:
        module, core = self.module, self.core
        config: Any = core.config
        stack = f"{self.dotted}vlm_with_expert"
        vision = first_path(module, [f"{stack}.vlm.model.vision_model"], needed_for="vision tower")
        if config.resize_imgs_with_padding is None:
            raise InputError(
                "this SmolVLA shows images at their own size (resize_imgs_with_padding is None); vlascope needs one "
                "size. Set policy.config.resize_imgs_with_padding = (width, height)."
            )
        width, height = config.resize_imgs_with_padding
        with_specials = bool(getattr(config, "add_image_special_tokens", False))
        return FlowParts(
            vision=vision,
            vision_blocks=first_path(
                module, [f"{vision}.{path}" for path in BLOCKS], needed_for="list of vision blocks"
            ),
            projector=first_path(module, [f"{stack}.vlm.model.connector"], needed_for="connector"),
            language=first_path(module, [f"{stack}.vlm.model.text_model"], needed_for="language model"),
            expert=first_path(module, [f"{stack}.lm_expert"], needed_for="action expert"),
            action_in=f"{self.dotted}action_in_proj",
            action_out=f"{self.dotted}action_out_proj",
            calls_blocks=False,
            calls_per_camera=True,
            state_in="prefix",
            chunk=int(config.chunk_size),
            n_steps=int(config.num_steps),
            state_dim=int(config.max_state_dim),
            action_dim=int(config.max_action_dim),
            patch=int(patch_embedding(module, vision).kernel_size[0]),
            shuffle=int(core.vlm_with_expert.config.scale_factor),
            n_cameras=len(getattr(config, "image_features", ())) or None,
            transform=FitAndPad(size_hw=(int(height), int(width)), anchor="bottom-right"),
            kinds=lerobot_kinds(config, "mean_std"),
            before=("<fake>", "<global>") if with_specials else (),
            after=("<fake>",) if with_specials else (),
            prefix_length=max(0, int(getattr(config, "prefix_length", 0) or 0)),
            cross_blocks=self._cross_blocks(config),
        )

    def tokens(self, item: Item, state: np.ndarray | None) -> list[int]:
        assert self.words is not None
        return self.words.encode(f"{required_prompt(item).rstrip()}\n")

    def sample(self, inputs: Mapping[str, Tensor], *, noise: Tensor, n_steps: int) -> Tensor:
        core = self.core
        images, masks = list(inputs["pixel_values"].unbind(1)), list(inputs["pixel_mask"].unbind(1))
        before = core.config.num_steps
        core.config.num_steps = n_steps  # the only place where it can be said
        try:
            # The class's function: an instance may hold a compiled one, which would pass by our hooks.
            return type(core).sample_actions(
                core, images, masks, inputs["input_ids"], inputs["text_mask"], inputs["state"], noise=noise
            )
        finally:
            core.config.num_steps = before

    def _cross_blocks(self, config: Any) -> tuple[int, ...]:
        """Return the numbers of the expert's blocks that attend to the prefix alone."""
        stack = self.core.vlm_with_expert
        if "cross" not in config.attention_mode:
            return ()
        n_expert = len(stack.lm_expert.layers)
        every = int(config.self_attn_every_n_layers)
        stride = max(1, len(stack.vlm.model.text_model.layers) // n_expert)
        return tuple(i for i in range(n_expert) if every <= 0 or (i * stride) % every)
