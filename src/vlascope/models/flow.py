"""Policies that turn noise into a chunk of actions, step by step: what pi0, pi0.5 and SmolVLA share.

A language model reads cameras, text and perhaps the robot's state once (the *prefix*); a smaller model, the *expert*,
looks at it and refines the actions of the next H steps in several denoising steps. What to know about the sites:

- `vision.*` and `projector` show one camera after the other. Where a policy calls its vision tower once per camera,
  an edit is applied in each call.
- `language.*` are the tokens of the prefix; they are computed once.
- `expert.*`, `action_in` and `action_out` are computed once per denoising step. Reading shows the last step, and an
  edit changes all of them; "expert.2@0" reads and edits the first step alone.
- Some of these policies never call their blocks, only the layers inside (`leaf_sites`): the residual stream is then
  read, and overwritten in place, where the next norm takes it.

The noise comes from a seed, and is the same for every item: what differs between two items is due to them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..items.item import Item
from .actions import ActionFormatError
from .batch import Batch, Response, Rows
from .family import Assets, Family
from .hooks import Hooks
from .images import ImageTransform
from .layout import TokenLayout, concat, grid_tokens, plain_tokens
from .normalizer import Kind, Normalizer, buffered_stats, datasets, kind_of
from .padding import FitAndPad
from .sites import Site
from .structure import block_sites, module_width
from .text import Words, pad_right

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FlowParts:
    """Where a policy keeps its parts, and how it calls them.

    Attributes:
        vision: Path of the vision tower.
        vision_blocks: Path of its list of blocks.
        projector: Path of the module that brings its patches to the language model.
        language: Path of the language model (it has `layers` and `norm`).
        expert: Path of the expert (same).
        action_in: Path of the layer that reads noisy actions.
        action_out: Path of the layer that gives their velocity.
        calls_blocks: Whether the blocks of language model and expert are called as modules.
        calls_per_camera: Whether the vision tower is called once per camera; else once for all.
        state_in: Where the state goes: a token of the "prefix", of the expert ("suffix"), or words ("text").
        chunk: Actions per chunk.
        n_steps: Denoising steps.
        state_dim: Width that states are filled up to.
        action_dim: Width of the actions inside the model.
        patch: Side of a patch in pixels.
        shuffle: Patches along one side that become one token.
        n_cameras: Most cameras that the policy reads; None for any number.
        transform: Preprocessing of each image.
        kinds: How "state" and "action" are normalised; None where they are not.
        before: Names of the tokens before each camera's patches.
        after: Names of those after them.
        prefix_length: Length that the prefix is filled up to; 0 for none.
        cross_blocks: Blocks of the expert whose keys and values are those of the prefix.
    """

    vision: str
    vision_blocks: str
    projector: str
    language: str
    expert: str
    action_in: str
    action_out: str
    calls_blocks: bool
    calls_per_camera: bool
    state_in: Literal["prefix", "suffix", "text"]
    chunk: int
    n_steps: int
    state_dim: int
    action_dim: int
    patch: int
    transform: FitAndPad | ImageTransform
    shuffle: int = 1
    n_cameras: int | None = None
    kinds: Mapping[str, Kind | None] = field(
        default_factory=lambda: {"state": "mean_std", "action": "mean_std"}
    )
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    prefix_length: int = 0
    cross_blocks: tuple[int, ...] = ()


class FlowFamily(Family):
    """What is common to policies of this kind. Subclasses give `read_parts`, `tokens` and `sample`."""

    reads_text = True
    answers = True
    noise_seed = 0

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        super().__init__(module, assets=assets)
        self.words = Words(assets.tokenizer) if assets.tokenizer is not None else None
        self.parts = self.read_parts()
        config = getattr(module, "config", None)
        self.stats = datasets(
            getattr(config, "norm_stats", None) or dict(assets.stats) or buffered_stats(module)
        )
        self.normalizers: dict[str, Normalizer] | None = None
        if len(self.stats) <= 1:
            self.normalizers = self._normalizers(next(iter(self.stats.values()), {}))
        self._has_warned = False

    @abstractmethod
    def read_parts(self) -> FlowParts:
        """Find the parts of the module."""

    @abstractmethod
    def tokens(self, item: Item, state: np.ndarray | None) -> list[int]:
        """Return the ids of an item's text; `state` is normalised, and given where it becomes words."""

    @abstractmethod
    def sample(self, inputs: Mapping[str, Tensor], *, noise: Tensor, n_steps: int) -> Tensor:
        """Return [b, H, action_dim]: the policy's own sampling loop, begun with `noise`."""

    def use_dataset(self, name: str) -> None:
        if name not in self.stats:
            known = ", ".join(sorted(self.stats)) or "none"
            raise ActionFormatError(f"the model has no statistics of the dataset {name!r}; it has {known}.")
        self.normalizers = self._normalizers(self.stats[name])

    def sites(self) -> list[Site]:
        parts, module = self.parts, self.module
        calls = "images" if parts.calls_per_camera else "no"
        vision = block_sites(
            module, blocks=parts.vision_blocks, name="vision", layout="vision", width=self._vision_width()
        )
        language_width, expert_width = self._widths()
        projector = Site(
            name="projector", module_path=parts.projector, layout="projector", width=language_width
        )
        language = self._blocks(parts.language, "language", language_width)
        expert = [self._per_step(site) for site in self._blocks(parts.expert, "expert", expert_width)]
        action_in = Site(
            name="action_in",
            module_path=parts.action_in,
            layout="action",
            width=module_width(module.get_submodule(parts.action_in)),
        )
        action_out = replace(
            action_in,
            name="action_out",
            module_path=parts.action_out,
            width=module_width(module.get_submodule(parts.action_out)),
        )
        return [
            *(replace(site, repeats=calls) for site in [*vision, projector]),
            *language,
            self._per_step(action_in),
            *expert,
            self._per_step(action_out),
        ]

    @property
    def layout_roots(self) -> dict[str, str]:
        parts = self.parts
        return {parts.vision: "vision", parts.language: "language", parts.expert: "expert"}

    def native_site(self, path: str) -> Site:
        site = super().native_site(path)
        if site.layout == "expert":
            return self._per_step(site)
        repeats = "images" if site.layout == "vision" and self.parts.calls_per_camera else "no"
        return replace(site, repeats=repeats)

    def must_fire(self) -> dict[str, str]:
        return {f"{self.parts.vision_blocks}.0": "the vision tower did not look at the images"}

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        parts = self.parts
        if self.words is None:
            raise InputError(
                "this policy reads text but no tokenizer came with it; load it by name or folder, or pass "
                "processor= to vlascope.load() (a tokenizer, or the policy's own processor)."
            )
        images = [self._images(item) for item in items]
        states = [self._state(item) for item in items]
        as_words = parts.state_in == "text"
        ids = [
            self.tokens(item, state if as_words else None) for item, state in zip(items, states, strict=True)
        ]
        if parts.before and len({len(row) for row in images}) > 1:
            raise InputError(
                "the items of this batch have different numbers of cameras; this policy sees the special tokens "
                "around a missing camera, so answers would depend on the batch. Put them into separate batches."
            )
        n_cameras = self.cameras_shown(max(len(row) for row in images))
        blank = np.full((3, *self.parts.transform.output_hw(1, 1)), -1.0, np.float32)
        pixels = [
            [parts.transform(image) for image in row] + [blank] * (n_cameras - len(row)) for row in images
        ]
        pad_id = self.words.tokenizer.pad_token_id
        text = torch.from_numpy(pad_right(ids, pad_id=0 if pad_id is None else pad_id))
        length = torch.tensor([len(row) for row in ids])
        shown = torch.tensor([len(row) for row in images])
        inputs = {
            "pixel_values": torch.from_numpy(np.stack([np.stack(row) for row in pixels])),
            "pixel_mask": torch.arange(n_cameras)[None] < shown[:, None],
            "input_ids": text,
            "text_mask": torch.arange(text.shape[1])[None] < length[:, None],
        }
        if parts.state_in != "text":
            inputs["state"] = torch.from_numpy(np.stack([self._filled(s) for s in states]))
        layouts: dict[str, list[TokenLayout]] = {
            name: [] for name in ("vision", "projector", "language", "expert", "action")
        }
        rows: dict[str, list[Rows]] = {name: [] for name in layouts}
        for i, row in enumerate(images):
            self._describe(i, row, ids[i], n_cameras, len(items), text.shape[1], layouts, rows)
        n_prefix = self._prefix_length(n_cameras, text.shape[1])
        return Batch(
            inputs=inputs,
            layouts=layouts,
            rows=rows,
            item_ids=tuple(item.item_id for item in items),
            prompts=tuple(item.prompt for item in items),
            answers=tuple(answers) if answers is not None else None,
            lengths={"language": n_prefix},
            n_rows=dict.fromkeys(("vision", "projector"), n_cameras * len(items)),
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        # Nothing in the prefix depends on the number of denoising steps.
        self._sample(batch, self.parts.n_steps if _needs_all_steps(sites) else 1)

    def reaches(self, site: Site, *, asked: Sequence[Site]) -> bool:
        return site.call in (None, 0) or _needs_all_steps(asked)

    def respond(self, batch: Batch, *, hooks: Hooks, max_new_tokens: int) -> list[Response]:
        if self.normalizers is None:
            raise ActionFormatError(
                f"the model knows the actions of {len(self.stats)} datasets ({', '.join(sorted(self.stats))}); "
                "name one: model.use_dataset(NAME)."
            )
        chunks = self._sample(batch, self.parts.n_steps).float().cpu().numpy()
        normalizer = self.normalizers.get("action")
        flags: tuple[str, ...] = ()
        if normalizer is not None:
            chunks = normalizer.unnormalize(chunks[:, :, : len(normalizer)])
        elif self.parts.kinds.get("action") is not None:
            flags = ("normalized_units",)
            chunks = chunks[:, :, : self.n_actions]
        names = tuple(f"a{i}" for i in range(chunks.shape[2]))
        return [
            Response(
                action=np.asarray(chunk[0], np.float32),
                action_names=names,
                action_chunk=np.asarray(chunk, np.float32),
                flags=flags,
            )
            for chunk in chunks
        ]

    @property
    def n_actions(self) -> int:
        """Dimensions of an action that mean something; the others only fill up."""
        normalizer = (self.normalizers or {}).get("action")
        return len(normalizer) if normalizer is not None else self.parts.action_dim

    def cameras_shown(self, n_given: int) -> int:
        """Return how many cameras the policy is shown when items have at most `n_given`; the others are masked."""
        return n_given

    def _sample(self, batch: Batch, n_steps: int) -> Tensor:
        parts = self.parts
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(1, parts.chunk, parts.action_dim, generator=generator)
        noise = noise.expand(len(batch), -1, -1).contiguous().to(batch.inputs["pixel_values"].device)
        return self.sample(batch.inputs, noise=noise, n_steps=n_steps)

    def _images(self, item: Item) -> list[np.ndarray]:
        limit = self.parts.n_cameras
        if limit is not None and len(item.images) > limit and not self._has_warned:
            _log.warning("items have %d cameras; this policy reads the first %d", len(item.images), limit)
            self._has_warned = True
        return list(item.images[:limit])

    def _state(self, item: Item) -> np.ndarray:
        """Return the normalised state, not yet filled up."""
        if item.state is None:
            raise InputError(
                f"item '{item.item_id}' has no robot state, which this policy reads. Set Item.state (up to "
                f"{self.parts.state_dim} numbers, in the units of the training data)."
            )
        state = np.asarray(item.state, np.float64).reshape(-1)
        normalizer = (self.normalizers or {}).get("state")
        if normalizer is not None:
            if len(normalizer) != len(state):
                raise InputError(
                    f"item '{item.item_id}' has a state of {len(state)} numbers; the policy's statistics have "
                    f"{len(normalizer)}. Give the state that the policy was trained on."
                )
            state = normalizer.normalize(state)
        if len(state) > self.parts.state_dim:
            raise InputError(
                f"item '{item.item_id}' has a state of {len(state)} numbers; this policy reads up to "
                f"{self.parts.state_dim}."
            )
        return state

    def _filled(self, state: np.ndarray) -> np.ndarray:
        return np.pad(state, (0, self.parts.state_dim - len(state))).astype(np.float32)

    def _describe(
        self,
        index: int,
        images: Sequence[np.ndarray],
        ids: Sequence[int],
        n_cameras: int,
        n_items: int,
        n_text: int,
        layouts: Mapping[str, list[TokenLayout]],
        rows: Mapping[str, list[Rows]],
    ) -> None:
        """Add what the tokens of item `index` are, and where they lie."""
        parts, s = self.parts, self.parts.shuffle
        assert self.words is not None
        out_hw = parts.transform.output_hw(1, 1)
        n_rows, n_cols = out_hw[0] // parts.patch, out_hw[1] // parts.patch
        vision, projected, prefix, spans = [], [], [], []
        start = 0
        for camera, image in enumerate(images):
            frame = parts.transform.frame(*image.shape[:2])
            vision.append(grid_tokens(n_rows, n_cols, frame=frame, camera=camera))
            projected.append(grid_tokens(n_rows // s, n_cols // s, frame=frame, camera=camera))
            prefix += [
                plain_tokens("special", parts.before),
                projected[-1],
                plain_tokens("special", parts.after),
            ]
            start += len(parts.before) + len(projected[-1]) + len(parts.after)
        spans.append((0, start))
        per_camera = start // len(images)
        first_text = per_camera * self._camera_slots(n_cameras, len(images))
        prefix.append(self.words.layout(ids))
        spans.append((first_text, first_text + len(ids)))
        if parts.state_in == "prefix":
            prefix.append(plain_tokens("state", ["<state>"]))
            spans.append((first_text + n_text, first_text + n_text + 1))
        actions = plain_tokens("action", [f"<action {step}>" for step in range(parts.chunk)])
        suffix = [plain_tokens("state", ["<state>"])] if parts.state_in == "suffix" else []
        at = [
            camera * n_items + index if parts.calls_per_camera else index * n_cameras + camera
            for camera in range(len(images))
        ]
        found = {
            "vision": (concat(vision), tuple((row, 0, n_rows * n_cols) for row in at)),
            "projector": (concat(projected), tuple((row, 0, len(projected[0])) for row in at)),
            "language": (concat(prefix), _merged(index, spans)),
            "expert": (concat([*suffix, actions]), ((index, 0, len(suffix) + parts.chunk),)),
            "action": (actions, ((index, 0, parts.chunk),)),
        }
        for name, (layout, places) in found.items():
            layouts[name].append(layout)
            rows[name].append(places)

    def _camera_slots(self, n_cameras: int, n_shown: int) -> int:
        """Return how many cameras' tokens stand before the text of an item that has `n_shown`."""
        return n_cameras

    def _prefix_length(self, n_cameras: int, n_text: int) -> int:
        parts = self.parts
        height, width = parts.transform.output_hw(1, 1)
        side = parts.patch * parts.shuffle
        per_camera = (height // side) * (width // side) + len(parts.before) + len(parts.after)
        n = per_camera * n_cameras + n_text + (parts.state_in == "prefix")
        return max(n, parts.prefix_length)

    def _blocks(self, base: str, name: str, width: int) -> list[Site]:
        if self.parts.calls_blocks:
            return block_sites(self.module, blocks=f"{base}.layers", name=name, layout=name, width=width)
        return leaf_sites(self.module, base=base, name=name, layout=name, width=width)

    def _per_step(self, site: Site) -> Site:
        """Return a site of the expert as one that every denoising step computes."""
        crossed = site.tensor in "kv" and site.name.split(".")[1] in map(str, self.parts.cross_blocks)
        layout = "language" if site.layout == "expert" and crossed else site.layout
        return replace(site, repeats="steps", n_calls=self.parts.n_steps, layout=layout)

    def _widths(self) -> tuple[int, int]:
        """Return the widths of the residual streams of language model and expert: what their queries read."""
        out = []
        for base in (self.parts.language, self.parts.expert):
            q: Any = self.module.get_submodule(f"{base}.layers.0.self_attn.q_proj")
            out.append(int(q.in_features))
        return out[0], out[1]

    def _vision_width(self) -> int:
        return patch_embedding(self.module, self.parts.vision).out_channels

    def _normalizers(self, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Normalizer]:
        return {
            feature: Normalizer.from_stats(values, kind=kind)
            for feature, values in stats.items()
            if (kind := self.parts.kinds.get(feature)) is not None
        }


def _needs_all_steps(sites: Sequence[Site]) -> bool:
    return not sites or any(site.repeats == "steps" for site in sites)


def leaf_sites(module: nn.Module, *, base: str, name: str, layout: str, width: int) -> list[Site]:
    """Return the sites of blocks that are never called themselves, only the layers inside them.

    The residual stream after block i is what the first norm of block i + 1 reads (the last one: what `norm` reads).
    That tensor is added to later, past the norm; an edit therefore overwrites it in place.
    """
    sites = block_sites(module, blocks=f"{base}.layers", name=name, layout=layout, width=width)
    n_blocks = sum(site.tensor == "out" for site in sites)
    out = []
    for site in sites:
        if site.tensor == "out":
            after = int(site.name.rpartition(".")[2]) + 1
            path = f"{base}.layers.{after}.input_layernorm" if after < n_blocks else f"{base}.norm"
            site = replace(site, module_path=path, side="input", in_place=True)
        out.append(site)
    return out


def patch_embedding(module: nn.Module, path: str) -> nn.Conv2d:
    """Return the convolution that cuts the patches of the vision tower at `path`."""
    return next(m for m in module.get_submodule(path).modules() if isinstance(m, nn.Conv2d))


def lerobot_kinds(config: Any, default: Kind) -> dict[str, Kind | None]:
    """Return how states and actions are normalised, from a LeRobot configuration where it says."""
    mapping = getattr(config, "normalization_mapping", None) or {}
    return {
        feature: kind_of(mapping[feature.upper()]) if feature.upper() in mapping else default
        for feature in ("state", "action")
    }


def _merged(row: int, spans: Sequence[tuple[int, int]]) -> Rows:
    """Return the spans of one row, neighbours joined."""
    out: list[tuple[int, int]] = []
    for first, end in spans:
        if out and out[-1][1] == first:
            out[-1] = (out[-1][0], end)
        else:
            out.append((first, end))
    return tuple((row, first, end) for first, end in out)
