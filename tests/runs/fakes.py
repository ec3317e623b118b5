"""A model whose numbers are known, and items made of them: enough to test the run directory without torch models."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vlascope.errors import ItemError, SiteNotFoundError
from vlascope.items.item import Item, ItemSource
from vlascope.models.layout import concat, grid_tokens, plain_tokens
from vlascope.models.sites import Site

ROWS, COLS = 3, 5  # not square, so that swapped axes fail
WIDTHS = {"vision.0": 7, "vision.1": 7, "language.0": 11}


def make_item(index: int, *, prompt: bool = True) -> Item:
    """Item `index`, a pure function of its number; texts and image sizes differ from item to item."""
    rng = np.random.default_rng(index)
    height, width = 13 + index % 3, 17 + index % 2
    mask = np.zeros((height, width), np.int64)
    mask[2:5, 3:9] = 4
    return Item(
        item_id=f"ep0000/{index:06d}",
        images=(
            rng.integers(0, 256, (height, width, 3), np.uint8),
            rng.integers(0, 256, (5, 3, 3), np.uint8),
        ),
        cameras=("main", "wrist"),
        prompt=" ".join(["pick", "up", "the", "röd", "cube"][: 2 + index % 4]) if prompt else None,
        labels={"success": index % 2 == 0, "colour": "red", "speed": 0.5, "n": index, "unknown": None},
        masks={"segmentation": mask, "depth_mm": mask * 100_000},
        mask_names={"segmentation": {0: "background", 4: "red fragile"}},
        episode=index // 7,
        step=index % 7,
        time_secs=(index % 7) / 10,
        state=np.arange(3, dtype=np.float32) + index,
        action=None if index % 5 == 4 else np.full(4, index / 3, np.float32),
    )


class ArraySource(ItemSource):
    """Items 0 .. n-1; those in `broken` cannot be read."""

    name = "arrays"
    fps = 10.0

    def __init__(
        self, n_items: int, *, broken: Sequence[int] = (), prompt: bool = True, version: str = "a"
    ) -> None:
        self.n_items, self.broken, self.prompt, self.version = n_items, set(broken), prompt, version
        self.n_read = 0

    def __len__(self) -> int:
        return self.n_items

    def read(self, index: int) -> Item:
        self.n_read += 1
        if index in self.broken:
            raise ItemError(f"'frame{index}.jpg' cannot be decoded; replace or remove it.")
        return make_item(index, prompt=self.prompt)

    def fingerprint(self) -> str:
        return f"arrays-{self.n_items}-{sorted(self.broken)}-{self.version}"


class FakeModel:
    """Sites vision.0, vision.1 (class token + 3 x 5 patches) and language.0 (the words of the prompt)."""

    name, family, revision = "fake", "fake", None
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, *, nan_at: str | None = None, weights: str = "w1", delay_secs: float = 0.0) -> None:
        self.nan_at, self.weights, self.delay_secs = nan_at, weights, delay_secs
        self.batch_sizes: list[int] = []
        self.memory_items: int | None = None
        self.hook: Any = None
        self.answers = True

    edited: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        return self.weights

    def reads(self, item: Item) -> str:
        return "as ever"

    def resolve(self, patterns: str | Sequence[str]) -> tuple[Site, ...]:
        names = [patterns] if isinstance(patterns, str) else list(patterns)
        names = list(WIDTHS) if names == ["*"] else names
        for name in names:
            if name not in WIDTHS:
                raise SiteNotFoundError(f"model 'fake' has no site '{name}'.")
        return tuple(Site(name=n, module_path=n, layout=n.split(".")[0], width=WIDTHS[n]) for n in names)

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Any] | None = None) -> Any:
        vision, language = [], []
        for item in items:
            height, width = item.image.shape[:2]
            grid = grid_tokens(ROWS, COLS, frame=(0, 0, width, height))
            vision.append(concat([plain_tokens("class", ["[CLS]"]), grid]))
            language.append(plain_tokens("text", (item.prompt or "what?").split()))
            if answers is not None:
                reply = plain_tokens("action", answers[len(language) - 1].token_texts)
                language[-1] = concat([language[-1], reply])
        return SimpleNamespace(items=list(items), layouts={"vision": vision, "language": language})

    def capture(self, batch: Any, sites: Sequence[Any], **_: Any) -> dict[str, list[torch.Tensor]]:
        time.sleep(self.delay_secs)
        if self.memory_items is not None and len(batch.items) > self.memory_items:
            raise torch.OutOfMemoryError("fake memory is full")
        self.batch_sizes.append(len(batch.items))
        if self.hook:
            self.hook(batch)
        return {
            name: [
                torch.from_numpy(self.values(item, name, len(tokens)))
                for item, tokens in zip(batch.items, batch.layouts[name.split(".")[0]], strict=True)
            ]
            for name in sites
        }

    def values(self, item: Item, site: str, n_tokens: int) -> np.ndarray:
        """The numbers that belong to an item at a site: float32 [t, d]."""
        digest = hashlib.sha256(f"{item.item_id} {site}".encode() + item.image.tobytes()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        values = rng.standard_normal((n_tokens, WIDTHS[site]), np.float32)
        if self.nan_at == item.item_id and site == "vision.1":
            values[2, 3] = np.nan
        return values

    def respond(self, items: Any, *, max_new_tokens: int = 16) -> list[Any]:
        assert self.answers
        items = getattr(items, "items", items)
        return [
            SimpleNamespace(
                text=f"answer to {item.item_id}",
                token_ids=(5, 6),
                token_texts=("answer", "to"),
                action=item.state,
                action_names=("x", "y", "z"),
                action_ids=(900, 901, 902),
                flags=("length_limit",),
            )
            for item in items
        ]


def expected_acts(model: FakeModel, source: ItemSource, site: str) -> np.ndarray:
    """What a run of all readable items must hold at a site, by the slow way."""
    parts = []
    for index in range(len(source)):
        try:
            item = source[index]
        except ItemError:
            continue
        n_tokens = len(model.prepare([item]).layouts[site.split(".")[0]][0])
        parts.append(model.values(item, site, n_tokens))
    return np.concatenate(parts)


def tree(path: Path) -> dict[str, str]:
    """Relative path and checksum of every file of a run, but for run.json, which holds times."""
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != "run.json"
    }
