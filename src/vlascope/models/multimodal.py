"""Models that read images inside a text: what their families have in common.

One image becomes one or more rows of the vision tower (crops, tiles), one or more rows of the projector, and a
run of image tokens in the language model's sequence. A family says how (`ImageTextFamily.show`); this file puts
the sequence together, knows what each of its tokens is, and decodes answers.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from ..items.item import Item
from .actions import ActionBins
from .batch import Batch, Response
from .decode import greedy
from .family import Assets, Family
from .hooks import Hooks
from .images import Frame, ImageTransform
from .layout import KINDS, TokenLayout, concat, grid_tokens, plain_tokens
from .packed import Packing, one_after_another
from .replies import action_reply
from .sites import Site
from .structure import block_sites, first_path
from .text import Words, fill_template, pad_right

_log = logging.getLogger(__name__)
_UPSTREAM = ("vision", "projector")  # layouts that are computed before the language model


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one image becomes on its way into the language model.

    Attributes:
        pixels: Its part of the model's `pixel_values`, stacked along the first axis.
        tower: Layout of each of its rows of the vision tower, in order.
        projected: Layout of each of its rows of the projector, in order.
        sequence: Layout of its tokens in the language model's sequence, in order; the prompt holds one image
            placeholder for each.
        grid: How the image was cut: (rows, columns) of crops or of patches; the family says which.
    """

    pixels: Tensor
    tower: tuple[TokenLayout, ...]
    projected: tuple[TokenLayout, ...]
    sequence: TokenLayout
    grid: tuple[int, int] = (0, 0)


