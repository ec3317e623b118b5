"""LLaVA: image tokens of a vision tower, projected into the sequence of a language model.

Also models that act through action tokens, in OpenVLA's convention (`norm_stats` in their configuration).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...items.item import Item
from ..actions import ActionBins
from ..batch import Batch, Response
from ..decode import greedy
from ..family import Assets, Family, register
from ..hooks import Hooks
from ..images import ImageTransform
from ..layout import KINDS, TokenLayout, concat
from ..sites import Site
from ..structure import block_sites, first_path
from ..text import Words, expand, fill_template, pad_right
from ..vision import VisionTower, usual_transform

_log = logging.getLogger(__name__)

LLAVA_PROMPT = "USER: <image>\n{prompt} ASSISTANT:"


@register
class LlavaFamily(Family):
    """LLaVA-1.5 and every checkpoint of the class `LlavaForConditionalGeneration`.

    The prompt's form is the configuration's `vlascope_prompt`, else the checkpoint's chat template, else that
    of LLaVA-1.5. An item without a prompt gets the configuration's `vlascope_default_prompt`.
    """

    name = "llava"
    model_types = ("llava",)
    examples = ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf")
    summary = "LLaVA-1.5 and robot models of its class, such as the embedded mini-vla"
    reads_text = True
    answers = True

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        self.config = config
        vision_root = first_path(module, ["model.vision_tower", "vision_tower"], needed_for="vision tower")
        self.projector = first_path(
            module, ["model.multi_modal_projector", "multi_modal_projector"], needed_for="projector"
        )
        self.language = first_path(
            module,
            ["model.language_model", "language_model.model", "language_model"],
            needed_for="language model",
        )
        self.blocks = first_path(module, [f"{self.language}.layers"], needed_for="list of language blocks")
        default = usual_transform(config.vision_config)
        self.vision = VisionTower(
            module,
            config=config.vision_config,
            root=vision_root,
            transform=ImageTransform.from_config(assets.image_config, default=default),
        )
        self.skip = 1 if config.vision_feature_select_strategy == "default" else 0
        self.words = Words(assets.tokenizer) if assets.tokenizer is not None else None
        self.template = self._read_template()
        self.default_prompt = getattr(config, "vlascope_default_prompt", None) or "Describe the image."
        self.n_cameras = max(1, self.template.count("<image>"))
        self.bins = ActionBins.from_config(config) if getattr(config, "norm_stats", None) else None
        self.eos_ids = self._read_eos()
        self._has_warned = False

    def sites(self) -> list[Site]:
        width = int(self.config.text_config.hidden_size)
        projector = Site(name="projector", module_path=self.projector, layout="projector", width=width)
        language = block_sites(
            self.module, blocks=self.blocks, name="language", layout="language", width=width
        )
        return [*self.vision.sites(), projector, *language]

    @property
    def layout_roots(self) -> dict[str, str]:
        return {self.vision.root: "vision", self.projector: "projector", self.language: "language"}

    def must_fire(self) -> dict[str, str]:
        return {f"{self.vision.blocks}.0": "the vision tower did not look at the image"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        for item in items:
            if len(item.images) < self.n_cameras:
                raise InputError(
                    f"item '{item.item_id}' has {len(item.images)} image(s); this model reads {self.n_cameras}."
                )
            if len(item.images) > self.n_cameras and not self._has_warned:
                _log.warning(
                    "items have %d cameras; this model reads the first %d", len(item.images), self.n_cameras
                )
                self._has_warned = True
        pixels, vision_layouts, vision_rows = self.vision.batch(items, cameras=self.n_cameras)
        prompts = tuple(self.default_prompt if item.prompt is None else item.prompt for item in items)
        ids, layouts, projected = [], [], []
        for i, item in enumerate(items):
            images = [
                _rows_of(self.vision.layout(*image.shape[:2], camera=camera), self.skip)
                for camera, image in enumerate(item.images[: self.n_cameras])
            ]
            prompt_ids, layout = self._sequence(prompts[i], images)
            if answers is not None:
                prompt_ids, layout = self._with_answer(prompt_ids, layout, answers[i])
            ids.append(prompt_ids)
            layouts.append(layout)
            projected.append(concat(images))
        n_image = [[place[2] - self.skip for place in places] for places in vision_rows]
        return Batch(
            inputs=self._inputs(ids, pixels),
            layouts={"vision": vision_layouts, "projector": projected, "language": layouts},
            rows={
                "vision": vision_rows,
                "projector": [
                    tuple((place[0], 0, n) for place, n in zip(places, counts, strict=True))
                    for places, counts in zip(vision_rows, n_image, strict=True)
                ],
                "language": [((i, 0, len(row)),) for i, row in enumerate(ids)],
            },
            item_ids=tuple(item.item_id for item in items),
            prompts=prompts,
            answers=tuple(answers) if answers is not None else None,
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        inner = self.module.get_submodule("model")
        if sites and all(site.layout in ("vision", "projector") for site in sites):
            # The language model cannot change what is upstream of it.
            inner.get_image_features(  # type: ignore[operator]
                pixel_values=batch.inputs["pixel_values"],
                vision_feature_layer=self.config.vision_feature_layer,
                vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            )
            return
        inner(**batch.inputs, use_cache=False)

    def respond(self, batch: Batch, *, hooks: Hooks, max_new_tokens: int) -> list[Response]:
        if self.words is None:
            raise self._no_tokenizer()
        lengths = [rows[0][2] for rows in batch.rows["language"]]
        pixels = batch.inputs["pixel_values"]

        def step(
            input_ids: Tensor, *, past_key_values: Any, last: Tensor, **inputs: Any
        ) -> tuple[Tensor, Any]:
            first = past_key_values is None
            out = self.module.get_submodule("model")(
                input_ids=input_ids,
                pixel_values=pixels if first else None,
                past_key_values=past_key_values,
                use_cache=True,
                **inputs,
            )
            hidden = out.last_hidden_state[torch.arange(len(last), device=last.device), last]
            return self.module.get_submodule("lm_head")(hidden), out.past_key_values

        answers = greedy(
            step,
            input_ids=batch.inputs["input_ids"],
            lengths=lengths,
            hooks=hooks,
            eos_ids=self.eos_ids,
            max_new_tokens=max_new_tokens,
        )
        return [self._response(ids) for ids in answers]

    def _response(self, ids: list[int]) -> Response:
        assert self.words is not None
        ended = bool(ids) and ids[-1] in self.eos_ids
        ids = ids[:-1] if ended else ids
        action, flags, action_ids, names = None, (), (), ()
        if self.bins is not None:
            is_action = self.bins.is_action(ids)
            action_ids = tuple(int(i) for i in np.asarray(ids, np.int64)[is_action])
            if action_ids:
                reply = self.bins.decode(ids)
                action, flags = reply.values, reply.problems
                names = self.bins.names or tuple(f"a{i}" for i in range(self.bins.dof))
        whole_action = action is not None and not flags
        if not ended and not whole_action:
            flags = (*flags, "length_limit")
        return Response(
            text=self.words.decode(ids),
            token_ids=tuple(ids),
            token_texts=tuple(self.words.text(i) for i in ids),
            action=action,
            action_names=names,
            action_ids=action_ids,
            action_bins=self.bins.numbers(action_ids) if self.bins is not None else (),
            flags=flags,
        )

    def _sequence(self, prompt: str, images: Sequence[TokenLayout]) -> tuple[list[int], TokenLayout]:
        """Return the ids of the whole prompt and what each of them is."""
        if self.words is None:
            raise self._no_tokenizer()
        image_id = _image_token_id(self.config)
        short = self.words.encode(fill_template(self.template, prompt))
        ids, starts = expand(short, image_id=image_id, n_tokens=[len(image) for image in images])
        parts, end = [], 0
        for start, image in zip(starts, images, strict=True):
            parts += [self.words.layout(ids[end:start]), image]
            end = start + len(image)
        return ids, concat([*parts, self.words.layout(ids[end:])])

    def _with_answer(
        self, ids: list[int], layout: TokenLayout, answer: Response
    ) -> tuple[list[int], TokenLayout]:
        """Append an answer's tokens; the last of them is read too, so the whole answer is fed in."""
        assert self.words is not None
        if not answer.token_ids:
            return ids, layout
        tail = self.words.layout(answer.token_ids)
        if self.bins is not None:
            tail.kind[self.bins.is_action(answer.token_ids)] = KINDS.index("action")
        return [*ids, *answer.token_ids], concat([layout, tail])

    def _inputs(self, ids: Sequence[Sequence[int]], pixels: Tensor) -> dict[str, Tensor]:
        assert self.words is not None
        tokenizer = self.words.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        input_ids = torch.from_numpy(pad_right(ids, pad_id=pad_id))
        inputs = {"input_ids": input_ids, "pixel_values": pixels}
        if any(len(row) != input_ids.shape[1] for row in ids):
            length = torch.tensor([len(row) for row in ids])
            inputs["attention_mask"] = (torch.arange(input_ids.shape[1])[None] < length[:, None]).long()
        return inputs

    def _read_template(self) -> str:
        for key in ("vlascope_prompt", "prompt_template"):
            if template := getattr(self.config, key, None):
                return str(template)
        chat = self.assets.chat_template or getattr(self.assets.tokenizer, "chat_template", None)
        if isinstance(chat, str):
            content = [{"type": "image"}, {"type": "text", "text": "{prompt}"}]
            return self.assets.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=chat,
                add_generation_prompt=True,
                tokenize=False,
            )
        return LLAVA_PROMPT

    def _read_eos(self) -> frozenset[int]:
        generation = getattr(self.module, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        if eos is None:
            eos = getattr(self.config.text_config, "eos_token_id", None)
        if eos is None and self.words is not None:
            eos = self.words.tokenizer.eos_token_id
        return frozenset([eos] if isinstance(eos, int) else eos or ())

    def _no_tokenizer(self) -> InputError:
        return InputError(
            "this model reads text but no tokenizer came with it; load it by name or folder, or pass "
            "processor= to vlascope.load()."
        )


def _rows_of(layout: TokenLayout, first: int) -> TokenLayout:
    """Return the layout without its first rows."""
    if not first:
        return layout
    return TokenLayout(
        kind=layout.kind[first:],
        row=layout.row[first:],
        col=layout.col[first:],
        camera=layout.camera[first:],
        tile=layout.tile[first:],
        text=layout.text[first:],
        box=layout.box[first:],
    )


def _image_token_id(config: Any) -> int:
    value = getattr(config, "image_token_id", None)
    return int(value if value is not None else config.image_token_index)
