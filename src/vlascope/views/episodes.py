"""The episodes of a report: their videos, time lines and facts, and the story of the one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..items.outcome import succeeded
from .chart import Chart, episode_chart
from .choose import camera_note, episodes_of, item_title, outcome_text
from .describe import count
from .measured import concept_shares, episode_measures
from .pack import PanelView, TokenPack, region_boxes
from .robot import MOVES, EpisodeTrack, action_pieces, answer_text, episode_track
from .story import Concepts, episode_concepts, held_spans, named_region, object_regions, region_title
from .style import css_color
from .video import video

if TYPE_CHECKING:
    from ..measure import Finding

_MASK = "segmentation"
_HOW = {"label": "known from the episode's label", "instruction": "read from the instruction"}


@dataclass(frozen=True, kw_only=True)
class EpisodeView:
    """An episode as the page shows it."""

    number: int
    title: str
    outcome: str
    failed: bool
    facts: tuple[tuple[str, str], ...]
    video: str | None
    poster: str | None
    video_fps: float
    video_wh: tuple[int, int]
    n_steps: int
    chart: Chart | None


@dataclass(frozen=True, kw_only=True)
class StoryView:
    """The failure with which the page begins."""

    episode: EpisodeView
    headline: str
    named: str | None
    named_title: str
    named_how: str
    frames: tuple[
        tuple[tuple[PanelView, ...], str, str], ...
    ]  # camera and colours of each, caption, what was done
    concepts: Concepts | None
    sentences: tuple[tuple[str | None, str], ...]  # colour of the concept that it speaks of, text


class EpisodeTeller:
    """Says what happened in the episodes of a cut.

    Args:
        pack: Collects the panels; gives the cut and its tokens.
        site: Site of the videos and of the key frames.
        k: Number of clusters of the story.
        colors: uint8 [k, 3], their colours.
        findings: What was measured about the run, see `vlascope.measure.saved`.
        shares_k: Number of clusters whose shares the time line shows; None takes `k`.
    """

    def __init__(
        self,
        pack: TokenPack,
        *,
        site: str,
        k: int,
        colors: NDArray[np.uint8],
        findings: Sequence[Finding] = (),
        shares_k: int | None = None,
    ) -> None:
        self.pack, self.index, self.cut, self.run = pack, pack.index, pack.cut, pack.cut.run
        self.site, self.k, self.colors = site, k, colors
        self.findings, self.shares_k = findings, shares_k or k
        self.share_colors = [css_color(tuple(c)) for c in self.cut.cluster_colors(self.shares_k).tolist()]

    def chart(self, track: EpisodeTrack) -> Chart | None:
        """Return the time line of an episode."""
        return episode_chart(
            track,
            shares=concept_shares(self.index, track.items, site=self.site, k=self.shares_k),
            share_colors=self.share_colors,
            measures=episode_measures(
                self.findings, episode=track.episode, items=track.items, site=self.site
            ),
        )

    def tracks(self) -> list[EpisodeTrack]:
        """Return all episodes, failures first."""
        held = set(self.index.items_of(self.site))
        tracks = []
        for number, items in episodes_of(self.run).items():
            inside = [i for i in items if i in held]
            if inside:
                tracks.append(episode_track(self.run, episode=number, items=inside))
        return sorted(tracks, key=lambda t: (succeeded(t.labels) is not False, t.episode))

    def views(self, tracks: Sequence[EpisodeTrack], *, n_videos: int) -> list[EpisodeView]:
        """Return the first `n_videos` episodes with their videos."""
        shown: list[EpisodeView] = []
        for track in tracks[: max(0, n_videos)]:
            clip = video(self.cut, episode=track.episode, site=self.site)
            shown.append(
                EpisodeView(
                    number=track.episode,
                    title=f"“{track.prompt}”" if track.prompt else f"Episode {track.episode}",
                    outcome=outcome_text(track.labels),
                    failed=succeeded(track.labels) is False,
                    facts=tuple(self._episode_facts(track)),
                    video=clip.data_uri(),
                    poster=clip.poster_uri(),
                    video_fps=clip.fps,
                    video_wh=(clip.width, clip.height),
                    n_steps=len(track.items),
                    chart=self.chart(track),
                )
            )
        return shown

    def _episode_facts(self, track: EpisodeTrack) -> list[tuple[str, str]]:
        n = len(track.items)
        duration = f", {track.times[-1]:.1f} s" if np.isfinite(track.times[-1]) else ""
        facts = [("Episode", f"{track.episode}, {count(n, 'step')}{duration}")]
        grip = track.gripper
        if grip is not None and np.isfinite(grip).any():
            when, n_unknown = np.flatnonzero(grip > 0.5), int((~np.isfinite(grip)).sum())
            text = f"first closed at step {track.steps[when[0]]}" if len(when) else "never closed"
            unknown = f"; unknown in {n_unknown}" if n_unknown else ""
            facts.append(("Gripper", f"{text}; closed in {len(when)} of {n} steps{unknown}"))
        if track.events:
            facts.append(("Events", ", ".join(f"{name} at step {step}" for name, step in track.events)))
        if any("holding" in self.run.items[i].labels for i in track.items):
            spans = held_spans(self.run, track.items, object_regions(self.run, track.items, mask=_MASK))
            held: dict[str, list[str]] = {}
            for name, first, last in spans:
                held.setdefault(region_title(name), []).append(
                    f"{first}–{last}" if last > first else f"{first}"
                )
            text = "; ".join(f"the {name} in steps {', '.join(steps)}" for name, steps in held.items())
            facts.append(("Held", text or "nothing at any step"))
        agreement = self._agreement(track)
        if agreement:
            facts.append(("Answers", agreement))
        for name, value in track.labels.items():
            is_shown = name.split("_")[0] not in (
                "success",
                "failure",
                "outcome",
                "target",
                "scene",
                "sim",
                "event",
            )
            if is_shown and isinstance(value, str) and 0 < len(value) <= 40 and not name.startswith("event."):
                facts.append((name.replace("_", " ").capitalize(), value.replace("_", " ")))
        return facts

    def _agreement(self, track: EpisodeTrack) -> str:
        """Say whether the answers captured now are the actions of the recording."""
        answers = [self.run.response(i) for i in track.items]
        vectors = [a.action for a in answers if a is not None and a.action is not None]
        if track.source != "recorded" or track.action is None or len(vectors) != len(track.items):
            return ""
        said = np.stack(vectors)
        if said.shape != track.action.shape:
            return ""
        gap = np.abs(said - track.action)
        same = gap.max(axis=1) < 1e-4
        text = f"given these frames again, the model answers the recorded action in {same.sum()} of {len(same)} steps"
        moves = [i for i, name in enumerate(track.action_names) if name in MOVES]
        told = gap[:, moves][np.isfinite(gap[:, moves])]
        if not same.all() and len(told):
            largest = 100 * told.max()
            text += f"; elsewhere its move differs by up to {largest:.1f} cm (the frames are stored as video)"
        return text

    def story(self, tracks: Sequence[EpisodeTrack], episodes: Sequence[EpisodeView]) -> StoryView | None:
        """Return the story of the first failure; None where nothing failed or no episode says how it ended."""
        if not tracks or succeeded(tracks[0].labels) is not False:
            return None
        track = tracks[0]
        view = next((e for e in episodes if e.number == track.episode), None)
        if view is None:  # no videos were asked for
            known = tuple(self._episode_facts(track))
            view = EpisodeView(
                number=track.episode,
                title=f"“{track.prompt}”" if track.prompt else f"Episode {track.episode}",
                outcome=outcome_text(track.labels),
                failed=True,
                facts=known,
                video=None,
                poster=None,
                video_fps=1.0,
                video_wh=(16, 9),
                n_steps=len(track.items),
                chart=self.chart(track),
            )
        regions = object_regions(self.run, track.items, mask=_MASK)
        named, how = named_region(track.prompt, track.labels, regions)
        others = tuple(r for r in regions if r != named)
        concepts = None
        if named is not None:
            concepts = episode_concepts(
                self.index,
                track.items,
                named=named,
                others=others,
                k=self.k,
                sites=self.index.patch_sites(),
                mask=_MASK,
            )
        return StoryView(
            episode=view,
            headline=f"{view.title} — {view.outcome}",
            named=named,
            named_title=region_title(named) if named else "",
            named_how=_HOW.get(how, ""),
            frames=tuple(self._key_frames(track, named=named, others=others)),
            concepts=concepts,
            sentences=tuple(self._sentences(concepts)),
        )

    def _key_frames(
        self, track: EpisodeTrack, *, named: str | None, others: Sequence[str]
    ) -> list[tuple[tuple[PanelView, ...], str, str]]:
        """Return the first frame, those of the events and the last: five at most."""
        wanted = {0: "start", len(track.items) - 1: "end"}
        for name, step in track.events:
            if step in track.steps:
                number = track.steps.index(step)
                wanted[number] = f"{wanted[number]}, {name}" if number in wanted else name
        if len(wanted) == 2 and track.gripper_closed is not None and track.gripper_closed.any():
            wanted.setdefault(int(np.flatnonzero(track.gripper_closed)[0]), "gripper closes")
        numbers = sorted(wanted)
        numbers = [numbers[0], *numbers[1:-1][:3], numbers[-1]] if len(numbers) > 1 else numbers
        frames = []
        for number in numbers:
            item = track.items[number]
            boxes = region_boxes(self.cut, item, named=named, others=others, mask=_MASK) if named else []
            panels = []
            cameras = self.index.cameras(self.site, item) or [0]
            for camera in cameras:
                which = camera_note(self.run, item, camera, shown=cameras)
                name = f"{item_title(self.run, item)}, {which}" if which else item_title(self.run, item)
                panels += [
                    self.pack.panel(  # masks, and so boxes, are those of the first camera
                        item,
                        site=None,
                        camera=camera,
                        label=f"camera, {name}",
                        boxes=boxes if camera == 0 else [],
                    ),
                    self.pack.panel(
                        item,
                        site=self.site,
                        camera=camera,
                        label=f"concept colours, {name}",
                        where=f"{self.site} · {name}",
                    ),
                ]
            done = "  ".join(action_pieces(track, number)) or (answer_text(self.run, item) or "")
            frames.append((tuple(panels), f"{wanted[number]} · step {track.steps[number]}", done))
        return frames

    def _sentences(self, concepts: Concepts | None) -> list[tuple[str | None, str]]:
        if concepts is None:
            return []
        lines: list[tuple[str | None, str]] = []
        for site in dict.fromkeys([self.site, concepts.layers[-1].site]):
            layer = next(entry for entry in concepts.layers if entry.site == site)
            own = layer.regions[concepts.named]
            if not own.shares:
                lines.append(
                    (
                        None,
                        f"At {site} no patch lies at least half inside the {region_title(concepts.named)}.",
                    )
                )
                continue
            cluster, share = own.shares[0]
            color = css_color(tuple(self.colors[cluster].tolist()))
            text = (
                f"At {site} the {region_title(concepts.named)} is mostly concept {cluster + 1} of {concepts.k} "
                f"({100 * share:.0f} % of its {own.n_patches} patches over all frames)."
            )
            lines.append((color, text))
        apart, mixed = concepts.told_apart()
        if apart or mixed:
            text = (
                f"It shares less than half of its concepts with every other object at {len(apart)} of "
                f"{len(apart) + len(mixed)} layers" + (f"; not at {', '.join(mixed)}." if mixed else ".")
            )
            lines.append((None, text))
        return lines