class ImageTextFamily(Family):
    """A vision tower, a projector and a language model that reads image tokens between words.

    The prompt's form is the configuration's `vlascope_prompt` (with as many image placeholders as the model
    shall read images), else the checkpoint's chat template, else the family's own. An item without a prompt
    gets the configuration's `vlascope_default_prompt`.

    Class attributes:
        image_word: The image placeholder in prompts.
        vision_paths, projector_paths, language_paths: Candidate paths of the parts.
        uses_chat_template: Whether the checkpoint's chat template is the form of its prompts.
        n_images: How many images of an item are read when the configuration has no `vlascope_prompt`; None
            for all of them.
        default_prompt: What is asked when an item has no prompt.
    """

    reads_text = True
    answers = True
    image_word: ClassVar[str] = "<image>"
    vision_paths: ClassVar[tuple[str, ...]] = ("model.vision_tower", "vision_tower")
    projector_paths: ClassVar[tuple[str, ...]] = ("model.multi_modal_projector", "multi_modal_projector")
    language_paths: ClassVar[tuple[str, ...]] = (
        "model.language_model",
        "language_model.model",
        "language_model",
    )
    uses_chat_template: ClassVar[bool] = True
    n_images: ClassVar[int | None] = None
    default_prompt: str = "Describe the image."

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        self.config = config
        self.vision_root = first_path(module, self.vision_paths, needed_for="vision tower")
        self.projector = first_path(module, self.projector_paths, needed_for="projector")
        self.language = first_path(module, self.language_paths, needed_for="language model")
        self.blocks = first_path(module, [f"{self.language}.layers"], needed_for="list of language blocks")
        self.head = first_path(module, ["lm_head", "language_model.lm_head"], needed_for="language head")
        self.words = Words(assets.tokenizer) if assets.tokenizer is not None else None
        self.default_prompt = getattr(config, "vlascope_default_prompt", None) or self.default_prompt
        self.bins = ActionBins.from_config(config) if getattr(config, "norm_stats", None) else None
        self.eos_ids = self._read_eos()
        self.template = lru_cache(maxsize=32)(self._read_template)
        self.packings = {"vision": Packing(), "projector": Packing()}
        self._has_warned = False

    # What each family says.

    @abstractmethod
    def show(self, image: NDArray[np.uint8], *, camera: int) -> Shown:
        """Return what an image [h, w, 3] becomes; `camera` is its place in its item."""

    @abstractmethod
    def vision_sites(self) -> list[Site]:
        """Return the sites of the vision tower."""

    @property
    @abstractmethod
    def vision_blocks(self) -> str:
        """Path of the list of blocks of the vision tower."""

    def default_template(self, n_images: int) -> str:
        """Return the form of a prompt with so many images when the checkpoint has none."""
        return f"USER: {self.image_word * n_images}\n{{prompt}} ASSISTANT:"

    def image_text(self, shown: Shown) -> str:
        """Return what stands in the prompt for an image: one placeholder per token, and any tags."""
        return self.image_word * len(shown.sequence)

    def image_inputs(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        """Return the model's inputs for all images of a batch, in order."""
        return {"pixel_values": torch.cat([one.pixels for one in shown])}

    def sequence_inputs(self, input_ids: Tensor, *, n_prompt: Sequence[int]) -> dict[str, Tensor]:
        """Return further inputs that go with the ids [b, t]; `n_prompt` tokens of each row are no answer."""
        return {}

    def mark(self, layout: TokenLayout, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
        """Name the tags around images in a layout, in place; `spans`: first and last image token per image."""

    def first_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return what the first pass of decoding needs beside ids and mask."""
        return {k: v for k, v in batch.inputs.items() if k not in ("input_ids", "attention_mask")}

    def later_inputs(self, batch: Batch, *, at: Tensor, is_ragged: bool) -> dict[str, Any]:
        """Return what later passes need; `at` int64 [b] is the place of the new token in each sequence."""
        return {"position_ids": at[:, None]} if is_ragged else {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt that holds all its image tokens."""
        assert self.words is not None
        return self.words.encode(text)

    # What follows from it.

    def sites(self) -> list[Site]:
        width = int(self.config.text_config.hidden_size)
        projector = Site(name="projector", module_path=self.projector, layout="projector", width=width)
        language = block_sites(
            self.module,
            blocks=self.blocks,
            name="language",
            layout="language",
            width=width,
        )
        return [self.packed(site) for site in (*self.vision_sites(), projector, *language)]

    def packed(self, site: Site) -> Site:
        """Return the site with what brings its tensor into the order of its layout, one row per item."""
        return replace(site, packing=self.packings.get(site.layout))

    def native_site(self, path: str) -> Site:
        return self.packed(super().native_site(path))

    def orders(self, batch: Batch, layout: str) -> list[Tensor]:
        """Return where the tokens of a layout, "vision" or "projector", lie: per item int64 [t]."""
        return one_after_another([torch.arange(len(one)) for one in batch.layouts[layout]])

    @property
    def layout_roots(self) -> dict[str, str]:
        return {self.vision_root: "vision", self.projector: "projector", self.language: "language"}

    def must_fire(self) -> dict[str, str]:
        return {f"{self.vision_blocks}.0": "the vision tower did not look at the image"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        prompts = tuple(self.default_prompt if item.prompt is None else item.prompt for item in items)
        shown = [
            [self.show(image, camera=camera) for camera, image in enumerate(self._images(item))]
            for item in items
        ]
        ids, layouts, n_prompt = [], [], []
        for i, images in enumerate(shown):
            row, layout = self._sequence(prompts[i], images)
            n_prompt.append(len(row))
            if answers is not None:
                row, layout = self._with_answer(row, layout, answers[i])
            ids.append(row)
            layouts.append(layout)
        by_name = {
            "vision": [concat([part for one in images for part in one.tower]) for images in shown],
            "projector": [concat([part for one in images for part in one.projected]) for images in shown],
            "language": layouts,
        }
        return Batch(
            inputs=self._inputs(ids, n_prompt, [one for images in shown for one in images]),
            layouts=by_name,
            rows={name: [((i, 0, len(one)),) for i, one in enumerate(own)] for name, own in by_name.items()},
            item_ids=tuple(item.item_id for item in items),
            prompts=prompts,
            answers=tuple(answers) if answers is not None else None,
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        self._pack(batch)
        inner: Any = self.module.get_submodule("model")
        if sites and all(site.layout in _UPSTREAM for site in sites):
            # The language model cannot change what is upstream of it.
            names = ("pixel_values", "image_sizes", "image_grid_thw")
            inner.get_image_features(**{k: batch.inputs[k] for k in names if k in batch.inputs})
            return
        inner(**batch.inputs, use_cache=False)

    def reaches(self, site: Site, *, asked: Sequence[Site]) -> bool:
        return site.layout in _UPSTREAM or not asked or any(other.layout not in _UPSTREAM for other in asked)

    def respond(self, batch: Batch, *, hooks: Hooks, max_new_tokens: int) -> list[Response]:
        if self.words is None:
            raise self._no_tokenizer()
        self._pack(batch)
        inner, head = self.module.get_submodule("model"), self.module.get_submodule(self.head)

        def step(
            input_ids: Tensor, *, attention_mask: Any, past_key_values: Any, last: Tensor, position_ids: Any
        ) -> tuple[Tensor, Any]:
            if past_key_values is None:
                more = self.first_inputs(batch)
            else:
                assert hooks.positions is not None
                more = self.later_inputs(batch, at=hooks.positions, is_ragged=position_ids is not None)
            out = inner(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=True,
                **more,
            )
            hidden = out.last_hidden_state[torch.arange(len(last), device=last.device), last]
            return head(hidden), out.past_key_values

        answers = greedy(
            step,
            input_ids=batch.inputs["input_ids"],
            lengths=[rows[0][2] for rows in batch.rows["language"]],
            hooks=hooks,
            eos_ids=self.eos_ids,
            max_new_tokens=max_new_tokens,
        )
        words, bins = self.words, self.bins
        return [action_reply(ids, words=words, bins=bins, eos_ids=self.eos_ids) for ids in answers]

    def _pack(self, batch: Batch) -> None:
        for name, packing in self.packings.items():
            packing.set(self.orders(batch, name))

    def _images(self, item: Item) -> Sequence[NDArray[np.uint8]]:
        """Return the images of an item that the model reads."""
        wanted = self._fixed_template().count(self.image_word) or self.n_images
        if wanted is None:
            return item.images
        if len(item.images) < wanted:
            raise InputError(
                f"item '{item.item_id}' has {len(item.images)} image(s); this model reads {wanted}."
            )
        if len(item.images) > wanted and not self._has_warned:
            _log.warning("items have %d cameras; this model reads the first %d", len(item.images), wanted)
            self._has_warned = True
        return item.images[:wanted]

    def _sequence(self, prompt: str, images: Sequence[Shown]) -> tuple[list[int], TokenLayout]:
        """Return the ids of the whole prompt and what each of them is."""
        if self.words is None:
            raise self._no_tokenizer()
        pieces = self.template(len(images)).split(self.image_word)
        if len(pieces) != len(images) + 1:
            raise InputError(
                f"the prompt template has {len(pieces) - 1} image places for {len(images)} image(s); need one "
                f"'{self.image_word}' per image."
            )
        inserted = [self.image_text(one) for one in images]
        text = pieces[0] + "".join(a + b for a, b in zip(inserted, pieces[1:], strict=True))
        ids = self.encode(fill_template(text, prompt))
        at = np.flatnonzero(np.asarray(ids, np.int64) == image_token_id(self.config))
        sizes = [len(one.sequence) for one in images]
        if len(at) != sum(sizes):
            raise InputError(
                f"the prompt has {len(at)} image tokens; its {len(images)} image(s) need {sum(sizes)}. Check that "
                f"the tokenizer knows '{self.image_word}' as one token, and that no prompt contains it."
            )
        layout = place(self.words.layout(ids), at, concat([one.sequence for one in images]))
        ends = np.cumsum(sizes)
        self.mark(
            layout, ids, [(int(at[end - n]), int(at[end - 1])) for end, n in zip(ends, sizes, strict=True)]
        )
        return ids, layout

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

    def _inputs(
        self, ids: Sequence[Sequence[int]], n_prompt: Sequence[int], shown: Sequence[Shown]
    ) -> dict[str, Tensor]:
        assert self.words is not None
        tokenizer = self.words.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        input_ids = torch.from_numpy(pad_right(ids, pad_id=pad_id))
        inputs = {"input_ids": input_ids, **self.image_inputs(shown)}
        if any(len(row) != input_ids.shape[1] for row in ids):
            length = torch.tensor([len(row) for row in ids])
            inputs["attention_mask"] = (torch.arange(input_ids.shape[1])[None] < length[:, None]).long()
        return inputs | self.sequence_inputs(input_ids, n_prompt=n_prompt)

    def _fixed_template(self) -> str:
        """Return the template that the configuration holds, "" when it holds none."""
        keys = ("vlascope_prompt", "prompt_template")
        return next((str(found) for key in keys if (found := getattr(self.config, key, None))), "")

    def _read_template(self, n_images: int) -> str:
        if fixed := self._fixed_template():
            return fixed
        chat = self.assets.chat_template or getattr(self.assets.tokenizer, "chat_template", None)
        if not (self.uses_chat_template and isinstance(chat, str)):
            return self.default_template(n_images)
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": "{prompt}"}]
        return self.assets.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=chat,
            add_generation_prompt=True,
            tokenize=False,
        )

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


def tower_tokens(
    rows: int, cols: int, *, frame: Frame, camera: int, tile: int = 0, prefix: Sequence[str] = ()
) -> TokenLayout:
    """Return one row of a vision tower: class and register tokens ("prefix"), then a grid over `frame`."""
    patches = grid_tokens(rows, cols, frame=frame, camera=camera, tile=tile)
    heads = plain_tokens("class", [f"<{kind}>" for kind in prefix])
    heads.kind[:] = [KINDS.index(kind) for kind in prefix]
    # They belong to a view of an image although they lie nowhere in it.
    heads.camera[:], heads.tile[:] = camera, tile
    return concat([heads, patches])


def take(layout: TokenLayout, rows: Any) -> TokenLayout:
    """Return the tokens `rows` (numbers, a slice or a mask) of a layout, in that order."""
    index = np.arange(len(layout))[rows]
    return TokenLayout(
        kind=layout.kind[index],
        row=layout.row[index],
        col=layout.col[index],
        camera=layout.camera[index],
        tile=layout.tile[index],
        text=tuple(layout.text[i] for i in index),
        box=layout.box[index],
    )


def place(layout: TokenLayout, at: NDArray[np.int64], tokens: TokenLayout) -> TokenLayout:
    """Return `layout` with the tokens at the rows `at` replaced by `tokens`, one for one."""
    source = np.arange(len(layout))
    source[at] = len(layout) + np.arange(len(tokens))
    return take(concat([layout, tokens]), source)


def values_transform(config: Mapping[str, Any], *, default: ImageTransform) -> ImageTransform:
    """Return the steps after resizing and cutting (scale, mean, std) that an image processor's file asks for."""
    keys = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")
    found = {key: config[key] for key in keys if config.get(key) is not None}
    return ImageTransform.from_config(found, default=default)


def resized(image: NDArray[np.uint8], height: int, width: int, *, resample: int) -> NDArray[np.uint8]:
    """Return a uint8 image [h, w, 3] at another size, by the PIL filter of that number."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), resample=Image.Resampling(resample)))


def image_token_id(config: Any) -> int:
    """Return the id of the image placeholder."""
    value = getattr(config, "image_token_id", None)
    return int(value if value is not None else config.image_token_index)
