"""What all sources of episodes share: times of frames, choosing every n-th, and changes item by item."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import content_hash
from .item import Item, ItemSource


class FrameSource(ItemSource):
    """Frames of one or more episodes (or videos), one episode after the other."""

    @abstractmethod
    def episode_times(self) -> list[NDArray[np.float64]]:
        """Return the time of every frame since the start of its episode, seconds, one array per episode."""

    @abstractmethod
    def episode_names(self) -> list[str]:
        """Return the name of every episode: what stands before the frame's number in an item id."""

    @property
    def episode_lengths(self) -> list[int]:
        """Number of frames of each episode."""
        return [len(times) for times in self.episode_times()]


class EpisodicSource(FrameSource):
    """Frames of episodes whose lengths are known on opening; readers of datasets build on it.

    Item ids are "<episode name>/<step>", e.g. "ep0003/000012".
    """

    _names: list[str]
    _starts: NDArray[np.int64]

    def _set_episodes(self, names: Sequence[str], lengths: Sequence[int]) -> None:
        self._names = list(names)
        self._starts = np.cumsum([0, *lengths]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return the place of the episode that holds item `index`, and the step in it."""
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return place, index - int(self._starts[place])

    def episode_names(self) -> list[str]:
        return list(self._names)

    def episode_times(self) -> list[NDArray[np.float64]]:
        # Without a frame rate only the order of frames is known; select_frames then refuses `fps`.
        return [np.arange(n) / (self.fps or 1.0) for n in np.diff(self._starts)]


class EpisodeSubset(EpisodicSource):
    """Some episodes of another source, in the order given.

    Args:
        parent: The source.
        places: Places of the episodes in `parent.episode_names()`.

    Raises:
        InputError: no episode is chosen.
    """

    def __init__(self, parent: FrameSource, places: Sequence[int]) -> None:
        if not len(places):
            raise InputError(f"no episode of '{parent.name}' is chosen; need at least one.")
        self.parent, self.places = parent, [int(place) for place in places]
        self._follow(parent)
        names, lengths = parent.episode_names(), parent.episode_lengths
        self._parent_starts = np.cumsum([0, *lengths])
        self._set_episodes([names[p] for p in self.places], [lengths[p] for p in self.places])

    def episode_times(self) -> list[NDArray[np.float64]]:
        times = self.parent.episode_times()
        return [times[place] for place in self.places]

    def read(self, index: int) -> Item:
        place, step = self.locate(index)
        return self.parent.read(int(self._parent_starts[self.places[place]]) + step)

    def fingerprint(self) -> str:
        return content_hash([self.parent.fingerprint(), "episodes", self.places])


def select_frames(
    source: ItemSource, *, stride: int = 1, fps: float | None = None, limit: int | None = None
) -> ItemSource:
    """Return every `stride`-th frame of each episode, thinned to `fps` per second, the first `limit` of those.

    Args:
        source: Any source; for stand-alone images `stride` counts images.
        stride: 1 takes every frame.
        fps: Take the frames nearest to 0, 1/fps, 2/fps, ... seconds of each episode; no frame twice. No episode
            may have fewer frames per second than that.
        limit: Number of items at most, counted after the other two.

    Raises:
        InputError: stride or limit no whole number or below 1; fps not above 0, above what an episode has, or given
            for stand-alone images.
    """
    for name, number in (("stride", stride), ("limit", limit)):
        if number is not None and not isinstance(number, int | np.integer):
            raise InputError(f"got {name}={number!r}; need a whole number.")
    if stride < 1 or (limit is not None and limit < 1) or (fps is not None and not fps > 0):
        raise InputError(
            f"got stride={stride}, fps={fps}, limit={limit}; need stride >= 1, fps > 0 and limit >= 1."
        )
    if fps is not None and (not isinstance(source, FrameSource) or source.fps is None):
        raise InputError(
            f"'{source.name}' has no time stamps, so fps={fps} means nothing there; leave it out."
        )
    if fps is not None and isinstance(source, FrameSource):
        _check_rate(source, fps)
    if stride == 1 and fps is None and (limit is None or limit >= len(source)):
        return source
    chosen: list[NDArray[np.int64]] = []
    if isinstance(source, FrameSource):
        start = 0
        for times in source.episode_times():
            places = np.arange(len(times)) if fps is None else _nearest_to_grid(times, fps)
            chosen.append(start + places[::stride])
            start += len(times)
    else:
        chosen.append(np.arange(0, len(source), stride))
    part = source.subset(np.concatenate(chosen)[:limit].tolist())
    if source.fps is not None:
        part.fps = min(fps or source.fps, source.fps) / stride
    return part


def _check_rate(source: FrameSource, fps: float) -> None:
    """Raise when an episode has fewer than `fps` frames per second: thinning cannot add any."""
    for name, times in zip(source.episode_names(), source.episode_times(), strict=True):
        rate = (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else fps
        if fps > rate * 1.01:  # 30 is what people call 29.97
            raise InputError(
                f"'{name}' has {rate:.4g} frames per second, fewer than fps={fps:g}; fps only thins. Give at most "
                f"{rate:.4g}, or leave it out."
            )


def _nearest_to_grid(times: NDArray[np.float64], fps: float) -> NDArray[np.int64]:
    last = times[-1]
    grid = np.arange(int(np.floor(last * fps + 1e-6)) + 1) / fps
    right = np.searchsorted(times, grid).clip(1, max(len(times) - 1, 1)) if len(times) > 1 else None
    if right is None:
        return np.zeros(1, np.int64)
    left_is_nearer = grid - times[right - 1] <= times[right] - grid
    return np.unique(np.where(left_is_nearer, right - 1, right)).astype(np.int64)


class MappedSource(ItemSource):
    """Another source with every item changed by a function, when it is asked for.

    Args:
        parent: The source.
        change: Item -> Item; keeps the item id.
        tag: Says what the change is; part of the fingerprint, so give its parameters too.
    """

    def __init__(self, parent: ItemSource, change: Callable[[Item], Item], *, tag: str) -> None:
        self.parent, self.change, self.tag = parent, change, tag
        self.name, self.fps, self.on_error = parent.name, parent.fps, parent.on_error
        self._skipped = parent.skipped

    def __len__(self) -> int:
        return len(self.parent)

    def read(self, index: int) -> Item:
        return self.change(self.parent.read(index))

    def fingerprint(self) -> str:
        return content_hash([self.parent.fingerprint(), self.tag])
