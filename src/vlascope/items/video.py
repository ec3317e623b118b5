"""Video files as items: one item per frame, one episode per file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, ItemNotFoundError
from ..files import content_hash
from ._video import VideoReader, reader_pool
from .frames import FrameSource
from .images import file_facts, short_names
from .item import Item, OnError


class VideoSource(FrameSource):
    """Frames of one or more video files (H.264, AV1, VP9, ...); each file is an episode.

    Item ids are "<file name>/<frame number>", e.g. "rollout.mp4/000017". Each file is opened once, without
    decoding, to learn the times of its frames.

    Args:
        paths: One file or several.
        prompt: Prompt of every frame.
        on_error: "skip" leaves out files that cannot be opened and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such file.
        ItemError: not a video, no frame in it, or its end is missing.
    """

    def __init__(
        self,
        paths: Path | str | Sequence[Path | str],
        *,
        prompt: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        if not files:
            raise ItemError("got an empty list of videos; need at least one.")
        self.prompt, self.on_error = prompt, on_error
        self._readers = reader_pool()
        self.paths: list[Path] = []
        facts: list[tuple[NDArray[np.float64], float | None]] = []
        for path in map(Path, files):
            try:
                reader = self._reader(path)
            except (ItemError, ItemNotFoundError) as error:
                self._skip(str(path), error)
                continue
            self.paths.append(path)
            facts.append((reader.times_secs, reader.fps))
        if not self.paths:
            raise ItemError(f"none of the {len(files)} videos can be read: {self.skipped[0].reason}")
        self.name = self.paths[0].stem if len(self.paths) == 1 else f"{len(self.paths)} videos"
        self._names = short_names(self.paths)
        self._times = [times for times, _ in facts]
        self.fps = facts[0][1]
        self._starts = np.cumsum([0, *(len(times) for times in self._times)])

    def _reader(self, path: Path) -> VideoReader:
        return self._readers.get(path, lambda: VideoReader(path))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def episode_names(self) -> list[str]:
        return [self._names[path] for path in self.paths]

    def episode_times(self) -> list[NDArray[np.float64]]:
        return self._times

    def read(self, index: int) -> Item:
        episode = int(np.searchsorted(self._starts, index, side="right")) - 1
        step = index - int(self._starts[episode])
        path = self.paths[episode]
        return Item(
            item_id=f"{self._names[path]}/{step:06d}",
            images=(self._reader(path).read(step),),
            prompt=self.prompt,
            episode=episode,
            step=step,
            time_secs=float(self._times[episode][step]),
            source=str(path),
        )

    def fingerprint(self) -> str:
        return content_hash([[file_facts(path) for path in self.paths], self.prompt])
