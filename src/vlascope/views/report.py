"""The report: one offline HTML page that begins with what was run and, where a robot failed, with the failure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..errors import InputError, StorageError
from ..files import write_text
from .chart import Chart, episode_chart
from .choose import choose_items, episodes_of, item_note, item_title, outcome_text
from .describe import footer, health_value, model_name, model_revision, picture_params, sampled_share
from .grid import split_names
from .html import asset, render
from .pack import PanelView, TokenPack, region_boxes
from .picture import params_json
from .robot import MOVES, EpisodeTrack, action_pieces, answer_text, episode_track
from .story import Concepts, episode_concepts, held_spans, named_region, object_regions, region_title
from .style import css_color
from .tokens import TokenIndex
from .video import video
from .words import WordBlock, word_block

if TYPE_CHECKING:
    from ..measure import OverlapResult
    from ..runs import Run
    from ..spectral.cut import CutResult

MAX_BYTES = 25_000_000
"""Largest page: it still opens at once and can be sent by mail."""

MAX_GRID_ROWS = 6
"""Rows of the summary grid; the layer strip shows all chosen items."""

_VIDEO_SHARE, _VECTOR_SHARE = 0.5, 0.3
_MASK = "segmentation"
_HOW = {"label": "known from the episode's label", "instruction": "read from the instruction"}


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        html: The whole page; it needs nothing from outside.
        title: Plain text.
        params: What it shows and how that was computed.
        warnings: The warnings that the page shows.
    """

    html: str
    title: str
    params: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def save(self, path: Path | str) -> Path:
        """Write the page to `path` (.html) and return it.

        Raises:
            InputError: another file name extension.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"cannot save a report as '{path.name}': the name must end in .html.")
        return write_text(path, self.html)

    def _repr_html_(self) -> str:
        import html

        return f'<iframe style="width:100%;height:80vh;border:0" srcdoc="{html.escape(self.html)}"></iframe>'

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {len(self.html) / 1e6:.1f} MB)"


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
    frames: tuple[tuple[PanelView, PanelView, str, str], ...]  # camera, overlay, caption, what was done
    concepts: Concepts | None
    sentences: tuple[tuple[str | None, str], ...]  # colour of the concept that it speaks of, text


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of panels: the grid and the strip."""

    title: str
    note: str
    panels: tuple[PanelView, ...]


def find_cut(run: Run) -> CutResult | None:
    """Return the saved cut of a run with the most sites (of equals the newest); None when there is none.

    Raises:
        StorageError: the run's folder cannot be read.
    """
    from ..spectral.cut import CutResult

    folder = run.path / "derived"
    try:
        found = [p for p in folder.glob("cut-*") if (p / "params.json").is_file()] if folder.is_dir() else []
    except OSError as error:
        raise StorageError(f"cannot read '{folder}': {error}.") from error
    best: tuple[int, float, str] | None = None
    for path in found:
        n_sites = len(json.loads((path / "params.json").read_text(encoding="utf-8")).get("sites", ()))
        key = (n_sites, (path / "params.json").stat().st_mtime, path.name)
        best = max(best, key) if best else key
    if best is None:
        return None
    return CutResult.load(folder / best[2], run=run)


def report(
    cut: CutResult,
    *,
    site: str | None = None,
    k: int | None = None,
    n_items: int = 12,
    n_videos: int = 4,
    seed: int = 0,
) -> Report:
    """Return the report on a cut and the run that it belongs to.

    Args:
        cut: What to show.
        site: Site of the grid and the videos; None takes the last one of the vision tower.
        k: Number of clusters of the story and the measures; None takes the middle one of the cut.
        n_items: At most so many images or frames in the pictures.
        n_videos: At most so many episodes as videos, failures first.
        seed: Seed of the measures.

    Raises:
        SiteNotFoundError: the cut does not hold `site`.
        InputError: `k` is not in the cut, or no site has patches.
    """
    return _Builder(cut, site=site, k=k, n_items=n_items, n_videos=n_videos, seed=seed).build()


