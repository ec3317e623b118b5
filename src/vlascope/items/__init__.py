"""What goes in: images, videos and robot episodes, one `Item` per frame, read when asked for.

The room and the verb share a name: `vlascope.items("photos/")` is `open_items("photos/")`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .clips import ClipSource, clips
from .coco import CocoSource
from .curate import Unit, export_curated, units_of, with_reviews
from .extract import extract_frames
from .factorial import FactorialSource
from .frames import EpisodeSubset, EpisodicSource, FrameSource, MappedSource, select_frames
from .hdf5 import Hdf5Source
from .hf_datasets import HfSource
from .images import ImageFolder, ImageList, read_image
from .item import Box, Item, ItemSource, Scalar, Skipped, Subset
from .lerobot import EpisodeInfo, LeRobotSource
from .lerobot_write import EpisodeData, write_lerobot
from .memory import EpisodeSource, simulate
from .nerf import NerfSource
from .open import open_items
from .reviews import Review, ReviewTable, reviews_beside
from .rlds import RldsSource
from .video import VideoSource
from .voc import VocSource

__all__ = [
    "Box",
    "ClipSource",
    "CocoSource",
    "EpisodeData",
    "EpisodeInfo",
    "EpisodeSource",
    "EpisodeSubset",
    "EpisodicSource",
    "FactorialSource",
    "FrameSource",
    "Hdf5Source",
    "HfSource",
    "ImageFolder",
    "ImageList",
    "Item",
    "ItemSource",
    "LeRobotSource",
    "MappedSource",
    "NerfSource",
    "Review",
    "ReviewTable",
    "RldsSource",
    "Scalar",
    "Skipped",
    "Subset",
    "Unit",
    "VideoSource",
    "VocSource",
    "clips",
    "export_curated",
    "extract_frames",
    "open_items",
    "read_image",
    "reviews_beside",
    "select_frames",
    "simulate",
    "units_of",
    "with_reviews",
    "write_lerobot",
]


class _CallableRoom(ModuleType):
    """This module's class, so that `vs.items(...)` works beside `from vlascope.items import ...`."""

    def __call__(self, *args: Any, **kwargs: Any) -> ItemSource:
        return open_items(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
