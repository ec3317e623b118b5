"""What one thing shown to a model is (`Item`), and what a collection of them offers (`ItemSource`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import content_hash

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing shown to a model: image(s), a prompt and what is known about them.

    Attributes:
        item_id: Unique within its source, e.g. "beach.jpg" or "ep0003/000012".
        images: uint8 [h, w, 3], RGB, one per camera; all cameras may differ in size.
        cameras: One name per image.
        prompt: Instruction or question given to models that read text; None when there is none.
        labels: Known facts (colour, success, caption, ...), JSON scalars.
        masks: Integer maps [h, w] in the pixels of the first camera, 0 = nothing. E.g. "segmentation".
        mask_names: For each mask the meaning of its integers, e.g. {"segmentation": {4: "red fragile"}}.
        episode: Index of the episode that this frame belongs to; None for stand-alone images.
        step: Index of the frame within its episode (or video).
        time_secs: Time since the start of the episode (or video), seconds.
        state: Robot state at this frame, float32 [n_state]; None when unknown.
        action: Action taken at this frame, float32 [n_action], in the dataset's units; None when unknown.
        source: Path of the file that the first image came from; None for arrays and simulated frames.
    """

    item_id: str
    images: tuple[NDArray[np.uint8], ...]
    cameras: tuple[str, ...] = ("main",)
    prompt: str | None = None
    labels: Mapping[str, Scalar] = field(default_factory=dict)
    masks: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    mask_names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    episode: int | None = None
    step: int | None = None
    time_secs: float | None = None
    state: NDArray[np.float32] | None = None
    action: NDArray[np.float32] | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.cameras):
            raise InputError(
                f"item '{self.item_id}' has {len(self.images)} images but {len(self.cameras)} camera names; "
                "give one name per image."
            )
        for camera, image in zip(self.cameras, self.images, strict=True):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise InputError(
                    f"item '{self.item_id}', camera '{camera}': got an image of shape {image.shape} and type "
                    f"{image.dtype}; need uint8 [height, width, 3] (RGB)."
                )

    @property
    def image(self) -> NDArray[np.uint8]:
        """The image of the first camera, uint8 [h, w, 3]."""
        return self.images[0]


class ItemSource(Sequence[Item], ABC):
    """A lazy, indexable collection of items; nothing is decoded before it is asked for.

    Subclasses implement `__len__`, `read(index)` and `fingerprint`.
    """

    name: str = "items"
    fps: float | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Item:
        """Return item `index`, 0 <= index < len(self). Raises `ItemError` naming a file that is corrupt."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a string that changes when the content changes (names, sizes, times; not every byte)."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> ItemSource: ...
    def __getitem__(self, index: int | slice) -> Item | ItemSource:
        if isinstance(index, slice):
            return Subset(self, tuple(range(*index.indices(len(self)))))
        n_items = len(self)
        if not -n_items <= index < n_items:
            raise IndexError(f"item {index} of '{self.name}' does not exist; it has {n_items} items.")
        return self.read(index % n_items)

    def __iter__(self) -> Iterator[Item]:
        for index in range(len(self)):
            yield self.read(index)

    def subset(self, indices: Sequence[int]) -> ItemSource:
        """Return a source of the items at `indices`, in that order."""
        return Subset(self, tuple(int(i) for i in indices))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, n_items={len(self)})"


class Subset(ItemSource):
    """Some items of another source."""

    def __init__(self, parent: ItemSource, indices: tuple[int, ...]) -> None:
        for index in indices:
            if not 0 <= index < len(parent):
                raise IndexError(
                    f"item {index} of '{parent.name}' does not exist; it has {len(parent)} items."
                )
        self.parent, self.indices = parent, indices
        self.name, self.fps = parent.name, parent.fps

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Item:
        return self.parent.read(self.indices[index])

    def fingerprint(self) -> str:
        return content_hash([self.parent.fingerprint(), list(self.indices)])
