"""Reading and writing single frames of video files with PyAV: exact random access, cheap reading in order."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError, ItemNotFoundError
from ..files import storage_errors
from ._lru import Lru

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".ts")
"""File name endings that are taken for video files, lower case."""


class VideoReader:
    """Frames of one video file by number.

    Opening lists the time stamp of every packet without decoding any; a frame is then found by its exact time
    stamp: the decoder goes on from where it is when that is the shorter way, else it seeks to the key frame
    before. The last few frames are kept. Not safe to share between threads.

    Args:
        path: Any file that FFmpeg can read (H.264, H.265, AV1, VP9, MPEG-4, ...).
        keep: Number of decoded frames kept in memory.

    Raises:
        ItemNotFoundError: no such file.
        ItemError: not a video, no frame in it, or (MP4, MOV; AVI where a frame is cut) the end of it is missing.
    """

    def __init__(self, path: Path | str, *, keep: int = 8) -> None:
        self.path = Path(path)
        self._kept: Lru[int, NDArray[np.uint8]] = Lru(keep)
        if not self.path.is_file():
            raise ItemNotFoundError(f"there is no video file '{self.path}'; check the path.")
        self._open()
        try:
            self._index_packets()
        except BaseException:
            self._container.close()
            raise
        self._frames: Any = None
        self._next = -1  # number of the frame that the decoder gives next; -1: it must seek first

    def _open(self) -> None:
        import av
        from av.error import FFmpegError

        try:
            self._container = av.open(str(self.path))
        except (FFmpegError, OSError) as error:
            what = "permission denied" if isinstance(error, PermissionError) else f"{error}; is it complete?"
            raise ItemError(f"'{self.path}' cannot be opened as a video: {what}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ItemError(f"'{self.path}' has no video stream; need a file with pictures in it.")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def _index_packets(self) -> None:
        from av.error import FFmpegError

        pts: list[int] = []
        key_pts: list[int] = []
        n_whole, is_cut = 0, False
        try:
            for packet in self._container.demux(self._stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if packet.size > 0:
                    is_cut = packet.is_corrupt
                    n_whole += not is_cut
                if stamp is None or packet.size == 0 or packet.is_discard:
                    continue
                pts.append(stamp)
                if packet.is_keyframe:
                    key_pts.append(stamp)
        except FFmpegError as error:
            raise ItemError(f"'{self.path}' is damaged: {error}. Copy or encode it again.") from error
        self._check_complete(n_whole, is_cut=is_cut)
        if not pts:
            raise ItemError(f"'{self.path}' holds no video frame; need at least one.")
        self._pts = sorted(set(pts))
        self._number_from_pts = {stamp: number for number, stamp in enumerate(self._pts)}
        self._keys = sorted(self._number_from_pts[stamp] for stamp in set(key_pts)) or [0]
        time_base = self._stream.time_base or Fraction(1, 1)
        self.times_secs = np.array([float((p - self._pts[0]) * time_base) for p in self._pts])
        rate = self._stream.average_rate or self._stream.guessed_rate
        if len(self._pts) > 1:
            span = self.times_secs[-1] - self.times_secs[0]
            fps = (len(self._pts) - 1) / span if span > 0 else float(rate or 0)
        else:
            fps = float(rate or 0)
        self.fps: float | None = round(fps, 6) or None

    def _check_complete(self, n_whole: int, *, is_cut: bool) -> None:
        """Raise when the file ends early, as an interrupted copy does: FFmpeg itself takes that for the end."""
        kind = self._container.format.name
        # Only MP4 and MOV count frames as we do: AVI counts dropped ones too, Matroska and MPEG-TS none.
        n_said = self._stream.frames if "mp4" in kind else 0
        if n_said > n_whole and self._n_stored() < n_said:
            raise ItemError(
                f"'{self.path}' is not complete: its header says {n_said} frames, of which {n_whole} are there. "
                "Copy it again."
            )
        if is_cut and ("mp4" in kind or kind == "avi"):
            raise ItemError(f"'{self.path}' is not complete: it ends within frame {n_whole}. Copy it again.")

    def _n_stored(self) -> int:
        """Return the whole frames in the file, those that its edit list cuts away included."""
        import av

        with av.open(str(self.path), options={"ignore_editlist": "1"}) as container:
            packets = container.demux(container.streams.video[0])
            return sum(packet.size > 0 and not packet.is_corrupt for packet in packets)

    def __len__(self) -> int:
        return len(self._pts)

    def read(self, number: int) -> NDArray[np.uint8]:
        """Return frame `number` as uint8 [h, w, 3], RGB, upright; the array is read-only.

        Raises:
            IndexError: no such frame.
            ItemError: the file is damaged at that place.

        Cost: one decoded frame when reading in order; else the frames since the key frame before.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"'{self.path}' has frames 0..{len(self) - 1}; there is no frame {number}.")
        return self._kept.get(number, lambda: self._read(number))

    def _read(self, number: int) -> NDArray[np.uint8]:
        key = self._keys[max(bisect_right(self._keys, number) - 1, 0)]
        image = self._decode_until(number) if key <= self._next <= number else None
        if image is None:
            # A container may land late (it seeks by decoding time, or roughly): then start one key frame
            # earlier, at last from the beginning, which is slow for long files of that kind but right.
            earlier = self._keys[max(bisect_right(self._keys, key) - 2, 0)]
            for start in (key, earlier, None):
                self._seek(start)
                image = self._decode_until(number)
                if image is not None:
                    break
        if image is None:
            raise ItemError(
                f"'{self.path}', frame {number} ({self.times_secs[number]:.3f} s), cannot be decoded: the file "
                "lists it but does not hold it. Copy or encode it again."
            )
        image.setflags(write=False)
        return image

    def _seek(self, key: int | None) -> None:
        """Make the decoder start at key frame `key`, or open the file again to start at the beginning."""
        from av.error import FFmpegError

        if key is not None:
            try:
                self._container.seek(self._pts[key], stream=self._stream, backward=True, any_frame=False)
            except FFmpegError:  # some containers (raw streams, few AVI files) cannot seek at all
                key = None
        if key is None:
            self._container.close()
            self._open()
        self._frames = self._container.decode(self._stream)
        self._next = key or 0

    def _decode_until(self, number: int) -> NDArray[np.uint8] | None:
        """Decode on to frame `number`; None when the decoder has passed it or come to the end."""
        from av.error import FFmpegError

        wanted = self._pts[number]
        self._next, frames = -1, self._frames
        try:
            for frame in frames:
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is None or stamp < wanted:
                    continue
                if stamp > wanted:
                    return None
                image = convert(frame, "rgb24").to_ndarray()
                self._next = number + 1
                return np.ascontiguousarray(np.rot90(image, (getattr(frame, "rotation", 0) // 90) % 4))
        except FFmpegError as error:
            raise ItemError(f"'{self.path}', frame {number}, cannot be decoded: {error}.") from error
        return None

    def number_at(self, time_secs: float) -> int:
        """Return the number of the frame whose time stamp is nearest to `time_secs`."""
        right = int(np.searchsorted(self.times_secs, time_secs))
        if right == 0:
            return 0
        if right == len(self):
            return len(self) - 1
        left_is_nearer = time_secs - self.times_secs[right - 1] <= self.times_secs[right] - time_secs
        return right - 1 if left_is_nearer else right

    def close(self) -> None:
        """Close the file; the reader cannot be used afterwards."""
        self._frames = None
        self._kept.clear()
        self._container.close()


def convert(frame: Any, pix_fmt: str) -> Any:
    """Return a PyAV frame in another pixel format, by arithmetic that is the same on every machine.

    FFmpeg's default takes short cuts that depend on the processor and splits the work over all cores.
    """
    from av.video.reformatter import Interpolation

    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    return frame.reformat(format=pix_fmt, interpolation=exact, threads=1)


def reader_pool(max_open: int = 4) -> Lru[Path, VideoReader]:
    """Return a cache of open readers by path; the one used longest ago is closed first."""
    return Lru(max_open, drop=VideoReader.close)


class VideoWriter:
    """H.264 file written frame by frame; use as a context manager.

    Even sizes are written as yuv420p, which every browser plays. An odd width or height cannot be halved for
    the colour planes; it is written as yuv444p instead of being padded, so that pixels keep their places
    (Firefox and Safari may then refuse to play it). No B-frames and a key frame every `key_every` frames, so
    that a frame is found after decoding at most that many.

    Args:
        path: File to write, ending in .mp4. Not atomic: write into a temporary folder.
        fps: Frames per second.
        crf: Quality, 0 (lossless) to 51; 16 is visually lossless.
        key_every: Frames between key frames.
    """

    def __init__(self, path: Path | str, *, fps: float, crf: int = 16, key_every: int = 10) -> None:
        self.path = Path(path)
        self.n_frames = 0
        self._fps = Fraction(fps).limit_denominator(1001)
        self._crf, self._key_every = crf, key_every
        self._container: Any = None
        self._stream: Any = None
        self.pix_fmt = ""

    def _open(self, height: int, width: int) -> Any:
        import av

        with storage_errors(self.path):
            self._container = av.open(str(self.path), "w", format="mp4", options={"movflags": "+faststart"})
        self.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        # One thread: small frames gain nothing from more. Bytes repeat almost always (see tests/QUARANTINE.md).
        options = {"crf": str(self._crf), "preset": "medium", "bf": "0", "g": str(self._key_every)}
        options |= {"forced-idr": "1", "threads": "1"}
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, self.pix_fmt
        self._stream.codec_context.time_base = 1 / self._fps
        return self._container

    def write(self, image: NDArray[np.uint8], *, key: bool = False) -> None:
        """Append one frame, uint8 [h, w, 3], RGB; `key` makes it a key frame."""
        import av
        from av.video.frame import PictureType

        container: Any = self._container or self._open(*image.shape[:2])
        frame = convert(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), self.pix_fmt)
        frame.pts, frame.time_base = self.n_frames, 1 / self._fps
        if key:
            frame.pict_type = PictureType.I
        with storage_errors(self.path):
            for packet in self._stream.encode(frame):
                container.mux(packet)
        self.n_frames += 1

    def size_bytes(self) -> int:
        """Return the bytes on disk so far (the encoder may hold back a few frames)."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Write what the encoder still holds and close the file."""
        if self._container is None:
            return
        container: Any = self._container
        self._container = None
        try:
            with storage_errors(self.path):
                for packet in self._stream.encode():
                    container.mux(packet)
        finally:
            container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
