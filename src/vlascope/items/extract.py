"""Frames of videos as image files, at regular times, with a table of when each was taken."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import new_folder
from ..progress import watched
from .video import VideoSource

_EVERY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|ms|f)\s*$")


def parse_every(text: str) -> tuple[float, bool]:
    """Return an interval such as "0.5s", "250ms" or "10f" (frames) as (seconds or frames, whether it is frames).

    Raises:
        InputError: another form, zero, or part of a frame.
    """
    match = _EVERY.match(text)
    value = float(match[1]) if match else 0.0
    if match is None or value <= 0 or (match[2] == "f" and value != int(value)):
        raise InputError(
            f"got an interval of '{text}'; need seconds (0.5s, 250ms) or whole frames (10f), above 0."
        )
    return (value / 1000 if match[2] == "ms" else value), match[2] == "f"


def extract_frames(
    videos: VideoSource, out: Path | str, *, every: str = "0.5s", suffix: str = ".png", force: bool = False
) -> list[Path]:
    """Write frames of videos as images and return their paths; the folder appears only when it is whole.

    Files are called "<video>-000017.png" by the number of the frame; `frames.csv` lists file, video, frame and
    time_secs. At "0.5s" the frames nearest to 0, 0.5, 1.0, ... seconds are taken, none twice.

    Args:
        videos: One video or several.
        out: Folder to make.
        every: "0.5s", "250ms", or "10f" for every tenth frame.
        suffix: ".png" (exact) or ".jpg" (quality 95).
        force: Replace a folder that vlascope wrote.

    Raises:
        InputError: an interval or suffix that does not fit.
        ItemError: a frame that cannot be decoded.
        StorageError: `out` exists and `force` is False, or it cannot be written.
    """
    from PIL import Image

    if suffix not in (".png", ".jpg"):
        raise InputError(f"got suffix '{suffix}'; need .png or .jpg.")
    interval, is_frames = parse_every(every)
    out, rows = Path(out), []
    starts = np.cumsum([0, *videos.episode_lengths])
    with new_folder(out, force=force, apart=videos.paths) as folder:
        for place, times in enumerate(watched(videos.episode_times(), desc="videos", unit="video")):
            if is_frames:
                steps = np.arange(0, len(times), int(interval))
            else:
                grid = np.arange(int(times[-1] / interval + 1e-6) + 1) * interval
                steps = np.unique(np.abs(times[None] - grid[:, None]).argmin(axis=1))
            video = videos.episode_names()[place]
            stem = re.sub(r"[^\w.-]+", "_", str(Path(video).with_suffix("")))
            for step in steps.tolist():
                name = f"{stem}-{step:06d}{suffix}"
                Image.fromarray(videos[int(starts[place]) + step].image).save(folder / name, quality=95)
                rows.append((name, video, step, round(float(times[step]), 6)))
        with (folder / "frames.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file", "video", "frame", "time_secs"))
            writer.writerows(rows)
    return [out / row[0] for row in rows]
