"""What goes in: images, videos and robot episodes, one `Item` per frame, read when asked for.

The room and the verb share a name: `vlascope.items("photos/")` is `open_items("photos/")`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .frames import FrameSource, MappedSource, select_frames
from .images import ImageFolder, ImageList, read_image
from .item import Item, ItemSource, Scalar, Subset
from .lerobot import EpisodeInfo, LeRobotSource
from .lerobot_write import EpisodeData, write_lerobot
from .open import open_items
from .video import VideoSource

__all__ = [
    "EpisodeData",
    "EpisodeInfo",
    "FrameSource",
    "ImageFolder",
    "ImageList",
    "Item",
    "ItemSource",
    "LeRobotSource",
    "MappedSource",
    "Scalar",
    "Subset",
    "VideoSource",
    "open_items",
    "read_image",
    "select_frames",
    "write_lerobot",
]


class _CallableRoom(ModuleType):
    """This module's class, so that `vs.items(...)` works beside `from vlascope.items import ...`."""

    def __call__(self, *args: Any, **kwargs: Any) -> ItemSource:
        return open_items(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
