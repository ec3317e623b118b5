"""Language models without images: GPT-2, Llama, Qwen and every decoder of the same build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...items.item import Item
from ..batch import Batch, Response
from ..decode import greedy
from ..family import Assets, Family, families, register
from ..hooks import Hooks
from ..layout import concat
from ..replies import action_reply
from ..sites import Site
from ..structure import LEAVES, block_sites, first_path, has, module_width
from ..text import Words, fill_template, pad_right

_BASES = ("model.decoder", "model", "transformer", "gpt_neox", "decoder")
_BLOCKS = ("layers", "h", "blocks")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_LEAVES = dict(LEAVES) | {
    "attn": (*LEAVES["attn"], "self_attn.dense", "attention.dense"),  # Phi, GPT-NeoX
}


@register
class TextFamily(Family):
    """Decoder-only language models; items need a prompt and no images.

    The prompt is read as it is; a checkpoint's chat template is not applied (`config.vlascope_prompt` may hold a
    template with {prompt} in it). Images of an item are not looked at.
    """

    name = "text"
    model_types = (
        "gpt2",
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "olmo",
        "olmo2",
        "smollm3",
        "stablelm",
        "starcoder2",
        "gpt_neox",
        "opt",
    )
    examples = ("openai-community/gpt2", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B")
    summary = "decoder-only language models: GPT-2, Llama, Qwen 2 and 3, Mistral, Gemma, Phi, OLMo"
    reads_text = True
    answers = True
    needs_image = False

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        config: Any = module.config
        self.config = config
        stacks = [f"{base}.{blocks}" for base in _BASES for blocks in _BLOCKS] + list(_BLOCKS)
        self.blocks = first_path(module, stacks, needed_for="list of language blocks")
        self.base = self.blocks.rpartition(".")[0]
        dotted = f"{self.base}." if self.base else ""
        self.embedding = first_path(
            module, [dotted + name for name in _EMBEDDINGS], needed_for="token embedding"
        )
        # GPT-2's blocks are called by its transformer, OPT's decoder by its model: the outermost one is run.
        self.runner = self.base.partition(".")[0]
        self.words = Words(assets.tokenizer) if assets.tokenizer is not None else None
        self.template = str(getattr(config, "vlascope_prompt", None) or "{prompt}")
        self.answers = module.get_output_embeddings() is not None  # type: ignore[misc, operator]
        self.eos_ids = _eos_ids(module, config, self.words)

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        known = {name for family in families().values() for name in family.model_types}
        return model_type is not None and model_type not in known and is_decoder(module)

    def sites(self) -> list[Site]:
        embedding = self.module.get_submodule(self.embedding)
        embed = Site(
            name="embed", module_path=self.embedding, layout="language", width=module_width(embedding)
        )
        blocks = block_sites(
            self.module,
            blocks=self.blocks,
            name="language",
            layout="language",
            width=int(self.config.hidden_size),
            leaves=_LEAVES,
        )
        return [embed, *blocks]

    @property
    def layout_roots(self) -> dict[str, str]:
        return {self.base: "language"}

    def must_fire(self) -> Mapping[str, str]:
        return {f"{self.blocks}.0": "the language model did not read the prompt"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        if self.words is None:
            raise InputError(
                "this model reads text but no tokenizer came with it; load it by name or folder, or pass "
                "processor= to vlascope.load()."
            )
        ids, layouts = [], []
        for i, item in enumerate(items):
            if item.prompt is None:
                raise InputError(
                    f"item '{item.item_id}' has no prompt, and this model reads nothing else. Give one: "
                    'vlascope.Item(item_id=..., images=(), prompt="...").'
                )
            row = self.words.encode(fill_template(self.template, item.prompt))
            if not row:
                raise InputError(
                    f"the prompt of item '{item.item_id}' has no tokens; give at least one word."
                )
            layout = self.words.layout(row)
            if answers is not None and answers[i].token_ids:
                layout = concat([layout, self.words.layout(answers[i].token_ids)])
                row = [*row, *answers[i].token_ids]
            self._check_length(len(row), item)
            ids.append(row)
            layouts.append(layout)
        pad_id = self.words.tokenizer.pad_token_id
        input_ids = torch.from_numpy(pad_right(ids, pad_id=0 if pad_id is None else pad_id))
        inputs = {"input_ids": input_ids}
        if any(len(row) != input_ids.shape[1] for row in ids):
            length = torch.tensor([len(row) for row in ids])
            inputs["attention_mask"] = (torch.arange(input_ids.shape[1])[None] < length[:, None]).long()
        return Batch(
            inputs=inputs,
            layouts={"language": layouts},
            rows={"language": [((i, 0, len(row)),) for i, row in enumerate(ids)]},
            item_ids=tuple(item.item_id for item in items),
            prompts=tuple(item.prompt for item in items),
            answers=tuple(answers) if answers is not None else None,
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        self.module.get_submodule(self.runner)(**batch.inputs, use_cache=False)

    def respond(self, batch: Batch, *, hooks: Hooks, max_new_tokens: int) -> list[Response]:
        assert self.words is not None
        head: Any = self.module.get_output_embeddings()  # type: ignore[operator]

        def step(
            input_ids: Tensor, *, past_key_values: Any, last: Tensor, **inputs: Any
        ) -> tuple[Tensor, Any]:
            out = self.module.get_submodule(self.runner)(
                input_ids=input_ids, past_key_values=past_key_values, use_cache=True, **inputs
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
        words = self.words
        return [action_reply(ids, words=words, bins=None, eos_ids=self.eos_ids) for ids in answers]

    def _check_length(self, n_tokens: int, item: Item) -> None:
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and n_tokens > limit:
            raise InputError(
                f"item '{item.item_id}' has {n_tokens} tokens; this model reads {limit}. Shorten the prompt."
            )


def is_decoder(module: nn.Module) -> bool:
    """Return whether a module is built like a decoder-only language model of transformers."""
    stacks = [f"{base}.{blocks}" for base in _BASES for blocks in _BLOCKS]
    stack = next((path for path in stacks if has(module, path)), None)
    if stack is None or not callable(getattr(module, "get_output_embeddings", None)):
        return False
    base = stack.rpartition(".")[0]
    return any(has(module, f"{base}.{name}") for name in _EMBEDDINGS)


def _eos_ids(module: nn.Module, config: Any, words: Words | None) -> frozenset[int]:
    for holder in (getattr(module, "generation_config", None), config):
        eos = getattr(holder, "eos_token_id", None)
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    eos = words.tokenizer.eos_token_id if words is not None else None
    return frozenset(() if eos is None else (eos,))
