"""OpenVLA: DINOv2 and SigLIP side by side, projected into a Llama that answers in action tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError, ModelNotFoundError
from ...items.item import Item
from ..actions import ActionBins
from ..batch import Batch, Response
from ..decode import greedy
from ..family import Assets, Family, register
from ..hooks import Hooks
from ..images import HALF, IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from ..layout import KINDS, TokenLayout, concat, grid_tokens, plain_tokens
from ..padding import Letterbox
from ..replies import action_reply
from ..sites import Site
from ..structure import block_sites, first_path, has, module_width, pair
from ..text import Words, fill_template, pad_right

OPENVLA_PROMPT = "In: What action should the robot take to {prompt}?\nOut:"
OPENVLA_NEEDS = (
    "The code that comes with the published checkpoints was written for transformers 4.40.1 and tokenizers 0.19.1, "
    "and stops unless timm is 0.9.10, 0.9.11, 0.9.12 or 0.9.16 (with the torchvision of your PyTorch's release). "
    "Under transformers 5 its class also lacks what is asked for now (`_supports_sdpa`, `tie_weights` with "
    "arguments), which has to be put right in a copy of the checkpoint's modeling_prismatic.py. vlascope needs neither "
    "its `generate` nor its processor. Its tests run on a stand-in with the same modules and calls."
)
EMPTY_PIECE = "\u2581"
"""The piece that Llama's tokenizer puts before a word: OpenVLA was trained with it after the prompt's colon."""

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


@register
class OpenVLAFamily(Family):
    """OpenVLA and other Prismatic models (`trust_remote_code`).

    Towers are named `vision.dino.N` and `vision.siglip.N` (`vision.N` when there is one); the language model reads
    the 16 x 16 patches of one camera after the first token and before the text. Answers are decoded here, step by
    step: under transformers 5 the checkpoint's own `generate` is missing, and with a mixin it does not look at the
    image. The dataset whose statistics give the actions their units is chosen with `model.use_dataset(NAME)`
    where there are several.

    The features come from the last block but one of each tower: the last block runs, but nothing reads it.
    """

    name = "openvla"
    model_types = ("openvla", "prismatic")
    examples = ("openvla/openvla-7b", "openvla/openvla-7b-finetuned-libero-spatial")
    summary = "OpenVLA: two vision towers, a language model, action tokens (needs trust_remote_code)"
    reads_text = True
    answers = True
    notes = OPENVLA_NEEDS

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        self.config = config
        backbone = first_path(module, ["vision_backbone"], needed_for="vision backbone")
        paths = [f"{backbone}.featurizer", f"{backbone}.fused_featurizer"]
        self.backbone = backbone
        self.towers = [_Tower(module, path) for path in paths if has(module, path)]
        if not self.towers:
            raise ModelNotFoundError(f"{type(module).__name__} has no '{paths[0]}'; is it a Prismatic model?")
        if len(self.towers) == 1:
            self.towers[0].name = "vision"
        self.transforms = _transforms(assets.image_config, config, [tower.size for tower in self.towers])
        self.language = first_path(
            module, ["language_model.model", "language_model"], needed_for="language model"
        )
        self.blocks = first_path(module, [f"{self.language}.layers"], needed_for="list of language blocks")
        self.words = Words(assets.tokenizer) if assets.tokenizer is not None else None
        self.template = str(getattr(config, "vlascope_prompt", None) or OPENVLA_PROMPT)
        self.stats: Mapping[str, Any] = getattr(config, "norm_stats", None) or {}
        self.bins = ActionBins.from_config(config) if len(self.stats) == 1 else None

    @classmethod
    def load_module(
        cls,
        name: str,
        *,
        config: Any,
        dtype: torch.dtype | str,
        revision: str | None,
        trust_remote_code: bool,
        placement: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Load the class that comes with the checkpoint: transformers 5 has no auto class for it any more."""
        try:
            model_class = cls.module_class(
                config, source=name, trust_remote_code=trust_remote_code, revision=revision
            )
            return model_class.from_pretrained(
                name, dtype=dtype, revision=revision, output_loading_info=True, **placement
            )
        except (ImportError, NotImplementedError, AttributeError, TypeError) as error:
            # What the checkpoint's code raises beside versions that it was not written for.
            raise ModelNotFoundError(
                f"the code that comes with '{name}' does not run here ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}). {OPENVLA_NEEDS}"
            ) from error

    @classmethod
    def module_class(
        cls, config: Any, *, source: str, trust_remote_code: bool = False, revision: str | None = None
    ) -> Any:
        references: Mapping[str, str] = getattr(config, "auto_map", None) or {}
        reference = references.get("AutoModelForVision2Seq") or references.get("AutoModelForImageTextToText")
        if reference is None or not trust_remote_code:
            raise ModelNotFoundError(
                f"'{source}' runs code that comes with the checkpoint. If you trust its authors, load it with "
                "trust_remote_code=True (`--trust-remote-code`)."
            )
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(reference, source, revision=revision)

    def use_dataset(self, name: str) -> None:
        self.bins = ActionBins.from_config(self.config, dataset=name)

    def sites(self) -> list[Site]:
        sites: list[Site] = []
        for tower in self.towers:
            sites += block_sites(
                self.module, blocks=tower.blocks, name=tower.name, layout=tower.name, width=tower.width
            )
        width = int(self.config.text_config.hidden_size)
        sites.append(Site(name="projector", module_path="projector", layout="projector", width=width))
        return sites + block_sites(
            self.module, blocks=self.blocks, name="language", layout="language", width=width
        )

    @property
    def layout_roots(self) -> dict[str, str]:
        roots = {tower.path: tower.name for tower in self.towers}
        return roots | {"projector": "projector", self.language: "language"}

    def must_fire(self) -> dict[str, str]:
        return {f"{tower.blocks}.0": "a vision tower did not look at the image" for tower in self.towers}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        for item in items:
            if item.prompt is None:
                raise InputError(
                    f"item '{item.item_id}' has no prompt; this model needs an instruction, such as "
                    '"pick up the red block". Set Item.prompt.'
                )
        layouts: dict[str, list[TokenLayout]] = {tower.name: [] for tower in self.towers}
        layouts |= {"projector": [], "language": []}
        ids, pixels = [], []
        for i, item in enumerate(items):
            image = item.image
            pixels.append(np.concatenate([transform(image) for transform in self.transforms]))
            for tower, transform in zip(self.towers, self.transforms, strict=True):
                layouts[tower.name].append(tower.layout(transform.frame(*image.shape[:2])))
            patches = self.towers[0].patches(self.transforms[0].frame(*image.shape[:2]))
            text, layout = self._text(item.prompt or "")
            if answers is not None and answers[i].token_ids:
                text, layout = self._with_answer(text, layout, answers[i].token_ids)
            ids.append(text)
            layouts["projector"].append(patches)
            layouts["language"].append(concat([_part(layout, 0, 1), patches, _part(layout, 1, len(layout))]))
        assert self.words is not None
        pad_id = self.words.tokenizer.pad_token_id
        input_ids = torch.from_numpy(pad_right(ids, pad_id=0 if pad_id is None else pad_id))
        length = torch.tensor([len(row) for row in ids])
        return Batch(
            inputs={
                "input_ids": input_ids,
                "attention_mask": (torch.arange(input_ids.shape[1])[None] < length[:, None]).long(),
                "pixel_values": torch.from_numpy(np.stack(pixels)),
            },
            layouts=layouts,
            rows={
                name: [((i, 0, len(part)),) for i, part in enumerate(parts)]
                for name, parts in layouts.items()
            },
            item_ids=tuple(item.item_id for item in items),
            prompts=tuple(item.prompt for item in items),
            answers=tuple(answers) if answers is not None else None,
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        wanted = {site.layout for site in sites}
        if sites and "language" not in wanted:
            # The language model cannot change what is upstream of it.
            patches = self.module.get_submodule(self.backbone)(batch.inputs["pixel_values"])
            if "projector" in wanted:
                self.module.get_submodule("projector")(patches)
            return
        self._run(batch.inputs, use_cache=False)

    def reaches(self, site: Site, *, asked: Sequence[Site]) -> bool:
        wanted = {other.layout for other in asked}
        if not wanted or "language" in wanted:
            return True
        return site.layout in wanted if site.layout in ("language", "projector") else True

    def respond(self, batch: Batch, *, hooks: Hooks, max_new_tokens: int) -> list[Response]:
        assert self.words is not None
        if self.bins is None:
            self.bins = ActionBins.from_config(self.config)  # raises, and lists the datasets
        text, n_patches = batch.inputs["input_ids"], len(batch.layouts["projector"][0])
        # Seen from the decoding loop the patches are tokens too: positions then are those of the sites.
        whole = torch.cat([text[:, :1], text[:, :1].expand(-1, n_patches), text[:, 1:]], dim=1)

        def step(
            input_ids: Tensor,
            *,
            attention_mask: Tensor | None,
            position_ids: Tensor | None,
            past_key_values: Any,
            last: Tensor,
        ) -> tuple[Tensor, Any]:
            if past_key_values is None:
                out = self._run(batch.inputs, use_cache=True)
            else:
                # Not through the model itself: it asks for batches of one here.
                out = self.module.get_submodule("language_model")(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=past_key_values,
                    use_cache=True,
                    return_dict=True,
                )
            return out.logits[torch.arange(len(last), device=last.device), last], out.past_key_values

        eos = self.words.tokenizer.eos_token_id
        eos_ids = frozenset(() if eos is None else (eos,))
        answers = greedy(
            step,
            input_ids=whole,
            lengths=[rows[0][2] for rows in batch.rows["language"]],
            hooks=hooks,
            eos_ids=eos_ids,
            max_new_tokens=self.bins.dof,
        )
        return [action_reply(ids, words=self.words, bins=self.bins, eos_ids=eos_ids) for ids in answers]

    def _run(self, inputs: Mapping[str, Tensor], *, use_cache: bool) -> Any:
        return self.module(
            **inputs,
            use_cache=use_cache,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
        )

    def _text(self, prompt: str) -> tuple[list[int], TokenLayout]:
        if self.words is None:
            raise InputError(
                "this model reads text but no tokenizer came with it; load it by name or folder, or pass "
                "processor= to vlascope.load()."
            )
        ids = self.words.encode(fill_template(self.template, prompt.lower()))
        tokenizer = self.words.tokenizer
        empty = tokenizer.convert_tokens_to_ids(EMPTY_PIECE)
        if empty is not None and empty != tokenizer.unk_token_id and ids[-1] != empty:
            ids.append(int(empty))
        layout = self.words.layout(ids)
        # The empty piece is not a word: a name that can be shown.
        text = tuple(word if word.strip(f" {EMPTY_PIECE}") else EMPTY_PIECE for word in layout.text)
        return ids, TokenLayout(**{**vars(layout), "text": text})

    def _with_answer(
        self, ids: list[int], layout: TokenLayout, answer: Sequence[int]
    ) -> tuple[list[int], TokenLayout]:
        assert self.words is not None
        tail = self.words.layout(answer)
        bins = self.bins
        if bins is None and self.stats:  # which ids are actions is the same for all datasets
            bins = ActionBins.from_config(self.config, dataset=next(iter(self.stats)))
        if bins is not None:
            tail.kind[bins.is_action(answer)] = KINDS.index("action")
        return [*ids, *answer], concat([layout, tail])


class _Tower:
    """One of timm's vision transformers, as Prismatic models hold them."""

    def __init__(self, module: nn.Module, path: str) -> None:
        tower: Any = module.get_submodule(path)
        self.path = path
        self.blocks = first_path(module, [f"{path}.blocks"], needed_for="list of vision blocks")
        self.width = int(getattr(tower, "embed_dim", 0)) or module_width(tower.norm)
        n_class = 1 if getattr(tower, "cls_token", None) is not None else 0
        register = getattr(tower, "reg_token", None)
        self.prefix = ["class"] * n_class + ["register"] * (0 if register is None else int(register.shape[1]))
        self.name = "vision.dino" if self.prefix else "vision.siglip"
        self.grid = pair(tower.patch_embed.grid_size)
        patch = pair(tower.patch_embed.patch_size)
        self.size = (self.grid[0] * patch[0], self.grid[1] * patch[1])

    def patches(self, frame: tuple[float, float, float, float]) -> TokenLayout:
        return grid_tokens(*self.grid, frame=frame)

    def layout(self, frame: tuple[float, float, float, float]) -> TokenLayout:
        heads = [plain_tokens(kind, [f"<{kind}>"]) for kind in self.prefix]
        for head in heads:
            head.camera[:] = 0
            head.tile[:] = 0
        return concat([*heads, self.patches(frame)])


def _transforms(
    image_config: Mapping[str, Any], config: Any, sizes: Sequence[tuple[int, int]]
) -> list[ImageTransform | Letterbox]:
    """Return one preprocessing per tower, from `preprocessor_config.json` where there is one."""
    strategy = image_config.get("image_resize_strategy") or getattr(config, "image_resize_strategy", None)
    strategy = strategy or "resize-naive"
    n = len(sizes)
    usual = [(IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF)] if n == 2 else [(HALF, HALF)]
    means = image_config.get("means") or [mean for mean, _ in usual]
    stds = image_config.get("stds") or [std for _, std in usual]
    filters = image_config.get("interpolations") or ["bicubic"] * n
    out: list[ImageTransform | Letterbox] = []
    for size, mean, std, name in zip(sizes, means, stds, filters, strict=True):
        common = {"mean": tuple(mean), "std": tuple(std), "resample": _RESAMPLE[name]}
        cut = ImageTransform(shortest_edge=min(size), crop_hw=size, **common)
        if strategy == "resize-naive":
            out.append(ImageTransform(size_hw=size, **common))
        elif strategy == "resize-crop":
            out.append(cut)
        elif strategy == "letterbox":
            # The colour of the border is the last tower's mean, for all of them.
            r, g, b = (int(value * 255) for value in means[-1])
            out.append(Letterbox(inner=cut, fill=(r, g, b)))
        else:
            raise InputError(
                f"the checkpoint resizes images by '{strategy}'; known are resize-naive, resize-crop and letterbox."
            )
    return out


def _part(layout: TokenLayout, first: int, end: int) -> TokenLayout:
    """Return the rows first..end of a layout."""
    return TokenLayout(**{name: column[first:end] for name, column in vars(layout).items()})
