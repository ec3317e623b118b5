"""A run for Rerun's viewer: images, concept colours, words, actions and measures on one time line, with a layout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, missing_extra
from ..files import storage_errors
from ..items.item import vector_names
from ..progress import watched
from .choose import episodes_of, item_title, outcome_text
from .describe import footer, picture_params
from .html import jpeg_bytes, png_bytes
from .measured import concept_shares, episode_measures
from .panels import color_panel
from .robot import MAX_STATES, MOVES, EpisodeTrack, answer_text, episode_track
from .tokens import TokenIndex
from .words import display_texts, word_colors

if TYPE_CHECKING:
    from ..palette import SavedCut

TIMELINES = ("frame", "time")
"""Frames counted over all episodes, and seconds, one episode after the other with a second between them."""

GAP_SECS = 1.0


def save_recording(
    cut: SavedCut,
    path: Path | str,
    *,
    word_cut: SavedCut | None = None,
    sites: Sequence[str] | None = None,
    k: int | None = None,
    episodes: Sequence[int] | None = None,
) -> Path:
    """Write a .rrd file with a layout ("blueprint") of its own, and return its path.

    Args:
        cut: What to show.
        path: File to write; its name must end in .rrd.
        word_cut: A cut of the words alone, for their colours, see `vlascope.views.words`.
        sites: Sites whose colours are shown over the image; None takes the last one of the vision tower.
        k: Number of concepts whose shares are drawn; None takes the middle one of the cut.
        episodes: Which episodes; None takes all, and the images of a run without episodes as one sequence.

    Raises:
        MissingExtraError: the package rerun-sdk is not installed.
        InputError: another file name extension, an unknown site, k or episode, or no site has patches.
        StorageError: the file cannot be written.

    Cost: about 20 ms per frame and site.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise missing_extra("rerun-sdk", extra="rerun", needed_for="an export for Rerun") from error

    path = Path(path)
    if path.suffix.lower() != ".rrd":
        raise InputError(f"cannot save a recording as '{path.name}': the name must end in .rrd.")
    index = TokenIndex(cut)
    names = (index.default_site(),) if sites is None else tuple(index.check_site(s) for s in sites)
    for site in names:
        if not index.has_patches(site):
            raise InputError(f"site '{site}' has no image patches in this cut; choose a site with patches.")
    ks = sorted(cut.labels)
    k = ks[len(ks) // 2] if k is None else k
    if k not in cut.labels:
        raise InputError(f"the cut has no labels for K={k}; it holds K = {', '.join(map(str, ks))}.")
    writer = _Writer(rr, cut, index, word_cut=word_cut, sites=names, k=k)
    tracks = _tracks(cut, index.items_of(names[0]), episodes)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            writer.write(tracks, Path(part))
            os.chmod(part, 0o644)
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    return path


def _tracks(cut: SavedCut, held: list[int], episodes: Sequence[int] | None) -> list[EpisodeTrack]:
    found = episodes_of(cut.run)
    if not found:
        if episodes is not None:
            raise InputError("got episodes, but the items of this run belong to none.")
        return [episode_track(cut.run, episode=0, items=held)]
    wanted = list(found) if episodes is None else [int(e) for e in episodes]
    for number in wanted:
        if number not in found:
            names = ", ".join(map(str, found))
            raise InputError(f"episode {number} does not exist; the run holds episodes {names}.")
    inside = set(held)
    tracks = []
    for number in wanted:
        items = [i for i in found[number] if i in inside]
        if items:
            tracks.append(episode_track(cut.run, episode=number, items=items))
    if not tracks:
        raise InputError("no frame of these episodes is in the cut.")
    return tracks


class _Writer:
    """Logs one run into one recording."""

    def __init__(
        self,
        rr: Any,
        cut: SavedCut,
        index: TokenIndex,
        *,
        word_cut: SavedCut | None,
        sites: tuple[str, ...],
        k: int,
    ) -> None:
        from ..measure import saved

        self.rr, self.cut, self.run, self.index = rr, cut, cut.run, index
        self.sites, self.k = sites, k
        self.word_sites = index.word_sites()
        self.word_rgb = word_colors(cut, word_cut)
        self.findings = saved(self.run)
        self.params = picture_params(cut, view="rerun", sites=sites, k=k)
        self.plots: set[str] = set()
        self.cameras: dict[str, None] = {}
        self.stream: Any = None

    def write(self, tracks: Sequence[EpisodeTrack], path: Path) -> None:
        """Log everything and finish the file."""
        # The same run gives the same recording id, so that a second export replaces the first in an open viewer.
        key = str(self.run.info.get("content_sha256", self.run.path.name))
        self.stream = self.rr.RecordingStream(
            "vlascope", recording_id=f"vlascope-{key[:16]}", send_properties=False
        )
        self.stream.set_log_time_enabled(False)
        self.stream.set_log_tick_enabled(False)
        self.stream.save(str(path))
        self._log("about", self.rr.TextDocument(self._about(), media_type="text/markdown"), static=True)
        self._name_series()
        frame, clock = 0, 0.0
        for track in watched(tracks, desc="episodes", unit="episode"):
            seconds = self._seconds(track)
            self._log_measures(track, frame, clock + seconds)
            shares = concept_shares(self.index, track.items, site=self.sites[0], k=self.k)
            for number, item in enumerate(track.items):
                self._at(frame + number, clock + seconds[number])
                if number == 0:
                    self._log("log/episodes", self.rr.TextLog(self._episode_text(track), level="INFO"))
                self._log_item(track, number, item)
                self._log("concepts/share", self.rr.Scalars(shares[number].tolist()))
                self.plots.add("concepts")
            for name, step in track.events:
                if step in track.steps:
                    at = track.steps.index(step)
                    self._at(frame + at, clock + seconds[at])
                    self._log("log/events", self.rr.TextLog(f"{name} (step {step})", level="INFO"))
            frame, clock = frame + len(track.items), clock + seconds[-1] + GAP_SECS
        self.stream.send_blueprint(self._blueprint(), make_active=True, make_default=True)
        self.stream.flush()
        self.stream.disconnect()

    def _log(self, entity: str | tuple[str, ...], value: Any, *, static: bool = False) -> None:
        self.stream.log(self._path(entity), value, static=static)

    def _path(self, entity: str | tuple[str, ...]) -> str:
        """Return an entity's path; parts of a tuple may hold any characters (names of cameras, sites and actions)."""
        return entity if isinstance(entity, str) else self.rr.new_entity_path(list(entity))

    def _at(self, frame: int, secs: float) -> None:
        self.stream.set_time("frame", sequence=frame)
        self.stream.set_time("time", duration=float(secs))

    def _seconds(self, track: EpisodeTrack) -> np.ndarray:
        times = np.asarray(track.times, np.float64)
        if np.isfinite(times).all() and (np.diff(times) > 0).all():
            return times - times[0]
        return np.arange(len(track.items)) * 0.2

    def _about(self) -> str:
        lines = [f"# {self.params['model']}", "", footer(self.params), ""]
        lines += [f"- **{site}**: colours of the cut over the image" for site in self.sites]
        lines.append(f"- shares of concepts: K = {self.k} at {self.sites[0]}")
        return "\n".join(lines)

    def _episode_text(self, track: EpisodeTrack) -> str:
        ended = outcome_text(track.labels)
        outcome = f" — {ended}" if ended else ""
        name = f"episode {track.episode}" if self.run.items[track.items[0]].episode is not None else "images"
        return f"{name}: “{track.prompt}”{outcome}" if track.prompt else f"{name}{outcome}"

    def _name_series(self) -> None:
        colors = self.cut.cluster_colors(self.k).tolist()
        names = [f"concept {i + 1}" for i in range(self.k)]
        self._log("concepts/share", self.rr.SeriesLines(colors=colors, names=names), static=True)

    def _log_item(self, track: EpisodeTrack, number: int, item: int) -> None:
        rr, row = self.rr, self.run.items[item]
        for camera, name in enumerate(row.cameras):
            self.cameras.setdefault(name)
            image = self.run.image(item, camera)
            self._log(
                ("cameras", name, "image"),
                rr.EncodedImage(contents=jpeg_bytes(image), media_type="image/jpeg"),
            )
            for site in self.sites:
                grids = [g for g in self.index.patches(site, item) if g.camera == camera]
                if not grids:
                    continue
                wh = (image.shape[1], image.shape[0])
                colors = color_panel(self.cut.rgb, grids=grids, image_wh=wh, out_wh=wh)
                self._log(
                    ("cuts", site, name), rr.EncodedImage(contents=png_bytes(colors), media_type="image/png")
                )
        answer = answer_text(self.run, item)
        words = [f"“{row.prompt}”"] if row.prompt else []
        words += [f"model answers: `{answer.strip()}`"] if answer else []
        if words:
            text = "\n\n".join([f"**{item_title(self.run, item)}**", *words])
            self._log("words/said", rr.TextDocument(text, media_type="text/markdown"))
        self._log_words(item)
        moves, grip = track.moves_cm, track.gripper
        if moves is not None:
            for axis, name in enumerate(MOVES):
                self._scalar(("action", f"{name} (cm)"), moves[number, axis])
        elif track.action is not None:
            for name, value in zip(track.action_names, track.action[number], strict=True):
                self._scalar(("action", name), value)
        if moves is not None and grip is not None and np.isfinite(grip[number]):
            self._scalar(("gripper", "closed"), float(grip[number] > 0.5))
        if row.state is not None:
            names = vector_names(self.run.state_names, len(row.state))
            for name, value in zip(names[:MAX_STATES], row.state, strict=False):
                self._scalar(("state", name), value)

    def _scalar(self, entity: tuple[str, str], value: float) -> None:
        self.plots.add(entity[0])
        self._log(entity, self.rr.Scalars(float(value)))

    def _log_words(self, item: int) -> None:
        """Lay the words of every layer out in lines, in their colours."""
        places, labels, colors = [], [], []
        for line, site in enumerate(self.word_sites):
            found = self.index.words(site, item)
            x = 0.0
            for n, (text, _) in enumerate(display_texts(found)):
                places.append((x + 5.0 * len(text), 28.0 * line))
                labels.append(text)
                colors.append(self.word_rgb[found.index[n]].tolist())
                x += 10.0 * len(text) + 14.0
        if places:
            points = self.rr.Points2D(places, labels=labels, colors=colors, radii=4.0, show_labels=True)
            self._log("words/tokens", points)

    def _log_measures(self, track: EpisodeTrack, frame: int, clock: np.ndarray) -> None:
        found = episode_measures(self.findings, episode=track.episode, items=track.items, site=self.sites[0])
        if found.anomaly is not None:
            for number, value in enumerate(found.anomaly):
                if not np.isfinite(value):
                    continue
                self._at(frame + number, clock[number])
                self._scalar(("anomaly", "score"), value)
                if found.threshold is not None:
                    self._scalar(("anomaly", "threshold"), found.threshold)
        told = [
            (at, f"concepts change their course ({found.changes_site})", "INFO") for at in found.changes or ()
        ]
        if found.alarm is not None:
            told.append((found.alarm, f"first alarm ({found.anomaly_site})", "WARN"))
        for number, text, level in told:
            self._at(frame + number, clock[number])
            self._log("log/measures", self.rr.TextLog(text, level=level))

    def _blueprint(self) -> Any:
        import rerun.blueprint as rrb

        cameras = list(self.cameras)
        images = [
            rrb.Spatial2DView(
                origin=self._path(("cameras", name)), name="camera" if len(cameras) == 1 else name
            )
            for name in cameras
        ]
        images += [
            rrb.Spatial2DView(
                origin=self._path(("cuts", site, name)), name=site if len(cameras) == 1 else f"{site}, {name}"
            )
            for site in self.sites
            for name in cameras
        ]
        titles = {"action": "action", "gripper": "gripper", "state": "state", "anomaly": "anomaly score",
                  "concepts": f"shares of concepts, {self.sites[0]}"}  # fmt: skip
        plots = [
            rrb.TimeSeriesView(origin=name, name=title)
            for name, title in titles.items()
            if name in self.plots
        ]
        texts: list[Any] = [rrb.TextDocumentView(origin="words/said", name="said")]
        if self.word_sites:
            texts.append(rrb.Spatial2DView(origin="words/tokens", name="words by layer"))
        texts += [
            rrb.TextLogView(origin="log", name="events"),
            rrb.TextDocumentView(origin="about", name="about"),
        ]
        return rrb.Blueprint(
            rrb.Horizontal(
                rrb.Vertical(rrb.Grid(*images), rrb.Tabs(*texts), row_shares=[3, 1]),
                rrb.Vertical(*plots),
                column_shares=[3, 2],
            ),
            rrb.TimePanel(state="expanded", timeline="frame"),
            rrb.SelectionPanel(state="hidden"),
            rrb.BlueprintPanel(state="collapsed"),
        )
