"""The side-by-side video of an episode: camera, colours, overlay, and beneath them what was asked and done."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..items.fonts import font
from ..progress import watched
from .choose import camera_note, episodes_of, outcome_text
from .describe import footer, picture_params
from .html import jpeg_bytes
from .panels import color_panel, coverage, input_panel, overlay_panel
from .picture import Video, params_json
from .robot import EpisodeTrack, action_pieces, answer_text, episode_track
from .style import DARK, SPACE, Theme, draw_lines, line_height, wrap
from .tokens import TokenIndex, Upsample, of_camera

if TYPE_CHECKING:
    from PIL import ImageDraw

    from ..palette import SavedCut

MAX_CAMERAS = 3
"""Cameras of a frame that a video shows, one under the other."""

NAMES_BELOW = 11
"""Pixels from the time line to the first line of names under it."""

MAX_TITLE_LINES = 3
"""Lines of an instruction."""

READ_WIDTH = 840
"""Width at which a video is mostly looked at (in the report); its type grows with its own width, to be read there."""

MIN_SECS = 8.0
"""Short episodes are slowed down to last at least about this long, so that they can be followed."""


def video(
    cut: SavedCut,
    *,
    episode: int | None = None,
    site: str | None = None,
    upsample: Upsample = "nearest",
    panel_width: int = 448,
    speed: float | None = None,
    theme: Theme = DARK,
    crf: int = 20,
) -> Video:
    """Return an H.264 video (yuv420p, plays in browsers): camera | colours | overlay, and a band of facts.

    Where the model reads several cameras, each has a row of panels; of more than three the first three, which is
    said. The band shows the instruction, step and time, the action in physical units, the gripper, the model's answer
    and a time line with the labelled events.

    Args:
        cut: What to draw.
        episode: Index of the episode; None takes the first. Items without episodes make one sequence.
        site: One of the cut's sites; None takes the last one of the vision tower.
        upsample: "nearest" shows each patch as it is, "smooth" interpolates the colours.
        panel_width: Aimed-at width of a panel, pixels; small frames are enlarged by a whole factor.
        speed: Playback speed, 1 is real time; None slows short episodes to last about 8 s. Stated in the band. Where
            the rate of the recording is not known, 1 is five frames a second, and those are stated.
        theme: Colours of all that is no data.
        crf: Quality of the encoder, 0 (best) to 51.

    Raises:
        SiteNotFoundError: the cut does not hold `site`.
        InputError: no such episode, or the site has no patches.

    Cost: about 20 ms per frame.
    """
    index = TokenIndex(cut)
    site = index.default_site() if site is None else index.check_site(site)
    if not index.has_patches(site):
        raise InputError(f"site '{site}' has no image patches in this cut; use .words() to draw its tokens.")
    track = _track(cut, episode, index.items_of(site))
    cameras = index.cameras(site, track.items[0])[:MAX_CAMERAS]
    images = [cut.run.image(track.items[0], camera) for camera in cameras]
    sizes = [video_panel_size((image.shape[1], image.shape[0]), width=panel_width) for image in images]
    fps, speed = _timing(track, speed)
    params = picture_params(
        cut,
        view="video",
        sites=[site],
        episode=track.episode,
        upsample=upsample,
        speed=speed if track.fps else None,
        fps=fps,
        cameras=[cut.run.items[track.items[0]].cameras[camera] for camera in cameras],
    )
    band = _Band(
        cut,
        track,
        site=site,
        cameras=cameras,
        sizes=sizes,
        theme=theme,
        pace=_pace(track, fps, speed),
        footer=footer(params),
    )
    frames = _frames(cut, index, track, band, site=site, upsample=upsample, theme=theme)
    first = next(frames)
    frames = itertools.chain([first], frames)
    data = encode_h264(frames, fps=fps, crf=crf, comment=params_json(params))
    return Video(
        data=data,
        width=band.width,
        height=band.height,
        n_frames=len(track.items),
        fps=fps,
        poster=jpeg_bytes(first),
        params=params,
    )


def video_panel_size(image_wh: tuple[int, int], *, width: int) -> tuple[int, int]:
    """Return the size of a panel: a whole multiple of a small image, or a large one reduced to `width`."""
    if image_wh[0] * 2 <= width:
        factor = width // image_wh[0]
        return image_wh[0] * factor, image_wh[1] * factor
    scale = min(1.0, width / image_wh[0])
    return round(image_wh[0] * scale), round(image_wh[1] * scale)


def _track(cut: SavedCut, episode: int | None, held: list[int]) -> EpisodeTrack:
    episodes = episodes_of(cut.run)
    if not episodes:
        if episode is not None:
            raise InputError(f"episode {episode} does not exist: the items of this run belong to no episode.")
        return episode_track(cut.run, episode=0, items=held)
    number = next(iter(episodes)) if episode is None else int(episode)
    if number not in episodes:
        names = ", ".join(map(str, episodes))
        raise InputError(f"episode {number} does not exist; the run holds episodes {names}.")
    inside = set(held)
    items = [i for i in episodes[number] if i in inside]
    if not items:
        raise InputError(f"no frame of episode {number} is in this cut.")
    return episode_track(cut.run, episode=number, items=items)


def _timing(track: EpisodeTrack, speed: float | None) -> tuple[float, float]:
    """Return (frames per second of the video, playback speed)."""
    native = track.fps or 5.0
    if speed is None:
        duration = len(track.items) / native
        speed = next((s for s in (1.0, 0.5, 0.25) if duration / s >= MIN_SECS), 0.25)
        speed = max(speed, min(1.0, 2.0 / native))  # never slower than two frames a second
    if not speed > 0:
        raise InputError(f"speed is {speed}; need a positive factor (1 is real time).")
    return native * speed, speed


def _pace(track: EpisodeTrack, fps: float, speed: float) -> str:
    """Return how fast a video runs, in words; "" in real time. Nobody knows what that is without the times."""
    if not track.fps:
        return f"{fps:.3g} frames a second"
    return "" if speed == 1 else f"played at {speed:g} x real time"


def _frames(
    cut: SavedCut,
    index: TokenIndex,
    track: EpisodeTrack,
    band: _Band,
    *,
    site: str,
    upsample: Upsample,
    theme: Theme,
) -> Iterator[NDArray[np.uint8]]:
    base = band.base()
    for number, item in enumerate(track.items):
        frame = base.copy()
        patches = index.patches(site, item)
        for camera, size, y in zip(band.cameras, band.sizes, band.panel_y, strict=True):
            if camera >= len(cut.run.items[item].cameras):
                continue  # this frame lacks it: the place stays empty
            image = cut.run.image(item, camera)
            wh = (image.shape[1], image.shape[0])
            grids = of_camera(patches, camera)
            colors = color_panel(
                cut.rgb, grids=grids, image_wh=wh, out_wh=size, upsample=upsample, theme=theme
            )
            plain = input_panel(image, out_wh=size)
            covered = coverage(grids, image_wh=wh, out_wh=size)
            panels = (plain, colors, overlay_panel(plain, colors, covered_hw=covered))
            for x, panel in zip(band.panel_x, panels, strict=True):
                frame[y : y + size[1], x : x + size[0]] = panel
        band.draw(frame, number)
        yield frame


@dataclass
class _Band:
    """Everything around the panels: titles above, facts and time line beneath."""

    cut: SavedCut
    track: EpisodeTrack
    site: str
    cameras: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    theme: Theme
    pace: str
    footer: str

    def __post_init__(self) -> None:
        n_panels, margin = 3, 2 * SPACE
        self.margin = margin
        column = max(size[0] for size in self.sizes)
        self.panel_x = [margin + i * (column + SPACE) for i in range(n_panels)]
        self.width = _even(self.panel_x[-1] + column + margin)
        scale = max(1.0, self.width / READ_WIDTH)
        self.title_face = font(round(20 * scale), bold=True)
        self.mono, self.small = font(round(16 * scale), mono=True), font(round(12 * scale))
        head = line_height(self.small) + SPACE // 2
        self.heads = self._heads(column)
        self.panel_y, y = [], margin
        for size in self.sizes:
            self.panel_y.append(y + head)
            y += head + size[1] + SPACE
        inner = self.width - 2 * margin
        self.title_lines = self._title(inner)
        self.footer_lines = wrap(self.footer, face=self.small, width=inner)
        self.facts = [self._flow(self._pieces(n), width=inner) for n in range(len(self.track.items))]
        self.n_fact_lines = max(len(lines) for lines in self.facts)
        self.y_title = y
        y += len(self.title_lines) * line_height(self.title_face) + SPACE // 2
        self.y_facts = y
        y += self.n_fact_lines * line_height(self.mono) + SPACE
        self.y_line = y
        y += NAMES_BELOW + 2 * line_height(self.small) + 3
        self.y_footer = y
        self.height = _even(y + len(self.footer_lines) * line_height(self.small) + margin)

    def _heads(self, width: int) -> list[list[str]]:
        """Return the titles of the panels: camera, colours, overlay; one row of them per camera."""
        item, rows = self.track.items[0], []
        for number, camera in enumerate(self.cameras):
            note = camera_note(self.cut.run, item, camera, shown=self.cameras)
            row = [
                note or "camera",
                *([f"concept colours, {self.site}", "overlay"] if number == 0 else ["", ""]),
            ]
            rows.append([(wrap(text, face=self.small, width=width, max_lines=1) or [""])[0] for text in row])
        return rows

    def _title(self, width: int) -> list[str]:
        """Return the instruction and how it ended, in lines; a long instruction is cut off after the third."""
        ended = outcome_text(self.track.labels)
        name = f"“{self.track.prompt}”" if self.track.prompt else f"Episode {self.track.episode}"
        lines = wrap(f"{name} — {ended}" if ended else name, face=self.title_face, width=width)
        if len(lines) <= MAX_TITLE_LINES:
            return lines
        lines = wrap(name, face=self.title_face, width=width, max_lines=MAX_TITLE_LINES)
        return [*lines, *wrap(ended, face=self.title_face, width=width, max_lines=1)]

    def _pieces(self, number: int) -> list[str]:
        time = self.track.times[number]
        pieces = [f"step {self.track.steps[number]:>3}"]
        if np.isfinite(time):
            pieces.append(f"{time:.1f} s")
        done = action_pieces(self.track, number)
        pieces += done
        answer = answer_text(self.cut.run, self.track.items[number])
        if answer is not None and answer != "  ".join(done):
            pieces.append(f"model answers: {answer.strip()}")
        return pieces

    def _flow(self, pieces: list[str], *, width: int) -> list[str]:
        """Return the pieces in lines, three spaces apart; a line is broken between pieces where that is possible."""
        lines = [""]
        for piece in pieces:
            joined = f"{lines[-1]}   {piece}" if lines[-1] else piece
            if self.mono.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines += wrap(piece, face=self.mono, width=width)
        return [line for line in lines if line]

    def base(self) -> NDArray[np.uint8]:
        """Return what is the same in every frame, uint8 [h, w, 3]."""
        from PIL import Image, ImageDraw

        page = Image.new("RGB", (self.width, self.height), self.theme.background)
        draw = ImageDraw.Draw(page)
        for y, names in zip(self.panel_y, self.heads, strict=True):
            top = y - SPACE // 2 - line_height(self.small)
            for x, name in zip(self.panel_x, names, strict=True):
                draw_lines(draw, (x, top), [name], face=self.small, fill=self.theme.muted)
        draw_lines(
            draw, (self.margin, self.y_title), self.title_lines, face=self.title_face, fill=self.theme.text
        )
        draw_lines(
            draw, (self.margin, self.y_footer), self.footer_lines, face=self.small, fill=self.theme.muted
        )
        self._draw_time_line(draw)
        return np.array(page)

    def _x_of(self, number: float) -> float:
        n = max(1, len(self.track.items) - 1)
        return self.margin + 4 + (self.width - 2 * self.margin - 8) * number / n

    def _draw_time_line(self, draw: ImageDraw.ImageDraw) -> None:
        x0, x1, y = self.margin, self.width - self.margin, self.y_line
        draw.rectangle((x0, y, x1 - 1, y + 5), fill=self.theme.surface)
        closed = self.track.gripper_closed
        if closed is not None:
            for number in np.flatnonzero(closed):
                left, right = self._x_of(number - 0.5), self._x_of(number + 0.5)
                draw.rectangle((max(left, x0), y, min(right, x1 - 1), y + 5), fill=self.theme.muted)
        places: list[tuple[str, float]] = []
        for name, step in self.track.events:
            if step in self.track.steps:
                places.append((name, self._x_of(self.track.steps.index(step))))
        right_edge = [
            float(x0),
            float(x0),
        ]  # end of the last label on each of two lines: labels never overlap
        for name, x in places:
            draw.rectangle((x - 1, y - 3, x, y + 8), fill=self.theme.accent)
            width = self.small.getlength(name)
            start = min(max(x - width / 2, x0), x1 - width)
            row = next((r for r, edge in enumerate(right_edge) if start >= edge + SPACE or edge == x0), None)
            if row is None:
                continue
            draw_lines(
                draw,
                (start, y + NAMES_BELOW + row * line_height(self.small)),
                [name],
                face=self.small,
                fill=self.theme.accent,
            )
            right_edge[row] = start + width
        self._draw_legend(
            draw, with_grip=closed is not None and bool(closed.any()), left_edge=max(right_edge)
        )

    def _draw_legend(self, draw: ImageDraw.ImageDraw, *, with_grip: bool, left_edge: float) -> None:
        """Draw the legend at the right end of the second line under the time line, where it has room."""
        face, y = self.small, self.y_line + NAMES_BELOW + line_height(self.small)
        text = self.pace
        grip = "gripper closed" + ("  ·  " if text else "") if with_grip else ""
        width = (28 + face.getlength(grip) if grip else 0) + face.getlength(text)
        x = self.width - self.margin - width
        if not (grip or text) or x < left_edge + SPACE:
            return
        if grip:
            middle = y + line_height(face) / 2
            draw.rectangle((x, middle - 2.5, x + 20, middle + 2.5), fill=self.theme.muted)
            x += 28
        draw_lines(draw, (x, y), [grip + text], face=face, fill=self.theme.muted)

    def draw(self, frame: NDArray[np.uint8], number: int) -> None:
        """Draw what belongs to one frame into it."""
        from PIL import Image, ImageDraw

        top, bottom = self.y_facts, self.y_line + 12
        strip = Image.fromarray(frame[top:bottom])
        draw = ImageDraw.Draw(strip)
        draw_lines(draw, (self.margin, 0), self.facts[number], face=self.mono, fill=self.theme.text)
        x, y = self._x_of(number), self.y_line + 2.5 - top
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=self.theme.text)
        frame[top:bottom] = np.asarray(strip)


def _even(value: int) -> int:
    return value + value % 2  # yuv420p halves both axes


def encode_h264(frames: Iterator[NDArray[np.uint8]], *, fps: float, crf: int, comment: str) -> bytes:
    """Return an MP4 file (H.264, yuv420p, index first) of uint8 [h, w, 3] frames of one even size.

    One thread and no time stamp of the day: the same frames give the same bytes.

    Raises:
        InputError: there are no frames.
    """
    import av

    # Moving the index to the front makes the muxer open its output a second time, hence a file and no buffer.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with tempfile.TemporaryDirectory(prefix="vlascope-") as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", format="mp4", options=options) as container:
            container.metadata["comment"] = comment
            stream = None
            for frame in watched(frames, desc="video", unit="frame"):
                if stream is None:
                    rate = Fraction(fps).limit_denominator(1000)
                    stream = container.add_stream("libx264", rate=rate)
                    stream.width, stream.height, stream.pix_fmt = frame.shape[1], frame.shape[0], "yuv420p"
                    stream.options = {
                        "crf": str(crf),
                        "preset": "veryfast",
                        "threads": "1",
                        "flags": "+bitexact",
                    }
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if stream is None:
                raise InputError("a video needs at least one frame; got none.")
            container.mux(stream.encode())
        return path.read_bytes()