class _Builder:
    """Collects the sections of one report."""

    def __init__(
        self, cut: CutResult, *, site: str | None, k: int | None, n_items: int, n_videos: int, seed: int
    ) -> None:
        if n_items < 1:
            raise InputError(f"n_items is {n_items}; a report needs at least 1.")
        self.cut, self.run = cut, cut.run
        self.index = TokenIndex(cut)
        self.site = self.index.default_site() if site is None else self.index.check_site(site)
        if not self.index.has_patches(self.site):
            raise InputError(
                f"site '{self.site}' has no image patches in this cut; choose a site with patches."
            )
        self.ks = sorted(cut.labels)
        self.k = self.ks[len(self.ks) // 2] if k is None else k
        if self.k not in cut.labels:
            held = ", ".join(map(str, self.ks))
            raise InputError(f"the cut has no labels for K={self.k}; it holds K = {held}.")
        self.n_videos, self.seed = n_videos, seed
        self.pack = TokenPack(self.index)
        self.items = choose_items(self.run, n=n_items, among=self.index.items_of(self.site))
        self.warnings: list[str] = []
        self.colors = {k: cut.cluster_colors(k) for k in self.ks}
        self.params = picture_params(
            cut, view="report", sites=cut.sites, site=self.site, k=self.k, items=self.items
        )

    def build(self) -> Report:
        """Return the finished page."""
        tracks = self._tracks()
        episodes = self._episodes(tracks)
        story = self._story(tracks, episodes)
        told = story.episode.number if story else None
        grid_rows, strip_rows = self._grid_rows(), self._strip_rows()
        words = self._words()
        overlap = self._overlap()
        self._warn_about_run()
        title = f"{model_name(self.run)} on {self._data_name()}"
        data = self.pack.data(ks=self.ks, max_bytes=int(MAX_BYTES * _VECTOR_SHARE))
        if data is None:
            self.warnings.append(
                "This page shows too many tokens to carry their eigenvectors: clicking for similarity is off. "
                "Make the report with fewer items to have it."
            )
        groups, columns = split_names(self.index.patch_sites())
        html = render(
            "report.html.j2",
            title=title,
            version=__version__,
            base_css=asset("base.css"),
            report_css=asset("report.css"),
            script=asset("report.js"),
            params=params_json(self.params),
            facts=self._facts(),
            story=story,
            episodes=[e for e in episodes if e.number != told],
            n_other_episodes=len(tracks) - len(episodes),
            site=self.site,
            k=self.k,
            ks=self.ks,
            colors={k: [css_color(tuple(c)) for c in v.tolist()] for k, v in self.colors.items()},
            grid_rows=grid_rows,
            strip_rows=strip_rows,
            strip_columns=columns,
            strip_groups=_spans(groups),
            words=words,
            overlap=overlap,
            overlap_rows=sorted(overlap.by_name().items()) if overlap else [],
            warnings=self.warnings,
            commands=self._commands(),
            images=self.pack.images,
            data=data,
            footer=footer(self.params),
        )
        if len(html.encode()) > MAX_BYTES:
            raise InputError(
                f"the report would be {len(html.encode()) / 1e6:.0f} MB; a page has at most {MAX_BYTES / 1e6:.0f} MB. "
                "Show fewer items (n_items) or videos (n_videos), or cut fewer sites."
            )
        return Report(html=html, title=title, params=self.params, warnings=tuple(self.warnings))

    # ---- what was run -------------------------------------------------------------------------------------

    def _data_name(self) -> str:
        items = self.run.config.get("items", {})
        name = items.get("name") if isinstance(items, Mapping) else None
        return str(name or f"{self.run.n_items} items")

    def _facts(self) -> list[tuple[str, str]]:
        run, cut = self.run, self.cut
        config = run.config.get("model", {})
        details = [
            str(config[key])
            for key in ("family", "dtype", "device")
            if isinstance(config, Mapping) and config.get(key)
        ]
        revision = model_revision(run)
        n_episodes = len(episodes_of(run))
        data = f"{run.n_items} {'frames of ' + _count(n_episodes, 'episode') if n_episodes else 'images'}"
        share = sampled_share(cut)
        method = [f"NCut, {cut.eigvecs.shape[1]} eigenvectors"]
        method += [
            f"{n} {cut.params[n]}" for n in ("affinity", "density", "seed") if cut.params.get(n) is not None
        ]
        if len(cut.sites) > 1:
            method.insert(1, f"joint over {len(cut.sites)} sites")
        tokens = f"{len(cut.rgb):,}" + (
            f", {100 * share:.3g} % sampled as landmarks" if share is not None else ""
        )
        return [
            (
                "Model",
                " · ".join([model_name(run), *details, *([f"revision {revision[:12]}"] if revision else [])]),
            ),
            ("Data", f"{self._data_name()}: {data}"),
            ("Sites", f"{', '.join(cut.sites) if len(cut.sites) <= 6 else _first_last(cut.sites)}"),
            ("Tokens", tokens),
            ("Method", " · ".join(method)),
        ]

    def _commands(self) -> list[str]:
        cut, run = self.cut, self.run
        recorded = run.info.get("command")
        if isinstance(recorded, str):
            commands = [recorded]
        elif recorded:
            commands = [shlex.join([str(word) for word in recorded])]
        else:
            commands = [f"# captured from Python: vs.capture(...), see {run.path.name}/config.json"]
        words = ["vlascope", "cut", str(run.path), "--site", *cut.sites, "--k", *map(str, cut.labels)]
        for key, flag in (
            ("n_eig", "--n-eig"),
            ("density", "--density"),
            ("color", "--color"),
            ("seed", "--seed"),
        ):
            if cut.params.get(key) is not None:
                words += [flag, str(cut.params[key])]
        return [*commands, shlex.join(words), shlex.join(["vlascope", "report", str(run.path)])]

    # ---- episodes -----------------------------------------------------------------------------------------

    def _tracks(self) -> list[EpisodeTrack]:
        """Return all episodes, failures first."""
        held = set(self.index.items_of(self.site))
        tracks = []
        for number, items in episodes_of(self.run).items():
            inside = [i for i in items if i in held]
            if inside:
                tracks.append(episode_track(self.run, episode=number, items=inside))
        return sorted(tracks, key=lambda t: (t.labels.get("success") is not False, t.episode))

    def _episodes(self, tracks: Sequence[EpisodeTrack]) -> list[EpisodeView]:
        budget = MAX_BYTES * _VIDEO_SHARE
        shown: list[EpisodeView] = []
        for track in tracks[: max(0, self.n_videos)]:
            clip = video(self.cut, episode=track.episode, site=self.site)
            size = len(clip.data) * 4 / 3
            uri = clip.data_uri() if size <= budget else None
            if uri is None:
                self.warnings.append(
                    f"The video of episode {track.episode} is left out: the page would be too large."
                )
            else:
                budget -= size
            known = track.labels.get("success") is not None
            shown.append(
                EpisodeView(
                    number=track.episode,
                    title=f"“{track.prompt}”" if track.prompt else f"Episode {track.episode}",
                    outcome=outcome_text(track.labels) if known else "",
                    failed=track.labels.get("success") is False,
                    facts=tuple(self._episode_facts(track)),
                    video=uri,
                    poster=clip.poster_uri(),
                    video_fps=clip.fps,
                    video_wh=(clip.width, clip.height),
                    n_steps=len(track.items),
                    chart=episode_chart(track),
                )
            )
        return shown

    def _episode_facts(self, track: EpisodeTrack) -> list[tuple[str, str]]:
        n = len(track.items)
        duration = f", {track.times[-1]:.1f} s" if np.isfinite(track.times[-1]) else ""
        facts = [("Episode", f"{track.episode}, {_count(n, 'step')}{duration}")]
        closed = track.gripper_closed
        if closed is not None:
            when = np.flatnonzero(closed)
            text = f"first closed at step {track.steps[when[0]]}" if len(when) else "never closed"
            facts.append(("Gripper", f"{text}; closed in {len(when)} of {n} steps"))
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
        if not same.all() and moves:
            largest = 100 * gap[:, moves].max()
            text += f"; elsewhere its move differs by up to {largest:.1f} cm (the frames are stored as video)"
        return text

    # ---- the failure --------------------------------------------------------------------------------------

    def _story(self, tracks: Sequence[EpisodeTrack], episodes: Sequence[EpisodeView]) -> StoryView | None:
        if not tracks or tracks[0].labels.get("success") is not False:
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
                chart=episode_chart(track),
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
    ) -> list[tuple[PanelView, PanelView, str, str]]:
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
            camera = self.pack.panel(
                item, site=None, label=f"camera, {item_title(self.run, item)}", boxes=boxes
            )
            colors = self.pack.panel(
                item,
                site=self.site,
                label=f"concept colours, {item_title(self.run, item)}",
                where=f"{self.site} · {item_title(self.run, item)}",
            )
            done = "  ".join(action_pieces(track, number)) or (answer_text(self.run, item) or "")
            frames.append((camera, colors, f"{wanted[number]} · step {track.steps[number]}", done))
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
            color = css_color(tuple(self.colors[concepts.k][cluster].tolist()))
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

    # ---- pictures -----------------------------------------------------------------------------------------

    def _grid_rows(self) -> list[Row]:
        rows = []
        per_k = [(f"K = {k}", self.colors[k][self.cut.labels[k]]) for k in self.ks]
        for item in choose_items(self.run, n=MAX_GRID_ROWS, among=self.items):
            name = item_title(self.run, item)
            where = f"{self.site} · {name}"
            panels = [self.pack.panel(item, site=None, label=f"input, {name}")]
            panels += [
                self.pack.panel(item, site=self.site, rgb_n3=rgb, label=f"{label}, {name}", where=where)
                for label, rgb in [*per_k, ("continuous", self.cut.rgb)]
            ]
            rows.append(Row(title=name, note=item_note(self.run, item), panels=tuple(panels)))
        return rows

    def _strip_rows(self) -> list[Row]:
        rows = []
        for item in self.items:
            name = item_title(self.run, item)
            panels = [self.pack.panel(item, site=None, label=f"input, {name}")]
            panels += [
                self.pack.panel(item, site=s, label=f"{s}, {name}", where=f"{s} · {name}")
                for s in self.index.patch_sites()
            ]
            rows.append(
                Row(title=name, note=item_note(self.run, item, with_prompt=False), panels=tuple(panels))
            )
        return rows

    def _words(self) -> list[WordBlock]:
        sites = self.index.word_sites()
        if not sites:
            return []
        chosen = choose_items(self.run, n=4, among=self.items)
        return [word_block(self.index, i, sites=sites, token_of=self.pack.word) for i in chosen]

    # ---- numbers ------------------------------------------------------------------------------------------

    def _overlap(self) -> OverlapResult | None:
        """Return the overlap with the masks; None where the run has none."""
        from ..measure import best_overlap

        if not any(_MASK in row.mask_names for row in self.run.items):
            return None
        return best_overlap(self.run, self.cut, site=self.site, k=self.k, seed=self.seed)

    def _warn_about_run(self) -> None:
        run, cut = self.run, self.cut
        n_failed = int(run.info.get("n_failed") or 0)
        if n_failed:
            self.warnings.append(
                f"{_count(n_failed, 'item')} could not be read and {'is' if n_failed == 1 else 'are'} missing here; "
                "see failures.jsonl in the run."
            )
        self.warnings += [str(note) for note in health_value(cut, "notes") or ()]
        flagged = [r for r in run.responses if r.flags]
        if flagged:
            flags = sorted({flag for r in flagged for flag in r.flags})
            self.warnings.append(
                f"{_count(len(flagged), 'answer')} of the model carry a flag: {'; '.join(flags)}."
            )
        plain = []
        for item in self.items:
            rows = [g.index_rc[g.index_rc >= 0] for g in self.index.patches(self.site, item)]
            labels = cut.labels[self.k][np.concatenate(rows)] if rows else np.zeros(0)
            if len(np.unique(labels)) == 1:
                plain.append(item_title(run, item))
        if plain:
            self.warnings.append(
                f"No structure at {self.site}: all patches are one concept (K = {self.k}) in {', '.join(plain)}."
            )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _first_last(sites: Sequence[str]) -> str:
    groups, _ = split_names(sites)
    parts = []
    for name, n in _spans(groups):
        members = [s for s, g in zip(sites, groups, strict=True) if g == name]
        parts.append(members[0] if n == 1 else f"{members[0]} … {members[-1]}")
    return ", ".join(parts)


def _spans(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return (name, length) of every stretch of equal neighbours."""
    spans: list[tuple[str, int]] = []
    for name in names:
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1] + 1)
        else:
            spans.append((name, 1))
    return spans
