"""pi0 as transformers has it: PaliGemma and an expert that denoises a chunk of actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import InputError
from ...items.item import Item
from ..family import register
from ..flow import FlowFamily, FlowParts, patch_embedding
from ..padding import FitAndPad
from ..structure import first_path
from ..vision import BLOCKS


@register
class Pi0Family(FlowFamily):
    """`PI0ForConditionalGeneration` of transformers.

    Tokens of the prefix: the patches of each camera, the beginning of the text, its words. The expert reads one
    state token and the actions. Text is padded to the longest of a batch; the padding is masked, so its length
    changes nothing.
    """

    name = "pi0"
    model_types = ("pi0",)
    summary = "pi0 of transformers: PaliGemma with an action expert, several cameras, a chunk of actions"

    def read_parts(self) -> FlowParts:
        config: Any = self.module.config
        vision = first_path(self.module, ["model.vlm.vision_tower"], needed_for="vision tower")
        blocks = first_path(
            self.module, [f"{vision}.{path}" for path in BLOCKS], needed_for="list of vision blocks"
        )
        size = int(config.vlm_config.vision_config.image_size)
        return FlowParts(
            vision=vision,
            vision_blocks=blocks,
            projector="model.vlm.multi_modal_projector",
            language="model.vlm.language_model",
            expert="model.dit",
            action_in="embed_action_time.action_in_proj",
            action_out="action_out_proj",
            calls_blocks=True,
            calls_per_camera=False,
            state_in="suffix",
            chunk=int(config.chunk_size),
            n_steps=int(config.num_inference_steps),
            state_dim=int(config.max_state_dim),
            action_dim=int(config.max_action_dim),
            patch=int(patch_embedding(self.module, vision).kernel_size[0]),
            transform=FitAndPad(size_hw=(size, size), anchor="top-left", smooth=True),
        )

    def tokens(self, item: Item, state: np.ndarray | None) -> list[int]:
        assert self.words is not None
        tokenizer = self.words.tokenizer
        ids = tokenizer(f"{required_prompt(item)}\n", add_special_tokens=False)["input_ids"]
        return [int(tokenizer.bos_token_id), *ids]

    def sample(self, inputs: Mapping[str, Tensor], *, noise: Tensor, n_steps: int) -> Tensor:
        config: Any = self.module.config
        text, mask = inputs["input_ids"], inputs["text_mask"]
        shown, parts = inputs["pixel_mask"], self.parts
        n_patches = (parts.transform.output_hw(1, 1)[0] // parts.patch) ** 2
        n_slots = int(shown.sum(1).max()) * n_patches
        # Placeholders only for the cameras that there are: the text follows at once, the padding is at the end.
        ids = text.new_full((len(text), n_slots + text.shape[1]), int(text[0, 0]))
        attend = mask.new_zeros(ids.shape)
        for row, (n_shown, n_words) in enumerate(
            zip(shown.sum(1).tolist(), mask.sum(1).tolist(), strict=True)
        ):
            start = n_shown * n_patches
            ids[row, :start] = int(config.vlm_config.image_token_id)
            ids[row, start : start + n_words] = text[row, :n_words]
            attend[row, : start + n_words] = True
        model: Any = self.module
        return type(model).sample_actions(
            model,
            state=inputs["state"],
            input_ids=ids,
            pixel_values=inputs["pixel_values"],
            noise=noise.to(inputs["pixel_values"].dtype),
            attention_mask=attend.long(),
            pixel_attention_mask=shown,
            num_steps=n_steps,
        )

    def _camera_slots(self, n_cameras: int, n_shown: int) -> int:
        return n_shown


def required_prompt(item: Item) -> str:
    """Return an item's instruction.

    Raises:
        InputError: it has none.
    """
    if item.prompt is None:
        raise InputError(
            f"item '{item.item_id}' has no prompt; this policy needs an instruction, such as "
            '"pick up the red block". Set Item.prompt.'
        )
    return item.prompt
