"""What goes in: images, videos and robot episodes, one `Item` per frame, read when asked for."""

from __future__ import annotations

from .item import Item, ItemSource, Scalar, Subset
from .lerobot_write import EpisodeData, write_lerobot

__all__ = ["EpisodeData", "Item", "ItemSource", "Scalar", "Subset", "write_lerobot"]
