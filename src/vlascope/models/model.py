"""`Model`: one loaded model, its sites, and reading, editing and asking it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HookNotFiredError, InputError, nearest_text
from ..items.item import Item
from .batch import Batch, Response
from .chosen import Tokens
from .family import Family
from .hooks import Edit, Hooks
from .sites import Site, resolve

MAX_HASHED_VALUES = 1 << 16  # per parameter; larger ones are sampled at even distances for the fingerprint


class Model:
    """A model that can be looked into. Made by `load` and `wrap`.

    Attributes:
        name: What it was asked for by.
        family: Name of its family.
        revision: Commit of a hub checkpoint, else "embedded", "local" or "memory".
        module: The `torch.nn.Module` itself, in evaluation mode.
        device: Where it computes.
        dtype: What it computes in.
        quantize: "4bit" or "8bit" when the weights are kept so, else None.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        family: Family,
        name: str,
        revision: str,
        device: torch.device,
        dtype: torch.dtype,
        quantize: str | None = None,
    ) -> None:
        self.module = module.eval()
        self.name, self.revision = name, revision
        self.device, self.dtype, self.quantize = device, dtype, quantize
        self.family = family.name
        self._family = family
        self._hooks = Hooks(module)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All named sites, in the order in which the model computes them."""
        return tuple(self._family.sites())

    @cached_property
    def n_parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def answers(self) -> bool:
        """Whether `respond` can return text or an action."""
        return self._family.answers

    @property
    def reads_text(self) -> bool:
        """Whether prompts change what the model computes."""
        return self._family.reads_text

    def resolve(self, patterns: str | Sequence[str]) -> tuple[Site, ...]:
        """Return the sites that match; see `vlascope.models.sites.resolve` for what a pattern may be.

        Raises:
            SiteNotFoundError: a pattern matches nothing; the message names the nearest sites.
        """
        return resolve(
            patterns,
            sites=self.sites,
            model_name=self.name,
            native=self._family.native_site,
            in_memory=self.revision == "memory",
        )

    def prepare(
        self, items: Sequence[Item], *, answers: Sequence[Response] | None = None, with_answer: bool = False
    ) -> Batch:
        """Return the items ready for a forward pass, on the model's device.

        Args:
            items: At least one.
            answers: Answers (as `respond` returned them) to append to the prompts, one per item.
            with_answer: Ask the model first and append what it answers.

        Raises:
            InputError: no items, or items that the model cannot read.
        """
        items = list(items)
        if not items:
            raise InputError("got no items; need at least one.")
        if answers is not None and len(answers) != len(items):
            raise InputError(f"got {len(answers)} answers for {len(items)} items; need one per item.")
        if self._family.needs_image and (blind := [item for item in items if not item.images]):
            raise InputError(
                f"item '{blind[0].item_id}' has no image; '{self.name}' (family {self.family}) needs one in every "
                "item. Set Item.images; text alone is for language models (family text)."
            )
        if with_answer and answers is None:
            answers = self.respond(items)
        return self._family.prepare(items, answers=answers).to(self.device)

    def capture(
        self,
        batch: Batch,
        sites: str | Sequence[str] | Sequence[Site],
        *,
        with_answer: bool = False,
        copy: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, list[Tensor]]:
        """Return what the sites hold for each item of the batch.

        Args:
            batch: From `prepare`.
            sites: Sites, or patterns for `resolve`.
            with_answer: Let the model answer first, then read prompt and answer in one pass. `batch` is
                changed in place: its layouts then include the answer, and `batch.answers` holds it.
            copy: How the tensors [b, t, d] are copied out of the pass; None takes fresh memory (see `CopyPool`).

        Returns:
            {site name: one [t, d] tensor per item, on the model's device}; row j of item i is the token that
            `batch.layouts[site.layout][i]` describes at j. Padding is left out.

        Raises:
            SiteNotFoundError: a pattern matches nothing.
            HookNotFiredError: the forward pass never reached a site, or ignored the image.

        Cost: one forward pass, or as much of it as the sites need.
        """
        chosen = self._sites(sites)
        if with_answer and batch.answers is None and self.answers:
            batch.__dict__.update(self.prepare(batch.source, answers=self.respond(batch)).__dict__)
        with self._hooks.reading(chosen, copy=copy) as calls:
            self._run(batch, chosen)
        return {site.name: self._split(site, calls[site.name], batch) for site in chosen}

    @contextlib.contextmanager
    def edit(self, site: str | Site, fn: Edit, *, tokens: Tokens = None) -> Iterator[Model]:
        """Replace what a site holds in every forward pass inside the `with` block.

        Edits of several sites, or several of one site, may be nested: they apply in the order entered. An
        edit that returns its input changes no bit. Hooks are removed on leaving, also after an exception.

        Args:
            site: One site.
            fn: Gets the site's tensor [b, t, d] (padding included) and returns its replacement. One row of it
                may be one image of an item, for models that look at cameras one by one.
            tokens: Change only these tokens of each item: row numbers or a bool mask of the site's layout
                (`batch.layouts[site.layout][i]`, all cameras and tiles counted through); a function of that
                layout that returns either, such as `lambda layout: layout.is_kind("patch")`; or a mapping
                {place in the batch, or item_id: any of these}, which leaves other items alone. Numbers past the
                prompt mean tokens of an answer while it is decoded; functions see the prompt's layout only.

        Raises:
            SiteNotFoundError: no such site, or a pattern that names several.
            InputError: (during the forward pass) a replacement of another shape, or tokens that an item lacks;
                (when the block ends well) tokens of an item that no batch had.
            HookNotFiredError: (when the block ends well) passes that were to reach the site are over, and none of
                them called its module: nothing was changed.
        """
        found = self._sites([site] if isinstance(site, Site) else site)
        if len(found) != 1:
            raise InputError(
                f"'{site}' names {len(found)} sites; an edit takes one. Nest several `with` blocks."
            )
        with self._hooks.editing(found[0], fn, tokens=tokens) as edited:
            yield self
        # At the end, not after each pass: a module that only some inputs need (an expert) may be left out by others.
        if edited.missed:
            raise self._not_reached(found[0])

    def respond(self, items: Sequence[Item] | Batch, *, max_new_tokens: int = 16) -> list[Response]:
        """Return the model's answer to each item, decoded greedily.

        Action tokens are decoded to physical units when the checkpoint says how; a malformed reply is flagged
        in `Response.flags`. Models that answer nothing return responses whose text is None.

        Args:
            items: Items, or a batch from `prepare` (without answers).
            max_new_tokens: Longest answer, >= 1.
        """
        if max_new_tokens < 1:
            raise InputError(f"got max_new_tokens={max_new_tokens}; need at least 1.")
        batch = items if isinstance(items, Batch) else self.prepare(items)
        if batch.answers is not None:
            raise InputError("this batch holds answers already; prepare the items without `with_answer`.")
        if not self.answers:
            return self._family.respond(batch, hooks=self._hooks, max_new_tokens=max_new_tokens)
        with torch.no_grad(), self._hooks.running(batch), self._all_must_fire():
            return self._family.respond(self._cast(batch), hooks=self._hooks, max_new_tokens=max_new_tokens)

    def attention(
        self,
        items: Sequence[Item] | Batch,
        site: str,
        *,
        method: Literal["auto", "model", "recompute"] = "auto",
    ) -> list[Tensor]:
        """Return who looked at whom in one block: its attention weights.

        Args:
            items: Items, or a batch from `prepare`.
            site: A block ("language.4") or one of its sites; "language.4.weights" means the same.
            method: "model" runs one pass with the model's own plain attention and copies what it computes;
                "recompute" works the weights out from queries and keys (with norms of heads, rotary positions,
                grouped heads, causal mask and sliding window); "auto" recomputes only where the model's classes
                never hand the weights out.

        Returns:
            One tensor [heads, t, t] per item: entry [h, i, j] is how much token i of the site's layout looked at
            token j in head h; rows sum to 1. Images that a tower sees one by one have 0 between them. Where
            queries look beyond their own tokens (action experts) it is [heads, t, t_k] with the other tokens
            first.

        Raises:
            SiteNotFoundError: no such site.
            InputError: the site has no attention, or the model cannot give its weights.

        Cost: one forward pass with eager attention, memory O(heads * t^2) per block of the whole batch.
        """
        from .attention import read

        batch = items if isinstance(items, Batch) else self.prepare(items)
        return read(self, batch, site=site, method=method)

    def use_dataset(self, name: str) -> Model:
        """Choose the dataset whose statistics give actions their physical units; returns the model itself.

        Needed for checkpoints that were trained on several datasets, such as openvla/openvla-7b.

        Raises:
            InputError: the model does not act.
            ActionFormatError: no such dataset; the message lists those that there are.
        """
        self._family.use_dataset(name)
        return self

    def fingerprint(self) -> str:
        """Return a hexadecimal hash of the weights' names, shapes and values (see `MAX_HASHED_VALUES`)."""
        if not hasattr(self, "_fingerprint"):
            digest = hashlib.sha256(type(self.module).__name__.encode())
            for name, value in sorted(self.module.state_dict().items()):
                flat = value.detach().reshape(-1)
                flat = flat[:: max(1, -(-flat.numel() // MAX_HASHED_VALUES))]
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(_exact_bytes(flat))
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def reads(self, item: Item) -> str:
        """Return a hash of what the model makes of an item: its inputs, and what each of its tokens is said to be.

        With the weights' `fingerprint` it says whether two models would give the same activations: preprocessing,
        tokenizer, prompt format and the declared grid all show in it.
        """
        return self.prepare([item]).digest()

    @property
    def edited(self) -> tuple[str, ...]:
        """Sites that are being edited now (see `edit`)."""
        return self._hooks.edited

    def info(self) -> dict[str, Any]:
        """Return what a run has to record about the model; JSON-able."""
        import transformers

        return {
            "name": self.name,
            "family": self.family,
            "class": type(self.module).__name__,
            "revision": self.revision,
            "fingerprint": self.fingerprint(),
            "n_parameters": self.n_parameters,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantize": self.quantize,
            "device": str(self.device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def describe(self, patterns: str | Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return one row per site: its name, module path, layout, tensor, width, heads and parameter count.

        Args:
            patterns: Which sites (see `resolve`); all named ones when left out.
        """
        return [
            {
                "site": site.name,
                "module": site.module_path,
                "layout": site.layout,
                "tensor": site.tensor,
                "width": site.width,
                "n_heads": site.n_heads,
                "head_dim": site.head_dim,
                "n_parameters": sum(
                    p.numel() for p in self.module.get_submodule(site.module_path).parameters()
                ),
            }
            for site in (self.sites if patterns is None else self.resolve(patterns))
        ]

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, family={self.family!r}, {len(self.sites)} sites, "
            f"{self.n_parameters / 1e6:.1f} M parameters, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def _sites(self, sites: str | Sequence[str] | Sequence[Site]) -> tuple[Site, ...]:
        if isinstance(sites, str):
            return self.resolve(sites)
        given = [s for s in sites if isinstance(s, Site)]
        patterns = [s for s in sites if isinstance(s, str)]
        found = (*given, *(self.resolve(patterns) if patterns else ()))
        if not found:
            raise InputError("no site was named; name at least one.")
        return tuple({site.name: site for site in found}.values())

    def _run(self, batch: Batch, sites: Sequence[Site]) -> None:
        def reaches(site: Site) -> bool:
            return self._family.reaches(site, asked=sites)

        with torch.no_grad(), self._hooks.running(batch, reaches=reaches), self._all_must_fire():
            self._family.forward(self._cast(batch), sites=sites)

    def _all_must_fire(self) -> contextlib.AbstractContextManager[None]:
        needs = self._family.must_fire()
        return self._hooks.must_fire(list(needs), why="; ".join(needs.values()))

    def _cast(self, batch: Batch) -> Batch:
        """Give floating-point inputs the model's type, in place."""
        for key, value in batch.inputs.items():
            if value.is_floating_point():
                batch.inputs[key] = value.to(self.dtype)
        return batch

    def _not_reached(self, site: Site) -> HookNotFiredError:
        others = [other.name for other in self.sites if other.module_path != site.module_path]
        near = (
            nearest_text(site.name, others) or f" There are {', '.join(map(repr, others[:3]))}."
            if others
            else ""
        )
        return HookNotFiredError(
            f"site '{site.name}' (module '{site.module_path}') was not reached by the forward pass of "
            f"{type(self.module).__name__}, so that it can be neither read nor edited. Some models bypass their own "
            f"modules: try a leaf of the block, or another site.{near}"
        )

    def _split(self, site: Site, calls: list[Tensor], batch: Batch) -> list[Tensor]:
        """Cut a site's [b, t, d] tensor into one [t, d] tensor per item."""
        if not calls:
            raise self._not_reached(site)
        if site.repeats == "images":
            calls = [torch.cat(calls)]
        if len(calls) > 1:
            raise InputError(
                f"site '{site.name}': the model calls '{site.module_path}' {len(calls)} times in one pass, so its "
                "rows have no single meaning. Name a module that is called once."
            )
        if site.layout not in batch.rows:
            raise InputError(
                f"site '{site.name}' needs tokens of kind '{site.layout}', which this batch lacks "
                f"(it has {', '.join(batch.rows)}). Is the model's tokenizer loaded?"
            )
        whole = calls[0]
        out = []
        longest = max(place[2] for places in batch.rows[site.layout] for place in places)
        n_wanted = batch.lengths.get(site.layout, longest)
        n_rows = 1 + max(place[0] for places in batch.rows[site.layout] for place in places)
        n_rows = batch.n_rows.get(site.layout, n_rows)
        if whole.shape[1] != n_wanted or whole.shape[0] != n_rows:
            raise InputError(
                f"site '{site.name}' gave {whole.shape[0]} x {whole.shape[1]} rows of width {whole.shape[2]}; its "
                f"layout '{site.layout}' has {n_rows} x {n_wanted} tokens. Declare the right grid and prefix, or "
                "name another module."
            )
        for places in batch.rows[site.layout]:
            parts = [whole[row, first:last] for row, first, last in places]
            out.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return out


def _exact_bytes(values: Tensor) -> bytes:
    """Return the bytes of a tensor of any type."""
    return np.ascontiguousarray(values.contiguous().cpu().view(torch.uint8).numpy()).tobytes()
