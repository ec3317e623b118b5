"""What one thing shown to a model is (`Item`), and what a collection of them offers (`ItemSource`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError
from ..files import content_hash

Scalar = str | int | float | bool | None
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Skipped:
    """Something that could not be read and was passed over: its `name`, and the `reason` as an error says it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of an item's first image: x0 <= x < x1, y0 <= y < y1.

    Attributes:
        name: What is in it.
        x0, y0, x1, y1: Corners, pixels from the left upper corner of the image.
        flags: What the dataset says about it, e.g. "crowd", "difficult", "truncated".
    """

    name: str
    x0: float
    y0: float
    x1: float
    y1: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing shown to a model: image(s), a prompt and what is known about them.

    Attributes:
        item_id: Unique within its source, e.g. "beach.jpg" or "ep0003/000012".
        images: uint8 [h, w, 3], RGB, one per camera; all cameras may differ in size. () for text alone.
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
        boxes: Labelled rectangles in the first image.
        pose: Camera-to-world matrix of the first camera, float64 [4, 4], OpenGL axes (x right, y up, looking along
            -z), in the dataset's unit of length; None when unknown.
        intrinsics: Pinhole matrix of the first camera in pixels, float64 [3, 3]; None when unknown.
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
    boxes: tuple[Box, ...] = ()
    pose: NDArray[np.float64] | None = None
    intrinsics: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray) or not all(isinstance(i, np.ndarray) for i in self.images):
            got = "an array" if isinstance(self.images, np.ndarray) else "something other than arrays"
            raise InputError(
                f"item '{self.item_id}': images is {got}; need a tuple of arrays, one per camera: images=(array,)."
            )
        if not self.images and self.cameras == ("main",):
            object.__setattr__(self, "cameras", ())  # the default names a camera that a text-only item lacks
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

        for name, matrix, shape in (("pose", self.pose, (4, 4)), ("intrinsics", self.intrinsics, (3, 3))):
            if matrix is not None and (matrix.shape != shape or not np.isfinite(matrix).all()):
                raise InputError(
                    f"item '{self.item_id}': its {name} has shape {matrix.shape} or is not finite; need {shape}."
                )

    @property
    def image(self) -> NDArray[np.uint8]:
        """The image of the first camera, uint8 [h, w, 3]."""
        return self.images[0]


def vector_names(given: Sequence[str], n: int, *, what: str = "") -> tuple[str, ...]:
    """Return the names of the n numbers of a state or an action: those given, or `what` and a number where none fit."""
    return tuple(given) if len(given) == n else tuple(f"{what}{i}" for i in range(n))


class ItemSource(Sequence[Item], ABC):
    """A lazy, indexable collection of items; nothing is decoded before it is asked for.

    Subclasses implement `__len__`, `read(index)` and `fingerprint`.

    With `on_error = "skip"` what is found missing or damaged on opening is left out, iterating passes over items
    that cannot be read, and `skipped` lists both. `source[index]` raises in any case.

    Attributes:
        name: Of the source, for messages and pictures.
        fps: Frames per second of its episodes; None when it does not say.
        state_names: One per number of `Item.state`; empty when the source does not name them.
        action_names: One per number of `Item.action`, likewise.
    """

    name: str = "items"
    fps: float | None = None
    on_error: OnError = "raise"
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    _skipped: list[Skipped]

    @property
    def skipped(self) -> list[Skipped]:
        """What was passed over so far; empty with `on_error = "raise"`."""
        if not hasattr(self, "_skipped"):
            self._skipped = []
        return self._skipped

    def _follow(self, parent: ItemSource) -> None:
        """Be a view of another source: its name, rate and names of vectors; one list of what is skipped."""
        self.name, self.fps, self.on_error = parent.name, parent.fps, parent.on_error
        self.state_names, self.action_names = parent.state_names, parent.action_names
        self._skipped = parent.skipped

    def _skip(self, name: str, error: Exception) -> None:
        """List what is passed over, once; raise `error` instead when skipping was not asked for."""
        if self.on_error != "skip":
            raise error
        entry = Skipped(name, str(error))
        if entry not in self.skipped:
            self.skipped.append(entry)

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
            try:
                item = self.read(index)
            except (ItemError, ItemNotFoundError) as error:
                self._skip(f"item {index}", error)
                continue
            yield item

    def check(self) -> list[Skipped]:
        """Read every item once and return those that cannot be read, with the reason (empty: all is well).

        Cost: decodes the whole source.
        """
        bad: list[Skipped] = []
        for index in range(len(self)):
            try:
                self.read(index)
            except (ItemError, ItemNotFoundError) as error:
                bad.append(Skipped(f"item {index}", str(error)))
        return bad

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
        self._follow(parent)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Item:
        return self.parent.read(self.indices[index])

    def fingerprint(self) -> str:
        return content_hash([self.parent.fingerprint(), list(self.indices)])
