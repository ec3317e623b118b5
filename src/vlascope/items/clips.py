"""Clips: items whose images are successive frames of one camera, for models that look at videos."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from ..files import content_hash
from .frames import FrameSource
from .item import Item, ItemSource


def clips(
    source: FrameSource, *, n_frames: int, stride: int = 1, hop: int | None = None, camera: int = 0
) -> ClipSource:
    """Return a source whose items are clips of `source`'s frames; no clip reaches over the end of an episode.

    Args:
        source: A video, or episodes.
        n_frames: Frames per clip, >= 1.
        stride: Take every so-many-th frame, >= 1.
        hop: Frames between the beginnings of two clips, >= 1; a clip's whole length by default.
        camera: Which image of each frame to take.

    Raises:
        InputError: a number out of range, a source without episodes, or no episode that is long enough.
    """
    return ClipSource(source, n_frames=n_frames, stride=stride, hop=hop, camera=camera)


class ClipSource(ItemSource):
    """Made by `clips`. An item has the labels, time, state and action of its first frame.

    Its id is that of the first frame and "+n_frames"; its cameras are called "t0", "t1", ...
    """

    def __init__(
        self, parent: FrameSource, *, n_frames: int, stride: int, hop: int | None, camera: int
    ) -> None:
        hop = n_frames * stride if hop is None else hop
        if min(n_frames, stride, hop) < 1 or camera < 0:
            raise InputError(
                f"got n_frames={n_frames}, stride={stride}, hop={hop}, camera={camera}; need 1 or more, and a camera "
                "of 0 or more."
            )
        if not isinstance(parent, FrameSource):
            raise InputError(
                f"'{parent.name}' has no episodes to cut clips from; open a video or a dataset of episodes."
            )
        lengths = parent.episode_lengths
        reach = (n_frames - 1) * stride  # from the first frame to the last
        self._starts: list[int] = []
        first = 0
        for length in lengths:
            self._starts += range(first, first + length - reach, hop)
            first += length
        if not self._starts:
            raise InputError(
                f"a clip of {n_frames} frames at stride {stride} needs {reach + 1} frames; the longest episode of "
                f"'{parent.name}' has {max(lengths, default=0)}."
            )
        self.parent, self.n_frames, self.stride, self.hop, self.camera = parent, n_frames, stride, hop, camera
        self._follow(parent)
        self.fps = parent.fps / hop if parent.fps else None

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Item:
        start = self._starts[index]
        frames = [self.parent[start + i * self.stride] for i in range(self.n_frames)]
        first = frames[0]
        if self.camera >= len(first.images):
            raise InputError(
                f"item '{first.item_id}' has {len(first.images)} image(s), so there is no camera {self.camera}."
            )
        return replace(
            first,
            item_id=f"{first.item_id}+{self.n_frames}",
            images=tuple(frame.images[self.camera] for frame in frames),
            cameras=tuple(f"t{i}" for i in range(self.n_frames)),
            # Masks belong to the first camera of a frame.
            masks=first.masks if self.camera == 0 else {},
            mask_names=first.mask_names if self.camera == 0 else {},
        )

    def fingerprint(self) -> str:
        return content_hash([self.parent.fingerprint(), self.n_frames, self.stride, self.hop, self.camera])
