"""Tiny random-weight image encoders of the real transformers classes, and items to show them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from vlascope.items.item import Item

WIDTH, LAYERS, HEADS = 24, 3, 4
TRANSFORMER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
}


def item(height: int = 61, width: int = 97, *, seed: int = 0, n_images: int = 1) -> Item:
    rng = np.random.default_rng(seed)
    images = tuple(rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n_images))
    return Item(
        item_id=f"{height}x{width}/{seed}", images=images, cameras=tuple(f"c{i}" for i in range(n_images))
    )


@functools.cache
def build(class_name: str, config_name: str, **config: Any) -> nn.Module:
    """Return a model of that class; the weights depend on nothing else."""
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return getattr(transformers, class_name)(getattr(transformers, config_name)(**given)).eval()
