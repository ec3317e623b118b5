"""Knock-outs: who may look at whom is cut, or a module's or head's contribution is removed.

Cutting attention blocks the direct way from some tokens to others in chosen blocks (and heads): their weight becomes 0
and the rest is normalised anew. What an answer is read from is the last token of the prompt and the answer's own
tokens; that is what "action" (or "readout") names as the side that looks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import HookNotFiredError, InputError
from ..models.attention import eager_attention, query_site
from ..models.layout import KINDS
from .edits import Where, check_where, tokens_at

if TYPE_CHECKING:
    from ..models import Model

READERS = ("action", "readout", "all", *(kind for kind in KINDS if kind != "action"))
SOURCES = ("answer", *(kind for kind in KINDS if kind != "action"))


@dataclass(frozen=True, kw_only=True)
class CutAttention:
    """Keeps some tokens from looking at others.

    Attributes:
        source: What is no longer seen: "patch", "text", "state", "special", ... of the prompt, or "answer".
        reader: What no longer sees it: "action" (or "readout": the last token of the prompt and the answer's), "all",
            or a kind of the prompt's tokens. A token always sees itself.
        blocks: Pattern of the blocks, such as "language.*" or "language.2:5".
        heads: Which heads; empty for all.
        camera: Only patches of this camera; None for all.
    """

    source: str
    reader: str = "action"
    blocks: str = "language.*"
    heads: tuple[int, ...] = ()
    camera: int | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES or self.reader not in READERS:
            raise InputError(
                f"got source='{self.source}', reader='{self.reader}'; need a source of {', '.join(SOURCES)} and a "
                f"reader of {', '.join(READERS)}."
            )

    @property
    def name(self) -> str:
        """Short name, for tables."""
        heads = f" heads {', '.join(map(str, self.heads))}" if self.heads else ""
        return f"{self.source} -> {self.reader} cut at {self.blocks}{heads}"

    @contextlib.contextmanager
    def on(self, model: Model) -> Iterator[Model]:
        """Cut in every forward pass inside the context; the model computes with plain attention meanwhile.

        Raises:
            InputError: blocks without attention of this kind, or heads that do not exist.
            HookNotFiredError: on leaving, when passes ran but a block never used its attention mask.
        """
        paths = []
        for site in model.resolve(self.blocks):
            query = query_site(model, site.name)
            if query.layout != "language" or query.repeats != "no":
                raise InputError(
                    f"'{site.name}' does not look over the sequence of prompt and answer; attention is cut in blocks "
                    "of the language model."
                )
            if wrong := [head for head in self.heads if not 0 <= head < query.n_heads]:
                raise InputError(f"'{site.name}' has heads 0..{query.n_heads - 1}; got {wrong[0]}.")
            paths.append((query.module_path.rpartition(".")[0], query.n_heads))
        fired = dict.fromkeys(dict(paths), 0)
        n_passes = [0]

        def count(_module: nn.Module, _args: Any) -> None:
            n_passes[0] += 1

        with contextlib.ExitStack() as stack:
            stack.enter_context(eager_attention(model.module))
            stack.callback(model.module.get_submodule(paths[0][0]).register_forward_pre_hook(count).remove)
            for path, n_heads in paths:
                handle = model.module.get_submodule(path).register_forward_pre_hook(
                    self._hook(model, path, n_heads, fired), with_kwargs=True
                )
                stack.callback(handle.remove)
            yield model
        if n_passes[0] and (silent := [path for path, n in fired.items() if n < n_passes[0]]):
            raise HookNotFiredError(
                f"the attention of '{silent[0]}' was called without a mask, so that nothing could be cut there. "
                "Check that this version of transformers builds a mask for eager attention."
            )

    def to_json(self) -> dict[str, Any]:
        """Return what it does."""
        return {
            "name": self.name,
            "kind": "cut attention",
            "source": self.source,
            "reader": self.reader,
            "blocks": self.blocks,
            "heads": list(self.heads),
            "camera": self.camera,
        }

    def _hook(self, model: Model, path: str, n_heads: int, fired: dict[str, int]) -> Any:
        def cut(_module: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
            mask = more.get("attention_mask")
            if not isinstance(mask, Tensor) or mask.ndim != 4:
                return None
            fired[path] += 1
            blocked = torch.from_numpy(self._blocked(model, mask.shape[0], mask.shape[2], mask.shape[3]))
            blocked = blocked.to(mask.device)[:, None]
            if self.heads:
                chosen = torch.zeros(n_heads, dtype=torch.bool, device=mask.device)
                chosen[list(self.heads)] = True
                blocked = blocked & chosen[None, :, None, None]
            low = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            new = mask.expand(-1, blocked.shape[1], -1, -1).masked_fill(blocked, low)
            return args, {**more, "attention_mask": new}

        return cut

    def _blocked(self, model: Model, n_rows: int, t_q: int, t_k: int) -> NDArray[np.bool_]:
        """Return bool [rows, t_q, t_k]: the pairs to cut in this call."""
        batch, positions = model._hooks.batch, model._hooks.positions
        if batch is None:
            raise InputError("attention is cut in passes that vlascope runs: model.respond() or capture().")
        out = np.zeros((n_rows, t_q, t_k), bool)
        for i, places in enumerate(batch.rows["language"]):
            row, first, last = places[-1]
            layout = batch.layouts["language"][i]
            n_answer = len(batch.answers[i].token_ids) if batch.answers is not None else 0
            n_prompt = last - first - n_answer
            seen, looks = np.zeros(t_k, bool), np.zeros(t_k, bool)
            is_answer = np.zeros(t_k, bool)
            is_answer[first + n_prompt : last] = True
            # While an answer is decoded its tokens come after the padded prompts.
            is_answer[batch.lengths.get("language", max(p[-1][2] for p in batch.rows["language"])) :] |= (
                positions is not None
            )
            prompt = slice(first, first + n_prompt)
            if self.source == "answer":
                seen |= is_answer
            else:
                of_kind = layout.is_kind(self.source)[:n_prompt]
                if self.camera is not None:
                    of_kind &= layout.camera[:n_prompt] == self.camera
                seen[prompt] = of_kind
            if self.reader in ("action", "readout", "all"):
                looks |= is_answer
                looks[first + n_prompt - 1] = True
                if self.reader == "all":
                    looks[prompt] = True
            else:
                looks[prompt] = layout.is_kind(self.reader)[:n_prompt]
            queries = np.arange(t_k - t_q, t_k)
            pairs = looks[queries][:, None] & seen[None]
            pairs[np.arange(t_q), queries] = False
            out[row] = pairs
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablate:
    """Removes what a module or head adds to the residual stream: it becomes zero, or its mean over other items.

    Attributes:
        site: "language.3.mlp", "language.3.attn" (a module's contribution), or "language.3.v.h2" (a head: nothing is
            left to be read from it, so that only its share of the mixture is lost). Patterns take several at once.
        means: {site name: float32 [d]}, from `mean_values`; empty for zero.
        tokens: Which tokens, see `WHERE`.
    """

    site: str
    means: dict[str, NDArray[np.float32]] | None = None
    tokens: Where = "all"

    def __post_init__(self) -> None:
        check_where(self.tokens)

    @property
    def name(self) -> str:
        """Short name, for tables."""
        return f"{self.site} {'zero' if self.means is None else 'mean'}"

    @contextlib.contextmanager
    def on(self, model: Model) -> Iterator[Model]:
        """Ablate in every forward pass inside the context."""
        with contextlib.ExitStack() as stack:
            for site in model.resolve(self.site):
                if self.means is not None and site.name not in self.means:
                    raise InputError(
                        f"no mean was given for '{site.name}'; get it with mean_values(model, items, sites=...)."
                    )
                value = None if self.means is None else torch.from_numpy(self.means[site.name])
                where = tokens_at(model, self.tokens, layout_name=site.layout)
                stack.enter_context(model.edit(site, _constant(value), tokens=where))
            yield model

    def to_json(self) -> dict[str, Any]:
        """Return what it does, without the means themselves."""
        where = self.tokens if isinstance(self.tokens, str) else "a function of the layout"
        kind: Literal["zero", "mean"] = "zero" if self.means is None else "mean"
        return {"name": self.name, "kind": f"ablate, {kind}", "site": self.site, "tokens": where}


def mean_values(
    model: Model, items: Sequence[Any], *, sites: str | Sequence[str], batch_size: int = 16
) -> dict[str, NDArray[np.float32]]:
    """Return the mean of each site over all tokens of some items, for mean ablation: {site name: float32 [d]}."""
    found = model.resolve(sites)
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for start in range(0, len(items), batch_size):
        captured = model.capture(model.prepare(list(items[start : start + batch_size])), found)
        for name, values in captured.items():
            for value in values:
                sums[name] = sums.get(name, 0) + value.double().sum(0).cpu().numpy()
                counts[name] = counts.get(name, 0) + len(value)
    if not sums:
        raise InputError("got no items to take means over; need at least one.")
    return {name: (total / counts[name]).astype(np.float32) for name, total in sums.items()}


def _constant(value: Tensor | None) -> Any:
    def edit(x: Tensor) -> Tensor:
        return torch.zeros_like(x) if value is None else value.to(x.device, x.dtype).expand_as(x).clone()

    return edit
